//! Cases of [`Attention`].

use super::compare::{Output, Want};
use super::inputs::{Random, Rows, Stream, UNIT, filled, finish, poisoned, store};
use super::launch::{Check, Launch, POISON};
use super::matrix::{Shape, Sum, sum_tolerance};
use super::pages::{Pages, Token, Tokens};
use crate::Result;
use crate::backend::params::{AttentionParams, MAX_MEMBERS};
use crate::backend::{Attention, Backend, Dtype};
use std::ops::Range;

pub(super) fn check<B: Backend, T: Backend>(check: &mut Check<'_, B, T>) -> Result<()> {
    let case = |random, pages: Pages, (rows, tokens), window, softcap| {
        let product_error = B::product_error(pages.dtype);
        Case { random, pages, rows, tokens, window, softcap, product_error, spoilt: None }
    };
    for index in 0..Pages::N_CASES {
        let (random, pages) = (Random { case: index }, Pages::of_case(index));
        let window = [4, 5].map(|axis| random.pick(axis, &[0, 0, 1, 10, 64, 100]));
        let rows = pages.rows();
        check.launch(&case(random, pages, rows, window, random.pick(6, &[0.0, 0.0, 5.0])))?;
    }
    for (dtype, window) in [(Dtype::F16, 0), (Dtype::Bf16, 3000)] {
        let pages = Pages::long(dtype);
        let rows = pages.long_rows();
        check.launch(&case(Random { case: u32::MAX }, pages, rows, [window; MAX_MEMBERS], 0.0))?;
    }
    // Rows at the edge of spans of another length, and of a window's first key block.
    for (window, position) in [(0, 2046), (3000, 3061)] {
        let edge = |range: Range<usize>| {
            let pages = Pages::long(Dtype::F16);
            let rows = pages.edge_rows(range.start, range.len(), position);
            case(Random { case: u32::MAX }, pages, rows, [window; MAX_MEMBERS], 0.0)
        };
        check.same_rows(&edge(0..66), [(edge(60..64), (0..4).map(|row| (row, 60 + row)).collect())])?;
    }
    // Rows before a spoilt value must not see it.
    for (dtype, group, head_dim, window, spoilt) in [
        (Dtype::F32, 1, 64, 0, None),
        (Dtype::F16, 3, 24, 0, None),
        (Dtype::Bf16, 3, 24, 0, None),
        (Dtype::F16, 1, 64, 0, Some(140)),
        (Dtype::Bf16, 1, 80, 100, None),
    ] {
        check.in_company(|range| {
            let pages = Pages::in_company(dtype, group, head_dim);
            let rows = pages.company_rows(range.start, range.len());
            let case = case(Random { case: u32::MAX }, pages, rows, [window; MAX_MEMBERS], 0.0);
            Case { spoilt, ..case }
        })?;
    }
    Ok(())
}

#[derive(Debug)]
struct Case {
    random: Random,
    pages: Pages,
    rows: Rows,
    tokens: Tokens,
    window: [u32; MAX_MEMBERS],
    softcap: f32,
    /// Of the backend, see [`Backend::product_error`].
    product_error: f64,
    /// The position whose value is infinite.
    spoilt: Option<usize>,
}

struct Inputs {
    /// `[members * cap][qkv_width]`; k and v are poison, for only q is read.
    qkv: Vec<f32>,
    /// Words; poison where no live token stands.
    plane: Vec<u32>,
}

impl Case {
    /// Sharp enough that few keys carry most of the weight.
    fn scale(&self) -> f32 {
        4.0 / (self.pages.head_dim as f32).sqrt()
    }

    /// A head's key (`kv` 0) or value (1) as it is stored.
    fn stored(&self, lane: usize, position: usize, kv: usize, head: usize) -> (Vec<f32>, Vec<u8>) {
        let stream = [Stream::Keys, Stream::Values][kv];
        let row = (lane * 256 + position) * self.pages.n_kv_heads + head;
        let mut numbers = self.random.uniform(stream, row, self.pages.head_dim);
        if kv == 1 && self.spoilt == Some(position) {
            numbers.fill(f32::INFINITY);
        }
        store(self.pages.dtype, &numbers)
    }

    fn inputs(&self) -> Inputs {
        let (pages, width) = (&self.pages, self.pages.qkv_width());
        let mut qkv = self.rows.numbers(self.random, Stream::Rows, width);
        for row in qkv.chunks_mut(width) {
            row[pages.n_heads() * pages.head_dim..].fill(f32::from_bits(POISON));
        }
        let mut plane = pages.poison();
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut plane);
        for (lane, tokens) in pages.lanes.iter().map(|lane| lane.n_tokens).enumerate() {
            for (position, kv) in (0..tokens).flat_map(|position| [(position, 0), (position, 1)]) {
                for head in 0..pages.n_kv_heads {
                    let first = pages.element(lane, position, kv, head) * pages.dtype.bytes();
                    let stored = self.stored(lane, position, kv, head).1;
                    bytes[first..first + stored.len()].copy_from_slice(&stored);
                }
            }
        }
        Inputs { qkv, plane }
    }

    /// One query head over the keys and values it sees, oldest first.
    fn attend(&self, q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<Want> {
        let (scale, softcap) = (f64::from(self.scale()), f64::from(self.softcap));
        let q: Vec<f64> = q.iter().map(|&q| q.into()).collect();
        let dots: Vec<Sum> = keys.iter().map(|key| Sum::dot(key, &q)).collect();
        let cap = |s: f64| if softcap == 0.0 { s } else { softcap * (s / softcap).tanh() };
        let scores: Vec<f64> = dots.iter().map(|dot| cap(scale * dot.value)).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lowest = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        // A score is off by its sum's error, that of q as it enters, and the soft cap's; so is the maximum; and the
        // exponential's argument is rounded once. All of it is a relative error of a weight, and of the sum of weights, so it
        // counts twice. A weight is off once more as it enters its product.
        let largest = dots.iter().map(|dot| scale * dot.size).fold(0.0, f64::max);
        let score = (sum_tolerance(q.len()) + self.product_error) * largest + 8.0 * UNIT * softcap;
        let weight = 2.0 * (2.0 * score + 2.0 * UNIT * (max - lowest));
        let relative = weight + 2.0 * sum_tolerance(keys.len()) + self.product_error;
        let element = |i: usize| {
            let terms = weights.iter().zip(values).map(|(weight, value)| weight * f64::from(value[i]) / total);
            let (value, size) = terms.fold((0.0, 0.0), |(sum, size), term: f64| (sum + term, size + term.abs()));
            Want::Near { value, tolerance: relative * size }
        };
        (0..q.len()).map(element).collect()
    }
}

impl Launch for Case {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>> {
        let (Case { pages, rows, .. }, inputs) = (self, self.inputs());
        let n_words = rows.total() * pages.n_heads() * pages.head_dim;
        let y = poisoned(backend, "y", n_words)?;
        let (qkv, plane) = (filled(backend, "qkv", &inputs.qkv)?, filled(backend, "plane", &inputs.plane)?);
        let places = filled(backend, "places", &pages.places(&self.tokens))?;
        let page_table = filled(backend, "page table", &pages.table())?;
        let extents = filled(backend, "extents", &rows.extents([0; 2]))?;
        let [cap, n_heads, n_kv_heads, head_dim] =
            [rows.cap, pages.n_heads(), pages.n_kv_heads, pages.head_dim].map(|n| n as u32);
        let (page, scale, softcap, window) = (pages.params(), self.scale(), self.softcap, self.window);
        let op = Attention {
            y: &y,
            qkv: &qkv,
            plane: &plane,
            places: &places,
            page_table: &page_table,
            extents: &extents,
            n_rows: rows.most(),
            params: AttentionParams { page, cap, n_heads, n_kv_heads, head_dim, scale, softcap, window },
        };
        let mut pass = backend.begin();
        backend.attention(&mut pass, op);
        finish(backend, pass, &[("y", &y, n_words)])
    }

    fn expected(&self) -> Vec<Vec<Want>> {
        let (Case { pages, rows, .. }, inputs) = (self, self.inputs());
        let (width, head_dim) = (pages.qkv_width(), pages.head_dim);
        let y_width = pages.n_heads() * head_dim;
        // Rows that are not live give zero.
        let mut y = Shape::wants(rows, y_width, |_, _, _| Want::Bits(0));
        for (index, token) in self.tokens.0.iter().enumerate() {
            let Some(Token { lane, position }) = *token else { continue };
            let window = self.window[index / rows.cap] as usize;
            let first = if window == 0 { 0 } else { (position + 1).saturating_sub(window) };
            for kv_head in 0..pages.n_kv_heads {
                let [keys, values] = [0, 1]
                    .map(|kv| (first..=position).map(|p| self.stored(lane, p, kv, kv_head).0).collect::<Vec<_>>());
                for head in kv_head * pages.group..(kv_head + 1) * pages.group {
                    let q = &inputs.qkv[index * width + head * head_dim..][..head_dim];
                    let attended = self.attend(q, &keys, &values);
                    y[index * y_width + head * head_dim..][..head_dim].copy_from_slice(&attended);
                }
            }
        }
        vec![y]
    }

    fn row(&self, outputs: &[Output], index: usize) -> Vec<u32> {
        let width = self.pages.n_heads() * self.pages.head_dim;
        // Of the rows that see an infinite value: which NaN it is says nothing.
        let is_any_nan = |bits: u32| self.spoilt.is_some() && f32::from_bits(bits).is_nan();
        let bits = |&bits: &u32| if is_any_nan(bits) { f32::NAN.to_bits() } else { bits };
        outputs[0].bits[index * width..][..width].iter().map(bits).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_nan_is_as_good_as_another_only_where_a_value_is_spoilt() {
        for spoilt in [None, Some(140)] {
            let pages = Pages::in_company(Dtype::F32, 1, 64);
            let (rows, tokens) = pages.company_rows(0, 1);
            let width = pages.n_heads() * pages.head_dim;
            let random = Random { case: u32::MAX };
            let case = Case { random, pages, rows, tokens, window: [0; 2], softcap: 0.0, product_error: 0.0, spoilt };
            let row = |bits: u32| case.row(&[Output::words("y", vec![bits; width])], 0);
            let nan = f32::NAN.to_bits();
            assert_eq!(row(nan) == row(nan | 1 << 31), spoilt.is_some(), "{spoilt:?}");
            assert_ne!(row(0), row(nan));
            assert_ne!(row(0), row(1 << 31), "numbers are compared bit for bit");
        }
    }
}
