//! `doctor`: this machine as proxytune sees it, and the proof that the kernels compute right on it.

use super::args::{Backend, DoctorArgs};
use super::machine::Machine;
use super::output::{self, Stdout, Style};
use super::result::ErrorJson;
use crate::backend::cpu::memory;
use crate::engine::trio::Models;
use crate::selftest;
use crate::text::vocabulary::ROLES;
use crate::{Error, Result};
use serde::Serialize;

pub(super) fn run(args: &DoctorArgs) -> Result<()> {
    let models = if args.models.named.names_models() { Some(args.models.describe()?) } else { None };
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        system: System::look(),
        devices: Machine::look(args.backend, &args.kernels.sources())?,
        models: models.as_ref().map(|models| ModelsReport::new(models, args)),
        self_test: None,
    };
    // Who names it wants to know that it is not there, and why.
    if let (Backend::Cuda, Some(cuda)) = (args.backend, &report.devices.cuda)
        && !cuda.is_usable()
    {
        return Err(Error::device("cuda", cuda.missing.join("; ")));
    }
    let (mut out, style) = (Stdout::new(), Style::of_stdout());
    if !args.json {
        out.line(&report.text())?;
    }
    if args.self_test {
        report.self_test = Some(self_test(args, &mut out, style)?);
    }
    if args.json {
        out.json(&report)?;
    }
    match report.self_test.iter().flatten().find(|line| !line.passed) {
        None => Ok(()),
        Some(line) => Err(Error::device(backend_name(&line.backend), format!("self-test: {} failed", line.op))),
    }
}

/// Runs the self-test, a line as each op is done.
fn self_test(args: &DoctorArgs, out: &mut Stdout, style: Style) -> Result<Vec<selftest::Report>> {
    let (backend, kernels) = (args.backend.into(), args.kernels.sources());
    let every = args.self_test_every.map(usize::from);
    let options = selftest::Options { backend, kernels, every, ..selftest::Options::default() };
    let (mut lines, mut printed) = (Vec::<selftest::Report>::new(), Ok(()));
    let outcome = selftest::run_all(&options, &mut |line: &selftest::Report| {
        if !args.json && printed.is_ok() {
            let heading = match lines.last() {
                Some(last) if last.backend == line.backend => String::new(),
                _ => format!("{}\n", style.bold(&line.backend)),
            };
            printed = out.line(&format!("{heading}{}", self_test_line(line, style)));
        }
        lines.push(line.clone());
    })?;
    printed?;
    if !args.json {
        let selftest::Outcome { backends, ops, failed } = outcome;
        out.line(&format!("\n{ops} checks over {backends} backends, {failed} failed"))?;
    }
    Ok(lines)
}

fn self_test_line(line: &selftest::Report, style: Style) -> String {
    let verdict = if line.passed { style.good("ok    ") } else { style.bad("FAILED") };
    let detail = if line.detail.is_empty() { String::new() } else { format!("  {}", line.detail) };
    let worst = 100.0 * line.worst;
    format!("  {verdict}  {:<14}  {:>4} cases, worst at {worst:4.1} % of the tolerance{detail}", line.op, line.cases)
}

/// The stem of a backend's description, for the error.
fn backend_name(description: &str) -> &'static str {
    ["wgpu", "cuda"].into_iter().find(|name| description.starts_with(name)).unwrap_or("cpu")
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    system: System,
    devices: Machine,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<ModelsReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    self_test: Option<Vec<selftest::Report>>,
}

#[derive(Serialize)]
struct System {
    os: &'static str,
    arch: &'static str,
    /// Kernel release; Linux only.
    kernel: Option<String>,
    /// Bytes; Linux only.
    memory_total: Option<u64>,
    /// Bytes that programs can still have; Linux only.
    memory_available: Option<u64>,
}

impl System {
    fn look() -> Self {
        let [memory_total, memory_available] = memory::of_machine();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        Self {
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            kernel: kernel.map(|text| text.trim().to_string()),
            memory_total,
            memory_available,
        }
    }
}

/// The models named, if any.
#[derive(Serialize)]
struct ModelsReport {
    /// Bytes of weights as stored, by role; models that stand in for others are counted where they stand.
    weight_bytes: [usize; 3],
    names: [String; 3],
    compatible: bool,
    error: Option<ErrorJson>,
}

impl ModelsReport {
    fn new(models: &Models, args: &DoctorArgs) -> Self {
        let checkpoints = models.checkpoint_of_role();
        let combined = models.compare(&args.models.named.id_policy).and_then(|comparison| comparison.vocabulary());
        Self {
            weight_bytes: checkpoints.map(|checkpoint| checkpoint.tensors().map(|(_, tensor)| tensor.n_bytes).sum()),
            names: checkpoints.map(|checkpoint| checkpoint.name.clone()),
            compatible: combined.is_ok(),
            error: combined.err().as_ref().map(ErrorJson::new),
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let system = &self.system;
        let memory = |bytes: Option<u64>| bytes.map_or("unknown".into(), output::gigabytes);
        let mut lines = vec![
            format!("proxytune    {}", self.version),
            format!("system       {} {} {}", system.os, system.arch, system.kernel.as_deref().unwrap_or_default()),
            format!("memory       {}, {} available", memory(system.memory_total), memory(system.memory_available)),
        ];
        if let Some(cpu) = &self.devices.cpu {
            lines.push(format!("cpu          {}; can use {}", cpu.name, cpu.instruction_sets.join(", ")));
        }
        for (index, model) in
            self.models.iter().flat_map(|models| models.names.iter().zip(models.weight_bytes)).enumerate()
        {
            let (name, bytes) = model;
            lines.push(format!("{:<12} {name}, {} of weights", ROLES[index], output::gigabytes(bytes as u64)));
        }
        if let Some(models) = &self.models {
            let error = models.error.as_ref().map(|error| error.message.as_str());
            lines.push(format!("combined     {}", error.unwrap_or("can be")));
        }
        let (devices, missing) = (output::table(&self.devices.rows()), self.devices.missing());
        format!("{}\n\n{devices}\n{missing}", lines.join("\n"))
    }
}
