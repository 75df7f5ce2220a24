//! What the three ops over weight matrices share: the shapes of their cases, sums in f64, and how far f32 may be off.

use super::compare::Want;
use super::inputs::{Random, Rows, UNIT};
use super::launch::POISON;
use crate::backend::{Dtype, MatrixSpec};

/// Cases of each op over matrices: every pair of the values below occurs, for the lists' lengths are coprime and no
/// two of them multiply to more.
pub(super) const N_CASES: u32 = 70;

const N_ROWS: [usize; 7] = [1, 2, 3, 7, 9, 17, 64];
const N_IN: [usize; 4] = [8, 24, 104, 896];
const N_OUT: [usize; 5] = [1, 5, 63, 65, 333];
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// Buffers of every case fit a binding limit of 256 KiB.
const MAX_WORDS: usize = 64 << 10;

/// eps of the members.
pub(super) const EPS: [f32; 2] = [1e-5, 0.3];

/// Rows and a matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) random: Random,
    pub(super) rows: Rows,
    pub(super) spec: MatrixSpec,
}

impl Shape {
    /// Case number `case`, with one or two members.
    pub(super) fn of_case(case: u32) -> Self {
        let (random, index) = (Random { case }, case as usize);
        let [n_cols, n_rows] = [N_IN[index % N_IN.len()], N_OUT[index % N_OUT.len()]];
        let spec = MatrixSpec { dtype: DTYPES[index % DTYPES.len()], n_rows, n_cols };
        let n = N_ROWS[index % N_ROWS.len()];
        let rows = match random.pick(0, &[0, 0, 1, 2, 3]) {
            0 => Rows::of(&[n], random.pick(1, &[0, 1, 2])),
            1 => Rows::of(&[n, n.div_ceil(2)], 1),
            2 => Rows::of(&[n / 2, n], 0),
            _ => Rows::of(&[n, 0], 1),
        };
        let fits = rows.total() * n_cols.max(n_rows) <= MAX_WORDS;
        let rows = if fits { rows } else { Rows::of(&[33, 17], 0) };
        Self { random, rows, spec }
    }

    /// Rows `first..first + n_rows` of the launches that are compared with each other.
    pub(super) fn in_company(dtype: Dtype, first: usize, n_rows: usize) -> Self {
        let spec = MatrixSpec { dtype, n_rows: 63, n_cols: 208 };
        Self { random: Random { case: u32::MAX }, rows: Rows::alone(first, n_rows), spec }
    }

    /// Rows `first..first + n_rows` over a K of some times what a backend has under way at once, and of no whole number of
    /// anything: the launches of [`Check::over_long_rows`].
    pub(super) fn long(dtype: Dtype, first: usize, n_rows: usize) -> Self {
        let spec = MatrixSpec { dtype, n_rows: 19, n_cols: 4_088 };
        Self { random: Random { case: u32::MAX - 1 }, rows: Rows::alone(first, n_rows), spec }
    }

    /// Types of [`Self::in_company`].
    pub(super) const DTYPES: [Dtype; 3] = DTYPES;

    /// The wants of an output `[members * cap][n_out]`, from each element's; poison stays in rows not of this step.
    pub(super) fn wants(rows: &Rows, n_out: usize, mut element: impl FnMut(usize, usize, usize) -> Want) -> Vec<Want> {
        let mut wants = Vec::with_capacity(rows.total() * n_out);
        for place in rows.each() {
            wants.extend((0..n_out).map(|n| match place {
                None => Want::Bits(POISON),
                Some((member, row)) => element(member, row, n),
            }));
        }
        wants
    }
}

/// A sum with its exact value, as far as f64 goes, and the sum of its terms' sizes.
#[derive(Clone, Copy)]
pub(super) struct Sum {
    pub(super) value: f64,
    pub(super) size: f64,
}

impl Sum {
    /// The dot product of a row of weights with a row of activations.
    pub(super) fn dot(w: &[f32], x: &[f64]) -> Self {
        let terms = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * x);
        terms.fold(Self { value: 0.0, size: 0.0 }, |sum, term| Self {
            value: sum.value + term,
            size: sum.size + term.abs(),
        })
    }
}

/// Error of an f32 sum of `n` terms in any order, relative to the sum of their sizes: roundings are independent, each
/// at most one unit of a partial sum that the sizes bound, so their sum has a deviation of at most sqrt(n / 3) units.
/// sqrt(n) is 1.7 of them, and our terms have both signs, which makes partial sums smaller still; 8 units more are
/// for the few roundings outside the sum. A product that went through bf16 on the way is off by 2^-9 of a term and
/// fails at every n here.
pub(super) fn sum_tolerance(n: usize) -> f64 {
    ((n as f64).sqrt() + 8.0) * UNIT
}

/// A row ready to multiply: `g x`, and the factor `r` of its sums.
pub(super) struct Normed {
    pub(super) gx: Vec<f64>,
    pub(super) r: f64,
}

impl Normed {
    pub(super) fn new(x: &[f32], gain: Option<&[f32]>, eps: f32) -> Self {
        match gain {
            None => Self { gx: x.iter().map(|&x| x.into()).collect(), r: 1.0 },
            Some(gain) => {
                let gx = x.iter().zip(gain).map(|(&x, &gain)| f64::from(x) * f64::from(gain)).collect();
                Self { gx, r: inverse_rms(x, eps) }
            }
        }
    }
}

/// `1 / sqrt(mean(x^2) + eps)`. In f32 it is off by half of [`sum_tolerance`]: the root halves a relative error.
pub(super) fn inverse_rms(x: &[f32], eps: f32) -> f64 {
    let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    1.0 / (squares / x.len() as f64 + f64::from(eps)).sqrt()
}
