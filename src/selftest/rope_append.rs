//! Cases of [`RopeAppend`].

use super::compare::{Output, Want};
use super::inputs::{Random, Rows, Stream, filled, finish, optional, store};
use super::launch::{Check, Launch, POISON};
use super::matrix::{EPS, inverse_rms, sum_tolerance};
use super::pages::{Pages, Token, Tokens};
use crate::Result;
use crate::backend::params::RopeAppendParams;
use crate::backend::{Backend, Dtype, RopeAppend};

const MAX_POSITIONS: usize = 201;

pub(super) fn check<B: Backend, T: Backend>(check: &mut Check<'_, B, T>) -> Result<()> {
    for case in 0..Pages::N_CASES {
        let (random, pages) = (Random { case }, Pages::of_case(case));
        let (rows, tokens) = pages.rows();
        let [q_gain, k_gain, wide, q_grows] = [4, 5, 6, 7].map(|axis| random.pick(axis, &[false, true]));
        let rotary = random.pick(8, &[true, true, false]);
        check.launch(&Case { random, pages, rows, tokens, q_gain, k_gain, wide, q_grows, rotary })?;
    }
    for (dtype, group, head_dim) in [(Dtype::F32, 1, 64), (Dtype::F16, 3, 24), (Dtype::Bf16, 3, 24)] {
        for wide in [false, true] {
            check.in_company(|range| {
                let pages = Pages::in_company(dtype, group, head_dim);
                let (rows, tokens) = pages.company_rows(range.start, range.len());
                let random = Random { case: u32::MAX };
                Case { random, pages, rows, tokens, q_gain: true, k_gain: true, wide, q_grows: true, rotary: true }
            })?;
        }
    }
    Ok(())
}

#[derive(Debug)]
struct Case {
    random: Random,
    pages: Pages,
    rows: Rows,
    tokens: Tokens,
    q_gain: bool,
    k_gain: bool,
    /// One norm over all heads of q, and of k.
    wide: bool,
    /// q has a factor that grows with the position.
    q_grows: bool,
    rotary: bool,
}

struct Inputs {
    qkv: Vec<f32>,
    /// `[members][MAX_POSITIONS][head_dim / 2]` of (cos, sin).
    rotary: Option<Vec<[f32; 2]>>,
    q_gain: Option<Vec<f32>>,
    k_gain: Option<Vec<f32>>,
}

/// Of the factor of q, per member: it has grown once and many times at the positions of the cases, and not yet.
const Q_BETA: [f32; 2] = [0.1, 0.7];
const Q_LENGTH: [u32; 2] = [64, 7];

impl Case {
    /// Elements that a norm of q and one of k span.
    fn spans(&self) -> [usize; 2] {
        let Pages { n_kv_heads, head_dim, .. } = self.pages;
        if self.wide { [self.pages.n_heads(), n_kv_heads].map(|n| n * head_dim) } else { [head_dim; 2] }
    }

    fn q_factor(&self, member: usize, position: usize) -> f64 {
        let steps = position / Q_LENGTH[member] as usize;
        if self.q_grows { 1.0 + f64::from(Q_BETA[member]) * (1.0 + steps as f64).ln() } else { 1.0 }
    }

    fn inputs(&self) -> Inputs {
        let (random, n_members, head_dim) = (self.random, self.rows.n_members, self.pages.head_dim);
        let angle = |member: usize, position: usize, pair: usize| {
            let theta = [10_000f64, 500.0][member];
            position as f64 * theta.powf(-2.0 * pair as f64 / head_dim as f64)
        };
        let mut rotary = Vec::with_capacity(n_members * MAX_POSITIONS * head_dim / 2);
        for member in 0..n_members {
            for position in 0..MAX_POSITIONS {
                rotary.extend((0..head_dim / 2).map(|pair| {
                    let angle = angle(member, position, pair);
                    [angle.cos() as f32, angle.sin() as f32]
                }));
            }
        }
        Inputs {
            qkv: self.rows.numbers(random, Stream::Rows, self.pages.qkv_width()),
            rotary: self.rotary.then_some(rotary),
            q_gain: self.q_gain.then(|| random.gains(Stream::Gain, n_members, self.spans()[0])),
            k_gain: self.k_gain.then(|| random.gains(Stream::OtherGain, n_members, self.spans()[1])),
        }
    }

    /// The heads of `span` after their common norm, rotation, and times `factor`.
    fn turned(&self, span: &[f32], gain: Option<&[f32]>, eps: f32, turn: (Option<&[[f32; 2]]>, f64)) -> Vec<Want> {
        let r = gain.map_or(1.0, |_| inverse_rms(span, eps));
        let x: Vec<f64> =
            (0..span.len()).map(|i| r * f64::from(span[i]) * gain.map_or(1.0, |gain| gain[i].into())).collect();
        x.chunks(self.pages.head_dim).flat_map(|head| rotated(head, turn, sum_tolerance(span.len()))).collect()
    }
}

/// A head after rotation by its angles, and times a factor.
fn rotated(x: &[f64], (angles, factor): (Option<&[[f32; 2]]>, f64), tolerance: f64) -> Vec<Want> {
    let half = x.len() / 2;
    let near = |i: usize| {
        let [cos, sin] = angles.map_or([1.0, 0.0], |angles| angles[i % half].map(f64::from));
        // Pairs are (i, i + half): a cos - b sin, and b cos + a sin.
        let (mine, other) = (x[i] * cos, if i < half { -x[i + half] * sin } else { x[i - half] * sin });
        // The norm's factor is a sum over what it spans; the other roundings are among its 8 units.
        let size = factor * (mine.abs() + other.abs());
        Want::Near { value: factor * (mine + other), tolerance: tolerance * size }
    };
    (0..x.len()).map(near).collect()
}

/// Widens a tolerance by half a step of the type that the number is then rounded to.
fn rounded(want: Want, dtype: Dtype) -> Want {
    let Want::Near { value, tolerance } = want else { return want };
    let (unit, smallest) = match dtype {
        Dtype::F32 => return want,
        Dtype::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        Dtype::Bf16 => (2f64.powi(-8), 0.0),
    };
    Want::Near { value, tolerance: tolerance + unit * (value.abs() + tolerance) + smallest }
}

impl Launch for Case {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>> {
        let (Case { pages, rows, .. }, inputs) = (self, self.inputs());
        let qkv = filled(backend, "qkv", &inputs.qkv)?;
        let plane = filled(backend, "plane", &pages.poison())?;
        let places = filled(backend, "places", &pages.places(&self.tokens))?;
        let page_table = filled(backend, "page table", &pages.table())?;
        let rotary = optional(backend, "rotary", inputs.rotary.as_ref())?;
        let q_gain = optional(backend, "q gain", inputs.q_gain.as_ref())?;
        let k_gain = optional(backend, "k gain", inputs.k_gain.as_ref())?;
        let extents = filled(backend, "extents", &rows.extents([0; 2]))?;
        let [cap, n_heads, n_kv_heads, head_dim, max_positions] =
            [rows.cap, pages.n_heads(), pages.n_kv_heads, pages.head_dim, MAX_POSITIONS].map(|n| n as u32);
        let page = pages.params();
        let op = RopeAppend {
            qkv: &qkv,
            plane: &plane,
            places: &places,
            page_table: &page_table,
            rotary: rotary.as_ref(),
            q_gain: q_gain.as_ref(),
            k_gain: k_gain.as_ref(),
            extents: &extents,
            n_rows: rows.most(),
            params: RopeAppendParams {
                page,
                cap,
                n_heads,
                n_kv_heads,
                head_dim,
                max_positions,
                wide_norm: self.wide.into(),
                eps: EPS,
                q_beta: if self.q_grows { Q_BETA } else { [0.0; 2] },
                q_length: if self.q_grows { Q_LENGTH } else { [1; 2] },
            },
        };
        let mut pass = backend.begin();
        backend.rope_append(&mut pass, op);
        let words = [inputs.qkv.len(), pages.plane_words()];
        let mut outputs = finish(backend, pass, &[("qkv", &qkv, words[0]), ("plane", &plane, words[1])])?;
        outputs[1] = Output::packed("plane", pages.dtype, std::mem::take(&mut outputs[1].bits));
        Ok(outputs)
    }

    fn expected(&self) -> Vec<Vec<Want>> {
        let (Case { pages, rows, .. }, inputs) = (self, self.inputs());
        let (width, head_dim) = (pages.qkv_width(), pages.head_dim);
        let mut qkv: Vec<Want> = inputs.qkv.iter().map(|x| Want::Bits(x.to_bits())).collect();
        let poison = Output::packed("plane", pages.dtype, vec![POISON; pages.plane_words()]);
        let mut plane: Vec<Want> = poison.bits.into_iter().map(Want::Bits).collect();
        for (index, token) in self.tokens.0.iter().enumerate() {
            let Some(Token { lane, position }) = *token else { continue };
            let member = index / rows.cap;
            let gain =
                |gain: &'_ Option<Vec<f32>>, span| gain.as_ref().map(|gain| gain[member * span..][..span].to_vec());
            let [q_span, k_span] = self.spans();
            let (q_gain, k_gain) = (gain(&inputs.q_gain, q_span), gain(&inputs.k_gain, k_span));
            let first_angle = (member * MAX_POSITIONS + position) * head_dim / 2;
            let angles = inputs.rotary.as_ref().map(|rotary| &rotary[first_angle..][..head_dim / 2]);
            let (q, kv) = inputs.qkv[index * width..][..width].split_at(pages.n_heads() * head_dim);
            let (k, v) = kv.split_at(pages.n_kv_heads * head_dim);
            let turned = |heads: &[f32], span, gain: Option<&[f32]>, factor| {
                let turn = |heads| self.turned(heads, gain, EPS[member], (angles, factor));
                heads.chunks(span).flat_map(turn).collect::<Vec<_>>()
            };
            let q = turned(q, q_span, q_gain.as_deref(), self.q_factor(member, position));
            qkv[index * width..][..q.len()].copy_from_slice(&q);
            let k = turned(k, k_span, k_gain.as_deref(), 1.0);
            for (kv_head, (k, v)) in k.chunks(head_dim).zip(v.chunks(head_dim)).enumerate() {
                let cells = &mut plane[pages.element(lane, position, 0, kv_head)..][..head_dim];
                cells.iter_mut().zip(k).for_each(|(cell, k)| *cell = rounded(*k, pages.dtype));
                let stored = store(pages.dtype, v).1;
                let bits = stored.chunks(pages.dtype.bytes()).map(little_endian);
                let cells = &mut plane[pages.element(lane, position, 1, kv_head)..][..head_dim];
                cells.iter_mut().zip(bits).for_each(|(cell, bits)| *cell = Want::Bits(bits));
            }
        }
        vec![qkv, plane]
    }

    fn row(&self, outputs: &[Output], index: usize) -> Vec<u32> {
        let (pages, width) = (&self.pages, self.pages.qkv_width());
        let mut bits = outputs[0].bits[index * width..][..width].to_vec();
        if let Some(Token { lane, position }) = self.tokens.0[index] {
            for (kv, head) in (0..2).flat_map(|kv| (0..pages.n_kv_heads).map(move |head| (kv, head))) {
                let first = pages.element(lane, position, kv, head);
                bits.extend(&outputs[1].bits[first..first + pages.head_dim]);
            }
        }
        bits
    }
}

fn little_endian(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |bits, &byte| bits << 8 | u32::from(byte))
}
