//! forward(): the transformer over the ops, nothing else.

use super::weights::Stack;
use crate::Result;
use crate::backend::params::*;
use crate::backend::*;

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
}

impl<B: Backend> Workspace<B> {
    /// Room for `cap` rows and `cap_logits` logits rows per member.
    pub fn new(backend: &B, stack: &Stack<B>, cap: usize, cap_logits: usize) -> Result<Self> {
        let (shape, rows) = (&stack.shape, stack.n_members * cap);
        let words = |records: usize, bytes: usize| records * bytes / 4;
        Ok(Self {
            cap,
            cap_logits,
            rows: backend.alloc("rows", words(rows, size_of::<Row>()))?,
            gather: backend.alloc("gather", stack.n_members * cap_logits)?,
            extents: backend.alloc("extents", words(MAX_MEMBERS, size_of::<Extent>()))?,
            logits: backend.alloc("logits", stack.n_members * cap_logits * stack.n_vocab)?,
            places: backend.alloc("places", words(rows, size_of::<Place>()))?,
            x: backend.alloc("x", rows * shape.d_model)?,
            qkv: backend.alloc("qkv", rows * shape.qkv_width())?,
            attended: backend.alloc("attended", rows * shape.n_heads * shape.head_dim)?,
            hidden: backend.alloc("hidden", rows * shape.d_ff)?,
        })
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
    let (eps, extents) = (stack.eps, &work.extents);
    let [cap, d_model, d_ff] = [work.cap, shape.d_model, shape.d_ff].map(|n| n as u32);
    let [n_heads, n_kv_heads, head_dim] = [shape.n_heads, shape.n_kv_heads, shape.head_dim].map(|n| n as u32);
    let n_qkv = shape.qkv_width() as u32;
    let (x, qkv, places, page_table) = (&work.x, &work.qkv, &work.places, &cache.page_table);

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
            params: EmbedParams { cap, d_model, max_pages: page.max_pages, reserved: 0, scale: [1.0; MAX_MEMBERS] },
        },
    );
    for (layer, plane) in stack.layers.iter().zip(&cache.planes) {
        let params =
            NormMatmulParams { cap_in: cap, cap_out: cap, n_in: d_model, n_out: n_qkv, eps, softcap: 0.0, scale: 1.0 };
        let (gain, bias) = (Some(&layer.attention_gain), layer.qkv_bias.as_ref());
        backend.norm_matmul(
            pass,
            NormMatmul { y: qkv, w: &layer.qkv, x, gain, bias, gather: None, extents, n_rows, params },
        );
        let (q_gain, k_gain) = (None, None);
        let params = RopeAppendParams {
            page,
            cap,
            n_heads,
            n_kv_heads,
            head_dim,
            max_positions: stack.max_positions as u32,
            wide_norm: 0,
            eps,
            q_beta: [0.0; MAX_MEMBERS],
            q_length: [1; MAX_MEMBERS],
        };
        let rotary = Some(&stack.rotary);
        backend.rope_append(
            pass,
            RopeAppend { qkv, plane, places, page_table, rotary, q_gain, k_gain, extents, n_rows, params },
        );
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let window = [0; MAX_MEMBERS];
        let params = AttentionParams { page, cap, n_heads, n_kv_heads, head_dim, scale, softcap: 0.0, window };
        let y = &work.attended;
        backend.attention(pass, Attention { y, qkv, plane, places, page_table, extents, n_rows, params });
        let params = MatmulAddParams { cap, n_in: n_heads * head_dim, n_out: d_model, scale: 1.0 };
        let bias = layer.output_bias.as_ref();
        backend.matmul_add(pass, MatmulAdd { x, w: &layer.output, y, bias, extents, n_rows, params });

        let h = &work.hidden;
        let activation = shape.activation as u32;
        let params = NormGateUpParams { cap, n_in: d_model, n_out: d_ff, activation, eps };
        let (w_gate, w_up, gain) = (&layer.gate, &layer.up, Some(&layer.ffn_gain));
        backend.norm_gate_up(pass, NormGateUp { h, w_gate, w_up, x, gain, extents, n_rows, params });
        let params = MatmulAddParams { cap, n_in: d_ff, n_out: d_model, scale: 1.0 };
        backend.matmul_add(pass, MatmulAdd { x, w: &layer.down, y: h, bias: None, extents, n_rows, params });
    }
    if n_logits > 0 {
        let (cap_out, n_out) = (work.cap_logits as u32, stack.n_vocab as u32);
        let params = NormMatmulParams { cap_in: cap, cap_out, n_in: d_model, n_out, eps, softcap: 0.0, scale: 1.0 };
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
