//! The tensors a configuration asks for, and how a model's files differ from them.

use super::config::ModelConfig;

/// A tensor that the model must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
}

/// Every tensor of `config`, in the order of the forward pass.
pub(super) fn expected(config: &ModelConfig) -> Vec<Expected> {
    let (d, ff) = (config.d_model, config.d_ff);
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    let mut list = Vec::new();
    let mut add = |name: String, shape: &[usize]| list.push(Expected { name, shape: shape.to_vec() });
    add("model.embed_tokens.weight".into(), &[config.n_vocab, d]);
    for layer in 0..config.n_layers {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}");
        add(name("input_layernorm.weight"), &[d]);
        for (part, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
            add(name(&format!("self_attn.{part}.weight")), &[rows, d]);
            if config.qkv_bias {
                add(name(&format!("self_attn.{part}.bias")), &[rows]);
            }
        }
        add(name("self_attn.o_proj.weight"), &[d, q]);
        if config.o_bias {
            add(name("self_attn.o_proj.bias"), &[d]);
        }
        add(name("post_attention_layernorm.weight"), &[d]);
        add(name("mlp.gate_proj.weight"), &[ff, d]);
        add(name("mlp.up_proj.weight"), &[ff, d]);
        add(name("mlp.down_proj.weight"), &[d, ff]);
    }
    add("model.norm.weight".into(), &[d]);
    if !config.tied {
        add("lm_head.weight".into(), &[config.n_vocab, d]);
    }
    list
}

/// Tensors that exports carry along and that change nothing: rotary tables of old transformers, and the second copy of
/// a tied head.
pub(super) fn is_known_extra(config: &ModelConfig, name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (config.tied && name == "lm_head.weight")
}
