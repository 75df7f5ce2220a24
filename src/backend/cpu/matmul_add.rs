//! The twin of `shaders/matmul_add.wgsl`.

use super::matrix::{GROUP, Rows, Sums, multiply};
use super::rows::RowKernel;
use super::*;

/// See [`MatmulAdd`].
pub(super) fn run(cpu: &Cpu, op: MatmulAdd<'_, Cpu>) {
    let MatmulAddParams { cap, n_out, scale, .. } = op.params;
    let [cap, n_out] = [cap, n_out].map(|n| n as usize);
    let scratch = &mut *cpu.scratch.borrow_mut();
    let n_rows = rows::n_rows(op.extents);
    let y = op.y.view::<f32>();
    let sums = multiply(cpu, op.w, Rows { x: &y, cap, n_rows }, &mut scratch.sums[0]);
    let bias = op.bias.map(|bias| bias.view::<f32>());
    let add = Add { sums, bias: bias.as_deref(), scale };
    rows::for_each_row(cpu, &mut op.x.view_mut(), [cap, n_out], n_rows, &add);
}

/// `x += scale * (sum + bias)`.
struct Add<'a> {
    sums: Sums<'a>,
    bias: Option<&'a [f32]>,
    scale: f32,
}

impl RowKernel for Add<'_> {
    #[inline(always)]
    fn run(&self, member: usize, row: usize, x: &mut [f32]) {
        let (n_out, scale) = (x.len(), self.scale);
        for (group, (x, sums)) in x.chunks_mut(GROUP).zip(self.sums.row(member, row)).enumerate() {
            match self.bias {
                Some(bias) => {
                    let bias = &bias[member * n_out + group * GROUP..];
                    x.iter_mut().zip(sums).zip(bias).for_each(|((x, sum), bias)| *x = scale.mul_add(sum + bias, *x));
                }
                None => x.iter_mut().zip(sums).for_each(|(x, sum)| *x = scale.mul_add(*sum, *x)),
            }
        }
    }
}
