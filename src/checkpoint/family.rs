//! The families that are read, and what each of them fixes: names, defaults as transformers has them, and the settings
//! of the one graph that no field of config.json says.

use super::fields::Fields;
use crate::Result;

/// The model families that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 2 and 3, SmolLM2.
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Dense Qwen3: a norm on each head of q and k.
    Qwen3,
    /// OLMo 2: norms after the blocks, and over all heads of q and k.
    Olmo2,
    /// Mistral, and Ministral 8B: a sliding window.
    Mistral,
    /// Ministral 3: yarn, and q grows with the position.
    Ministral3,
    /// SmolLM3: layers without rotary positions.
    SmolLM3,
    /// Dense Granite: four multipliers.
    Granite,
    /// Gemma 2: norms before and after the blocks, soft caps, every other layer a window.
    Gemma2,
    /// The text part of Gemma 3: as Gemma 2 with q/k norms for soft caps, and two bases of rotary positions.
    Gemma3,
}

/// Where a layer has RMS norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Norms {
    /// Before attention and before the feed-forward.
    Before,
    /// After each of them, on what it adds.
    After,
    /// Both.
    Both,
}

/// The norms of q and k.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QkNorm {
    /// There are none.
    None,
    /// Each head by itself, gains of `head_dim`.
    PerHead,
    /// All heads of q together, and all of k.
    Wide,
}

/// Which projections of attention have biases.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    /// None.
    Never,
    /// q, k and v.
    Qkv,
    /// q, k, v and the output where `attention_bias` says so.
    Asked,
}

/// What a family fixes.
pub(super) struct Facts {
    pub(super) family: Family,
    /// `model_type` and `architectures`.
    names: &'static [[&'static str; 2]],
    pub(super) max_positions: usize,
    pub(super) norm_eps: f64,
    /// `None`: as many as query heads.
    pub(super) n_kv_heads: Option<usize>,
    /// `None`: hidden_size / num_attention_heads.
    pub(super) head_dim: Option<usize>,
    /// Query heads, where a file may leave them out.
    pub(super) n_heads: Option<usize>,
    /// Rows of the LM head, where a file may leave them out.
    pub(super) n_vocab: Option<usize>,
    pub(super) theta: f64,
    pub(super) tied: bool,
    pub(super) bias: Bias,
    pub(super) norms: Norms,
    pub(super) qk_norm: QkNorm,
    /// Gains are stored less 1.
    pub(super) gains_less_one: bool,
}

const LLAMA: Facts = Facts {
    family: Family::Llama,
    names: &[["llama", "LlamaForCausalLM"]],
    max_positions: 2_048,
    norm_eps: 1e-6,
    n_kv_heads: None,
    head_dim: None,
    n_heads: None,
    n_vocab: None,
    theta: 10_000.0,
    tied: false,
    bias: Bias::Asked,
    norms: Norms::Before,
    qk_norm: QkNorm::None,
    gains_less_one: false,
};

const GEMMA2: Facts = Facts {
    family: Family::Gemma2,
    names: &[["gemma2", "Gemma2ForCausalLM"]],
    max_positions: 8_192,
    n_kv_heads: Some(4),
    head_dim: Some(256),
    tied: true,
    norms: Norms::Both,
    gains_less_one: true,
    ..LLAMA
};

static FAMILIES: [Facts; 10] = [
    LLAMA,
    Facts {
        family: Family::Qwen2,
        names: &[["qwen2", "Qwen2ForCausalLM"]],
        max_positions: 32_768,
        n_kv_heads: Some(32),
        bias: Bias::Qkv,
        ..LLAMA
    },
    Facts {
        family: Family::Qwen3,
        names: &[["qwen3", "Qwen3ForCausalLM"]],
        max_positions: 32_768,
        n_kv_heads: Some(32),
        head_dim: Some(128),
        qk_norm: QkNorm::PerHead,
        ..LLAMA
    },
    Facts {
        family: Family::Olmo2,
        names: &[["olmo2", "Olmo2ForCausalLM"]],
        norm_eps: 1e-5,
        norms: Norms::After,
        qk_norm: QkNorm::Wide,
        ..LLAMA
    },
    Facts {
        family: Family::Mistral,
        names: &[["mistral", "MistralForCausalLM"], ["ministral", "MinistralForCausalLM"]],
        max_positions: 131_072,
        n_kv_heads: Some(8),
        bias: Bias::Never,
        ..LLAMA
    },
    Facts {
        family: Family::Ministral3,
        names: &[["ministral3", "Ministral3ForCausalLM"]],
        max_positions: 262_144,
        norm_eps: 1e-5,
        n_kv_heads: Some(8),
        head_dim: Some(128),
        bias: Bias::Never,
        ..LLAMA
    },
    Facts {
        family: Family::SmolLM3,
        names: &[["smollm3", "SmolLM3ForCausalLM"]],
        max_positions: 32_768,
        n_kv_heads: Some(4),
        theta: 2_000_000.0,
        tied: true,
        ..LLAMA
    },
    Facts { family: Family::Granite, names: &[["granite", "GraniteForCausalLM"]], ..LLAMA },
    GEMMA2,
    Facts {
        family: Family::Gemma3,
        names: &[["gemma3_text", "Gemma3ForCausalLM"]],
        max_positions: 131_072,
        // Published files of models that also see name only what differs from these.
        n_heads: Some(8),
        n_vocab: Some(262_208),
        qk_norm: QkNorm::PerHead,
        ..GEMMA2
    },
];

/// Models that also see: `model_type`, `architectures`, and the `model_type` of their text part where it says none.
const WRAPPERS: [[&str; 3]; 2] = [
    ["gemma3", "Gemma3ForConditionalGeneration", "gemma3_text"],
    ["mistral3", "Mistral3ForConditionalGeneration", "mistral"],
];

/// What config.json says it describes.
pub(super) struct Described {
    pub(super) facts: &'static Facts,
    /// The text part's own object, where the model also sees.
    pub(super) text: Option<Fields>,
    /// Whether transformers reads `layer_types`.
    pub(super) layer_types: LayerTypes,
}

/// What becomes of `layer_types`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerTypes {
    /// It says which layers slide.
    Read,
    /// transformers keeps it and computes without it: in Ministral 3, and in a Mistral that is the text part of a model
    /// that also sees. (A Mistral by itself that has it becomes a Ministral.)
    Ignored,
}

/// The fields that name a family; the columns of the tables above.
#[derive(Clone, Copy)]
enum Column {
    ModelType,
    Architectures,
}

impl Column {
    fn field(self) -> &'static str {
        match self {
            Column::ModelType => "model_type",
            Column::Architectures => "architectures",
        }
    }
}

/// A line of one of the tables above.
#[derive(Clone, Copy)]
enum Named {
    Text(&'static Facts),
    Wrapper(&'static [&'static str; 3]),
}

impl Named {
    fn find(column: Column, name: &str) -> Option<Self> {
        let column = column as usize;
        let family = FAMILIES.iter().find(|facts| facts.names.iter().any(|names| names[column] == name));
        let wrapper = WRAPPERS.iter().find(|names| names[column] == name);
        family.map(Named::Text).or(wrapper.map(Named::Wrapper))
    }

    fn is(self, other: Self) -> bool {
        match (self, other) {
            (Named::Text(a), Named::Text(b)) => a.family == b.family,
            (Named::Wrapper(a), Named::Wrapper(b)) => a == b,
            _ => false,
        }
    }
}

/// Which family `fields` describe. `architectures` and `model_type` say the same thing twice; where both are there they
/// must agree.
pub(super) fn described(fields: &Fields) -> Result<Described> {
    let architecture = match fields.get("architectures") {
        None => None,
        Some(value) => match value.as_array().map(Vec::as_slice) {
            Some([one]) if one.is_string() => one.as_str(),
            _ => return Err(fields.error("architectures", "must be a list of one string")),
        },
    };
    let by_architecture = architecture.map(|name| find(fields, Column::Architectures, name)).transpose()?;
    let by_type = fields.text("model_type")?.map(|name| find(fields, Column::ModelType, name)).transpose()?;
    let named = match (by_architecture, by_type) {
        (Some(a), Some(b)) if !a.is(b) => {
            let message = format!("does not fit the architecture {}", architecture.unwrap_or("?"));
            return Err(fields.error("model_type", message));
        }
        (Some(named), _) | (None, Some(named)) => named,
        (None, None) => return Err(fields.error("model_type", format!("missing; {}", accepted()))),
    };
    match named {
        Named::Text(facts) => {
            let ignored = facts.family == Family::Ministral3;
            let layer_types = if ignored { LayerTypes::Ignored } else { LayerTypes::Read };
            Ok(Described { facts, text: None, layer_types })
        }
        Named::Wrapper(wrapper) => text_part(fields, wrapper),
    }
}

fn text_part(fields: &Fields, [of, _, text_type]: &[&str; 3]) -> Result<Described> {
    let Some(text) = fields.object("text_config")? else {
        return Err(fields.error("text_config", format!("missing, {of} needs it")));
    };
    let fits = |facts: &Facts| match *of {
        "gemma3" => facts.family == Family::Gemma3,
        _ => matches!(facts.family, Family::Mistral | Family::Ministral3),
    };
    let name = text.text("model_type")?.unwrap_or(text_type);
    let ignored = matches!(name, "mistral" | "ministral3");
    let layer_types = if ignored { LayerTypes::Ignored } else { LayerTypes::Read };
    match find(&text, Column::ModelType, name)? {
        Named::Text(facts) if fits(facts) => Ok(Described { facts, text: Some(text), layer_types }),
        _ => Err(text.error("model_type", format!("does not fit the model_type {of:?} around it"))),
    }
}

fn find(fields: &Fields, column: Column, name: &str) -> Result<Named> {
    let refused = || fields.error(column.field(), format!("{name:?} is not supported; {}", accepted()));
    Named::find(column, name).ok_or_else(refused)
}

fn accepted() -> String {
    let families = FAMILIES.iter().flat_map(|facts| facts.names);
    let types = families.map(|[name, _]| *name).chain(WRAPPERS.iter().map(|[name, ..]| *name));
    let types: Vec<&str> = types.collect();
    format!(
        "accepted are {} (of architectures, the ForCausalLM and ForConditionalGeneration of these)",
        types.join(", ")
    )
}
