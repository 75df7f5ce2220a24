//! Cases of [`NormGateUp`].

use super::compare::{Output, Want};
use super::inputs::{Stream, UNIT, Weights, filled, finish, optional, poisoned};
use super::launch::{Check, Launch};
use super::matrix::{EPS, N_CASES, Normed, Shape, Sum, sum_tolerance};
use crate::Result;
use crate::backend::params::NormGateUpParams;
use crate::backend::{Activation, Backend, NormGateUp};

pub(super) fn check<B: Backend, T: Backend>(check: &mut Check<'_, B, T>) -> Result<()> {
    for case in 0..N_CASES {
        let shape = Shape::of_case(case);
        let gain = shape.random.pick(2, &[false, true]);
        let activation = shape.random.pick(3, &[Activation::Silu, Activation::GeluTanh]);
        check.launch(&Case { shape, gain, activation, product_error: B::product_error(shape.spec.dtype) })?;
    }
    for dtype in Shape::DTYPES {
        check.in_company(|rows| {
            let shape = Shape::in_company(dtype, rows.start, rows.len());
            Case { shape, gain: true, activation: Activation::Silu, product_error: B::product_error(dtype) }
        })?;
        check.over_long_rows(|rows| {
            let shape = Shape::long(dtype, rows.start, rows.len());
            Case { shape, gain: true, activation: Activation::GeluTanh, product_error: B::product_error(dtype) }
        })?;
    }
    Ok(())
}

#[derive(Debug)]
struct Case {
    shape: Shape,
    gain: bool,
    activation: Activation,
    /// Of the backend, see [`Backend::product_error`].
    product_error: f64,
}

struct Inputs {
    x: Vec<f32>,
    w_gate: Weights,
    w_up: Weights,
    gain: Option<Vec<f32>>,
}

impl Case {
    fn inputs(&self) -> Inputs {
        let Shape { random, rows, spec } = self.shape;
        Inputs {
            x: rows.numbers(random, Stream::Rows, spec.n_cols),
            w_gate: Weights::new(random, Stream::Weights, spec, rows.n_members),
            w_up: Weights::new(random, Stream::OtherWeights, spec, rows.n_members),
            gain: self.gain.then(|| random.gains(Stream::Gain, rows.n_members, spec.n_cols)),
        }
    }
}

impl Launch for Case {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>> {
        let (Shape { rows, spec, .. }, inputs) = (self.shape, self.inputs());
        let n_words = rows.total() * spec.n_rows;
        let h = poisoned(backend, "h", n_words)?;
        let [w_gate, w_up] = [inputs.w_gate.upload(backend)?, inputs.w_up.upload(backend)?];
        let x = filled(backend, "x", &inputs.x)?;
        let gain = optional(backend, "gain", inputs.gain.as_ref())?;
        let extents = filled(backend, "extents", &rows.extents([0; 2]))?;
        let [cap, n_in, n_out] = [rows.cap, spec.n_cols, spec.n_rows].map(|n| n as u32);
        let params = NormGateUpParams { cap, n_in, n_out, activation: self.activation as u32, eps: EPS };
        let (gain, n_rows) = (gain.as_ref(), rows.most());
        let op = NormGateUp { h: &h, w_gate: &w_gate, w_up: &w_up, x: &x, gain, extents: &extents, n_rows, params };
        let mut pass = backend.begin();
        backend.norm_gate_up(&mut pass, op);
        finish(backend, pass, &[("h", &h, n_words)])
    }

    fn expected(&self) -> Vec<Vec<Want>> {
        let (Shape { rows, spec, .. }, inputs) = (self.shape, self.inputs());
        let n_in = spec.n_cols;
        let normed: Vec<Normed> = (0..rows.total())
            .map(|index| {
                let member = index / rows.cap;
                let gain = inputs.gain.as_ref().map(|gain| &gain[member * n_in..][..n_in]);
                Normed::new(&inputs.x[index * n_in..][..n_in], gain, EPS[member])
            })
            .collect();
        let element = |member: usize, row: usize, n: usize| {
            let Normed { gx, r } = &normed[member * rows.cap + row];
            let [gate, up] = [&inputs.w_gate, &inputs.w_up].map(|w| Sum::dot(w.row(member, n), gx));
            let [g, u] = [r * gate.value, r * up.value];
            let relative = 1.5 * sum_tolerance(n_in) + self.product_error;
            let [gate_error, up_error] = [gate, up].map(|sum| relative * r * sum.size);
            let act = activate(self.activation, g);
            // Both activations are at most 1.13 steep and at most |g| large, and some units of |g| off themselves.
            let act_error = 1.13 * gate_error + 8.0 * UNIT * g.abs();
            let tolerance = act_error * (u.abs() + up_error) + act.abs() * (up_error + 2.0 * UNIT * u.abs());
            Want::Near { value: act * u, tolerance }
        };
        vec![Shape::wants(&rows, spec.n_rows, element)]
    }

    fn row(&self, outputs: &[Output], index: usize) -> Vec<u32> {
        let n_out = self.shape.spec.n_rows;
        outputs[0].bits[index * n_out..][..n_out].to_vec()
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
    }
}
