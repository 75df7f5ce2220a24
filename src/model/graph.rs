//! forward(): the transformer over the ops, nothing else.

use super::weights::{LayerShape, Stack};
use crate::Result;
use crate::backend::params::*;
use crate::backend::*;
use crate::checkpoint::{Norms, QkNorm};

/// Buffers of one stack's rows, allocated once. Row `i` of member `m` is row `m * cap + i`.
pub struct Workspace<B: Backend> {
    /// Rows per member.
    pub cap: usize,
    /// Logits rows per member.
    pub cap_logits: usize,
    /// `[members * cap]` of [`Row`]: what this step computes.
    pub rows: B::Buf,
    /// `[members * cap_logits]` u32: rows whose logits are wanted.
    pub gather: B::Buf,
    /// `[MAX_MEMBERS]` of [`Extent`].
    pub extents: B::Buf,
    /// `[members * cap_logits][n_vocab]` f32.
    pub logits: B::Buf,
    places: B::Buf,
    x: B::Buf,
    qkv: B::Buf,
    attended: B::Buf,
    hidden: B::Buf,
    /// `[members * cap][d_model]`: what a block adds, where it has a norm of its own.
    added: Option<B::Buf>,
}

impl<B: Backend> Workspace<B> {
    /// Room for `cap` rows and `cap_logits` logits rows per member.
    pub fn new(backend: &B, stack: &Stack<B>, cap: usize, cap_logits: usize) -> Result<Self> {
        let room = Room { n_members: stack.n_members, n_vocab: stack.n_vocab, cap, cap_logits };
        let words = WorkspaceWords::new(&stack.shape, room);
        Ok(Self {
            cap,
            cap_logits,
            rows: backend.alloc("rows", words.rows)?,
            gather: backend.alloc("gather", words.gather)?,
            extents: backend.alloc("extents", words.extents)?,
            logits: checks::unowned(backend, "logits", words.logits)?,
            places: backend.alloc("places", words.places)?,
            x: checks::unowned(backend, "x", words.x)?,
            qkv: checks::unowned(backend, "qkv", words.qkv)?,
            attended: checks::unowned(backend, "attended", words.attended)?,
            hidden: checks::unowned(backend, "hidden", words.hidden)?,
            added: words.added.map(|words| checks::unowned(backend, "added", words)).transpose()?,
        })
    }
}

/// What a [`Workspace`] has room for.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// Weight sets stacked.
    pub(crate) n_members: usize,
    /// Ids of the widest vocabulary among them.
    pub(crate) n_vocab: usize,
    /// Rows per member.
    pub(crate) cap: usize,
    /// Logits rows per member.
    pub(crate) cap_logits: usize,
}

/// Sizes of a [`Workspace`]'s buffers, in 32-bit words.
pub(crate) struct WorkspaceWords {
    rows: usize,
    gather: usize,
    extents: usize,
    logits: usize,
    places: usize,
    x: usize,
    qkv: usize,
    attended: usize,
    hidden: usize,
    added: Option<usize>,
}

impl WorkspaceWords {
    /// For members of a shape.
    pub(crate) fn new(shape: &LayerShape, room: Room) -> WorkspaceWords {
        let Room { n_members, n_vocab, cap, cap_logits } = room;
        let rows = n_members * cap;
        let words = |records: usize, bytes: usize| records * bytes / 4;
        WorkspaceWords {
            rows: words(rows, size_of::<Row>()),
            gather: n_members * cap_logits,
            extents: words(MAX_MEMBERS, size_of::<Extent>()),
            logits: n_members * cap_logits * n_vocab,
            places: words(rows, size_of::<Place>()),
            x: rows * shape.d_model,
            qkv: rows * shape.qkv_width(),
            attended: rows * shape.n_heads * shape.head_dim,
            hidden: rows * shape.d_ff,
            added: (shape.norms != Norms::Before).then_some(rows * shape.d_model),
        }
    }

    /// Words of all of them.
    pub(crate) fn total(&self) -> usize {
        let Self { rows, gather, extents, logits, places, x, qkv, attended, hidden, added } = self;
        rows + gather + extents + logits + places + x + qkv + attended + hidden + added.unwrap_or(0)
    }
}

/// What every stack of a step shares.
pub struct Cache<B: Backend> {
    /// `[n_slots]` of [`Slot`].
    pub slots: B::Buf,
    /// `[n_slots][N_LANES][max_pages]` u32 page ids.
    pub page_table: B::Buf,
    /// One buffer of pages per layer index.
    pub planes: Vec<B::Buf>,
}

/// Records one step of a stack: `n_rows` rows, of which `n_logits` get logits (both the largest over the members).
pub fn forward<B: Backend>(
    backend: &B,
    pass: &mut B::Pass,
    stack: &Stack<B>,
    work: &Workspace<B>,
    cache: &Cache<B>,
    page: PageParams,
    [n_rows, n_logits]: [u32; 2],
) {
    let shape = &stack.shape;
    let (eps, extents, scales) = (stack.eps, &work.extents, shape.scales);
    let [cap, d_model, d_ff] = [work.cap, shape.d_model, shape.d_ff].map(|n| n as u32);
    let [n_heads, n_kv_heads, head_dim] = [shape.n_heads, shape.n_kv_heads, shape.head_dim].map(|n| n as u32);
    let n_qkv = shape.qkv_width() as u32;
    let (x, qkv, places, page_table) = (&work.x, &work.qkv, &work.places, &cache.page_table);

    let embedding = EmbedParams { cap, d_model, max_pages: page.max_pages, reserved: 0, scale: stack.embedding_scale };
    backend.embed(
        pass,
        Embed {
            x,
            places,
            table: &stack.embedding,
            rows: &work.rows,
            slots: &cache.slots,
            extents,
            n_rows,
            params: embedding,
        },
    );
    for (layer, plane) in stack.layers.iter().zip(&cache.planes) {
        let params =
            NormMatmulParams { cap_in: cap, cap_out: cap, n_in: d_model, n_out: n_qkv, eps, softcap: 0.0, scale: 1.0 };
        let (gain, bias) = (layer.attention_gain.as_ref(), layer.qkv_bias.as_ref());
        backend.norm_matmul(
            pass,
            NormMatmul { y: qkv, w: &layer.qkv, x, gain, bias, gather: None, extents, n_rows, params },
        );
        let rotary = layer.rotary.map(|table| &stack.rotary[table]);
        let (q_gain, k_gain) = (layer.q_gain.as_ref(), layer.k_gain.as_ref());
        let params = RopeAppendParams {
            page,
            cap,
            n_heads,
            n_kv_heads,
            head_dim,
            max_positions: stack.max_positions as u32,
            wide_norm: (shape.qk_norm == QkNorm::Wide).into(),
            eps,
            q_beta: stack.q_growth.0,
            q_length: stack.q_growth.1,
        };
        backend.rope_append(
            pass,
            RopeAppend { qkv, plane, places, page_table, rotary, q_gain, k_gain, extents, n_rows, params },
        );
        let (scale, softcap, window) = (scales.attention, scales.attention_softcap, layer.window);
        let params = AttentionParams { page, cap, n_heads, n_kv_heads, head_dim, scale, softcap, window };
        let y = &work.attended;
        backend.attention(pass, Attention { y, qkv, plane, places, page_table, extents, n_rows, params });
        let (bias, gain) = (layer.output_bias.as_ref(), layer.attended_gain.as_ref());
        let n_in = n_heads * head_dim;
        add_block(backend, pass, stack, work, n_rows, Block { w: &layer.output, y, bias, gain, n_in });

        let h = &work.hidden;
        let activation = shape.activation as u32;
        let params = NormGateUpParams { cap, n_in: d_model, n_out: d_ff, activation, eps };
        let (w_gate, w_up, gain) = (&layer.gate, &layer.up, layer.ffn_gain.as_ref());
        backend.norm_gate_up(pass, NormGateUp { h, w_gate, w_up, x, gain, extents, n_rows, params });
        let gain = layer.fed_gain.as_ref();
        add_block(backend, pass, stack, work, n_rows, Block { w: &layer.down, y: h, bias: None, gain, n_in: d_ff });
    }
    if n_logits > 0 {
        let (cap_out, n_out) = (work.cap_logits as u32, stack.n_vocab as u32);
        let (softcap, scale) = (scales.logits_softcap, scales.logits);
        let params = NormMatmulParams { cap_in: cap, cap_out, n_in: d_model, n_out, eps, softcap, scale };
        backend.norm_matmul(
            pass,
            NormMatmul {
                y: &work.logits,
                w: stack.head.as_ref().unwrap_or(&stack.embedding),
                x,
                gain: Some(&stack.final_gain),
                bias: None,
                gather: Some(&work.gather),
                extents,
                n_rows: n_logits,
                params,
            },
        );
    }
}

/// The end of a block: its last product, added to x.
struct Block<'a, B: Backend> {
    w: &'a B::Matrix,
    y: &'a B::Buf,
    bias: Option<&'a B::Buf>,
    /// The norm of what is added.
    gain: Option<&'a B::Buf>,
    n_in: u32,
}

fn add_block<B: Backend>(
    backend: &B,
    pass: &mut B::Pass,
    stack: &Stack<B>,
    work: &Workspace<B>,
    n_rows: u32,
    block: Block<'_, B>,
) {
    let Block { w, y, bias, gain, n_in } = block;
    let (x, extents, eps, scale) = (&work.x, &work.extents, stack.eps, stack.shape.scales.residual);
    let [cap, d_model] = [work.cap, stack.shape.d_model].map(|n| n as u32);
    let (Some(gain), Some(added)) = (gain, &work.added) else {
        let params = MatmulAddParams { cap, n_in, n_out: d_model, scale };
        return backend.matmul_add(pass, MatmulAdd { x, w, y, bias, extents, n_rows, params });
    };
    let params = NormMatmulParams { cap_in: cap, cap_out: cap, n_in, n_out: d_model, eps, softcap: 0.0, scale };
    backend
        .norm_matmul(pass, NormMatmul { y: added, w, x: y, gain: None, bias, gather: None, extents, n_rows, params });
    let params = NormAddParams { cap, d_model, eps };
    backend.norm_add(pass, NormAdd { x, y: added, gain, extents, n_rows, params });
}
