//! The twin of `shaders/norm_gate_up.wgsl`.

use super::matrix::{Epilogue, Output, multiply};
use super::rows::Prepare;
use super::simd::GROUP;
use super::*;
use crate::backend::math::{GELU_CUBIC, GELU_LINEAR, exp_nonpositive};

/// See [`NormGateUp`].
pub(super) fn run(cpu: &Cpu, op: NormGateUp<'_, Cpu>) {
    let NormGateUpParams { cap, n_in, activation, eps, .. } = op.params;
    let [cap, n_in] = [cap, n_in].map(|n| n as usize);
    let (x, gain) = (op.x.view::<f32>(), op.gain.map(|gain| gain.view::<f32>()));
    let (x, gain) = (&x[..], gain.as_ref().map(|gain| (&gain[..], eps)));
    let row = |member, row| &x[(member * cap + row) * n_in..][..n_in];
    let rows = (&Prepare::new(row, n_in, gain), rows::n_rows(op.extents));
    let (w, mut h) = ([op.w_gate, op.w_up], op.h.view_mut());
    if activation == Activation::Silu as u32 {
        multiply(cpu, w, rows, (&mut h, cap), &Gate(silu));
    } else {
        multiply(cpu, w, rows, (&mut h, cap), &Gate(gelu_tanh));
    }
}

/// `h = activate(factor * gate) * (factor * up)`.
struct Gate<A>(A);

impl<A: Fn(f32) -> f32 + Sync> Epilogue<2> for Gate<A> {
    #[inline(always)]
    fn run(&self, at: Output, [gate, up]: [&[f32; GROUP]; 2], h: &mut [f32]) {
        let factor = at.factor;
        for ((h, gate), up) in h.iter_mut().zip(gate).zip(up) {
            *h = self.0(factor * gate) * (factor * up);
        }
    }
}

/// x * sigmoid(x).
#[inline(always)]
fn silu(x: f32) -> f32 {
    let e = exp_nonpositive(-x.abs());
    let sigmoid = if x < 0.0 { e } else { 1.0 } / (1.0 + e);
    x * sigmoid
}

/// 0.5 x (1 + tanh u), u = GELU_LINEAR (x + GELU_CUBIC x^3).
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    let u = GELU_LINEAR * (GELU_CUBIC * x * x).mul_add(x, x);
    let e = exp_nonpositive(-2.0 * u.abs());
    let tanh = ((1.0 - e) / (1.0 + e)).copysign(u);
    0.5 * x * (1.0 + tanh)
}
