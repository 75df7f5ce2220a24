//! The layout of every struct that kernels and shaders mirror, so that each backend can compare its own.

use super::params::*;

/// A struct of [`super::params`].
pub(crate) struct Layout {
    pub(crate) name: &'static str,
    pub(crate) bytes: usize,
    /// Offset of each field, in bytes.
    pub(crate) fields: Vec<(&'static str, usize)>,
}

/// The [`Layout`] of a struct, whose fields are named.
macro_rules! layout {
    ($name:ident: $($field:ident),*) => {
        $crate::backend::layouts::Layout {
            name: stringify!($name),
            bytes: size_of::<$name>(),
            fields: vec![$((stringify!($field), std::mem::offset_of!($name, $field))),*],
        }
    };
}

#[cfg(test)]
pub(crate) use layout;

/// All of them.
pub(crate) fn layouts() -> Vec<Layout> {
    vec![
        layout!(Row: slot, lane, token, position),
        layout!(Place: table, position, live, token),
        layout!(Extent: n_rows, n_logits),
        layout!(PageCopy: from, to),
        layout!(Slot: last_id, produced, finish, max_tokens, lengths, min_tokens, n_stop_ids, n_biases, penalised,
            alpha, inverse_temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
            frequency_penalty, base_top_p, base_min_p, seed, sample_index, drew, expert_only, reserved, stop_ids,
            ring),
        layout!(Sample: slot, row_base, row_expert, row_anti),
        layout!(TopEntry: id, z_base, z_expert, z_anti, score),
        layout!(StepRecord: position, chosen, base_argmax, combined_argmax, logprob, rank, entropy,
            kl_combined_base, kl_expert_anti, cross_entropy, alpha, n_top, reserved, top),
        layout!(EmbedParams: cap, d_model, max_pages, reserved, scale),
        layout!(NormMatmulParams: cap_in, cap_out, n_in, n_out, eps, softcap, scale),
        layout!(PageParams: page_words, page_tokens, dtype, max_pages),
        layout!(CopyPagesParams: page_words, reserved),
        layout!(RopeAppendParams: page, cap, n_heads, n_kv_heads, head_dim, max_positions, wide_norm, eps, q_beta,
            q_length),
        layout!(AttentionParams: page, cap, n_heads, n_kv_heads, head_dim, scale, softcap, window),
        layout!(MatmulAddParams: cap, n_in, n_out, scale),
        layout!(NormAddParams: cap, d_model, eps),
        layout!(NormGateUpParams: cap, n_in, n_out, activation, eps),
        layout!(CombineSampleParams: n_ids, strides, mask_words, has_counts, reserved),
        layout!(RecordParams: n_ids, strides, mask_words, n_top, reserved),
    ]
}
