//! Many requests at once on the demo trio: each as if alone, whatever comes and goes beside it.

mod equality;
mod faults;
mod handles;
mod lifetimes;
mod workload;

use proxytune::checkpoint::Source;
use proxytune::engine::{BackendChoice, Completion, Draft, Engine, EngineOptions, Event, EventStream};
use proxytune::engine::{Handle, Request, Trio, TrioSources};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The demo trio, opened once.
fn trio() -> &'static Arc<Trio> {
    static TRIO: OnceLock<Arc<Trio>> = OnceLock::new();
    TRIO.get_or_init(|| {
        let source = |role: &str| Source::directory(format!("{}/demo/{role}", env!("CARGO_MANIFEST_DIR")));
        let (expert, anti_expert) = (Some(source("expert")), Some(source("anti-expert")));
        let sources = TrioSources { base: source("base"), expert, anti_expert };
        Arc::new(Trio::open(&sources, &[]).expect("the demo trio opens"))
    })
}

fn start(options: EngineOptions) -> Handle {
    Engine::start(trio().clone(), options).expect("the engine starts")
}

/// An engine on the CPU with `n_slots` slots for what `drafts` ask for.
fn on_cpu(n_slots: usize, drafts: &[Draft]) -> EngineOptions {
    EngineOptions { backend: BackendChoice::Cpu, n_slots, ..EngineOptions::sized_for(drafts) }
}

fn request(draft: &Draft) -> Request {
    Request::new(draft.clone(), &trio().limits()).expect("it is within the limits")
}

/// What a reader has of one sample, checked as it comes: the tokens are the completion's, and nothing follows the end.
#[derive(Default)]
struct Sample {
    ids: Vec<u32>,
    text: String,
    completion: Option<Completion>,
}

impl Sample {
    fn take(&mut self, event: Event) {
        assert!(self.completion.is_none(), "an event after the end");
        match event {
            Event::Token { id, text, .. } => {
                self.ids.push(id);
                self.text.push_str(&text);
            }
            Event::Done { completion, .. } => {
                assert_eq!(self.ids, completion.token_ids);
                assert!(completion.text.starts_with(&self.text), "{:?} begins {:?}", self.text, completion.text);
                self.completion = Some(*completion);
            }
        }
    }
}

/// Reads a stream of `n` samples to its end.
fn read(events: EventStream, n: u32) -> Vec<Completion> {
    let mut samples: BTreeMap<usize, Sample> = BTreeMap::new();
    for event in events {
        let (Event::Token { sample, .. } | Event::Done { sample, .. }) = event;
        samples.entry(sample).or_default().take(event);
    }
    assert!(samples.keys().copied().eq(0..n as usize), "every sample has events");
    samples.into_values().map(|sample| sample.completion.expect("every sample ends")).collect()
}

/// Runs a request with nothing beside it.
fn alone(engine: &Handle, draft: &Draft) -> Vec<Completion> {
    read(engine.generate(request(draft)).expect("it runs"), draft.n)
}

/// Waits for what other threads do in their own time; a minute is for ever.
fn until(what: &str, is_true: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: it never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until the engine holds nothing for anybody.
fn until_empty(engine: &Handle) {
    until("nothing waits, runs or is held", || {
        let counts = engine.counts();
        counts.waiting + counts.running + counts.held == 0
    });
}
