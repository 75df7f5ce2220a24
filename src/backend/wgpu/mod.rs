//! Any GPU, through Vulkan, Metal or DirectX 12. The shaders stand in `shaders/`, one per op; `shaders/parts/` is what ops
//! share.
//!
//! A step is one encoder, one compute pass, one submit. Pipelines and bind groups are made at their first use and kept.
//! Ids stay on the device; the host reads them up to [`Backend::LAG`] steps late.
//!
//! # The canonical sum
//! A sum over K has 8 lanes: eight elements number `c` go to lane `c mod 8`, in order, with explicit fma; the lanes are
//! added in a fixed tree. One row or many, any weight type, any size of a subgroup, weights in buffers or in images
//! ([`MatrixForm`]): the same order, so the same bits.
//!
//! # Errors
//! Validation, memory and device loss come out of [`Backend::submit`] and [`Backend::collect`] as [`crate::Error::Device`], and
//! stay: the first one is what every later call returns.

mod constants;
mod device;
mod memory;
mod ops;
mod pipelines;
#[cfg(test)]
mod shaders_test;
mod step;

pub use device::{Adapter, adapters};
pub use memory::{Buf, Matrix};
pub use step::{Pass, Receipt};

use super::*;
use crate::Result;
use device::Device;
use memory::Dropped;
use pipelines::Pipelines;
use std::cell::RefCell;

// A host that reads as late as it may still finds the id of each step.
const _: () = assert!(Wgpu::LAG < RING);

/// Which adapter, and how it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Index in [`adapters`]; absent: the best one.
    pub device: Option<usize>,
    /// Accept a software adapter where there is no GPU.
    pub software: bool,
    /// Bytes of a matrix or plane bound at once, below the adapter's own limit. Larger matrices are split.
    pub binding_limit: Option<u64>,
    /// Use subgroup operations where the adapter has them. The bits are the same without.
    pub subgroups: bool,
    /// Where weights stand; absent: what suits the adapter. The bits are the same in both.
    pub matrices: Option<MatrixForm>,
}

/// Where weights stand, and how many outputs a thread then holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatrixForm {
    /// In storage buffers, four outputs per thread: for GPUs.
    Buffers,
    /// In storage images, sixteen outputs per thread: for drivers that run shaders on the CPU, which load texels for a
    /// whole subgroup at once, but words of a buffer one by one.
    Images,
}

/// Rows of weights that stand together: those of sixteen outputs, which a thread holds at most.
const BLOCK_ROWS: usize = 16;
/// Texels of 16 bytes in a row of an image of weights. With 8,192 rows, which every device has, 512 MiB fit.
const IMAGE_WIDTH: u32 = 4096;
/// Bytes of an image at most.
const IMAGE_BYTES: u64 = 16 * IMAGE_WIDTH as u64 * 8192;

impl Default for Options {
    fn default() -> Self {
        Self { device: None, software: false, binding_limit: None, subgroups: true, matrices: None }
    }
}

/// A GPU.
pub struct Wgpu {
    device: Device,
    binding_limit: u64,
    subgroups: bool,
    matrices: MatrixForm,
    pipelines: Pipelines,
    staging: RefCell<Vec<::wgpu::Buffer>>,
    dropped: Dropped,
    /// Bound where an optional buffer is absent.
    nothing: Buf,
}

impl Wgpu {
    /// Opens the adapter that `options` names, or the best one: discrete, integrated, virtual, then software if
    /// accepted.
    pub fn open(options: &Options) -> Result<Self> {
        let device = Device::open(options)?;
        let adapter = &device.adapter;
        let own_limit = adapter.max_binding_bytes.min(adapter.max_buffer_bytes);
        let binding_limit = options.binding_limit.map_or(own_limit, |limit| limit.min(own_limit));
        // Lanes are exchanged among eight neighbours.
        let subgroups = options.subgroups && adapter.subgroup_min >= 8;
        let suited = if adapter.software { MatrixForm::Images } else { MatrixForm::Buffers };
        let matrices = options.matrices.unwrap_or(suited);
        let dropped = Dropped::default();
        let nothing = Buf::new(&device, &dropped, "nothing", 256)?;
        Ok(Self {
            device,
            binding_limit,
            subgroups,
            matrices,
            pipelines: Pipelines::default(),
            staging: RefCell::default(),
            dropped,
            nothing,
        })
    }

    /// The adapter in use.
    pub fn adapter(&self) -> &Adapter {
        &self.device.adapter
    }

    /// True where the subgroup form of the shaders runs.
    pub fn uses_subgroups(&self) -> bool {
        self.subgroups
    }
}

impl Backend for Wgpu {
    type Buf = Buf;
    type Matrix = Matrix;
    type Pass = Pass;
    type Receipt = Receipt;

    const LAG: usize = 8;

    fn product_error(_: Dtype) -> f64 {
        0.0
    }

    fn draw_dispatches(_: Choice) -> usize {
        1
    }

    fn describe(&self) -> String {
        format!("wgpu ({}, {})", self.device.adapter.name, self.device.adapter.backend)
    }

    /// WebGPU does not tell. A software adapter's memory is the machine's.
    fn free_memory(&self) -> Option<u64> {
        if self.device.adapter.software { super::cpu::memory::available() } else { None }
    }

    fn binding_limit(&self) -> u64 {
        self.binding_limit
    }

    fn alloc(&self, label: &'static str, words: usize) -> Result<Buf> {
        self.pipelines.forget(&self.dropped);
        Buf::new(&self.device, &self.dropped, label, 4 * words.max(1) as u64)
    }

    fn upload(&self, buf: &Buf, offset: usize, data: &[u8]) -> Result<()> {
        buf.upload(&self.device, offset, data)
    }

    fn read(&self, buf: &Buf, range: Range<usize>) -> Result<Vec<u8>> {
        let receipt = self.submit_pass(&Pass::default(), &[(buf, range)])?;
        self.collect_bytes(receipt)
    }

    fn matrix(&self, spec: MatrixSpec, members: &[&dyn MatrixBytes]) -> Result<Matrix> {
        checks::check_members(spec, members);
        self.pipelines.forget(&self.dropped);
        let limit = match self.matrices {
            MatrixForm::Buffers => self.binding_limit,
            MatrixForm::Images => self.binding_limit.min(IMAGE_BYTES),
        };
        Matrix::new(&self.device, &self.dropped, (limit, self.matrices), spec, members)
    }

    fn begin(&self) -> Pass {
        self.pipelines.forget(&self.dropped);
        Pass::default()
    }

    fn dispatches(&self, pass: &Pass) -> usize {
        pass.dispatches.len()
    }

    fn submit(&self, pass: Pass, reads: &[(&Buf, Range<usize>)]) -> Result<Receipt> {
        self.submit_pass(&pass, reads)
    }

    fn collect(&self, receipt: Receipt) -> Result<Vec<u8>> {
        self.collect_bytes(receipt)
    }

    fn copy_pages(&self, pass: &mut Pass, op: CopyPages<'_, Self>) {
        self.record_copy_pages(pass, op);
    }

    fn embed(&self, pass: &mut Pass, op: Embed<'_, Self>) {
        op.check(op.table.shape());
        self.record_embed(pass, op);
    }

    fn norm_matmul(&self, pass: &mut Pass, op: NormMatmul<'_, Self>) {
        op.check(op.w.shape());
        self.record_norm_matmul(pass, op);
    }

    fn rope_append(&self, pass: &mut Pass, op: RopeAppend<'_, Self>) {
        op.check();
        self.record_rope_append(pass, op);
    }

    fn attention(&self, pass: &mut Pass, op: Attention<'_, Self>) {
        op.check();
        self.record_attention(pass, op);
    }

    fn matmul_add(&self, pass: &mut Pass, op: MatmulAdd<'_, Self>) {
        op.check(op.w.shape());
        self.record_matmul_add(pass, op);
    }

    fn norm_add(&self, pass: &mut Pass, op: NormAdd<'_, Self>) {
        op.check();
        self.record_norm_add(pass, op);
    }

    fn norm_gate_up(&self, pass: &mut Pass, op: NormGateUp<'_, Self>) {
        op.check(op.w_gate.shape(), op.w_up.shape());
        self.record_norm_gate_up(pass, op);
    }

    fn combine_sample(&self, pass: &mut Pass, op: CombineSample<'_, Self>) {
        op.check(op.samples.bytes() / size_of::<Sample>());
        self.record_combine_sample(pass, op);
    }

    fn record(&self, pass: &mut Pass, op: Record<'_, Self>) {
        op.check(op.samples.bytes() / size_of::<Sample>());
        self.record_record(pass, op);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_lost_device_is_an_error_of_every_later_call() {
        let options = Options { software: true, ..Options::default() };
        let gpu = Wgpu::open(&options).expect("a Vulkan adapter (scripts/test installs lavapipe)");
        let buf = gpu.alloc("x", 8).expect("memory");
        let receipt = gpu.submit(gpu.begin(), &[(&buf, 0..32)]).expect("a step");
        gpu.device.device.destroy();
        let error = gpu.collect(receipt).expect_err("the device is gone");
        assert!(matches!(&error, Error::Device { message, .. } if message.contains("lost")), "{error}");
        assert_eq!(gpu.submit(gpu.begin(), &[]).err(), Some(error.clone()));
        assert_eq!(gpu.read(&buf, 0..4).err(), Some(error.clone()));
        assert_eq!(gpu.alloc("more", 8).err(), Some(error));
    }
}
