//! Cases of [`MatmulAdd`].

use super::compare::{Output, Want};
use super::inputs::{Stream, Weights, filled, finish, optional};
use super::launch::{Check, Launch};
use super::matrix::{N_CASES, Shape, Sum, sum_tolerance};
use crate::Result;
use crate::backend::params::MatmulAddParams;
use crate::backend::{Backend, MatmulAdd};

pub(super) fn check<B: Backend, T: Backend>(check: &mut Check<'_, B, T>) -> Result<()> {
    for case in 0..N_CASES {
        let shape = Shape::of_case(case);
        let [bias, scaled] = [2, 3].map(|axis| shape.random.pick(axis, &[false, true]));
        let product_error = B::product_error(shape.spec.dtype);
        check.launch(&Case { shape, bias, scale: if scaled { 0.22 } else { 1.0 }, product_error })?;
    }
    for dtype in Shape::DTYPES {
        check.in_company(|rows| Case {
            shape: Shape::in_company(dtype, rows.start, rows.len()),
            bias: true,
            scale: 0.22,
            product_error: B::product_error(dtype),
        })?;
        check.over_long_rows(|rows| Case {
            shape: Shape::long(dtype, rows.start, rows.len()),
            bias: false,
            scale: 1.0,
            product_error: B::product_error(dtype),
        })?;
    }
    Ok(())
}

#[derive(Debug)]
struct Case {
    shape: Shape,
    bias: bool,
    scale: f32,
    /// Of the backend, see [`Backend::product_error`].
    product_error: f64,
}

struct Inputs {
    x: Vec<f32>,
    y: Vec<f32>,
    w: Weights,
    bias: Option<Vec<f32>>,
}

impl Case {
    fn inputs(&self) -> Inputs {
        let Shape { random, rows, spec } = self.shape;
        let bias =
            || (0..rows.n_members).flat_map(|member| random.uniform(Stream::Bias, member, spec.n_rows)).collect();
        Inputs {
            x: rows.numbers(random, Stream::OtherRows, spec.n_rows),
            y: rows.numbers(random, Stream::Rows, spec.n_cols),
            w: Weights::new(random, Stream::Weights, spec, rows.n_members),
            bias: self.bias.then(bias),
        }
    }
}

impl Launch for Case {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>> {
        let (Shape { rows, spec, .. }, inputs) = (self.shape, self.inputs());
        let x = filled(backend, "x", &inputs.x)?;
        let (w, y) = (inputs.w.upload(backend)?, filled(backend, "y", &inputs.y)?);
        let bias = optional(backend, "bias", inputs.bias.as_ref())?;
        let extents = filled(backend, "extents", &rows.extents([0; 2]))?;
        let [cap, n_in, n_out] = [rows.cap, spec.n_cols, spec.n_rows].map(|n| n as u32);
        let params = MatmulAddParams { cap, n_in, n_out, scale: self.scale };
        let (bias, n_rows) = (bias.as_ref(), rows.most());
        let mut pass = backend.begin();
        backend.matmul_add(&mut pass, MatmulAdd { x: &x, w: &w, y: &y, bias, extents: &extents, n_rows, params });
        finish(backend, pass, &[("x", &x, inputs.x.len())])
    }

    fn expected(&self) -> Vec<Vec<Want>> {
        let (Shape { rows, spec, .. }, inputs) = (self.shape, self.inputs());
        let (n_in, n_out) = (spec.n_cols, spec.n_rows);
        let y: Vec<f64> = inputs.y.iter().map(|&y| y.into()).collect();
        let element = |member: usize, row: usize, n: usize| {
            let index = member * rows.cap + row;
            let sum = Sum::dot(inputs.w.row(member, n), &y[index * n_in..][..n_in]);
            let x = f64::from(inputs.x[index * n_out + n]);
            let bias = inputs.bias.as_ref().map_or(0.0, |bias| f64::from(bias[member * n_out + n]));
            let scale = f64::from(self.scale);
            let size = scale * (sum.size + bias.abs()) + x.abs();
            let tolerance = sum_tolerance(n_in) * size + scale * self.product_error * sum.size;
            Want::Near { value: x + scale * (sum.value + bias), tolerance }
        };
        vec![Shape::wants(&rows, n_out, element)]
    }

    fn row(&self, outputs: &[Output], index: usize) -> Vec<u32> {
        let n_out = self.shape.spec.n_rows;
        outputs[0].bits[index * n_out..][..n_out].to_vec()
    }
}
