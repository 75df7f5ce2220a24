//! What this machine has that can run models: shared by `devices` and `doctor`.

use super::args::Backend;
use super::output::gigabytes;
use crate::Result;
use crate::backend::Backend as _;
use crate::backend::cpu::{Cpu, Isa};
use crate::backend::cuda::{self, Inventory};
use crate::backend::wgpu::{self, Adapter};
use crate::engine::BackendChoice;
use serde::Serialize;

/// Backends and their adapters.
#[derive(Serialize)]
pub(super) struct Machine {
    pub cpu: Option<CpuReport>,
    pub cuda: Option<Inventory>,
    /// In the order that `--device` counts.
    pub wgpu: Option<Vec<Adapter>>,
    /// What `--backend auto` takes.
    pub auto: &'static str,
}

/// The CPU backend.
#[derive(Serialize)]
pub(super) struct CpuReport {
    pub name: String,
    /// Every instruction set that the kernels can use here, the one they do use included.
    pub instruction_sets: Vec<&'static str>,
    pub cores: usize,
}

impl Machine {
    /// Looks, at one backend or at all.
    pub(super) fn look(backend: Backend, kernels: &cuda::Sources) -> Result<Self> {
        let wants = |one: Backend| backend == Backend::Auto || backend == one;
        let adapters = if wants(Backend::Wgpu) { Some(wgpu::adapters()) } else { None };
        Ok(Self {
            cpu: if wants(Backend::Cpu) { Some(CpuReport::new()?) } else { None },
            cuda: wants(Backend::Cuda).then(|| cuda::look(kernels)),
            wgpu: adapters,
            auto: match BackendChoice::Auto.on_this_machine(kernels) {
                BackendChoice::Cuda => "cuda",
                BackendChoice::Wgpu => "wgpu",
                BackendChoice::Auto | BackendChoice::Cpu => "cpu",
            },
        })
    }

    /// One line per device.
    pub(super) fn rows(&self) -> Vec<Vec<String>> {
        let row = |cells: [&str; 6]| cells.map(String::from).to_vec();
        let mut rows = vec![row(["backend", "device", "kind", "binding", "subgroups", "name"])];
        if let Some(cpu) = &self.cpu {
            rows.push(row(["cpu", "0", "cpu", "-", "-", &cpu.name]));
        }
        let cards = self.cuda.iter().flat_map(|cuda| &cuda.cards).enumerate();
        for (number, card) in cards {
            let kind = if card.kernels.is_some() { "gpu" } else { "unusable" };
            let name = format!("{}, {}, {}", card.name, card.arch, card.kernels.as_deref().unwrap_or("no kernels"));
            rows.push(row(["cuda", &number.to_string(), kind, &gigabytes(card.memory_bytes), "32", &name]));
        }
        for (number, adapter) in self.wgpu.iter().flatten().enumerate() {
            let kind = if adapter.software { "software" } else { adapter.device_type };
            let subgroups = match (adapter.subgroup_min, adapter.subgroup_max) {
                (0, 0) => "none".into(),
                (min, max) if min == max => min.to_string(),
                (min, max) => format!("{min} to {max}"),
            };
            let (binding, name) =
                (gigabytes(adapter.max_binding_bytes), format!("{}, {}", adapter.name, adapter.backend));
            rows.push(row(["wgpu", &number.to_string(), kind, &binding, &subgroups, &name]));
        }
        rows
    }

    /// A line for each thing that CUDA lacks here.
    pub(super) fn missing(&self) -> String {
        let missing = self.cuda.iter().flat_map(|cuda| &cuda.missing);
        missing.map(|sentence| format!("\ncuda: {sentence}\n")).collect()
    }
}

impl CpuReport {
    fn new() -> Result<Self> {
        let available = Isa::ALL.iter().copied().filter(|isa| isa.is_available());
        Ok(Self {
            name: Cpu::new(None)?.describe(),
            instruction_sets: available.map(Isa::name).collect(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        })
    }
}
