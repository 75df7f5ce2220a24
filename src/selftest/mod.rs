//! The self-test: every op of every available backend over odd shapes, against the CPU twin and plain arithmetic in
//! f64. It needs nothing but the binary, so that it can be carried to any machine.
//!
//! - The portable CPU on one thread is the twin; it is compared with f64 sums ([`compare::Want`]).
//! - Other instruction sets, and any number of threads, must give the twin's bits.
//! - Other backends must be within the same tolerances of f64 and of the twin.
//! - On each backend a row alone must have the bits of the same row in a launch of many.
//!
//! Memory that an op must not use, or must not write, is full of NaN.

mod attention;
mod combine_sample;
pub mod compare;
mod copy_pages;
mod embed;
mod inputs;
mod launch;
mod matmul_add;
mod matrix;
mod norm_add;
mod norm_gate_up;
mod norm_matmul;
mod pages;
mod record;
mod rope_append;
mod samples;

use crate::Result;
use crate::backend::Backend;
use crate::backend::cpu::{Cpu, Isa};
use crate::backend::cuda::{self, Cuda};
use crate::backend::wgpu::{self, MatrixForm, Wgpu};
use crate::engine::BackendChoice;
use launch::{Check, Yardstick};
use serde::Serialize;

/// What to test.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `Auto`: whatever is here. A named backend must be here.
    pub backend: BackendChoice,
    /// Adapter number within the backend; absent: its first.
    pub device: Option<usize>,
    /// CPU threads; absent: all.
    pub threads: Option<usize>,
    /// Where the kernels of the CUDA backend come from.
    pub kernels: cuda::Sources,
    /// One of so many cases of each op is run; absent: all of them.
    pub every: Option<usize>,
}

/// One op on one backend.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Backend and adapter, as they call themselves.
    pub backend: String,
    /// The op.
    pub op: &'static str,
    /// Launches compared.
    pub cases: usize,
    /// Largest error as a share of its tolerance; infinite (`null` in JSON) where a case failed.
    pub worst: f64,
    /// Whether every case passed.
    pub passed: bool,
    /// What failed first; empty where nothing did.
    pub detail: String,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Backends tested.
    pub backends: usize,
    /// Lines of the report.
    pub ops: usize,
    /// Of these, lines that failed.
    pub failed: usize,
}

impl Outcome {
    /// Whether something ran and nothing failed.
    pub fn passed(&self) -> bool {
        self.ops > 0 && self.failed == 0
    }

    fn add(&mut self, other: Outcome) {
        self.backends += other.backends;
        self.ops += other.ops;
        self.failed += other.failed;
    }
}

/// Tests what `options` name, one call of `report` per backend and op as they finish. Fails where a backend that was
/// named is not here, or a device breaks down; a wrong result is no error but a report that did not pass.
pub fn run_all(options: &Options, report: &mut dyn FnMut(&Report)) -> Result<Outcome> {
    // One thread: where the others have more, their number is tested too.
    let twin = Cpu::with_isa(Some(1), Isa::Portable)?;
    let scope = Scope { only: &[], every: options.every.unwrap_or(1) };
    let mut outcome = Outcome::default();
    match options.backend {
        BackendChoice::Cpu => outcome.add(run_cpu(&twin, options.threads, scope, report)?),
        BackendChoice::Wgpu => outcome.add(run_wgpu(options.device, &twin, scope, report)?),
        BackendChoice::Cuda => outcome.add(run_cuda(options, &twin, scope, report)?),
        BackendChoice::Auto => {
            outcome.add(run_cpu(&twin, options.threads, scope, report)?);
            if !wgpu::adapters().is_empty() {
                outcome.add(run_wgpu(options.device, &twin, scope, report)?);
            }
            if cuda::look(&options.kernels).is_usable() {
                outcome.add(run_cuda(options, &twin, scope, report)?);
            }
        }
    }
    Ok(outcome)
}

/// Chooses one of `n` cases, each time another one of so many: values that come round every `n` cases all occur.
pub fn one_of(n: usize) -> impl Fn(usize) -> bool {
    move |case| case % n == case / n % n
}

/// Tests one op of a backend against the CPU twin and f64: the cases that are chosen by their number. Fails where the
/// device breaks down.
///
/// # Panics
/// Where no op has that name.
pub fn run_op<B: Backend>(backend: &B, op: &str, is_chosen: &dyn Fn(usize) -> bool) -> Result<Report> {
    run_op_by(backend, Yardstick::Near(&Cpu::with_isa(Some(1), Isa::Portable)?), op, is_chosen)
}

/// Tests that one op of a backend has the bits of another backend. Fails where a device breaks down.
///
/// # Panics
/// Where no op has that name.
pub fn run_op_as<B: Backend, T: Backend>(backend: &B, other: &T, op: &str) -> Result<Report> {
    run_op_by(backend, Yardstick::Bits(other), op, &|_| true)
}

fn run_op_by<B: Backend, T: Backend>(
    backend: &B,
    yardstick: Yardstick<'_, T>,
    op: &str,
    is_chosen: &dyn Fn(usize) -> bool,
) -> Result<Report> {
    let (name, cases) = ops::<B, T>().into_iter().find(|(name, _)| *name == op).expect("the name of an op");
    let mut check = Check::new(backend, yardstick).only(is_chosen);
    cases(&mut check)?;
    Ok(check.report(&backend.describe(), name))
}

/// What is run of the whole matrix.
#[derive(Clone, Copy)]
struct Scope<'a> {
    /// Ops by name; none: all of them.
    only: &'a [&'a str],
    /// One of so many cases.
    every: usize,
}

/// The twin against f64, and every other instruction set of this machine against the twin's bits.
fn run_cpu(twin: &Cpu, threads: Option<usize>, scope: Scope<'_>, report: &mut dyn FnMut(&Report)) -> Result<Outcome> {
    let mut outcome = run_against(twin, &twin.describe(), Yardstick::<Cpu>::Arithmetic, scope, report)?;
    for isa in Isa::ALL.iter().copied().filter(|isa| *isa != Isa::Portable && isa.is_available()) {
        let cpu = Cpu::with_isa(threads, isa)?;
        outcome.add(run_against(&cpu, &cpu.describe(), Yardstick::Bits(twin), scope, report)?);
    }
    Ok(outcome)
}

/// Bytes bound at once in the form that splits matrices; every buffer of the cases fits.
const SMALL_BINDING: u64 = 256 << 10;

/// The adapter's plain form against the twin; its other forms must give its bits: subgroups, split matrices, images.
fn run_wgpu(device: Option<usize>, twin: &Cpu, scope: Scope<'_>, report: &mut dyn FnMut(&Report)) -> Result<Outcome> {
    let (buffers, images) = (Some(MatrixForm::Buffers), Some(MatrixForm::Images));
    let grouped = wgpu::Options { device, software: true, matrices: buffers, ..wgpu::Options::default() };
    let plain = wgpu::Options { subgroups: false, ..grouped.clone() };
    let split = wgpu::Options { binding_limit: Some(SMALL_BINDING), ..plain.clone() };
    let split_images = wgpu::Options { matrices: images, binding_limit: split.binding_limit, ..grouped.clone() };
    let [plain, split_images] = [Wgpu::open(&plain)?, Wgpu::open(&split_images)?];
    let mut outcome =
        run_against(&plain, &format!("{}, plain", plain.describe()), Yardstick::Near(twin), scope, report)?;
    let mut forms = vec![
        ("buffers split", Wgpu::open(&split)?),
        (if split_images.uses_subgroups() { "images split with subgroups" } else { "images split" }, split_images),
    ];
    let grouped = Wgpu::open(&grouped)?;
    if grouped.uses_subgroups() {
        forms.push(("subgroups", grouped));
    }
    for (name, backend) in forms {
        let name = format!("{}, {name}", backend.describe());
        outcome.add(run_against(&backend, &name, Yardstick::Bits(&plain), scope, report)?);
    }
    Ok(outcome)
}

/// A card against the twin; where blocks may not share a row's keys, attention must give the same bits.
fn run_cuda(options: &Options, twin: &Cpu, scope: Scope<'_>, report: &mut dyn FnMut(&Report)) -> Result<Outcome> {
    let options = cuda::Options { device: options.device, sources: options.kernels.clone(), timeline: None };
    let card = Cuda::open(&options)?;
    let mut outcome = run_against(&card, &card.describe(), Yardstick::Near(twin), scope, report)?;
    let whole = Cuda::with_room(cuda::Driver::open(&options)?, 0)?;
    let name = format!("{}, keys whole", whole.describe());
    outcome.add(run_against(&whole, &name, Yardstick::Bits(&card), Scope { only: &["attention"], ..scope }, report)?);
    Ok(outcome)
}

/// The ops, in the order of a step.
fn ops<B: Backend, T: Backend>() -> [(&'static str, Cases<B, T>); 10] {
    [
        ("copy_pages", copy_pages::check),
        ("embed", embed::check),
        ("norm_matmul", norm_matmul::check),
        ("rope_append", rope_append::check),
        ("attention", attention::check),
        ("matmul_add", matmul_add::check),
        ("norm_add", norm_add::check),
        ("norm_gate_up", norm_gate_up::check),
        ("combine_sample", combine_sample::check),
        ("record", record::check),
    ]
}

type Cases<B, T> = fn(&mut Check<'_, B, T>) -> Result<()>;

fn run_against<B: Backend, T: Backend>(
    backend: &B,
    name: &str,
    yardstick: Yardstick<'_, T>,
    Scope { only, every }: Scope<'_>,
    report: &mut dyn FnMut(&Report),
) -> Result<Outcome> {
    let (mut outcome, is_chosen) = (Outcome { backends: 1, ..Outcome::default() }, one_of(every));
    for (op, cases) in ops().into_iter().filter(|(op, _)| only.is_empty() || only.contains(op)) {
        let mut check = Check::new(backend, yardstick).only(&is_chosen);
        cases(&mut check)?;
        let line = check.report(name, op);
        outcome.ops += 1;
        outcome.failed += usize::from(!line.passed);
        report(&line);
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_round_with_the_number_that_is_left_out_occurs() {
        for n in [1, 4, 5, 10] {
            let is_chosen = one_of(n);
            let chosen: Vec<usize> = (0..n * n).filter(|&case| is_chosen(case)).collect();
            let mut residues: Vec<usize> = chosen.iter().map(|case| case % n).collect();
            residues.sort();
            assert_eq!(residues, (0..n).collect::<Vec<_>>(), "one of {n}: {chosen:?}");
        }
    }

    #[test]
    fn one_damaged_element_fails_every_op_under_every_yardstick() {
        let cpu = Cpu::new(None).expect("the CPU is here");
        for yardstick in [Yardstick::Arithmetic, Yardstick::Near(&cpu), Yardstick::Bits(&cpu)] {
            for (op, cases) in ops() {
                let mut check = Check::new(&cpu, yardstick);
                check.damaged = Some(0);
                cases(&mut check).expect("the CPU runs");
                let line = check.report("cpu", op);
                assert!(!line.passed && line.worst.is_infinite() && !line.detail.is_empty(), "{line:?}");
            }
        }
    }
}
