//! The twin of `shaders/norm_add.wgsl`.

use super::rows::{InverseRms, RowKernel};
use super::simd::Kernel;
use super::*;

/// See [`NormAdd`].
pub(super) fn run(cpu: &Cpu, op: NormAdd<'_, Cpu>) {
    let NormAddParams { cap, d_model, eps } = op.params;
    let [cap, width] = [cap, d_model].map(|n| n as usize);
    let (y, gain) = (op.y.view::<f32>(), op.gain.view::<f32>());
    let add = Add { y: &y, gain: &gain, cap, eps };
    rows::for_each_row(cpu, &mut op.x.view_mut(), [cap, width], rows::n_rows(op.extents), &add);
}

/// `x += rms_norm(y) * gain`.
struct Add<'a> {
    y: &'a [f32],
    gain: &'a [f32],
    cap: usize,
    eps: [f32; MAX_MEMBERS],
}

impl RowKernel for Add<'_> {
    #[inline(always)]
    fn run(&self, member: usize, row: usize, x: &mut [f32]) {
        let width = x.len();
        let y = &self.y[(member * self.cap + row) * width..][..width];
        let gain = &self.gain[member * width..][..width];
        let factor = InverseRms { x: y, eps: self.eps[member] }.run();
        x.iter_mut().zip(y).zip(gain).for_each(|((x, y), gain)| *x = (factor * y).mul_add(*gain, *x));
    }
}
