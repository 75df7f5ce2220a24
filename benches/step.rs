//! Where the time of a decode step goes, on models so small that weights are free: microseconds by part on each backend.
//!
//! `cargo bench --bench step` runs the demo's trio; `-- cpu 8 32` one backend and these batches; `-- BASE EXPERT
//! ANTI-EXPERT` directories. The engine runs on a backend that forwards every call and notes its time, so the library holds no clock.
//! On the CPU ops run when they are recorded; elsewhere an op's time is that of recording it, and the device's is in
//! `collect`, the wait. What no call of the backend took is the host's: building batches, text, events.

mod common;

use proxytune::Result;
use proxytune::backend::cpu::Cpu;
use proxytune::backend::params::Choice;
use proxytune::backend::wgpu::{Options, Wgpu};
use proxytune::backend::*;
use proxytune::engine::request::{Draft, Request, Sampling};
use proxytune::engine::trio::Trio;
use proxytune::engine::{Engine, EngineOptions};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Tokens of a text, of which the first steps are not looked at.
const TOKENS: u32 = 100;

/// What a step is made of, in its order.
#[derive(Clone, Copy)]
enum Part {
    Upload,
    CopyPages,
    Embed,
    Matrix,
    RopeAppend,
    Attention,
    NormAdd,
    CombineSample,
    Record,
    Submit,
    Collect,
}

const PARTS: [&str; 11] = [
    "upload",
    "copy_pages",
    "embed",
    "matrix ops",
    "rope_append",
    "attention",
    "norm_add",
    "combine_sample",
    "record",
    "submit",
    "collect",
];

/// Steps so far: each its beginning, and the time of each part.
type Steps = Arc<Mutex<Vec<(Instant, [Duration; PARTS.len()])>>>;

/// A backend that notes how long each call took, from one `begin` to the next.
struct Timed<B> {
    inner: B,
    steps: Steps,
}

impl<B: Backend> Timed<B> {
    fn time<T>(&self, part: Part, call: impl FnOnce(&B) -> T) -> T {
        let start = Instant::now();
        let result = call(&self.inner);
        let elapsed = start.elapsed();
        if let Some((_, parts)) = self.steps.lock().expect("no thread died").last_mut() {
            parts[part as usize] += elapsed;
        }
        result
    }
}

impl<B: Backend> Backend for Timed<B> {
    type Buf = B::Buf;
    type Matrix = B::Matrix;
    type Pass = B::Pass;
    type Receipt = B::Receipt;

    const LAG: usize = B::LAG;

    fn product_error(weights: Dtype) -> f64 {
        B::product_error(weights)
    }

    fn draw_dispatches(choice: Choice) -> usize {
        B::draw_dispatches(choice)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn binding_limit(&self) -> u64 {
        self.inner.binding_limit()
    }

    fn free_memory(&self) -> Option<u64> {
        self.inner.free_memory()
    }

    fn alloc(&self, label: &'static str, words: usize) -> Result<B::Buf> {
        self.inner.alloc(label, words)
    }

    fn upload(&self, buf: &B::Buf, offset: usize, data: &[u8]) -> Result<()> {
        self.time(Part::Upload, |inner| inner.upload(buf, offset, data))
    }

    fn read(&self, buf: &B::Buf, range: Range<usize>) -> Result<Vec<u8>> {
        self.inner.read(buf, range)
    }

    fn matrix(&self, spec: MatrixSpec, members: &[&dyn MatrixBytes]) -> Result<B::Matrix> {
        self.inner.matrix(spec, members)
    }

    fn begin(&self) -> B::Pass {
        self.steps.lock().expect("no thread died").push((Instant::now(), [Duration::ZERO; PARTS.len()]));
        self.inner.begin()
    }

    fn dispatches(&self, pass: &B::Pass) -> usize {
        self.inner.dispatches(pass)
    }

    fn submit(&self, pass: B::Pass, reads: &[(&B::Buf, Range<usize>)]) -> Result<B::Receipt> {
        self.time(Part::Submit, |inner| inner.submit(pass, reads))
    }

    fn collect(&self, receipt: B::Receipt) -> Result<Vec<u8>> {
        self.time(Part::Collect, |inner| inner.collect(receipt))
    }

    fn copy_pages(&self, pass: &mut B::Pass, op: CopyPages<'_, Self>) {
        let CopyPages { plane, copies, n_copies, params } = op;
        let op = CopyPages { plane, copies, n_copies, params };
        self.time(Part::CopyPages, |inner| inner.copy_pages(pass, op));
    }

    fn embed(&self, pass: &mut B::Pass, op: Embed<'_, Self>) {
        let Embed { x, places, table, rows, slots, extents, n_rows, params } = op;
        let op = Embed { x, places, table, rows, slots, extents, n_rows, params };
        self.time(Part::Embed, |inner| inner.embed(pass, op));
    }

    fn norm_matmul(&self, pass: &mut B::Pass, op: NormMatmul<'_, Self>) {
        let NormMatmul { y, w, x, gain, bias, gather, extents, n_rows, params } = op;
        let op = NormMatmul { y, w, x, gain, bias, gather, extents, n_rows, params };
        self.time(Part::Matrix, |inner| inner.norm_matmul(pass, op));
    }

    fn rope_append(&self, pass: &mut B::Pass, op: RopeAppend<'_, Self>) {
        let RopeAppend { qkv, plane, places, page_table, rotary, q_gain, k_gain, extents, n_rows, params } = op;
        let op = RopeAppend { qkv, plane, places, page_table, rotary, q_gain, k_gain, extents, n_rows, params };
        self.time(Part::RopeAppend, |inner| inner.rope_append(pass, op));
    }

    fn attention(&self, pass: &mut B::Pass, op: Attention<'_, Self>) {
        let Attention { y, qkv, plane, places, page_table, extents, n_rows, params } = op;
        let op = Attention { y, qkv, plane, places, page_table, extents, n_rows, params };
        self.time(Part::Attention, |inner| inner.attention(pass, op));
    }

    fn matmul_add(&self, pass: &mut B::Pass, op: MatmulAdd<'_, Self>) {
        let MatmulAdd { x, w, y, bias, extents, n_rows, params } = op;
        let op = MatmulAdd { x, w, y, bias, extents, n_rows, params };
        self.time(Part::Matrix, |inner| inner.matmul_add(pass, op));
    }

    fn norm_add(&self, pass: &mut B::Pass, op: NormAdd<'_, Self>) {
        let NormAdd { x, y, gain, extents, n_rows, params } = op;
        let op = NormAdd { x, y, gain, extents, n_rows, params };
        self.time(Part::NormAdd, |inner| inner.norm_add(pass, op));
    }

    fn norm_gate_up(&self, pass: &mut B::Pass, op: NormGateUp<'_, Self>) {
        let NormGateUp { h, w_gate, w_up, x, gain, extents, n_rows, params } = op;
        let op = NormGateUp { h, w_gate, w_up, x, gain, extents, n_rows, params };
        self.time(Part::Matrix, |inner| inner.norm_gate_up(pass, op));
    }

    fn combine_sample(&self, pass: &mut B::Pass, op: CombineSample<'_, Self>) {
        let CombineSample {
            slots,
            scores,
            counts,
            base,
            expert,
            anti,
            samples,
            constraints,
            n_samples,
            choice,
            params,
        } = op;
        let op = CombineSample {
            slots,
            scores,
            counts,
            base,
            expert,
            anti,
            samples,
            constraints,
            n_samples,
            choice,
            params,
        };
        self.time(Part::CombineSample, |inner| inner.combine_sample(pass, op));
    }

    fn record(&self, pass: &mut B::Pass, op: Record<'_, Self>) {
        let Record { records, slots, scores, base, expert, anti, samples, constraints, n_samples, params } = op;
        let op = Record { records, slots, scores, base, expert, anti, samples, constraints, n_samples, params };
        self.time(Part::Record, |inner| inner.record(pass, op));
    }
}

fn main() -> Result<()> {
    let args = common::Args::parse(&[1, 16]);
    let trio = Arc::new(Trio::open(&args.sources(), &[])?);
    println!("| backend | batch | step us | host | share | {} |", PARTS.join(" | "));
    println!("|---|{}", "---:|".repeat(4 + PARTS.len()));
    for &batch in &args.batches {
        for temperature in [0.0, 0.8] {
            if args.wants("cpu") {
                table(&trio, batch, temperature, || Cpu::new(None))?;
            }
        }
    }
    for &batch in &args.batches {
        if args.wants("wgpu") {
            table(&trio, batch, 0.0, || Wgpu::open(&Options { software: true, ..Options::default() }))?;
        }
    }
    Ok(())
}

/// Runs a batch and prints medians over its decode steps.
fn table<B: Backend>(
    trio: &Arc<Trio>,
    batch: usize,
    temperature: f32,
    open: impl FnOnce() -> Result<B> + Send + 'static,
) -> Result<()> {
    let prompt = trio.tokenizers()[0].encode_raw("Where was")?;
    let top_p = if temperature > 0.0 { 0.95 } else { 1.0 };
    let sampling =
        Sampling { temperature, top_p, seed: Some(1), max_tokens: TOKENS, ignore_eos: true, ..Sampling::default() };
    let draft = Draft { prompts: std::array::from_fn(|_| prompt.clone()), sampling, ..Draft::default() };
    let request = Request::new(draft, &trio.limits())?;
    let requests = vec![request; batch];
    let steps = Steps::default();
    let noted = steps.clone();
    let open = move || Ok(Timed { inner: open()?, steps: noted });
    let engine = Engine::start_on(trio.clone(), EngineOptions::sized_for(&requests), open)?;
    engine.submit(requests)?.into_iter().for_each(drop);
    let device = engine.device().to_owned();
    drop(engine);

    let steps = steps.lock().expect("no thread died");
    // Without the prompt, and the first steps after it.
    let decode = &steps[8..];
    let micros = |duration: Duration| 1e6 * duration.as_secs_f64();
    let median = |value: &dyn Fn(usize) -> f64| {
        let mut values: Vec<f64> = (0..decode.len() - 1).map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let whole = |step: usize| micros(decode[step + 1].0 - decode[step].0);
    let host = |step: usize| whole(step) - decode[step].1.iter().map(|&part| micros(part)).sum::<f64>();
    let (step_us, host_us) = (median(&whole), median(&host));
    let parts: Vec<String> =
        (0..PARTS.len()).map(|part| format!("{:.1}", median(&|step| micros(decode[step].1[part])))).collect();
    let (share, parts) = (100.0 * host_us / step_us, parts.join(" | "));
    let settings = if temperature > 0.0 { ", T 0.8, top-p 0.95" } else { "" };
    println!("| {device}{settings} | {batch} | {step_us:.0} | {host_us:.1} | {share:.1} % | {parts} |");
    Ok(())
}
