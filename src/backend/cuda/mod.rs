//! NVIDIA cards through CUDA. The kernels stand in `kernels/`, one module per op.
//!
//! An op becomes launches: which kernel, over which grid, with which arguments, on which branch of the step. That plan is
//! made here, and is safe; what runs it is a [`Device`]: the driver, or, in tests, the same kernels compiled as C++.
//!
//! # The canonical sum
//! Weights are the A operand of tensor-core products at every number of rows; a row of activations enters as two columns, its
//! bf16 (for f16 weights tf32) value and the rest; f32 weights are multiplied on their own. K is cut in slices fixed by the
//! shape, added in their order. Attention folds spans of keys, cut as a row's position has it. Only how many outputs are
//! held at once differs.
//!
//! # Grids
//! How many rows a step has is on the device ([`Extent`]). A grid is a bound, rounded up so that few different
//! steps are recorded; blocks that have no row leave at once.

mod attention;
mod compile;
mod constants;
mod cubins;
pub mod device;
mod draw;
mod driver;
mod graph;
pub mod kernels;
mod matmul;
mod matrix;
mod order;
mod rows;
mod search;
mod timeline;

pub use compile::{Arch, Sources, Written, write as write_kernels};
pub use device::{Device, Step};
pub use driver::{Allocation, Card, Driver, Inventory, Options, look, look_for_cards};
pub use matrix::Matrix;
pub use timeline::{Time, Timeline, Times};

use super::*;
use crate::Result;
use device::{Branch, Launch, Memory, N_BRANCHES};
use kernels::Kernel;

// A host that reads as late as it may still finds the id of each step.
const _: () = assert!(Driver::LAG < RING);

/// A card, or what plays one.
pub struct Cuda<D: Device> {
    device: D,
    draw: draw::Scratch<D>,
    /// Where blocks of attention meet.
    spans: attention::Scratch<D>,
}

impl Cuda<Driver> {
    /// On a card.
    pub fn open(options: &Options) -> Result<Self> {
        Self::new(Driver::open(options)?)
    }
}

impl<D: Device> Cuda<D> {
    /// On a device that is open.
    pub fn new(device: D) -> Result<Self> {
        Self::with_room(device, attention::ROOM_BYTES)
    }

    /// With so many bytes for the rows whose keys blocks share, on each branch of a step. They change no bit of what comes
    /// out: without any, a block has all keys of a row.
    pub fn with_room(device: D, attention_bytes: usize) -> Result<Self> {
        let spans = attention::Scratch::new(&device, attention_bytes)?;
        Ok(Self { draw: draw::Scratch::new(&device)?, spans, device })
    }
}

/// Ops being recorded.
#[derive(Default)]
pub struct Pass {
    step: Step,
    /// The extents of each stack of weights that has come up: what its branch is known by.
    stacks: Vec<u64>,
    /// Rows computed without their logits: a prompt's, but for its last.
    n_silent: i64,
}

impl Pass {
    /// The branch of the stack whose rows `extents` counts.
    fn branch_of(&mut self, extents: &impl Memory) -> Branch {
        let address = extents.address();
        let found = self.stacks.iter().position(|&stack| stack == address);
        let index = found.unwrap_or_else(|| {
            self.stacks.push(address);
            self.stacks.len() - 1
        });
        assert!(index < N_BRANCHES, "a step of {} stacks", index + 1);
        Branch::Stack(index)
    }

    /// Records a launch; one over no block is none.
    fn launch(&mut self, kernel: &'static Kernel, grid: [u32; 3], args: &impl bytemuck::Pod, branch: Branch) {
        let args = bytemuck::bytes_of(args);
        assert_eq!(args.len(), kernel.args_bytes, "{}: its arguments", kernel.name);
        if !grid.contains(&0) {
            self.step.launches.push(Launch { kernel, grid, args: args.into(), branch });
        }
    }

    /// The grid's bound for `n_rows` rows: a power of two up to [`MAX_SLOTS`], then a multiple of it.
    fn bound(&self, n_rows: u32) -> u32 {
        const MOST: u32 = MAX_SLOTS as u32;
        if n_rows == 0 {
            0
        } else if n_rows <= MOST {
            n_rows.next_power_of_two()
        } else {
            n_rows.next_multiple_of(MOST)
        }
    }

    /// The step, once all is recorded.
    fn into_step(self) -> Step {
        Step { is_rare: self.step.is_rare || self.n_silent != 0, ..self.step }
    }
}

/// The address of a buffer that may be absent.
fn address_of(memory: Option<&impl Memory>) -> u64 {
    memory.map_or(0, Memory::address)
}

impl<D: Device> Backend for Cuda<D> {
    type Buf = D::Memory;
    type Matrix = Matrix<D>;
    type Pass = Pass;
    type Receipt = D::Receipt;

    const LAG: usize = D::LAG;

    /// An activation enters as its nearest number of the narrow type and what that leaves, in the narrow type too. Let it
    /// be in [1, 2), which loses no generality. (What is below 2^-110 is off by an absolute amount that no sum sees.)
    ///
    /// bf16, 8 bits: the nearest is off by 2^-8 at most. Where that is all, it is a number of bf16; else it is less, and
    /// is rounded by half of the last place of [2^-9, 2^-8), which is 2^-17.
    /// tf32, 11 bits: the nearest is off by 2^-11 at most, in steps of 2^-23: 2^-11 itself, or 12 bits, of which 11 are
    /// kept, so that what is lost is 2^-23 at most.
    fn product_error(weights: Dtype) -> f64 {
        match weights {
            Dtype::Bf16 => 1.0 / (1 << 17) as f64,
            Dtype::F16 => 1.0 / (1 << 23) as f64,
            Dtype::F32 => 0.0,
        }
    }

    /// Blocks share a sample and cannot wait for each other: a launch for each digit of a place that is looked for.
    fn draw_dispatches(choice: Choice) -> usize {
        match choice {
            Choice::Greedy => 1,
            Choice::Drawn => 2,
            Choice::Filtered => 12,
            Choice::BaseMasked => 18,
        }
    }

    fn describe(&self) -> String {
        format!("cuda ({})", self.device.describe())
    }

    fn free_memory(&self) -> Option<u64> {
        self.device.free_memory()
    }

    fn binding_limit(&self) -> u64 {
        u64::MAX
    }

    fn alloc(&self, label: &'static str, words: usize) -> Result<Self::Buf> {
        self.device.alloc(label, 4 * words)
    }

    fn upload(&self, buf: &Self::Buf, offset: usize, data: &[u8]) -> Result<()> {
        assert!(offset + data.len() <= buf.bytes(), "{} bytes at {offset} of {}", data.len(), buf.bytes());
        self.device.upload(buf, offset, data)
    }

    fn read(&self, buf: &Self::Buf, range: Range<usize>) -> Result<Vec<u8>> {
        assert!(range.end <= buf.bytes(), "bytes {range:?} of {}", buf.bytes());
        self.device.read(buf, range)
    }

    fn matrix(&self, spec: MatrixSpec, members: &[&dyn MatrixBytes]) -> Result<Self::Matrix> {
        checks::check_members(spec, members);
        Matrix::new(&self.device, spec, members)
    }

    fn begin(&self) -> Self::Pass {
        Pass::default()
    }

    fn dispatches(&self, pass: &Self::Pass) -> usize {
        pass.step.launches.len()
    }

    fn submit(&self, pass: Self::Pass, reads: &[(&Self::Buf, Range<usize>)]) -> Result<Self::Receipt> {
        self.device.submit(&pass.into_step(), reads)
    }

    fn collect(&self, receipt: Self::Receipt) -> Result<Vec<u8>> {
        self.device.collect(receipt)
    }

    fn copy_pages(&self, pass: &mut Self::Pass, op: CopyPages<'_, Self>) {
        rows::copy_pages(pass, op);
    }

    fn embed(&self, pass: &mut Self::Pass, op: Embed<'_, Self>) {
        op.check(op.table.shape());
        rows::embed(pass, op);
    }

    fn norm_matmul(&self, pass: &mut Self::Pass, op: NormMatmul<'_, Self>) {
        op.check(op.w.shape());
        matmul::norm_matmul(pass, op);
    }

    fn rope_append(&self, pass: &mut Self::Pass, op: RopeAppend<'_, Self>) {
        op.check();
        attention::rope_append(pass, op);
    }

    fn attention(&self, pass: &mut Self::Pass, op: Attention<'_, Self>) {
        op.check();
        attention::attention(self, pass, op);
    }

    fn matmul_add(&self, pass: &mut Self::Pass, op: MatmulAdd<'_, Self>) {
        op.check(op.w.shape());
        matmul::matmul_add(pass, op);
    }

    fn norm_add(&self, pass: &mut Self::Pass, op: NormAdd<'_, Self>) {
        op.check();
        rows::norm_add(pass, op);
    }

    fn norm_gate_up(&self, pass: &mut Self::Pass, op: NormGateUp<'_, Self>) {
        op.check(op.w_gate.shape(), op.w_up.shape());
        matmul::norm_gate_up(pass, op);
    }

    fn combine_sample(&self, pass: &mut Self::Pass, op: CombineSample<'_, Self>) {
        op.check(op.samples.bytes() / size_of::<Sample>());
        draw::combine_sample(self, pass, op);
    }

    fn record(&self, pass: &mut Self::Pass, op: Record<'_, Self>) {
        op.check(op.samples.bytes() / size_of::<Sample>());
        draw::record(self, pass, op);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_few_and_large_enough() {
        let bounds = [0, 1, 2, 3, 5, 33, 64, 65, 128, 300].map(|n| Pass::default().bound(n));
        assert_eq!(bounds, [0, 1, 2, 4, 8, 64, 64, 128, 128, 320]);
    }
}
