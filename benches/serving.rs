//! The engine under load: tokens a second with several requests at a time, and what a long prompt does to the others.
//!
//! `cargo bench --bench serving` runs the demo's models on every backend; `-- cpu` one backend; `-- BASE EXPERT
//! ANTI-EXPERT` directories; numbers are requests at a time. Each place takes one request after the other, so slots are
//! refilled as they come free. The numbers take turns, because machines are noisy; medians count.

mod common;

use proxytune::engine::event::Event;
use proxytune::engine::handle::{Engine, Handle};
use proxytune::engine::options::{BackendChoice, DEFAULT_PREFILL_ROWS, EngineOptions};
use proxytune::engine::request::{Draft, Request, Sampling};
use proxytune::engine::scheduler::TenantId;
use proxytune::engine::trio::Trio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const RUNS: usize = 3;
/// Requests that follow each other in one place.
const ROUNDS: usize = 2;
const PROMPT: usize = 32;
const TOKENS: u32 = 48;
/// The long prompt, and those that decode beside it.
const LONG_PROMPT: usize = 4096;
const BESIDE: usize = 8;

fn main() {
    let args = common::Args::parse(&[1, 8, 32]);
    let trio = Arc::new(Trio::open(&args.sources(), &[]).expect("the models open"));
    for (name, backend) in [("cpu", BackendChoice::Cpu), ("wgpu", BackendChoice::Wgpu)] {
        if args.wants(name) {
            throughput(&trio, backend, &args.batches);
            long_prompt(&trio, backend);
        }
    }
}

fn throughput(trio: &Arc<Trio>, backend: BackendChoice, concurrent: &[usize]) {
    let most = concurrent.iter().copied().max().unwrap_or(1);
    let engine = start(trio, backend, most, PROMPT + TOKENS as usize);
    let mut rates = vec![Vec::new(); concurrent.len()];
    for _ in 0..RUNS {
        for (&concurrent, rates) in concurrent.iter().zip(&mut rates) {
            rates.push(tokens_per_second(trio, &engine, concurrent));
        }
    }
    println!("{}: prompts of {PROMPT} tokens, responses of {TOKENS}", engine.device());
    println!("\n| requests at a time | tok/s | over the first |\n|---|---|---|");
    let rates: Vec<f64> = rates.into_iter().map(median).collect();
    for (concurrent, rate) in concurrent.iter().zip(&rates) {
        println!("| {concurrent} | {rate:.1} | {:.2} |", rate / rates[0]);
    }
}

/// Tokens of all responses over the time until the last, with `concurrent` requests in flight.
fn tokens_per_second(trio: &Arc<Trio>, engine: &Handle, concurrent: usize) -> f64 {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..concurrent {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let request = request(trio, PROMPT, TOKENS);
                    engine.generate(request).expect("room in the queue").into_iter().for_each(drop);
                }
            });
        }
    });
    (concurrent * ROUNDS * TOKENS as usize) as f64 / begin.elapsed().as_secs_f64()
}

/// Times between tokens of requests that decode, without and with a long prompt that comes in beside them.
fn long_prompt(trio: &Arc<Trio>, backend: BackendChoice) {
    let longest = trio.checkpoints().iter().map(|checkpoint| checkpoint.config.max_positions).min().unwrap_or(0);
    let n_prompt = LONG_PROMPT.min(longest - 2);
    let engine = start(trio, backend, BESIDE + 1, n_prompt + 2);
    println!("\n{BESIDE} requests decode beside a prompt of {n_prompt} tokens, {} a step", DEFAULT_PREFILL_ROWS);
    println!("\n| | p50 ms between tokens | p99 | longest | ms of the prompt |\n|---|---|---|---|---|");
    for beside in [false, true] {
        let stop = AtomicUsize::new(0);
        let (mut gaps, prompt_ms) = std::thread::scope(|scope| {
            let decoding: Vec<_> = (0..BESIDE)
                .map(|_| {
                    let (engine, stop) = (&engine, &stop);
                    scope.spawn(move || gaps(engine.generate(request(trio, 8, 512)).expect("room"), stop))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(500));
            let begin = Instant::now();
            if beside {
                engine.generate(request(trio, n_prompt, 1)).expect("room").into_iter().for_each(drop);
            } else {
                std::thread::sleep(Duration::from_secs(5));
            }
            let elapsed = 1e3 * begin.elapsed().as_secs_f64();
            stop.store(1, Ordering::Relaxed);
            let gaps: Vec<f64> = decoding.into_iter().flat_map(|thread| thread.join().expect("a reader")).collect();
            (gaps, elapsed)
        });
        gaps.sort_by(f64::total_cmp);
        let at = |share: f64| gaps[((gaps.len() - 1) as f64 * share) as usize];
        let (name, prompt_ms) = if beside { ("beside it", format!("{prompt_ms:.0}")) } else { ("alone", "-".into()) };
        println!("| {name} | {:.1} | {:.1} | {:.1} | {prompt_ms} |", at(0.5), at(0.99), at(1.0));
    }
}

/// Milliseconds between the tokens of a stream, until told to stop; dropping the stream cancels the rest.
fn gaps(events: impl IntoIterator<Item = Event>, stop: &AtomicUsize) -> Vec<f64> {
    let (mut last, mut gaps): (Option<Instant>, Vec<f64>) = (None, Vec::new());
    for event in events {
        if stop.load(Ordering::Relaxed) == 1 {
            break;
        }
        if let Event::Token { .. } = event {
            let now = Instant::now();
            gaps.extend(last.replace(now).map(|last| 1e3 * (now - last).as_secs_f64()));
        }
    }
    gaps
}

fn start(trio: &Arc<Trio>, backend: BackendChoice, n_slots: usize, max_model_len: usize) -> Handle {
    let options = EngineOptions { backend, n_slots, max_model_len, ..EngineOptions::default() };
    Engine::start(trio.clone(), options).expect("the engine starts")
}

/// A request of a tenant of its own, who finds no prompt computed.
fn request(trio: &Trio, n_prompt: usize, max_tokens: u32) -> Request {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let n_ids = trio.vocabulary().n_ids;
    let prompt: Vec<u32> = (0..n_prompt).map(|at| ((at * 31 + number * 17 + 5) % (n_ids / 2)) as u32).collect();
    let sampling = Sampling { max_tokens, ignore_eos: true, ..Sampling::default() };
    let tenant = TenantId(number as u64);
    let draft = Draft { prompts: [prompt.clone(), prompt.clone(), prompt], sampling, tenant, ..Draft::default() };
    Request::new(draft, &trio.limits()).expect("within the limits")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
