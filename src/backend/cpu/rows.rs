//! What the row-wise parts of ops share: norms, and a loop over the live rows of a buffer.

use super::matrix::Rows;
use super::simd::Kernel;
use super::*;
use rayon::prelude::*;

/// Lanes of a sum over K that is not a matrix product's: element k goes to lane k mod 16, lanes are folded pairwise.
pub(super) const LANES: usize = 16;
/// Rows from which on threads share them: below it, starting threads costs more than the rows.
const ROWS_TO_SHARE: usize = 8;

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

/// `sum of a[k] * b[k]` over whole lanes: both lengths are equal and a multiple of [`LANES`].
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum = a.mul_add(*b, *sum);
        }
    }
    fold(sums)
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

#[inline(always)]
fn fold(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// The rows of a product, `[members][most rows][n_in]`: `row(member, index)` times the gain where there is a norm; and
/// for each the factor of its sums: the norm's, else 1.
pub(super) fn prepare<'a, 'x>(
    cpu: &Cpu,
    (inputs, factors): (&'a mut Vec<f32>, &'a mut Vec<f32>),
    (n_rows, n_in): ([usize; MAX_MEMBERS], usize),
    norm: Option<(&[f32], [f32; MAX_MEMBERS])>,
    row: impl Fn(usize, usize) -> &'x [f32],
) -> (Rows<'a>, &'a [f32]) {
    let cap = n_rows.into_iter().max().unwrap_or(0);
    let n_inputs = MAX_MEMBERS * cap;
    if factors.len() < n_inputs {
        factors.resize(n_inputs, 1.0);
    }
    if inputs.len() < n_inputs * n_in {
        inputs.resize(n_inputs * n_in, 0.0);
    }
    let live = (0..MAX_MEMBERS).flat_map(|member| (0..n_rows[member]).map(move |index| (member, index)));
    for (member, index) in live {
        let (at, x) = (member * cap + index, row(member, index));
        let input = &mut inputs[at * n_in..][..n_in];
        factors[at] = match norm {
            Some((gain, eps)) => {
                let gain = &gain[member * n_in..][..n_in];
                input.iter_mut().zip(x).zip(gain).for_each(|((input, x), gain)| *input = gain * x);
                cpu.isa.run(InverseRms { x, eps: eps[member] })
            }
            None => {
                input.copy_from_slice(x);
                1.0
            }
        };
    }
    (Rows { x: inputs, cap, n_rows }, factors)
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

/// Runs `kernel` on the live rows of a `[members * cap][width]` buffer.
pub(super) fn for_each_row(
    cpu: &Cpu,
    values: &mut [f32],
    [cap, width]: [usize; 2],
    n_rows: [usize; MAX_MEMBERS],
    kernel: &impl RowKernel,
) {
    let isa = cpu.isa;
    let live = |&(index, _): &(usize, &mut [f32])| index % cap < n_rows[index / cap];
    let run = |(index, row): (usize, &mut [f32])| isa.run(OneRow(kernel, [index / cap, index % cap], row));
    if n_rows.iter().sum::<usize>() < ROWS_TO_SHARE {
        values.chunks_exact_mut(width).enumerate().filter(live).for_each(run);
    } else {
        cpu.pool.install(|| values.par_chunks_exact_mut(width).enumerate().filter(live).for_each(run));
    }
}
