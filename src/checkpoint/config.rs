//! config.json of the families the graph can build, in both spellings, into one [`ModelConfig`].
//!
//! Anything the graph would compute differently from transformers is refused by name here. A field that cannot change a
//! logit is not looked at.

use super::family::{Bias, Described, Facts, Family, Norms, QkNorm, described};
use super::fields::Fields;
use super::layers::{LayerKind, layers};
use super::rope::QGrowth;
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

/// All that the graph needs to know of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which family's tensor names and defaults hold.
    pub family: Family,
    /// Whether these are the settings of the text part of a model that also sees.
    pub nested: bool,
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
    /// Where a layer has norms.
    pub norms: Norms,
    /// Norms of q and k.
    pub qk_norm: QkNorm,
    /// Whether gains are stored less 1.
    pub gains_less_one: bool,
    /// What differs from layer to layer; `n_layers` of them.
    pub layers: Vec<LayerKind>,
    /// Factor of q that grows with the position.
    pub q_growth: Option<QGrowth>,
    /// Factor of the embedding.
    pub embedding_scale: f32,
    /// Factors and soft caps.
    pub scales: Scales,
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

/// Factors and soft caps of a model's numbers, the same in every layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scales {
    /// Of the dot products of attention.
    pub attention: f32,
    /// Of what a block adds.
    pub residual: f32,
    /// Of the logits.
    pub logits: f32,
    /// `c * tanh(s / c)` on the scores of attention. 0: off.
    pub attention_softcap: f32,
    /// The same on the logits.
    pub logits_softcap: f32,
}

impl ModelConfig {
    /// Reads config.json of `source`.
    pub fn read(source: &Source) -> Result<Self> {
        let Some(fields) = Fields::read(source, FILE)? else {
            // A directory of another format has none: better say so.
            let message =
                foreign_weights(&source.names()?).map_or(String::new(), |message| format!(", and it {message}"));
            return Err(Error::file(source.root(), format!("no {FILE}{message}")));
        };
        let Described { facts, text, layer_types } = described(&fields)?;
        let nested = text.is_some();
        let outer = &fields;
        let fields = text.as_ref().unwrap_or(outer);
        refuse_unsupported(outer, facts.family)?;
        refuse_unsupported(fields, facts.family)?;
        let n_layers = fields.required_count("num_hidden_layers", MAX_LAYERS)?;
        let d_model = multiple_of_chunk(fields, "hidden_size", MAX_WIDTH)?;
        let n_heads = size(fields, "num_attention_heads", MAX_HEADS, facts.n_heads)?;
        let head_dim = head_dim(fields, facts, d_model, n_heads)?;
        let max_positions = fields.count("max_position_embeddings", MAX_POSITIONS)?.unwrap_or(facts.max_positions);
        let layers = layers(fields, facts, layer_types, n_layers, max_positions)?;
        let biased = facts.bias == Bias::Asked && fields.flag("attention_bias")?.unwrap_or(false);
        let q_grows = facts.family == Family::Ministral3;
        let mut warnings = warnings(outer);
        Ok(ModelConfig {
            family: facts.family,
            nested,
            n_layers,
            d_model,
            n_heads,
            n_kv_heads: kv_heads(fields, facts, n_heads)?,
            head_dim,
            d_ff: multiple_of_chunk(fields, "intermediate_size", MAX_FF)?,
            n_vocab: size(fields, "vocab_size", MAX_VOCAB, facts.n_vocab)?,
            norm_eps: norm_eps(fields, facts)?,
            norms: facts.norms,
            qk_norm: facts.qk_norm,
            gains_less_one: facts.gains_less_one,
            q_growth: q_grows.then(|| QGrowth::read(fields, layers[0].rope)).transpose()?,
            layers,
            embedding_scale: embedding_scale(fields, facts.family, d_model)?,
            scales: scales(fields, facts.family, head_dim)?,
            qkv_bias: facts.bias == Bias::Qkv || biased,
            o_bias: biased,
            tied: outer.flag("tie_word_embeddings")?.unwrap_or(nested || facts.tied),
            activation: activation(fields, facts.family)?,
            max_positions,
            dtype: dtype(outer, fields, &mut warnings)?,
            bos_id: ids(outer, fields, "bos_token_id")?.first().copied(),
            eos_ids: ids(outer, fields, "eos_token_id")?,
            warnings,
        })
    }

    /// Query heads that share one key and value head.
    pub fn group_size(&self) -> usize {
        self.n_heads / self.n_kv_heads
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
    if family == Family::Llama && fields.count("pretraining_tp", usize::MAX)?.is_some_and(|n| n > 1) {
        return Err(fields.error("pretraining_tp", "more than 1 is not supported"));
    }
    if fields.flag("is_encoder_decoder")? == Some(true) {
        return Err(fields.error("is_encoder_decoder", "true is not supported"));
    }
    if fields.flag("use_bidirectional_attention")? == Some(true) {
        return Err(fields.error("use_bidirectional_attention", "true is not supported"));
    }
    if fields.number("partial_rotary_factor")?.is_some_and(|x| x != 1.0) {
        return Err(fields.error("partial_rotary_factor", "other than 1 is not supported"));
    }
    Ok(())
}

fn size(fields: &Fields, name: &str, max: usize, default: Option<usize>) -> Result<usize> {
    match default {
        Some(default) => Ok(fields.count(name, max)?.unwrap_or(default)),
        None => fields.required_count(name, max),
    }
}

fn multiple_of_chunk(fields: &Fields, name: &str, max: usize) -> Result<usize> {
    let n = fields.required_count(name, max)?;
    if n.is_multiple_of(CHUNK) { Ok(n) } else { Err(fields.error(name, format!("{n}, must be a multiple of {CHUNK}"))) }
}

fn kv_heads(fields: &Fields, facts: &Facts, n_heads: usize) -> Result<usize> {
    let unsaid = facts.n_kv_heads.filter(|_| !fields.is_null("num_key_value_heads")).unwrap_or(n_heads);
    let n = fields.count("num_key_value_heads", MAX_HEADS)?.unwrap_or(unsaid);
    if n_heads.is_multiple_of(n) {
        return Ok(n);
    }
    Err(fields.error("num_key_value_heads", format!("{n} does not divide the {n_heads} attention heads")))
}

fn head_dim(fields: &Fields, facts: &Facts, d_model: usize, n_heads: usize) -> Result<usize> {
    let unsaid = facts.head_dim.filter(|_| !fields.is_null("head_dim"));
    let named = fields.count("head_dim", MAX_HEAD_DIM)?.or(unsaid);
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

fn norm_eps(fields: &Fields, facts: &Facts) -> Result<f32> {
    let eps = fields.positive("rms_norm_eps")?.unwrap_or(facts.norm_eps);
    // Below f32's normal range it would be zero on hardware that flushes.
    if eps < 1.0 && eps as f32 >= f32::MIN_POSITIVE {
        return Ok(eps as f32);
    }
    Err(fields.error("rms_norm_eps", format!("{eps}, must be above 0 and below 1")))
}

fn activation(fields: &Fields, family: Family) -> Result<Activation> {
    let (field, unsaid) = match family {
        Family::Gemma2 | Family::Gemma3 => ("hidden_activation", Activation::GeluTanh),
        _ => ("hidden_act", Activation::Silu),
    };
    match fields.text(field)? {
        None => Ok(unsaid),
        // transformers knows SiLU by both names.
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(other) => Err(fields.error(field, format!("{other:?} is not supported, only silu and gelu_pytorch_tanh"))),
    }
}

/// A number that others are multiplied or divided by, far within f32.
fn multiplier(fields: &Fields, name: &str) -> Result<Option<f32>> {
    match fields.positive(name)? {
        Some(x) if !(1e-6..=1e6).contains(&x) => {
            Err(fields.error(name, format!("{x}, must be from 0.000001 to 1000000")))
        }
        other => Ok(other.map(|x| x as f32)),
    }
}

fn embedding_scale(fields: &Fields, family: Family, d_model: usize) -> Result<f32> {
    Ok(match family {
        Family::Granite => multiplier(fields, "embedding_multiplier")?.unwrap_or(1.0),
        // transformers rounds it to the type that it computes in: f32 here.
        Family::Gemma2 | Family::Gemma3 => (d_model as f64).sqrt() as f32,
        _ => 1.0,
    })
}

fn scales(fields: &Fields, family: Family, head_dim: usize) -> Result<Scales> {
    let or_one = |name: &str| Ok(multiplier(fields, name)?.unwrap_or(1.0));
    let softcap = |name: &str, unsaid: f32| match fields.is_null(name) {
        true => Ok(0.0),
        false => Ok(multiplier(fields, name)?.unwrap_or(unsaid)),
    };
    let plain = Scales {
        attention: 1.0 / (head_dim as f32).sqrt(),
        residual: 1.0,
        logits: 1.0,
        attention_softcap: 0.0,
        logits_softcap: 0.0,
    };
    Ok(match family {
        Family::Granite => Scales {
            attention: or_one("attention_multiplier")?,
            residual: or_one("residual_multiplier")?,
            logits: 1.0 / or_one("logits_scaling")?,
            ..plain
        },
        Family::Gemma2 | Family::Gemma3 => {
            let is_2 = family == Family::Gemma2;
            Scales {
                attention: 1.0 / multiplier(fields, "query_pre_attn_scalar")?.unwrap_or(256.0).sqrt(),
                // Gemma 3 has the field too, and transformers does not apply it.
                attention_softcap: if is_2 { softcap("attn_logit_softcapping", 50.0)? } else { 0.0 },
                logits_softcap: softcap("final_logit_softcapping", if is_2 { 30.0 } else { 0.0 })?,
                ..plain
            }
        }
        _ => plain,
    })
}

/// Of the whole, or of the text part.
fn ids(outer: &Fields, text: &Fields, name: &str) -> Result<Vec<u32>> {
    let ids = outer.ids(name)?;
    if ids.is_empty() { text.ids(name) } else { Ok(ids) }
}

fn dtype(outer: &Fields, text: &Fields, warnings: &mut Vec<String>) -> Result<Option<Dtype>> {
    let mut name = None;
    for (fields, field) in [(outer, "dtype"), (outer, "torch_dtype"), (text, "dtype"), (text, "torch_dtype")] {
        name = name.or(fields.text(field)?);
    }
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
