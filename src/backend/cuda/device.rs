//! What a device must do for [`super::Cuda`]: memory, and steps of launches. The driver is one; tests have another, which
//! runs the same kernels, compiled as C++, in a process.

use super::kernels::Kernel;
use crate::Result;
use std::ops::Range;

/// Memory of a device, freed when dropped.
pub trait Memory: Send {
    /// Where it begins, as the device's kernels see it; a multiple of 256.
    fn address(&self) -> u64;
    /// Its size.
    fn bytes(&self) -> usize;
}

/// Something that runs kernels in the order in which they are submitted.
pub trait Device: Send + 'static {
    /// Memory that it allocates.
    type Memory: Memory;
    /// A submitted step whose bytes can be collected.
    type Receipt;
    /// Steps the host may read late.
    const LAG: usize;

    /// Its name, without the backend's.
    fn describe(&self) -> String;
    /// Bytes that can still be allocated; absent where it does not tell.
    fn free_memory(&self) -> Option<u64>;
    /// Zeroed memory of at least one byte.
    fn alloc(&self, label: &'static str, bytes: usize) -> Result<Self::Memory>;
    /// Writes `data` at byte `offset` before anything submitted later runs.
    fn upload(&self, memory: &Self::Memory, offset: usize, data: &[u8]) -> Result<()>;
    /// Waits for all submitted work and reads a byte range.
    fn read(&self, memory: &Self::Memory, range: Range<usize>) -> Result<Vec<u8>>;
    /// Runs the launches of a step after all that was submitted before, then copies the byte ranges in `reads`.
    fn submit(&self, step: &Step, reads: &[(&Self::Memory, Range<usize>)]) -> Result<Self::Receipt>;
    /// Waits for a step and returns its `reads`, one after the other.
    fn collect(&self, receipt: Self::Receipt) -> Result<Vec<u8>>;
}

/// Branches that a step can have: as many as there can be stacks of weights.
pub const N_BRANCHES: usize = 3;

/// Which launches a launch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Branch {
    /// Those before it on its branch, and all [`Branch::All`] before it: stacks of weights run side by side.
    Stack(usize),
    /// All before it; and all after it wait for it.
    All,
}

/// One kernel over one grid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Launch {
    /// What runs.
    pub kernel: &'static Kernel,
    /// Blocks, none of them 0.
    pub grid: [u32; 3],
    /// The kernel's one argument, byte for byte.
    pub args: Box<[u8]>,
    /// What it waits for.
    pub branch: Branch,
}

/// The launches of one step. Two steps that are equal do the same with what stands in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Step {
    /// In the order in which they were recorded.
    pub launches: Vec<Launch>,
    /// Rows of prompts or copies of pages are in it: it hardly comes again.
    pub is_rare: bool,
}
