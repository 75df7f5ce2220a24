//! The twin of `shaders/norm_matmul.wgsl`.

use super::matrix::{GROUP, Sums, multiply};
use super::rows::RowKernel;
use super::*;

/// See [`NormMatmul`].
pub(super) fn run(cpu: &Cpu, op: NormMatmul<'_, Cpu>) {
    let NormMatmulParams { cap_in, cap_out, n_in, n_out, eps, softcap, scale } = op.params;
    let [cap_in, cap_out, n_in, n_out] = [cap_in, cap_out, n_in, n_out].map(|n| n as usize);
    let Scratch { inputs, factors, sums: [sums, _] } = &mut *cpu.scratch.borrow_mut();
    let (x, gain) = (op.x.view::<f32>(), op.gain.map(|gain| gain.view::<f32>()));
    let gather = op.gather.map(|gather| gather.view::<u32>());
    let n_rows = if gather.is_some() { rows::n_logits(op.extents) } else { rows::n_rows(op.extents) };
    let row_of = |member: usize, row: usize| {
        member * cap_in + gather.as_ref().map_or(row, |gather| gather[member * cap_out + row] as usize)
    };
    let row = |member, row| &x[row_of(member, row) * n_in..][..n_in];
    let gain = gain.as_ref().map(|gain| (&gain[..], eps));
    let (inputs, factors) = rows::prepare(cpu, (inputs, factors), (n_rows, n_in), gain, row);
    let sums = multiply(cpu, op.w, inputs, sums);
    let bias = op.bias.map(|bias| bias.view::<f32>());
    let epilogue = Epilogue { sums, factors, cap: inputs.cap, bias: bias.as_deref(), softcap, scale };
    rows::for_each_row(cpu, &mut op.y.view_mut(), [cap_out, n_out], n_rows, &epilogue);
}

/// `y = softcap(scale * (factor * sum + bias))`.
struct Epilogue<'a> {
    sums: Sums<'a>,
    /// `[members][cap]`.
    factors: &'a [f32],
    cap: usize,
    bias: Option<&'a [f32]>,
    softcap: f32,
    scale: f32,
}

impl RowKernel for Epilogue<'_> {
    #[inline(always)]
    fn run(&self, member: usize, row: usize, y: &mut [f32]) {
        let (factor, n_out) = (self.factors[member * self.cap + row], y.len());
        for (group, (y, sums)) in y.chunks_mut(GROUP).zip(self.sums.row(member, row)).enumerate() {
            match self.bias {
                Some(bias) => {
                    let bias = &bias[member * n_out + group * GROUP..];
                    y.iter_mut().zip(sums).zip(bias).for_each(|((y, sum), bias)| *y = factor.mul_add(*sum, *bias));
                }
                None => y.iter_mut().zip(sums).for_each(|(y, sum)| *y = factor * sum),
            }
            if self.scale != 1.0 {
                y.iter_mut().for_each(|y| *y *= self.scale);
            }
            if self.softcap != 0.0 {
                y.iter_mut().for_each(|y| *y = self.softcap * (*y / self.softcap).tanh());
            }
        }
    }
}
