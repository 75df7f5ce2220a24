//! The trio against its base: milliseconds per token of plain and proxy-tuned decoding, side by side in one run.
//!
//! `cargo bench --bench decode` runs the demo's models; `cargo bench --bench decode -- BASE EXPERT ANTI-EXPERT` runs
//! directories. Medians over interleaved runs, because machines are noisy. The floor is the ratio of bytes: the three
//! models' weights over the base's.

use proxytune::checkpoint::Source;
use proxytune::cli::demo;
use proxytune::engine::event::Event;
use proxytune::engine::request::{Request, Sampling};
use proxytune::engine::trio::{Trio, TrioSources};
use proxytune::engine::worker::{BackendChoice, EngineOptions, Handle};
use std::sync::Arc;

const RUNS: usize = 5;
const TOKENS: u32 = 64;

fn main() {
    let dirs: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let sources = match dirs.as_slice() {
        [base, expert, anti] => {
            let [base, expert, anti] = [base, expert, anti].map(Source::directory);
            TrioSources { base, expert: Some(expert), anti_expert: Some(anti) }
        }
        _ => demo::sources(),
    };
    let trio = Arc::new(Trio::open(&sources, &[]).expect("the models open"));
    let bytes = |member: usize| -> usize { trio.checkpoints()[member].tensors().map(|(_, t)| t.n_bytes).sum() };
    let total: usize = (0..trio.checkpoints().len()).map(bytes).sum();
    println!("floor (bytes of the three over the base's): {:.2}\n", total as f64 / bytes(0) as f64);
    println!("| backend | batch | base ms/step | trio ms/step | ratio | trio tok/s |");
    println!("|---|---|---|---|---|---|");
    for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
        for batch in [1, 4, 16] {
            compare(&trio, backend, batch);
        }
    }
}

fn compare(trio: &Arc<Trio>, backend: BackendChoice, batch: usize) {
    let prompt = trio.tokenizers()[0].encode_raw("Where was").expect("a short prompt encodes");
    let requests = |alpha: f32| {
        let sampling = Sampling { alpha, max_tokens: TOKENS, ignore_eos: true, ..Sampling::default() };
        vec![
            Request { prompts: [prompt.clone(), prompt.clone(), prompt.clone()], sampling, ..Request::default() };
            batch
        ]
    };
    let options = EngineOptions { backend, ..EngineOptions::sized_for(&requests(1.0)) };
    let engine = Handle::start(trio.clone(), options).expect("the engine starts");
    // alpha 0 computes the base alone.
    let (mut base, mut trio) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        base.push(ms_per_step(&engine, requests(0.0)));
        trio.push(ms_per_step(&engine, requests(1.0)));
    }
    let (base, trio) = (median(base), median(trio));
    let name = engine.device();
    println!("| {name} | {batch} | {base:.3} | {trio:.3} | {:.2} | {:.0} |", trio / base, 1e3 * batch as f64 / trio);
}

fn ms_per_step(engine: &Handle, requests: Vec<Request>) -> f64 {
    let done = engine.submit(requests).expect("valid requests").filter_map(|event| match event {
        Event::Done { completion, .. } => Some(completion.timings),
        Event::Token { .. } => None,
    });
    let slowest = done.map(|timings| timings.predicted_ms).fold(0.0, f64::max);
    slowest / f64::from(TOKENS - 1)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
