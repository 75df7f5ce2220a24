//! The twin of `shaders/norm_matmul.wgsl`.

use super::matrix::{Epilogue, Output, multiply};
use super::rows::Prepare;
use super::simd::GROUP;
use super::*;

/// See [`NormMatmul`].
pub(super) fn run(cpu: &Cpu, op: NormMatmul<'_, Cpu>) {
    let NormMatmulParams { cap_in, cap_out, n_in, n_out, eps, softcap, scale } = op.params;
    let [cap_in, cap_out, n_in, n_out] = [cap_in, cap_out, n_in, n_out].map(|n| n as usize);
    let (x, gain) = (op.x.view::<f32>(), op.gain.map(|gain| gain.view::<f32>()));
    let (x, gain) = (&x[..], gain.as_ref().map(|gain| (&gain[..], eps)));
    let gather = op.gather.map(|gather| gather.view::<u32>());
    let gather = gather.as_deref();
    let n_rows = if gather.is_some() { rows::n_logits(op.extents) } else { rows::n_rows(op.extents) };
    let row_of = |member: usize, row: usize| {
        member * cap_in + gather.map_or(row, |gather| gather[member * cap_out + row] as usize)
    };
    let row = |member, row| &x[row_of(member, row) * n_in..][..n_in];
    let bias = op.bias.map(|bias| bias.view::<f32>());
    let cap = Cap { bias: bias.as_deref(), n_out, softcap, scale };
    multiply(cpu, [op.w], (&Prepare::new(row, n_in, gain), n_rows), (&mut op.y.view_mut(), cap_out), &cap);
}

/// `y = softcap(scale * (factor * sum + bias))`.
struct Cap<'a> {
    bias: Option<&'a [f32]>,
    n_out: usize,
    softcap: f32,
    scale: f32,
}

impl Epilogue<1> for Cap<'_> {
    #[inline(always)]
    fn run(&self, at: Output, [sums]: [&[f32; GROUP]; 1], y: &mut [f32]) {
        let (factor, scale, softcap) = (at.factor, self.scale, self.softcap);
        match self.bias {
            Some(bias) => {
                let bias = &bias[at.member * self.n_out + at.column..];
                for ((y, sum), bias) in y.iter_mut().zip(sums).zip(bias) {
                    *y = factor.mul_add(*sum, *bias);
                }
            }
            None => {
                for (y, sum) in y.iter_mut().zip(sums) {
                    *y = factor * sum;
                }
            }
        }
        if scale != 1.0 {
            y.iter_mut().for_each(|y| *y *= scale);
        }
        if softcap != 0.0 {
            y.iter_mut().for_each(|y| *y = softcap * (*y / softcap).tanh());
        }
    }
}
