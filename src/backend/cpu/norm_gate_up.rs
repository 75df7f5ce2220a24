//! The twin of `shaders/norm_gate_up.wgsl`.

use super::matrix::{GROUP, Sums, multiply};
use super::rows::RowKernel;
use super::*;
use crate::backend::math::exp_nonpositive;

/// See [`NormGateUp`].
pub(super) fn run(cpu: &Cpu, op: NormGateUp<'_, Cpu>) {
    let NormGateUpParams { cap, n_in, n_out, activation, eps } = op.params;
    let [cap, n_in, n_out] = [cap, n_in, n_out].map(|n| n as usize);
    let Scratch { inputs, factors, sums: [gate, up] } = &mut *cpu.scratch.borrow_mut();
    let n_rows = rows::n_rows(op.extents);
    let (x, gain) = (op.x.view::<f32>(), op.gain.map(|gain| gain.view::<f32>()));
    let gain = gain.as_ref().map(|gain| (&gain[..], eps));
    let row = |member, row| &x[(member * cap + row) * n_in..][..n_in];
    let (inputs, factors) = rows::prepare(cpu, (inputs, factors), (n_rows, n_in), gain, row);
    let (gate, up) = (multiply(cpu, op.w_gate, inputs, gate), multiply(cpu, op.w_up, inputs, up));

    let cap = inputs.cap;
    let mut h = op.h.view_mut();
    if activation == Activation::Silu as u32 {
        let epilogue = Epilogue { gate, up, factors, cap, activate: silu };
        rows::for_each_row(cpu, &mut h, [op.params.cap as usize, n_out], n_rows, &epilogue);
    } else {
        let epilogue = Epilogue { gate, up, factors, cap, activate: gelu_tanh };
        rows::for_each_row(cpu, &mut h, [op.params.cap as usize, n_out], n_rows, &epilogue);
    }
}

/// `h = activate(factor * gate) * (factor * up)`.
struct Epilogue<'a, A> {
    gate: Sums<'a>,
    up: Sums<'a>,
    /// `[members][cap]`.
    factors: &'a [f32],
    cap: usize,
    activate: A,
}

impl<A: Fn(f32) -> f32 + Sync> RowKernel for Epilogue<'_, A> {
    #[inline(always)]
    fn run(&self, member: usize, row: usize, h: &mut [f32]) {
        let factor = self.factors[member * self.cap + row];
        let sums = self.gate.row(member, row).zip(self.up.row(member, row));
        for (h, (gate, up)) in h.chunks_mut(GROUP).zip(sums) {
            for ((h, gate), up) in h.iter_mut().zip(gate).zip(up) {
                *h = (self.activate)(factor * gate) * (factor * up);
            }
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

/// 0.5 x (1 + tanh u), u = sqrt(2 / pi) (x + 0.044715 x^3).
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    let u = 0.797_884_6 * (0.044_715 * x * x).mul_add(x, x);
    let e = exp_nonpositive(-2.0 * u.abs());
    let tanh = ((1.0 - e) / (1.0 + e)).copysign(u);
    0.5 * x * (1.0 + tanh)
}
