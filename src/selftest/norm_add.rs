//! Cases of [`NormAdd`].

use super::compare::{Output, Want};
use super::inputs::{Random, Rows, Stream, UNIT, filled, finish};
use super::launch::{Check, Launch};
use super::matrix::{EPS, N_CASES, Shape, inverse_rms, sum_tolerance};
use crate::Result;
use crate::backend::params::NormAddParams;
use crate::backend::{Backend, Dtype, NormAdd};

pub(super) fn check<B: Backend, T: Backend>(check: &mut Check<'_, B, T>) -> Result<()> {
    for case in 0..N_CASES {
        let Shape { random, rows, spec } = Shape::of_case(case);
        check.launch(&Case { random, rows, width: spec.n_cols })?;
    }
    check.in_company(|range| {
        let Shape { random, rows, spec } = Shape::in_company(Dtype::F32, range.start, range.len());
        Case { random, rows, width: spec.n_cols }
    })
}

#[derive(Debug)]
struct Case {
    random: Random,
    rows: Rows,
    width: usize,
}

impl Case {
    /// x, y and the gains.
    fn inputs(&self) -> [Vec<f32>; 3] {
        [
            self.rows.numbers(self.random, Stream::OtherRows, self.width),
            self.rows.numbers(self.random, Stream::Rows, self.width),
            self.random.gains(Stream::Gain, self.rows.n_members, self.width),
        ]
    }
}

impl Launch for Case {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>> {
        let [x, y, gain] = self.inputs();
        let n_words = x.len();
        let (x, y, gain) = (filled(backend, "x", &x)?, filled(backend, "y", &y)?, filled(backend, "gain", &gain)?);
        let extents = filled(backend, "extents", &self.rows.extents([0; 2]))?;
        let params = NormAddParams { cap: self.rows.cap as u32, d_model: self.width as u32, eps: EPS };
        let n_rows = self.rows.most();
        let mut pass = backend.begin();
        backend.norm_add(&mut pass, NormAdd { x: &x, y: &y, gain: &gain, extents: &extents, n_rows, params });
        finish(backend, pass, &[("x", &x, n_words)])
    }

    fn expected(&self) -> Vec<Vec<Want>> {
        let ([x, y, gain], width) = (self.inputs(), self.width);
        let rs: Vec<f64> =
            y.chunks(width).enumerate().map(|(row, y)| inverse_rms(y, EPS[row / self.rows.cap])).collect();
        let element = |member: usize, row: usize, n: usize| {
            let row = member * self.rows.cap + row;
            let x = f64::from(x[row * width + n]);
            let added = rs[row] * f64::from(y[row * width + n]) * f64::from(gain[member * width + n]);
            let tolerance = sum_tolerance(width) * added.abs() + 2.0 * UNIT * x.abs();
            Want::Near { value: x + added, tolerance }
        };
        vec![Shape::wants(&self.rows, width, element)]
    }

    fn row(&self, outputs: &[Output], index: usize) -> Vec<u32> {
        outputs[0].bits[index * self.width..][..self.width].to_vec()
    }
}
