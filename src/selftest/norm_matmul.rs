//! Cases of [`NormMatmul`].

use super::compare::{Output, Want};
use super::inputs::{Rows, Stream, UNIT, Weights, filled, finish, optional, poisoned};
use super::launch::{Check, Launch};
use super::matrix::{EPS, N_CASES, Normed, Shape, Sum, sum_tolerance};
use crate::Result;
use crate::backend::params::NormMatmulParams;
use crate::backend::{Backend, NormMatmul};

pub(super) fn check<B: Backend, T: Backend>(check: &mut Check<'_, B, T>) -> Result<()> {
    for case in 0..N_CASES {
        check.launch(&Case::of::<B>(case))?;
    }
    for dtype in Shape::DTYPES {
        for gathered in [false, true] {
            check.in_company(|rows| {
                let shape = Shape::in_company(dtype, rows.start, rows.len());
                Case {
                    shape,
                    gain: true,
                    bias: true,
                    gathered: gathered.then_some(shape.rows),
                    softcap: 0.0,
                    scale: 1.0,
                    product_error: B::product_error(dtype),
                }
            })?;
        }
        check.over_long_rows(|rows| {
            let shape = Shape::long(dtype, rows.start, rows.len());
            let product_error = B::product_error(dtype);
            Case { shape, gain: true, bias: false, gathered: None, softcap: 0.0, scale: 1.0, product_error }
        })?;
    }
    Ok(())
}

#[derive(Debug)]
struct Case {
    shape: Shape,
    gain: bool,
    bias: bool,
    /// The rows of y, where rows of x are gathered.
    gathered: Option<Rows>,
    softcap: f32,
    scale: f32,
    /// Of the backend, see [`Backend::product_error`].
    product_error: f64,
}

impl Case {
    fn of<B: Backend>(case: u32) -> Self {
        let shape = Shape::of_case(case);
        let Shape { random, rows, .. } = shape;
        let [gain, bias, gathers] = [2, 3, 4].map(|axis| random.pick(axis, &[false, true]));
        let gathered = gathers.then(|| {
            let counts = rows.counts.map(|n| n.div_ceil(2));
            Rows::of(&counts[..rows.n_members], random.pick(5, &[0, 1]))
        });
        Self {
            shape,
            gain,
            bias,
            gathered,
            softcap: random.pick(6, &[0.0, 0.0, 3.0]),
            scale: random.pick(7, &[1.0, 0.17]),
            product_error: B::product_error(shape.spec.dtype),
        }
    }

    /// The rows of y.
    fn out(&self) -> Rows {
        self.gathered.unwrap_or(self.shape.rows)
    }

    /// The row of x behind row `row` of y: out of order and repeated where gathered, but for launches of company.
    fn source(&self, member: usize, row: usize) -> usize {
        match self.shape.rows.counts[member] {
            n if self.gathered.is_some_and(|out| out.counts[member] < n) => (row * 7 + 3) % n,
            _ => row,
        }
    }

    fn gather(&self) -> Option<Vec<u32>> {
        let source = |place: Option<(usize, usize)>| place.map_or(u32::MAX, |(m, row)| self.source(m, row) as u32);
        self.gathered.map(|out| out.each().map(source).collect())
    }

    fn inputs(&self) -> Inputs {
        let Shape { random, rows, spec } = self.shape;
        let bias =
            || (0..rows.n_members).flat_map(|member| random.uniform(Stream::Bias, member, spec.n_rows)).collect();
        Inputs {
            x: rows.numbers(random, Stream::Rows, spec.n_cols),
            w: Weights::new(random, Stream::Weights, spec, rows.n_members),
            gain: self.gain.then(|| random.gains(Stream::Gain, rows.n_members, spec.n_cols)),
            bias: self.bias.then(bias),
        }
    }
}

struct Inputs {
    x: Vec<f32>,
    w: Weights,
    gain: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

impl Launch for Case {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>> {
        let (Shape { rows, spec, .. }, out, inputs) = (self.shape, self.out(), self.inputs());
        let n_words = out.total() * spec.n_rows;
        let y = poisoned(backend, "y", n_words)?;
        let (w, x) = (inputs.w.upload(backend)?, filled(backend, "x", &inputs.x)?);
        let gain = optional(backend, "gain", inputs.gain.as_ref())?;
        let bias = optional(backend, "bias", inputs.bias.as_ref())?;
        let gather = optional(backend, "gather", self.gather().as_ref())?;
        let n_logits = self.gathered.map_or([0; 2], |out| out.counts);
        let extents = filled(backend, "extents", &rows.extents(n_logits))?;
        let [cap_in, cap_out, n_in, n_out] = [rows.cap, out.cap, spec.n_cols, spec.n_rows].map(|n| n as u32);
        let Case { softcap, scale, .. } = *self;
        let params = NormMatmulParams { cap_in, cap_out, n_in, n_out, softcap, scale, eps: EPS };
        let op = NormMatmul {
            y: &y,
            w: &w,
            x: &x,
            gain: gain.as_ref(),
            bias: bias.as_ref(),
            gather: gather.as_ref(),
            extents: &extents,
            n_rows: out.most(),
            params,
        };
        let mut pass = backend.begin();
        backend.norm_matmul(&mut pass, op);
        finish(backend, pass, &[("y", &y, n_words)])
    }

    fn expected(&self) -> Vec<Vec<Want>> {
        let (Shape { rows, spec, .. }, out, inputs) = (self.shape, self.out(), self.inputs());
        let (n_in, softcap) = (spec.n_cols, f64::from(self.softcap));
        let normed: Vec<Normed> = (0..rows.total())
            .map(|index| {
                let member = index / rows.cap;
                let gain = inputs.gain.as_ref().map(|gain| &gain[member * n_in..][..n_in]);
                Normed::new(&inputs.x[index * n_in..][..n_in], gain, EPS[member])
            })
            .collect();
        let element = |member: usize, row: usize, n: usize| {
            let Normed { gx, r } = &normed[member * rows.cap + self.source(member, row)];
            let sum = Sum::dot(inputs.w.row(member, n), gx);
            let bias = inputs.bias.as_ref().map_or(0.0, |bias| bias[member * spec.n_rows + n].into());
            let scale = f64::from(self.scale);
            let (y, size) = (scale * (r * sum.value + bias), scale * (r * sum.size + bias.abs()));
            // The sum, and with the norm half as much for r.
            let tolerance = 1.5 * sum_tolerance(n_in) * size + self.product_error * scale * r * sum.size;
            if softcap == 0.0 {
                return Want::Near { value: y, tolerance };
            }
            // tanh is no steeper than 1; near 0 it is a difference of numbers near 1, some units off, times the cap.
            Want::Near { value: softcap * (y / softcap).tanh(), tolerance: tolerance + 8.0 * UNIT * softcap }
        };
        vec![Shape::wants(&out, spec.n_rows, element)]
    }

    fn row(&self, outputs: &[Output], index: usize) -> Vec<u32> {
        let n_out = self.shape.spec.n_rows;
        outputs[0].bits[index * n_out..][..n_out].to_vec()
    }
}
