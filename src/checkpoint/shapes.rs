//! Shapes of published models by name, for measuring and planning without their files.
//!
//! The figures are those of the public config.json files. What does not change how much is computed or read (rope's
//! base, epsilons, ids of special tokens) is the same for all.

use crate::backend::Dtype;
use serde_json::{Value, json};

/// All of a config.json that speed and size depend on.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The name that `--shape-base` and `--shape-pair` take.
    pub name: &'static str,
    /// `model_type`.
    pub family: &'static str,
    /// Transformer layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward.
    pub d_ff: usize,
    /// Rows of the embedding.
    pub n_vocab: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Whether the LM head is the embedding.
    pub tied: bool,
    /// Type of the published weights.
    pub dtype: Dtype,
}

/// Every shape there is, by family and size. The two tiny ones are for trying things.
pub const SHAPES: &[Shape] = &[
    llama("tiny", [4, 128, 4, 2, 32, 384], 1_024, 2_048).tied(),
    llama("tiny-pair", [2, 64, 2, 1, 32, 192], 1_024, 2_048).tied(),
    llama("llama-2-7b", [32, 4_096, 32, 32, 128, 11_008], 32_000, 4_096).f16(),
    llama("llama-2-13b", [40, 5_120, 40, 40, 128, 13_824], 32_000, 4_096).f16(),
    llama("llama-2-70b", [80, 8_192, 64, 8, 128, 28_672], 32_000, 4_096).f16(),
    llama("llama-3.1-8b", [32, 4_096, 32, 8, 128, 14_336], 128_256, 131_072),
    llama("llama-3.1-70b", [80, 8_192, 64, 8, 128, 28_672], 128_256, 131_072),
    llama("llama-3.2-1b", [16, 2_048, 32, 8, 64, 8_192], 128_256, 131_072).tied(),
    llama("llama-3.2-3b", [28, 3_072, 24, 8, 128, 8_192], 128_256, 131_072).tied(),
    llama("smollm2-135m", [30, 576, 9, 3, 64, 1_536], 49_152, 8_192).tied(),
    llama("smollm2-360m", [32, 960, 15, 5, 64, 2_560], 49_152, 8_192).tied(),
    llama("smollm2-1.7b", [24, 2_048, 32, 32, 64, 8_192], 49_152, 8_192).tied(),
    llama("tinyllama-1.1b", [22, 2_048, 32, 4, 64, 5_632], 32_000, 2_048),
    qwen2("qwen2.5-0.5b", [24, 896, 14, 2, 64, 4_864], 151_936, 32_768).tied(),
    qwen2("qwen2.5-1.5b", [28, 1_536, 12, 2, 128, 8_960], 151_936, 131_072).tied(),
    qwen2("qwen2.5-3b", [36, 2_048, 16, 2, 128, 11_008], 151_936, 32_768).tied(),
    qwen2("qwen2.5-7b", [28, 3_584, 28, 4, 128, 18_944], 152_064, 131_072),
    qwen2("qwen2.5-14b", [48, 5_120, 40, 8, 128, 13_824], 152_064, 131_072),
    qwen2("qwen2.5-32b", [64, 5_120, 40, 8, 128, 27_648], 152_064, 131_072),
    qwen2("qwen2.5-72b", [80, 8_192, 64, 8, 128, 29_568], 152_064, 131_072),
];

/// Layers, d_model, heads, KV heads, head_dim, d_ff.
type Sizes = [usize; 6];

const fn llama(name: &'static str, sizes: Sizes, n_vocab: usize, max_positions: usize) -> Shape {
    let [n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff] = sizes;
    Shape {
        name,
        family: "llama",
        n_layers,
        d_model,
        n_heads,
        n_kv_heads,
        head_dim,
        d_ff,
        n_vocab,
        max_positions,
        tied: false,
        dtype: Dtype::Bf16,
    }
}

const fn qwen2(name: &'static str, sizes: Sizes, n_vocab: usize, max_positions: usize) -> Shape {
    Shape { family: "qwen2", ..llama(name, sizes, n_vocab, max_positions) }
}

impl Shape {
    const fn tied(self) -> Self {
        Self { tied: true, ..self }
    }

    const fn f16(self) -> Self {
        Self { dtype: Dtype::F16, ..self }
    }

    /// The config.json of a model of this shape.
    pub(super) fn config(&self) -> Value {
        let torch_dtype = match self.dtype {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        };
        json!({
            "model_type": self.family,
            "num_hidden_layers": self.n_layers,
            "hidden_size": self.d_model,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.d_ff,
            "vocab_size": self.n_vocab,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": self.tied,
            "torch_dtype": torch_dtype,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, Source};

    /// Parameters as the model cards count them, in millions.
    #[test]
    fn shapes_have_the_parameters_of_their_model_cards() {
        let millions = [
            ("llama-2-7b", 6_738),
            ("llama-2-13b", 13_016),
            ("llama-2-70b", 68_977),
            ("llama-3.1-8b", 8_030),
            ("llama-3.1-70b", 70_554),
            ("llama-3.2-1b", 1_236),
            ("llama-3.2-3b", 3_213),
            ("smollm2-135m", 135),
            ("smollm2-360m", 362),
            ("smollm2-1.7b", 1_711),
            ("tinyllama-1.1b", 1_100),
            ("qwen2.5-0.5b", 494),
            ("qwen2.5-1.5b", 1_544),
            ("qwen2.5-3b", 3_086),
            ("qwen2.5-7b", 7_616),
            ("qwen2.5-14b", 14_770),
            ("qwen2.5-32b", 32_764),
            ("qwen2.5-72b", 72_706),
        ];
        for (name, expected) in millions {
            let shape = SHAPES.iter().find(|shape| shape.name == name).expect("a shape of that name");
            let checkpoint = Checkpoint::open(Source::made(shape, 0)).expect("a made checkpoint opens");
            let n_elements: usize =
                checkpoint.tensors().map(|(_, tensor)| tensor.shape.iter().product::<usize>()).sum();
            assert_eq!((n_elements as f64 / 1e6).round() as usize, expected, "{name}");
        }
        assert_eq!(millions.len() + 2, SHAPES.len(), "every published shape is held to its card");
    }
}
