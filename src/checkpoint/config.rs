//! config.json of the families the graph can build, in both spellings, into one [`ModelConfig`].
//!
//! Anything the graph would compute differently from transformers is refused by name here. A field that cannot change a
//! logit is not looked at.

use super::fields::Fields;
use super::rope::Rope;
use super::shards::foreign_weights;
use super::source::Source;
use crate::backend::params::{MAX_HEAD_DIM, MAX_VOCAB};
use crate::backend::{Activation, Dtype};
use crate::{Error, Result};

const FILE: &str = "config.json";
/// Caps on what a configuration may ask for, far above published models of these families.
const MAX_LAYERS: usize = 1_024;
const MAX_WIDTH: usize = 65_536;
const MAX_FF: usize = 524_288;
const MAX_HEADS: usize = 1_024;
const MAX_POSITIONS: usize = 1 << 24;

/// The kernels read weights in chunks of 16 bytes, eight 16-bit elements.
const CHUNK: usize = 8;

/// The model families that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// `LlamaForCausalLM`.
    Llama,
    /// `Qwen2ForCausalLM`, which is Qwen2.5 as well.
    Qwen2,
}

/// All that the graph needs to know of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which family's tensor names and defaults hold.
    pub family: Family,
    /// Transformer layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head; `n_heads * head_dim` need not be `d_model`.
    pub head_dim: usize,
    /// Width of the feed-forward.
    pub d_ff: usize,
    /// Rows of the LM head, so the width of a row of logits. May exceed what the tokenizer defines.
    pub n_vocab: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Rotary positions.
    pub rope: Rope,
    /// Whether the q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub o_bias: bool,
    /// Whether the LM head is the embedding.
    pub tied: bool,
    /// The feed-forward's activation.
    pub activation: Activation,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
    /// The type the configuration claims; each tensor's own is what counts.
    pub dtype: Option<Dtype>,
    /// `bos_token_id`.
    pub bos_id: Option<u32>,
    /// `eos_token_id`, one or a list.
    pub eos_ids: Vec<u32>,
    /// What was read past and may matter to a person.
    pub warnings: Vec<String>,
}

impl ModelConfig {
    /// Reads config.json of `source`.
    pub fn read(source: &Source) -> Result<Self> {
        let Some(fields) = Fields::read(source, FILE)? else {
            // A directory of another format has none: better say so.
            let message = foreign_weights(source)?.map_or(String::new(), |message| format!(", and it {message}"));
            return Err(Error::file(source.root(), format!("no {FILE}{message}")));
        };
        let family = family(&fields)?;
        refuse_unsupported(&fields, family)?;
        let n_layers = fields.required_count("num_hidden_layers", MAX_LAYERS)?;
        let d_model = multiple_of_chunk(&fields, "hidden_size", MAX_WIDTH)?;
        let n_heads = fields.required_count("num_attention_heads", MAX_HEADS)?;
        let llama = family == Family::Llama;
        let default_positions = if llama { 2_048 } else { 32_768 };
        let max_positions = fields.count("max_position_embeddings", MAX_POSITIONS)?.unwrap_or(default_positions);
        refuse_window(&fields, n_layers, max_positions)?;
        let attention_bias = llama && fields.flag("attention_bias")?.unwrap_or(false);
        let mut warnings = warnings(&fields);
        let dtype = dtype(&fields, &mut warnings)?;
        let eos_ids = fields.ids("eos_token_id")?;
        Ok(ModelConfig {
            family,
            n_layers,
            d_model,
            n_heads,
            n_kv_heads: kv_heads(&fields, n_heads)?,
            head_dim: head_dim(&fields, d_model, n_heads)?,
            d_ff: multiple_of_chunk(&fields, "intermediate_size", MAX_FF)?,
            n_vocab: fields.required_count("vocab_size", MAX_VOCAB)?,
            norm_eps: norm_eps(&fields)?,
            rope: Rope::from_config(&fields, max_positions)?,
            qkv_bias: !llama || attention_bias,
            o_bias: attention_bias,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            activation: activation(&fields)?,
            max_positions,
            dtype,
            bos_id: fields.ids("bos_token_id")?.first().copied(),
            eos_ids,
            warnings,
        })
    }

    /// Query heads that share one key and value head.
    pub fn group_size(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }
}

/// `architectures` and `model_type` say the same thing twice; where both are there they must agree.
fn family(fields: &Fields) -> Result<Family> {
    const ACCEPTED: &str = "accepted are llama (LlamaForCausalLM) and qwen2 (Qwen2ForCausalLM)";
    let architecture = match fields.get("architectures") {
        None => None,
        Some(value) => match value.as_array().map(Vec::as_slice) {
            Some([one]) if one.is_string() => one.as_str(),
            _ => return Err(fields.error("architectures", "must be a list of one string")),
        },
    };
    let by_architecture = match architecture {
        None => None,
        Some("LlamaForCausalLM") => Some(Family::Llama),
        Some("Qwen2ForCausalLM") => Some(Family::Qwen2),
        Some(other) => return Err(fields.error("architectures", format!("{other:?} is not supported; {ACCEPTED}"))),
    };
    let by_type = match fields.text("model_type")? {
        None => None,
        Some("llama") => Some(Family::Llama),
        Some("qwen2") => Some(Family::Qwen2),
        Some(other) => return Err(fields.error("model_type", format!("{other:?} is not supported; {ACCEPTED}"))),
    };
    match (by_architecture, by_type) {
        (Some(a), Some(b)) if a != b => {
            Err(fields.error("model_type", format!("does not fit the architecture {}", architecture.unwrap_or("?"))))
        }
        (Some(family), _) | (None, Some(family)) => Ok(family),
        (None, None) => Err(fields.error("model_type", format!("missing; {ACCEPTED}"))),
    }
}

/// Switches of these families that change the computation and are not built.
fn refuse_unsupported(fields: &Fields, family: Family) -> Result<()> {
    if let Some(quantization) = fields.object("quantization_config")? {
        let method = quantization.text("quant_method")?.unwrap_or("unknown");
        return Err(
            fields.error("quantization_config", format!("{method:?} weights are not read, use f32, f16 or bf16"))
        );
    }
    if fields.flag("mlp_bias")? == Some(true) {
        return Err(fields.error("mlp_bias", "true is not supported"));
    }
    if family == Family::Qwen2 && fields.flag("attention_bias")? == Some(false) {
        return Err(fields.error("attention_bias", "false is not supported for qwen2, its q, k and v have biases"));
    }
    if fields.count("pretraining_tp", usize::MAX)?.is_some_and(|n| n > 1) {
        return Err(fields.error("pretraining_tp", "more than 1 is not supported"));
    }
    if fields.flag("is_encoder_decoder")? == Some(true) {
        return Err(fields.error("is_encoder_decoder", "true is not supported"));
    }
    if fields.number("partial_rotary_factor")?.is_some_and(|x| x != 1.0) {
        return Err(fields.error("partial_rotary_factor", "other than 1 is not supported"));
    }
    Ok(())
}

/// A sliding window is refused where it would hide a position from any layer.
fn refuse_window(fields: &Fields, n_layers: usize, max_positions: usize) -> Result<()> {
    let window = fields.count("sliding_window", usize::MAX)?.unwrap_or(4_096);
    if window >= max_positions {
        return Ok(());
    }
    let on = fields.flag("use_sliding_window")?.unwrap_or(false);
    if let Some(types) = fields.get("layer_types") {
        let full = |t: &serde_json::Value| t.as_str() == Some("full_attention");
        let all_full = types.as_array().is_some_and(|types| types.iter().all(full));
        return if all_full { Ok(()) } else { Err(fields.error("layer_types", "only full_attention is supported")) };
    }
    // 0 is a legal count here, and means every layer.
    let first = fields.get("max_window_layers").and_then(serde_json::Value::as_u64).unwrap_or(28);
    if on && first < n_layers as u64 {
        return Err(fields.error("use_sliding_window", "true is not supported"));
    }
    Ok(())
}

fn multiple_of_chunk(fields: &Fields, name: &str, max: usize) -> Result<usize> {
    let n = fields.required_count(name, max)?;
    if n.is_multiple_of(CHUNK) { Ok(n) } else { Err(fields.error(name, format!("{n}, must be a multiple of {CHUNK}"))) }
}

fn kv_heads(fields: &Fields, n_heads: usize) -> Result<usize> {
    let n = fields.count("num_key_value_heads", MAX_HEADS)?.unwrap_or(n_heads);
    if n_heads.is_multiple_of(n) {
        return Ok(n);
    }
    Err(fields.error("num_key_value_heads", format!("{n} does not divide the {n_heads} attention heads")))
}

fn head_dim(fields: &Fields, d_model: usize, n_heads: usize) -> Result<usize> {
    let named = fields.count("head_dim", MAX_HEAD_DIM)?;
    if named.is_none() && !d_model.is_multiple_of(n_heads) {
        let message = format!("{n_heads} does not divide hidden_size {d_model}, and there is no head_dim");
        return Err(fields.error("num_attention_heads", message));
    }
    let n = named.unwrap_or(d_model / n_heads);
    if n.is_multiple_of(CHUNK) && n <= MAX_HEAD_DIM {
        return Ok(n);
    }
    Err(fields.error("head_dim", format!("{n}, must be a multiple of {CHUNK} up to {MAX_HEAD_DIM}")))
}

fn norm_eps(fields: &Fields) -> Result<f32> {
    let eps = fields.positive("rms_norm_eps")?.unwrap_or(1e-6);
    // Below f32's normal range it would be zero on hardware that flushes.
    if eps < 1.0 && eps as f32 >= f32::MIN_POSITIVE {
        return Ok(eps as f32);
    }
    Err(fields.error("rms_norm_eps", format!("{eps}, must be above 0 and below 1")))
}

fn activation(fields: &Fields) -> Result<Activation> {
    match fields.text("hidden_act")? {
        // transformers knows SiLU by both names.
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some(other) => Err(fields.error("hidden_act", format!("{other:?} is not supported, only silu"))),
    }
}

fn dtype(fields: &Fields, warnings: &mut Vec<String>) -> Result<Option<Dtype>> {
    let name = match fields.text("dtype")? {
        Some(name) => Some(name),
        None => fields.text("torch_dtype")?,
    };
    Ok(match name.map(|name| name.strip_prefix("torch.").unwrap_or(name)) {
        None => None,
        Some("float32") => Some(Dtype::F32),
        Some("float16") => Some(Dtype::F16),
        Some("bfloat16") => Some(Dtype::Bf16),
        Some(other) => {
            warnings.push(format!("config.json claims dtype {other:?}; the tensors' own types are used"));
            None
        }
    })
}

fn warnings(fields: &Fields) -> Vec<String> {
    let auto_map = fields.get("auto_map").map(|_| "config.json names remote code (auto_map), which is never run");
    auto_map.map(str::to_string).into_iter().collect()
}
