//! Where an engine runs and how large it is.

use super::machine::MachineOptions;
use super::plan::Room;
use super::request::Draft;
use super::trio::Trio;
use crate::backend::Dtype;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::{self, Cuda};
use crate::backend::params::{MAX_RECORD_TOP, MAX_SLOTS};
use crate::backend::wgpu::{self, Wgpu};
use crate::{Error, Result};
use std::borrow::Borrow;

/// Prompt tokens per model and step, unless asked otherwise: enough to reuse every weight well.
pub const DEFAULT_PREFILL_ROWS: usize = 256;

/// Share of the free memory that may be used, unless asked otherwise: other programs go on living.
pub const DEFAULT_MEMORY_UTILIZATION: f32 = 0.95;

/// Samples that may wait, unless asked otherwise.
pub const DEFAULT_MAX_WAITING: usize = 10_000;

/// Which backend runs the models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// A card of NVIDIA whose kernels can be had, another GPU, or the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// Any adapter of wgpu, software ones included.
    Wgpu,
    /// NVIDIA cards through CUDA.
    Cuda,
}

impl BackendChoice {
    /// What `Auto` comes to: CUDA where there is a card and `kernels` for it, wgpu where there is a real GPU, else the CPU. Who
    /// names where a card's kernels are wants CUDA, and is told if they are not there.
    pub fn on_this_machine(self, kernels: &cuda::Sources) -> Self {
        match self {
            BackendChoice::Auto if is_for_cuda(&cuda::look_for_cards(kernels), kernels) => BackendChoice::Cuda,
            BackendChoice::Auto if has_gpu() => BackendChoice::Wgpu,
            BackendChoice::Auto => BackendChoice::Cpu,
            named => named,
        }
    }

    /// Why `Auto` leaves the cards here alone though they could run models, a sentence each: what their kernels lack.
    pub fn why_not_cuda(self, kernels: &cuda::Sources) -> Vec<String> {
        if self != BackendChoice::Auto {
            return Vec::new();
        }
        let found = cuda::look_for_cards(kernels);
        let leaves_some = !is_for_cuda(&found, kernels) && found.cards.iter().any(cuda::Card::is_new_enough);
        if leaves_some { found.missing } else { Vec::new() }
    }
}

fn is_for_cuda(found: &cuda::Inventory, kernels: &cuda::Sources) -> bool {
    let is_named = kernels.nvrtc.is_some() || kernels.cubins.is_some();
    found.is_usable() || (is_named && !found.cards.is_empty())
}

/// Whether wgpu finds a real one.
fn has_gpu() -> bool {
    may_have_gpu() && wgpu::adapters().iter().any(|adapter| !adapter.software)
}

/// Asking Vulkan takes some 50 ms and lets drivers print what they like. A GPU under Linux has one of these nodes; one
/// that has none can still be named by its backend.
fn may_have_gpu() -> bool {
    const NODES: [&str; 5] = ["/dev/dri", "/dev/nvidiactl", "/dev/dxg", "/dev/kgsl-3d0", "/dev/mali0"];
    !cfg!(target_os = "linux") || NODES.iter().any(|node| std::path::Path::new(node).exists())
}

/// Where and how large the engine is.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Backend.
    pub backend: BackendChoice,
    /// Adapter number within the backend.
    pub device: Option<usize>,
    /// CPU threads; absent: all.
    pub threads: Option<usize>,
    /// Where the kernels of the CUDA backend come from.
    pub kernels: cuda::Sources,
    /// Where the CUDA backend notes the time of each kernel, at the price of many of them.
    pub timeline: Option<cuda::Timeline>,
    /// Sequences at a time, at most [`MAX_SLOTS`].
    pub n_slots: usize,
    /// Longest prompt and response together; at most what one of the models was made for.
    pub max_model_len: usize,
    /// Type of keys and values; absent: each checkpoint's own.
    pub kv_cache_dtype: Option<Dtype>,
    /// Prompt tokens per model and step.
    pub prefill_rows: usize,
    /// Room for penalties.
    pub penalties: bool,
    /// Top entries per record; absent: no step can be recorded.
    pub record_top: Option<usize>,
    /// Tokens of all sequences together that the KV cache has room for, at least one longest; absent: as many as all
    /// can have.
    pub kv_tokens: Option<usize>,
    /// Bytes of the KV cache, whatever its use; absent: what `kv_tokens` need, as far as there is memory, and at most 2 GiB
    /// where the device does not tell how much it has. It never grows.
    pub kv_cache_bytes: Option<u64>,
    /// Share of the device's free memory that may be used, in (0, 1].
    pub memory_utilization: f32,
    /// Samples that may wait; more are refused.
    pub max_waiting: usize,
}

impl Default for EngineOptions {
    /// One text of one token, on the device that `Auto` finds: sizes are to be set, or those of [`Self::serving`] and
    /// [`Self::sized_for`] taken.
    fn default() -> Self {
        Self {
            backend: BackendChoice::Auto,
            device: None,
            threads: None,
            kernels: cuda::Sources::default(),
            timeline: None,
            n_slots: 1,
            max_model_len: 1,
            kv_cache_dtype: None,
            prefill_rows: DEFAULT_PREFILL_ROWS,
            penalties: false,
            record_top: None,
            kv_tokens: None,
            kv_cache_bytes: None,
            memory_utilization: DEFAULT_MEMORY_UTILIZATION,
            max_waiting: DEFAULT_MAX_WAITING,
        }
    }
}

impl EngineOptions {
    /// Room for whatever may be asked of `trio`, as far as the device has it: for a server, which does not know its
    /// requests beforehand.
    pub fn serving(trio: &Trio) -> Self {
        Self {
            n_slots: MAX_SLOTS,
            max_model_len: trio.limits().positions.into_iter().max().unwrap_or(1),
            penalties: true,
            record_top: Some(MAX_RECORD_TOP),
            ..Self::default()
        }
    }

    /// Just the room that `requests` need.
    pub fn sized_for<R: Borrow<Draft>>(requests: &[R]) -> Self {
        let mut options = Self { n_slots: 0, ..Self::default() };
        requests.iter().for_each(|request| options.make_room_for(request.borrow()));
        options.n_slots = options.n_slots.max(1);
        options
    }

    /// Makes room for one request more.
    pub fn make_room_for(&mut self, request: &Draft) {
        self.n_slots = (self.n_slots + request.n as usize).min(MAX_SLOTS);
        self.max_model_len = self.max_model_len.max(request.n_tokens());
        self.penalties |= request.sampling.is_penalised();
        self.record_top = self.record_top.max(request.record);
    }

    /// Checks every range, before anything is allocated by them.
    pub(super) fn validate(&self, trio: &Trio) -> Result<()> {
        let within = |param: &str, value: usize, limit: usize| {
            if (1..=limit).contains(&value) {
                return Ok(());
            }
            Err(Error::argument(param, format!("{value} is not in [1, {limit}]")))
        };
        let positions = trio.checkpoints().into_iter().map(|checkpoint| checkpoint.config.max_positions);
        within("n_slots", self.n_slots, MAX_SLOTS)?;
        within("max_model_len", self.max_model_len, positions.max().unwrap_or(0))?;
        within("max_waiting", self.max_waiting, usize::MAX)?;
        self.validate_memory_utilization()?;
        match self.record_top {
            Some(top) if top > MAX_RECORD_TOP => {
                Err(Error::argument("record", format!("{top} top entries; at most {MAX_RECORD_TOP}")))
            }
            _ => Ok(()),
        }
    }

    fn validate_memory_utilization(&self) -> Result<()> {
        if self.memory_utilization > 0.0 && self.memory_utilization <= 1.0 {
            return Ok(());
        }
        Err(Error::argument("gpu_memory_utilization", format!("{} is not in (0, 1]", self.memory_utilization)))
    }

    pub(super) fn cpu(&self) -> Result<Cpu> {
        match self.device {
            None | Some(0) => Cpu::new(self.threads),
            Some(n) => Err(Error::device("cpu", format!("there is one device, number 0; {n} was asked for"))),
        }
    }

    /// Naming the backend accepts what runs it, software too.
    pub(super) fn wgpu(&self) -> wgpu::Options {
        let software = self.backend == BackendChoice::Wgpu;
        wgpu::Options { device: self.device, software, ..wgpu::Options::default() }
    }

    pub(super) fn cuda(&self) -> cuda::Options {
        cuda::Options { device: self.device, sources: self.kernels.clone(), timeline: self.timeline.clone() }
    }

    pub(super) fn machine(&self) -> MachineOptions {
        MachineOptions {
            n_slots: self.n_slots,
            max_lane_tokens: self.max_model_len,
            kv_cache_dtype: self.kv_cache_dtype,
            prefill_rows: self.prefill_rows,
            penalties: self.penalties,
            record_top: self.record_top,
            kv_tokens: self.kv_tokens,
            kv_cache_bytes: self.kv_cache_bytes,
            memory_utilization: self.memory_utilization,
        }
    }

    /// What the device has room for. Opens it, and lets it go again.
    pub fn room(&self) -> Result<Room> {
        self.validate_memory_utilization()?;
        match self.backend.on_this_machine(&self.kernels) {
            BackendChoice::Auto | BackendChoice::Cpu => Ok(Room::of(&self.cpu()?, self.memory_utilization)),
            BackendChoice::Wgpu => Ok(Room::of(&Wgpu::open(&self.wgpu())?, self.memory_utilization)),
            BackendChoice::Cuda => Ok(Room::of(&Cuda::open(&self.cuda())?, self.memory_utilization)),
        }
    }
}
