//! The CPU: the twin that the other backends are tested against, and what a machine without a GPU runs.
//!
//! Ops run when they are recorded. Weights stand interleaved (`matrix`), so that SIMD lanes are output rows and each
//! sum runs over K in order with fused multiply-adds: every instruction set gives the same bits. Work is split over
//! threads by outputs only, so the number of threads changes nothing either.

mod attention;
mod combine_sample;
mod copy_pages;
mod draw;
mod embed;
mod matmul_add;
mod matrix;
pub mod memory;
mod norm_add;
mod norm_gate_up;
mod norm_matmul;
mod read_rate;
mod record;
mod rope_append;
mod rows;
mod select;
mod simd;
mod threads;

pub use matrix::Matrix;
pub use read_rate::ReadRate;
pub use simd::Isa;

use super::params::{Extent, MAX_MEMBERS};
use super::*;
use crate::{Error, Result};
use bytemuck::Pod;
use simd::memory::{Arena, Region};
use std::cell::{Ref, RefCell, RefMut};
use std::time::Instant;
use threads::Threads;

/// A CPU with its threads.
pub struct Cpu {
    threads: Threads,
    isa: Isa,
    /// Where matrices and buffers are.
    memory: RefCell<Arena>,
    /// What attention's blocks gave, until they are folded.
    partials: RefCell<Vec<f32>>,
}

/// Memory of the CPU. Ops borrow it: two uses that do not go together are a programmer's error and panic.
pub struct Buf(RefCell<Region<u32>>);

impl Buf {
    fn view<T: Pod>(&self) -> Ref<'_, [T]> {
        Ref::map(self.0.borrow(), |words| bytemuck::cast_slice(&words[..]))
    }

    fn view_mut<T: Pod>(&self) -> RefMut<'_, [T]> {
        RefMut::map(self.0.borrow_mut(), |words| bytemuck::cast_slice_mut(&mut words[..]))
    }
}

/// Ops run at once; what is left to record is how many there were.
#[derive(Default)]
pub struct Pass {
    dispatches: usize,
}

impl Cpu {
    /// `threads` threads, or all; the fastest instruction set that is here.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        Self::with_isa(threads, Isa::best())
    }

    /// As [`Self::new`] with a given instruction set, which must be here.
    pub fn with_isa(threads: Option<usize>, isa: Isa) -> Result<Self> {
        if !isa.is_available() {
            return Err(Error::device("cpu", format!("{} is not available here", isa.name())));
        }
        Ok(Self { threads: Threads::new(threads)?, isa, memory: RefCell::default(), partials: RefCell::default() })
    }

    /// Runs each task once, on any thread.
    fn share<T: Send>(&self, tasks: &mut [T], run: impl Fn(&mut T) + Sync) {
        self.threads.share(tasks, run);
    }

    fn crew(&self) -> Crew<'_> {
        Crew::All(&self.threads)
    }

    /// Multiply-adds of f32 per second of all threads together, loading nothing: the best of `times` runs.
    pub fn multiply_rate(&self, times: usize) -> f64 {
        const STEPS: usize = 1 << 20;
        let isa = self.isa;
        let rate = |_| {
            let mut counts = vec![0; self.threads.size()];
            let start = Instant::now();
            self.threads.share(&mut counts, |n| *n = isa.multiply_registers(STEPS));
            counts.iter().sum::<usize>() as f64 / start.elapsed().as_secs_f64()
        };
        (0..times).map(rate).fold(0.0, f64::max)
    }
}

/// Who runs the parts of something: all threads, or this one where the others have parts of something else.
#[derive(Clone, Copy)]
enum Crew<'a> {
    All(&'a Threads),
    One,
}

impl Crew<'_> {
    fn size(self) -> usize {
        match self {
            Crew::All(threads) => threads.size(),
            Crew::One => 1,
        }
    }

    /// Runs each task once.
    fn share<T: Send>(self, tasks: &mut [T], run: impl Fn(&mut T) + Sync) {
        match self {
            Crew::All(threads) => threads.share(tasks, run),
            Crew::One => tasks.iter_mut().for_each(run),
        }
    }
}

/// Where a token of a member stands in a page, in elements of the plane.
struct Cells {
    first: usize,
    tokens: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

impl Cells {
    #[inline(always)]
    fn new(page: &PageParams, page_id: usize, n_kv_heads: usize, head_dim: usize, element_bytes: usize) -> Self {
        let first = page_id * page.page_words as usize * 4 / element_bytes;
        Cells { first, tokens: page.page_tokens as usize, n_kv_heads, head_dim }
    }

    /// First element of the key of token `token` at `head`.
    #[inline(always)]
    fn key(&self, head: usize, token: u32) -> usize {
        self.first + (head * self.tokens + token as usize) * self.head_dim
    }

    /// First element of its value.
    #[inline(always)]
    fn value(&self, head: usize, token: u32) -> usize {
        self.key(self.n_kv_heads + head, token)
    }
}

impl Backend for Cpu {
    type Buf = Buf;
    type Matrix = Matrix;
    type Pass = Pass;
    type Receipt = Vec<u8>;

    const LAG: usize = 0;

    fn product_error(_: Dtype) -> f64 {
        0.0
    }

    fn draw_dispatches(_: Choice) -> usize {
        1
    }

    fn describe(&self) -> String {
        format!("cpu ({}, {} threads)", self.isa.name(), self.threads.size())
    }

    fn free_memory(&self) -> Option<u64> {
        memory::available()
    }

    fn binding_limit(&self) -> u64 {
        isize::MAX as u64
    }

    fn alloc(&self, label: &'static str, words: usize) -> Result<Buf> {
        let refused = |_| Error::Memory { what: label.into(), needed: 4 * words as u64, limit: self.binding_limit() };
        Ok(Buf(RefCell::new(self.memory.borrow_mut().zeroed(words.max(1)).map_err(refused)?)))
    }

    fn upload(&self, buf: &Buf, offset: usize, data: &[u8]) -> Result<()> {
        buf.view_mut::<u8>()[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read(&self, buf: &Buf, range: Range<usize>) -> Result<Vec<u8>> {
        Ok(buf.view::<u8>()[range].to_vec())
    }

    fn matrix(&self, spec: MatrixSpec, members: &[&dyn MatrixBytes]) -> Result<Matrix> {
        checks::check_members(spec, members);
        Matrix::new(self, spec, members)
    }

    fn begin(&self) -> Pass {
        Pass::default()
    }

    fn dispatches(&self, pass: &Pass) -> usize {
        pass.dispatches
    }

    fn submit(&self, _: Pass, reads: &[(&Buf, Range<usize>)]) -> Result<Vec<u8>> {
        Ok(reads.iter().flat_map(|(buf, range)| buf.view::<u8>()[range.clone()].to_vec()).collect())
    }

    fn collect(&self, receipt: Vec<u8>) -> Result<Vec<u8>> {
        Ok(receipt)
    }

    fn copy_pages(&self, pass: &mut Pass, op: CopyPages<'_, Self>) {
        pass.dispatches += 1;
        copy_pages::run(op);
    }

    fn embed(&self, pass: &mut Pass, op: Embed<'_, Self>) {
        op.check(op.table.shape());
        pass.dispatches += 1;
        embed::run(self, op);
    }

    fn norm_matmul(&self, pass: &mut Pass, op: NormMatmul<'_, Self>) {
        op.check(op.w.shape());
        pass.dispatches += 1;
        norm_matmul::run(self, op);
    }

    fn rope_append(&self, pass: &mut Pass, op: RopeAppend<'_, Self>) {
        op.check();
        pass.dispatches += 1;
        rope_append::run(self, op);
    }

    fn attention(&self, pass: &mut Pass, op: Attention<'_, Self>) {
        op.check();
        pass.dispatches += 1;
        attention::run(self, op);
    }

    fn matmul_add(&self, pass: &mut Pass, op: MatmulAdd<'_, Self>) {
        op.check(op.w.shape());
        pass.dispatches += 1;
        matmul_add::run(self, op);
    }

    fn norm_add(&self, pass: &mut Pass, op: NormAdd<'_, Self>) {
        op.check();
        pass.dispatches += 1;
        norm_add::run(self, op);
    }

    fn norm_gate_up(&self, pass: &mut Pass, op: NormGateUp<'_, Self>) {
        op.check(op.w_gate.shape(), op.w_up.shape());
        pass.dispatches += 1;
        norm_gate_up::run(self, op);
    }

    fn combine_sample(&self, pass: &mut Pass, op: CombineSample<'_, Self>) {
        op.check(op.samples.view::<Sample>().len());
        pass.dispatches += 1;
        combine_sample::run(self, op);
    }

    fn record(&self, pass: &mut Pass, op: Record<'_, Self>) {
        op.check(op.samples.view::<Sample>().len());
        pass.dispatches += 1;
        record::run(self, op);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let cpu = Cpu::new(Some(1)).expect("the CPU is here");
        // 256 TiB: more than a process can address, so that no setting of overcommit grants it.
        let words = 1 << 46;
        let refused = Error::Memory { what: "too much".into(), needed: 1 << 48, limit: cpu.binding_limit() };
        assert_eq!(cpu.alloc("too much", words).err(), Some(refused));
    }
}
