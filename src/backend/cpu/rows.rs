//! What the row-wise parts of ops share: norms, and a loop over the live rows of a buffer.

use super::simd::Kernel;
use super::simd::work::Grid;
use super::*;
use std::sync::atomic::{AtomicU64, Ordering};

/// Lanes of a sum over K that is not a matrix product's: element k goes to lane k mod 16, lanes are folded pairwise.
pub(super) const LANES: usize = 16;
/// Operations per element of a row, about.
const ROW_OPERATIONS: usize = 2;
/// Elements between rows that are prepared: on top, so that equal columns of many rows do not meet in one set of a
/// cache where the width is a power of two.
const ROW_GAP: usize = LANES;

/// Rows of each member in this step.
pub(super) fn n_rows(extents: &Buf) -> [usize; MAX_MEMBERS] {
    let extents = extents.view::<Extent>();
    std::array::from_fn(|member| extents[member].n_rows as usize)
}

/// Rows of each member that get logits in this step.
pub(super) fn n_logits(extents: &Buf) -> [usize; MAX_MEMBERS] {
    let extents = extents.view::<Extent>();
    std::array::from_fn(|member| extents[member].n_logits as usize)
}

/// `1 / sqrt(mean(x^2) + eps)`.
pub(super) struct InverseRms<'a> {
    pub(super) x: &'a [f32],
    pub(super) eps: f32,
}

impl Kernel for InverseRms<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let mut sums = [0.0f32; LANES];
        let chunks = self.x.chunks_exact(LANES);
        for (sum, x) in sums.iter_mut().zip(chunks.remainder()) {
            *sum = x * x;
        }
        for x in chunks {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = x.mul_add(*x, *sum);
            }
        }
        1.0 / (fold(sums) / self.x.len() as f32 + self.eps).sqrt()
    }
}

/// Sums folded by halves.
#[inline(always)]
pub(super) fn fold(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// Where rows to multiply come from.
pub(super) trait Source: Sync {
    /// Rows `which` of a member, maybe made in `room`, which keeps what it was given.
    fn rows<'s>(&'s self, isa: Isa, room: &'s mut Prepared, member: usize, which: Range<usize>) -> Rows<'s>;
}

/// Rows that stand `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    x: &'a [f32],
    pub(super) stride: usize,
    /// Where a prepared row's factor stands.
    factor: Option<usize>,
}

impl<'a> Rows<'a> {
    /// From `row` on.
    pub(super) fn from(&self, row: usize) -> &'a [f32] {
        &self.x[row * self.stride..]
    }

    /// The factor of the sums of a row: its norm's, else 1.
    #[inline(always)]
    pub(super) fn factor(&self, row: usize) -> f32 {
        self.factor.map_or(1.0, |at| self.x[row * self.stride + at])
    }
}

/// Rows of `n_in` as they stand in a buffer, `[members * cap][n_in]`.
pub(super) struct OfBuffer<'a> {
    pub(super) x: &'a [f32],
    pub(super) cap: usize,
    pub(super) n_in: usize,
}

impl Source for OfBuffer<'_> {
    fn rows<'s>(&'s self, _: Isa, _: &'s mut Prepared, member: usize, which: Range<usize>) -> Rows<'s> {
        Rows { x: &self.x[(member * self.cap + which.start) * self.n_in..], stride: self.n_in, factor: None }
    }
}

/// Rows `row(member, index)` of `n_in`, times the gain where there is a norm, and behind each its factor. Each thread
/// makes those that it multiplies: cheaper than fetching them from the cache of another, and nobody waits.
pub(super) struct Prepare<'a, R> {
    row: R,
    n_in: usize,
    norm: Option<(&'a [f32], [f32; MAX_MEMBERS])>,
    launch: u64,
}

impl<'x, 'a, R: Fn(usize, usize) -> &'x [f32] + Sync> Prepare<'a, R> {
    /// For one launch.
    pub(super) fn new(row: R, n_in: usize, norm: Option<(&'a [f32], [f32; MAX_MEMBERS])>) -> Self {
        static LAUNCHES: AtomicU64 = AtomicU64::new(0);
        Self { row, n_in, norm, launch: 1 + LAUNCHES.fetch_add(1, Ordering::Relaxed) }
    }
}

/// What a thread has prepared: rows of a member in a launch.
#[derive(Default)]
pub(super) struct Prepared {
    x: Vec<f32>,
    of: (u64, usize, Range<usize>),
}

impl<'x, R: Fn(usize, usize) -> &'x [f32] + Sync> Source for Prepare<'_, R> {
    fn rows<'s>(&'s self, isa: Isa, room: &'s mut Prepared, member: usize, which: Range<usize>) -> Rows<'s> {
        let (stride, of) = (self.n_in.next_multiple_of(LANES) + ROW_GAP, (self.launch, member, which.clone()));
        if room.of != of {
            room.x.resize(room.x.len().max(which.len() * stride), 0.0);
            for (row, values) in which.zip(room.x.chunks_exact_mut(stride)) {
                isa.run(OneRow(self, [member, row], values));
            }
            room.of = of;
        }
        Rows { x: &room.x, stride, factor: Some(self.n_in) }
    }
}

impl<'x, R: Fn(usize, usize) -> &'x [f32] + Sync> RowKernel for Prepare<'_, R> {
    #[inline(always)]
    fn run(&self, member: usize, row: usize, values: &mut [f32]) {
        let n_in = self.n_in;
        let (input, rest) = values.split_at_mut(n_in);
        let x = &(self.row)(member, row)[..n_in];
        match self.norm {
            Some((gain, eps)) => {
                let gain = &gain[member * n_in..][..n_in];
                for ((input, x), gain) in input.iter_mut().zip(x).zip(gain) {
                    *input = gain * x;
                }
                rest[0] = InverseRms { x, eps: eps[member] }.run();
            }
            None => {
                input.copy_from_slice(x);
                rest[0] = 1.0;
            }
        }
    }
}

/// What an op does with each of its rows. `run` is `#[inline(always)]`, as for a [`Kernel`].
pub(super) trait RowKernel: Sync {
    /// Row `row` of a member.
    fn run(&self, member: usize, row: usize, values: &mut [f32]);
}

struct OneRow<'a, K>(&'a K, [usize; 2], &'a mut [f32]);

impl<K: RowKernel> Kernel for OneRow<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let OneRow(kernel, [member, row], values) = self;
        kernel.run(member, row, values);
    }
}

/// Runs `kernel` on the rows of this step of a `[members * cap][width]` buffer.
pub(super) fn for_each_row(
    cpu: &Cpu,
    values: &mut [f32],
    [cap, width]: [usize; 2],
    n_rows: [usize; MAX_MEMBERS],
    kernel: &impl RowKernel,
) {
    let operations = ROW_OPERATIONS * n_rows.iter().sum::<usize>() * width;
    let grid = Grid { cap, width, n_rows, rows: 1, columns: width, operations };
    let isa = cpu.isa;
    cpu.threads.blocks(values, &grid, |place, mut block| {
        isa.run(OneRow(kernel, [place.member, place.rows.start], block.row(0)));
    });
}
