//! Each op as its dispatches: which form of its shader, which buffers in which order, what grid.

use super::memory::Bind;
use super::pipelines::*;
use super::*;
use bytemuck::bytes_of;

/// Outputs that one workgroup of norm_matmul and matmul_add makes, for one or four rows: eight groups of lanes with four
/// each, or two with sixteen, see shaders/parts/matmul.wgsl.
pub(super) const MATMUL_OUTPUTS: u32 = 32;
/// The same of norm_gate_up: half, since it has two matrices.
pub(super) const GATE_UP_OUTPUTS: u32 = 16;
/// Rows of a tile, where a launch has more than one.
pub(super) const TILE_ROWS: u32 = 4;
/// Words of a page that one workgroup of copy_pages copies.
pub(super) const COPY_WORDS: u32 = 2048;

impl Wgpu {
    pub(super) fn record_copy_pages(&self, pass: &mut Pass, op: CopyPages<'_, Self>) {
        let CopyPages { plane, copies, n_copies, params } = op;
        let variant = &Variant::default;
        let (buffers, uniforms): (&[&dyn Bind], _) = (&[plane, copies], &[bytes_of(&params)]);
        let grid = [params.page_words.div_ceil(COPY_WORDS), n_copies, 1];
        self.dispatch(pass, Launch { stem: &COPY_PAGES, tile_rows: 1, variant, buffers, uniforms, grid });
    }

    pub(super) fn record_embed(&self, pass: &mut Pass, op: Embed<'_, Self>) {
        let Embed { x, places, table, rows, slots, extents, n_rows, params } = op;
        let variant = &|| Variant {
            constants: vec![("N_VOCAB", Constant::Number(table.spec.n_rows as u32))],
            weights: vec![self.weights("first", 2, table)],
            parts: vec![Shared::Octet, Shared::Weights],
        };
        let grid = [n_rows, 1, table.n_members as u32];
        for (part, table_part) in table.parts() {
            let buffers: &[&dyn Bind] = &[x, places, table_part, rows, slots, extents];
            let uniforms = &[bytes_of(&params), bytes_of(&part)];
            self.dispatch(pass, Launch { stem: &EMBED, tile_rows: 1, variant, buffers, uniforms, grid });
        }
    }

    pub(super) fn record_norm_matmul(&self, pass: &mut Pass, op: NormMatmul<'_, Self>) {
        let NormMatmul { y, w, x, gain, bias, gather, extents, n_rows, params } = op;
        let has = [("HAS_GAIN", gain.is_some()), ("HAS_BIAS", bias.is_some()), ("HAS_GATHER", gather.is_some())];
        let tile_rows = tile_rows(n_rows);
        let variant = &|| self.matmul_variant(tile_rows, w, None, &has);
        let [gain, bias, gather] = [gain, bias, gather].map(|buf| buf.unwrap_or(&self.nothing));
        for (part, w_part) in w.parts() {
            let buffers: &[&dyn Bind] = &[y, w_part, x, gain, bias, gather, extents];
            let uniforms = &[bytes_of(&params), bytes_of(&part)];
            let grid = [n_rows.div_ceil(tile_rows), part.n_rows.div_ceil(MATMUL_OUTPUTS), w.n_members as u32];
            self.dispatch(pass, Launch { stem: &NORM_MATMUL, tile_rows, variant, buffers, uniforms, grid });
        }
    }

    pub(super) fn record_rope_append(&self, pass: &mut Pass, op: RopeAppend<'_, Self>) {
        let RopeAppend { qkv, plane, places, page_table, rotary, q_gain, k_gain, extents, n_rows, params } = op;
        let has = [rotary, q_gain, k_gain].map(|buf| Constant::Flag(buf.is_some()));
        let variant = &|| Variant {
            constants: vec![
                ("KV_DTYPE", Constant::Number(params.page.dtype)),
                ("HAS_ROTARY", has[0]),
                ("HAS_Q_GAIN", has[1]),
                ("HAS_K_GAIN", has[2]),
            ],
            parts: vec![Shared::Page],
            ..Variant::default()
        };
        let [rotary, q_gain, k_gain] = [rotary, q_gain, k_gain].map(|buf| buf.unwrap_or(&self.nothing));
        let buffers: &[&dyn Bind] = &[qkv, plane, places, page_table, rotary, q_gain, k_gain, extents];
        let uniforms = &[bytes_of(&params)];
        let heads_of_q_and_k = if params.wide_norm == 0 { params.n_heads + params.n_kv_heads } else { 2 };
        let grid = [
            heads_of_q_and_k + params.n_kv_heads,
            n_rows,
            checks::members(places.bytes() / size_of::<Place>(), params.cap),
        ];
        self.dispatch(pass, Launch { stem: &ROPE_APPEND, tile_rows: 1, variant, buffers, uniforms, grid });
    }

    pub(super) fn record_attention(&self, pass: &mut Pass, op: Attention<'_, Self>) {
        let Attention { y, qkv, plane, places, page_table, extents, n_rows, params } = op;
        let variant = &|| {
            let is_wide = params.head_dim.is_multiple_of(8) && params.page.page_words.is_multiple_of(4);
            let head = if is_wide { Shared::HeadWide } else { Shared::HeadNarrow };
            let exchange = if self.subgroups { Shared::EightSubgroup } else { Shared::EightPlain };
            Variant {
                constants: vec![
                    ("KV_DTYPE", Constant::Number(params.page.dtype)),
                    ("HEAD_DIM", Constant::Number(params.head_dim)),
                ],
                parts: vec![Shared::Octet, Shared::Page, Shared::Eight, exchange, head],
                ..Variant::default()
            }
        };
        let buffers: &[&dyn Bind] = &[y, qkv, plane, places, page_table, extents];
        let uniforms = &[bytes_of(&params)];
        let grid = [params.n_heads, n_rows, checks::members(places.bytes() / size_of::<Place>(), params.cap)];
        self.dispatch(pass, Launch { stem: &ATTENTION, tile_rows: 1, variant, buffers, uniforms, grid });
    }

    pub(super) fn record_matmul_add(&self, pass: &mut Pass, op: MatmulAdd<'_, Self>) {
        let MatmulAdd { x, w, y, bias, extents, n_rows, params } = op;
        let (tile_rows, has_bias) = (tile_rows(n_rows), bias.is_some());
        let variant = &|| self.matmul_variant(tile_rows, w, None, &[("HAS_GAIN", false), ("HAS_BIAS", has_bias)]);
        let bias = bias.unwrap_or(&self.nothing);
        for (part, w_part) in w.parts() {
            let buffers: &[&dyn Bind] = &[x, w_part, y, bias, extents];
            let uniforms = &[bytes_of(&params), bytes_of(&part)];
            let grid = [n_rows.div_ceil(tile_rows), part.n_rows.div_ceil(MATMUL_OUTPUTS), w.n_members as u32];
            self.dispatch(pass, Launch { stem: &MATMUL_ADD, tile_rows, variant, buffers, uniforms, grid });
        }
    }

    pub(super) fn record_norm_add(&self, pass: &mut Pass, op: NormAdd<'_, Self>) {
        let NormAdd { x, y, gain, extents, n_rows, params } = op;
        let variant = &Variant::default;
        let (buffers, uniforms): (&[&dyn Bind], _) = (&[x, y, gain, extents], &[bytes_of(&params)]);
        let grid = [n_rows, 1, checks::members(y.bytes() / size_of::<f32>() / params.d_model as usize, params.cap)];
        self.dispatch(pass, Launch { stem: &NORM_ADD, tile_rows: 1, variant, buffers, uniforms, grid });
    }

    pub(super) fn record_norm_gate_up(&self, pass: &mut Pass, op: NormGateUp<'_, Self>) {
        let NormGateUp { h, w_gate, w_up, x, gain, extents, n_rows, params } = op;
        let (tile_rows, has_gain) = (tile_rows(n_rows), gain.is_some());
        let variant = &|| self.matmul_variant(tile_rows, w_gate, Some(w_up), &[("HAS_GAIN", has_gain)]);
        let gain = gain.unwrap_or(&self.nothing);
        for (part, gate_part, up_part) in w_gate.parts_with(w_up) {
            let buffers: &[&dyn Bind] = &[h, gate_part, up_part, x, gain, extents];
            let uniforms = &[bytes_of(&params), bytes_of(&part)];
            let grid = [n_rows.div_ceil(tile_rows), part.n_rows.div_ceil(GATE_UP_OUTPUTS), w_gate.n_members as u32];
            self.dispatch(pass, Launch { stem: &NORM_GATE_UP, tile_rows, variant, buffers, uniforms, grid });
        }
    }

    pub(super) fn record_combine_sample(&self, pass: &mut Pass, op: CombineSample<'_, Self>) {
        let CombineSample {
            slots, scores, counts, base, expert, anti, samples, constraints, n_samples, params, ..
        } = op;
        let variant = &|| {
            let is_wide = params.strides.iter().all(|stride| stride.is_multiple_of(4));
            let logits = if is_wide { Shared::LogitsWide } else { Shared::LogitsNarrow };
            Variant { parts: vec![logits, Shared::Best, Shared::U64, Shared::Select], ..Variant::default() }
        };
        let buffers: &[&dyn Bind] = &[slots, scores, counts, base, expert, anti, samples, constraints];
        let (uniforms, grid) = (&[bytes_of(&params)], [n_samples, 1, 1]);
        self.dispatch(pass, Launch { stem: &COMBINE_SAMPLE, tile_rows: 1, variant, buffers, uniforms, grid });
    }

    pub(super) fn record_record(&self, pass: &mut Pass, op: Record<'_, Self>) {
        let Record { records, slots, scores, base, expert, anti, samples, constraints, n_samples, params } = op;
        let variant = &|| Variant { parts: vec![Shared::Best], ..Variant::default() };
        let buffers: &[&dyn Bind] = &[records, slots, scores, base, expert, anti, samples, constraints];
        let (uniforms, grid) = (&[bytes_of(&params)], [n_samples, 1, 1]);
        self.dispatch(pass, Launch { stem: &RECORD, tile_rows: 1, variant, buffers, uniforms, grid });
    }

    /// The form of a matrix op for tiles of so many rows, of one matrix or two.
    fn matmul_variant(
        &self,
        tile_rows: u32,
        first: &Matrix,
        second: Option<&Matrix>,
        has: &[(&'static str, bool)],
    ) -> Variant {
        let rows = if tile_rows == 1 { Shared::Rows1 } else { Shared::Rows4 };
        let outputs = match self.matrices {
            MatrixForm::Buffers => Shared::Outputs4,
            MatrixForm::Images => Shared::Outputs16,
        };
        let exchange = if self.subgroups { Shared::ExchangeSubgroup } else { Shared::ExchangePlain };
        let mut constants: Vec<_> = has.iter().map(|&(name, value)| (name, Constant::Flag(value))).collect();
        constants.push(("HAS_SECOND", Constant::Flag(second.is_some())));
        let mut weights = vec![self.weights("first", 1, first)];
        weights.extend(second.map(|second| self.weights("second", 2, second)));
        let mut parts = vec![Shared::Octet, Shared::Weights, rows, outputs, exchange, Shared::Matmul];
        if second.is_none() {
            parts.push(Shared::OneMatrix);
        }
        Variant { constants, weights, parts }
    }

    fn weights(&self, name: &'static str, binding: usize, matrix: &Matrix) -> Weights {
        Weights { name, binding, dtype: matrix.spec.dtype, form: self.matrices }
    }

    fn dispatch(&self, pass: &mut Pass, launch: Launch<'_>) {
        if !launch.grid.contains(&0) {
            pass.dispatches.push(self.pipelines.prepare(&self.device, launch));
        }
    }
}

/// Rows of a tile, where a launch has `n_rows`.
fn tile_rows(n_rows: u32) -> u32 {
    if n_rows == 1 { 1 } else { TILE_ROWS }
}
