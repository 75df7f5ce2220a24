//! The trio against its base: milliseconds per step of plain and proxy-tuned decoding at several batches, and the rate of
//! a prompt, side by side in one run.
//!
//! `cargo bench --bench decode` runs the demo's models on every backend; `-- cpu` one backend; `-- 8 32` these batches;
//! `-- BASE EXPERT ANTI-EXPERT` directories. Medians over interleaved runs, because machines are noisy. The floor is the ratio of bytes:
//! the three models' weights over the base's.

mod common;

use proxytune::backend::cpu::ReadRate;
use proxytune::engine::event::Event;
use proxytune::engine::request::{Draft, Request, Sampling};
use proxytune::engine::scheduler::TenantId;
use proxytune::engine::trio::Trio;
use proxytune::engine::{BackendChoice, Engine, EngineOptions, Handle};
use std::sync::Arc;

const RUNS: usize = 5;
const TOKENS: u32 = 32;
const BATCHES: [usize; 6] = [1, 2, 4, 8, 16, 32];
const PROMPT: usize = 512;

fn main() {
    let args = common::Args::parse(&BATCHES);
    let trio = Arc::new(Trio::open(&args.sources(), &[]).expect("the models open"));
    let bytes = |member: usize| -> usize { trio.checkpoints()[member].tensors().map(|(_, t)| t.n_bytes).sum() };
    let total: usize = (0..trio.checkpoints().len()).map(bytes).sum();
    println!("floor (bytes of the three over the base's): {:.2}", total as f64 / bytes(0) as f64);
    let read_rate = ReadRate::new(None).expect("memory").measure(8);
    let ms = 1e3 * bytes(0) as f64 / read_rate;
    println!("memory read by all threads: {:.1} GB/s, the base's weights in {ms:.3} ms", read_rate / 1e9);
    for (name, backend) in [("cpu", BackendChoice::Cpu), ("wgpu", BackendChoice::Wgpu)] {
        if args.wants(name) {
            decode(&trio, backend, &args.batches);
            prompt(&trio, backend);
        }
    }
}

fn decode(trio: &Arc<Trio>, backend: BackendChoice, batches: &[usize]) {
    println!("\n| backend | batch | base ms/step | over first | trio ms/step | over first | ratio | trio tok/s |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut first = None;
    for &batch in batches {
        let requests = |alpha| requests(trio, batch, alpha, TOKENS, 2, TenantId::default());
        let engine = start(trio, backend, &requests(1.0));
        // alpha 0 computes the base alone.
        let (mut base, mut tuned) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            base.push(ms_per_step(&engine, requests(0.0)));
            tuned.push(ms_per_step(&engine, requests(1.0)));
        }
        let (base, tuned) = (median(base), median(tuned));
        let (first_base, first_tuned) = *first.get_or_insert((base, tuned));
        println!(
            "| {} | {batch} | {base:.3} | {:.2} | {tuned:.3} | {:.2} | {:.2} | {:.0} |",
            engine.device(),
            base / first_base,
            tuned / first_tuned,
            tuned / base,
            1e3 * batch as f64 / tuned
        );
    }
}

fn prompt(trio: &Arc<Trio>, backend: BackendChoice) {
    let longest = trio.checkpoints().iter().map(|checkpoint| checkpoint.config.max_positions).min().unwrap_or(0);
    let n = PROMPT.min(longest - 1);
    // Each run is a tenant of its own, who finds no prompt computed.
    let requests = |run| requests(trio, 1, 0.0, 1, n, TenantId(run));
    let engine = start(trio, backend, &requests(0));
    let runs = 0..=RUNS as u64;
    let ms = runs.map(|run| completions(&engine, requests(run)).map(|timings| timings.0).fold(0.0, f64::max));
    let ms = median(ms.skip(1).collect());
    println!(
        "\n{}: a prompt of {n} tokens through the base in {ms:.1} ms, {:.0} tok/s",
        engine.device(),
        1e3 * n as f64 / ms
    );
}

fn start(trio: &Arc<Trio>, backend: BackendChoice, requests: &[Request]) -> Handle {
    let options = EngineOptions { backend, ..EngineOptions::sized_for(requests) };
    Engine::start(trio.clone(), options).expect("the engine starts")
}

/// `batch` equal requests of `n_prompt` prompt tokens.
fn requests(trio: &Trio, batch: usize, alpha: f32, max_tokens: u32, n_prompt: usize, tenant: TenantId) -> Vec<Request> {
    let text = "Where was the teacher of the painter of this picture born, and when? ".repeat(n_prompt.div_ceil(8));
    let mut prompt = trio.tokenizers()[0].encode_raw(&text).expect("a prompt encodes");
    prompt.truncate(n_prompt);
    let sampling = Sampling { alpha, max_tokens, ignore_eos: true, ..Sampling::default() };
    let draft = Draft { prompts: [prompt.clone(), prompt.clone(), prompt], sampling, tenant, ..Draft::default() };
    vec![Request::new(draft, &trio.limits()).expect("within the limits"); batch]
}

/// Milliseconds of each completion's prompt and prediction.
fn completions(engine: &Handle, requests: Vec<Request>) -> impl Iterator<Item = (f64, f64)> {
    engine.submit(requests).expect("valid requests").into_iter().filter_map(|event| match event {
        Event::Done { completion, .. } => Some((completion.timings.prompt_ms, completion.timings.predicted_ms)),
        Event::Token { .. } => None,
    })
}

fn ms_per_step(engine: &Handle, requests: Vec<Request>) -> f64 {
    completions(engine, requests).map(|timings| timings.1).fold(0.0, f64::max) / f64::from(TOKENS - 1)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
