//! The twin of `shaders/matmul_add.wgsl`.

use super::matrix::{Epilogue, Output, multiply};
use super::rows::{OfBuffer, Prepare};
use super::simd::GROUP;
use super::*;

/// Widths whose rows stand a page apart, so that equal columns of a tile's rows meet in one set of the first cache.
const PAGE_WIDTH: usize = 1024;
/// Rows from which on that costs more than copying them apart.
const ROWS_TO_COPY: usize = 8;

/// See [`MatmulAdd`].
pub(super) fn run(cpu: &Cpu, op: MatmulAdd<'_, Cpu>) {
    let MatmulAddParams { cap, n_in, n_out, scale } = op.params;
    let [cap, n_in, n_out] = [cap, n_in, n_out].map(|n| n as usize);
    let n_rows = rows::n_rows(op.extents);
    let (y, mut x) = (op.y.view::<f32>(), op.x.view_mut());
    let (y, x) = (&y[..], (&mut x[..], cap));
    let bias = op.bias.map(|bias| bias.view::<f32>());
    let add = Add { bias: bias.as_deref(), n_out, scale };
    if n_in.is_multiple_of(PAGE_WIDTH) && n_rows.into_iter().any(|n| n >= ROWS_TO_COPY) {
        let row = |member, row| &y[(member * cap + row) * n_in..][..n_in];
        multiply(cpu, [op.w], (&Prepare::new(row, n_in, None), n_rows), x, &add);
    } else {
        multiply(cpu, [op.w], (&OfBuffer { x: y, cap, n_in }, n_rows), x, &add);
    }
}

/// `x += scale * (sum + bias)`.
struct Add<'a> {
    bias: Option<&'a [f32]>,
    n_out: usize,
    scale: f32,
}

impl Epilogue<1> for Add<'_> {
    #[inline(always)]
    fn run(&self, at: Output, [sums]: [&[f32; GROUP]; 1], x: &mut [f32]) {
        let scale = self.scale;
        match self.bias {
            Some(bias) => {
                let bias = &bias[at.member * self.n_out + at.column..];
                for ((x, sum), bias) in x.iter_mut().zip(sums).zip(bias) {
                    *x = scale.mul_add(sum + bias, *x);
                }
            }
            None => {
                for (x, sum) in x.iter_mut().zip(sums) {
                    *x = scale.mul_add(*sum, *x);
                }
            }
        }
    }
}
