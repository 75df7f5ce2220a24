//! What the row-wise parts of ops share: norms, and a loop over the live rows of a buffer.

use super::simd::Kernel;
use super::simd::work::Grid;
use super::*;

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

/// Rows to multiply: `n_rows` of each member, whose rows start `cap` after another's, `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    x: &'a [f32],
    cap: usize,
    pub(super) stride: usize,
    n_in: usize,
    pub(super) n_rows: [usize; MAX_MEMBERS],
}

impl<'a> Rows<'a> {
    /// A member's rows from `row` on.
    pub(super) fn from(&self, member: usize, row: usize) -> &'a [f32] {
        &self.x[(member * self.cap + row) * self.stride..]
    }

    /// The factor of the sums of a row of [`Rows::prepare`]: the norm's, else 1.
    #[inline(always)]
    pub(super) fn factor(&self, member: usize, row: usize) -> f32 {
        self.from(member, row)[self.n_in]
    }

    /// Rows of `n_in` as they stand in a buffer, `[members * cap][n_in]`.
    pub(super) fn of_buffer(x: &'a [f32], [cap, n_in]: [usize; 2], n_rows: [usize; MAX_MEMBERS]) -> Self {
        Rows { x, cap, stride: n_in, n_in, n_rows }
    }

    /// Rows `row(member, index)` of `n_in`, times the gain where there is a norm, and behind each its factor.
    pub(super) fn prepare<'x>(
        cpu: &Cpu,
        inputs: &'a mut Vec<f32>,
        (n_rows, n_in): ([usize; MAX_MEMBERS], usize),
        norm: Option<(&[f32], [f32; MAX_MEMBERS])>,
        row: impl Fn(usize, usize) -> &'x [f32] + Sync,
    ) -> Self {
        let (cap, stride) = (n_rows.into_iter().max().unwrap_or(0), n_in.next_multiple_of(LANES) + ROW_GAP);
        let n_inputs = MAX_MEMBERS * cap * stride;
        if inputs.len() < n_inputs {
            inputs.resize(n_inputs, 0.0);
        }
        let prepare = Prepare { row, norm, n_in };
        for_each_row(cpu, &mut inputs[..n_inputs], [cap, stride], n_rows, &prepare);
        Rows { x: inputs, cap, stride, n_in, n_rows }
    }
}

struct Prepare<'a, R> {
    row: R,
    norm: Option<(&'a [f32], [f32; MAX_MEMBERS])>,
    n_in: usize,
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
