//! The tensors a configuration asks for, and what files call them.

use super::config::ModelConfig;
use super::family::{Norms, QkNorm};

/// Name of the embedding, whose type stands for the checkpoint's.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the LM head.
pub(crate) const HEAD: &str = "lm_head.weight";

/// A tensor that the model must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
}

/// What a layer's norms are called, in the order of the forward pass. The same name is another norm in another family.
pub(crate) struct NormNames {
    pub(crate) before_attention: Option<&'static str>,
    pub(crate) after_attention: Option<&'static str>,
    pub(crate) before_ffn: Option<&'static str>,
    pub(crate) after_ffn: Option<&'static str>,
}

impl NormNames {
    /// Of layers with norms at these places.
    pub(crate) fn of(norms: Norms) -> Self {
        let [input, post_attention, pre_ffn, post_ffn] = [
            "input_layernorm.weight",
            "post_attention_layernorm.weight",
            "pre_feedforward_layernorm.weight",
            "post_feedforward_layernorm.weight",
        ];
        let [before_attention, after_attention, before_ffn, after_ffn] = match norms {
            Norms::Before => [Some(input), None, Some(post_attention), None],
            Norms::After => [None, Some(post_attention), None, Some(post_ffn)],
            Norms::Both => [Some(input), Some(post_attention), Some(pre_ffn), Some(post_ffn)],
        };
        Self { before_attention, after_attention, before_ffn, after_ffn }
    }
}

/// Every tensor of `config`, in the order of the forward pass.
pub(super) fn expected(config: &ModelConfig) -> Vec<Expected> {
    let (d, ff) = (config.d_model, config.d_ff);
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    let norms = NormNames::of(config.norms);
    let mut list = Vec::new();
    let mut add = |name: String, shape: &[usize]| list.push(Expected { name, shape: shape.to_vec() });
    add(EMBEDDING.into(), &[config.n_vocab, d]);
    for layer in 0..config.n_layers {
        let mut add = |rest: &str, shape: &[usize]| add(format!("model.layers.{layer}.{rest}"), shape);
        norms.before_attention.into_iter().for_each(|name| add(name, &[d]));
        for (part, rows) in [("q", q), ("k", kv), ("v", kv)] {
            add(&format!("self_attn.{part}_proj.weight"), &[rows, d]);
            if config.qkv_bias {
                add(&format!("self_attn.{part}_proj.bias"), &[rows]);
            }
        }
        let spans = match config.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some([config.head_dim; 2]),
            QkNorm::Wide => Some([q, kv]),
        };
        for (part, span) in spans.into_iter().flat_map(|spans| ["q", "k"].into_iter().zip(spans)) {
            add(&format!("self_attn.{part}_norm.weight"), &[span]);
        }
        add("self_attn.o_proj.weight", &[d, q]);
        if config.o_bias {
            add("self_attn.o_proj.bias", &[d]);
        }
        norms.after_attention.into_iter().for_each(|name| add(name, &[d]));
        norms.before_ffn.into_iter().for_each(|name| add(name, &[d]));
        add("mlp.gate_proj.weight", &[ff, d]);
        add("mlp.up_proj.weight", &[ff, d]);
        add("mlp.down_proj.weight", &[d, ff]);
        norms.after_ffn.into_iter().for_each(|name| add(name, &[d]));
    }
    add("model.norm.weight".into(), &[d]);
    if !config.tied {
        add(HEAD.into(), &[config.n_vocab, d]);
    }
    list
}

/// The text part's name for what a file of a model that also sees calls `stored`, as old or new transformers writes it;
/// `None` for a tensor of the eyes.
pub(super) fn text_name(stored: &str) -> Option<String> {
    const EYES: [&str; 4] =
        ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];
    const PREFIXES: [[&str; 2]; 3] = [
        ["language_model.model.", "model."],
        ["language_model.lm_head.", "lm_head."],
        ["model.language_model.", "model."],
    ];
    if EYES.iter().any(|eyes| stored.starts_with(eyes)) {
        return None;
    }
    let renamed = |[from, to]: &[&str; 2]| stored.strip_prefix(from).map(|rest| format!("{to}{rest}"));
    PREFIXES.iter().find_map(renamed).or(Some(stored.into()))
}

/// Tensors that exports carry along and that change nothing: rotary tables of old transformers.
pub(super) fn is_known_extra(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}
