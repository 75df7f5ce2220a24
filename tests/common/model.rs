//! A tiny model directory, right in every byte, for tests that break one thing in it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Ids of the tiny tokenizer: 256 bytes, four merges, three special tokens.
pub(crate) const N_IDS: usize = 263;
/// Rows of the tiny models' embeddings, padded past the tokenizer.
pub(crate) const N_VOCAB: usize = 272;
pub(crate) const D_MODEL: usize = 16;
pub(crate) const END: u32 = 260;
pub(crate) const USER: u32 = 261;
pub(crate) const SPECIALS: [&str; 3] = ["<|end|>", "<|user|>", "<|pad|>"];
pub(crate) const MERGES: [[&str; 2]; 4] = [["h", "e"], ["l", "l"], ["he", "ll"], ["Ġ", "t"]];

/// A model directory that is removed with it.
pub(crate) struct ModelDir {
    directory: TempDir,
}

/// One tensor of a safetensors file.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    /// f32 values around zero that differ from place to place.
    pub(crate) fn f32(name: impl Into<String>, shape: &[usize]) -> Self {
        let name = name.into();
        let salt = name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let value = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(salt) >> 16) as f32 / 65_536.0 - 0.5;
        let bytes = (0..shape.iter().product::<usize>() as u32).flat_map(|i| value(i).to_le_bytes()).collect();
        Self { name, dtype: "F32", shape: shape.to_vec(), bytes }
    }
}

impl ModelDir {
    /// A Llama of one layer, untied.
    pub(crate) fn llama() -> Self {
        Self::write_all(&llama_config(), &tensors(false))
    }

    /// A Qwen2 of one layer: biases on q, k and v, tied.
    pub(crate) fn qwen2() -> Self {
        let mut config = llama_config();
        for (name, value) in [
            ("architectures", json!(["Qwen2ForCausalLM"])),
            ("model_type", json!("qwen2")),
            ("tie_word_embeddings", json!(true)),
        ] {
            config[name] = value;
        }
        Self::write_all(&config, &tensors(true))
    }

    fn write_all(config: &Value, tensors: &[Tensor]) -> Self {
        let model = Self { directory: tempfile::tempdir().expect("a directory for the test") };
        model.write("config.json", config.to_string());
        model.write("generation_config.json", json!({"eos_token_id": END}).to_string());
        model.write("model.safetensors", safetensors(tensors));
        model.write("tokenizer.json", byte_level_tokenizer().to_string());
        model.write("tokenizer_config.json", json!({"eos_token": SPECIALS[0], "pad_token": SPECIALS[2]}).to_string());
        model
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.file(name), bytes).expect("the test's directory can be written");
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).expect("the test's file is there")
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).expect("the test's file is there");
    }

    /// Changes a JSON file.
    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&self.read(name)).expect("the builder wrote JSON");
        change(&mut json);
        self.write(name, json.to_string());
    }

    /// Sets one field, named by a JSON pointer whose parents are there; null removes it.
    pub(crate) fn set(&self, name: &str, pointer: &str, value: Value) {
        self.edit(name, |json| {
            let (parent, field) = pointer.rsplit_once('/').expect("a pointer begins with a slash");
            let parent = json.pointer_mut(parent).expect("the parent is there").as_object_mut().expect("an object");
            if value.is_null() {
                parent.shift_remove(field)
            } else {
                parent.insert(field.into(), value)
            };
        });
    }

    /// Replaces the weights.
    pub(crate) fn set_tensors(&self, tensors: &[Tensor]) {
        self.write("model.safetensors", safetensors(tensors));
    }

    /// Cuts the weights into two shards with an index.
    pub(crate) fn shard(&self, tensors: &[Tensor]) {
        const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        self.remove("model.safetensors");
        let halves = tensors.split_at(tensors.len() / 2);
        let mut map = Map::new();
        for (shard, half) in SHARDS.into_iter().zip([halves.0, halves.1]) {
            self.write(shard, safetensors(half));
            map.extend(half.iter().map(|tensor| (tensor.name.clone(), json!(shard))));
        }
        self.write(
            "model.safetensors.index.json",
            json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string(),
        );
    }
}

fn llama_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": N_VOCAB,
        "hidden_size": D_MODEL,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": false,
        "eos_token_id": END,
        "torch_dtype": "float32",
    })
}

/// The tensors of the tiny Llama, or of the tiny Qwen2.
pub(crate) fn tensors(qwen2: bool) -> Vec<Tensor> {
    const D: usize = D_MODEL;
    let mut list = vec![("model.embed_tokens.weight", vec![N_VOCAB, D]), ("model.norm.weight", vec![D])];
    if !qwen2 {
        list.push(("lm_head.weight", vec![N_VOCAB, D]));
    }
    list.extend([
        ("model.layers.0.input_layernorm.weight", vec![D]),
        ("model.layers.0.self_attn.q_proj.weight", vec![16, D]),
        ("model.layers.0.self_attn.k_proj.weight", vec![8, D]),
        ("model.layers.0.self_attn.v_proj.weight", vec![8, D]),
        ("model.layers.0.self_attn.o_proj.weight", vec![D, 16]),
        ("model.layers.0.post_attention_layernorm.weight", vec![D]),
        ("model.layers.0.mlp.gate_proj.weight", vec![24, D]),
        ("model.layers.0.mlp.up_proj.weight", vec![24, D]),
        ("model.layers.0.mlp.down_proj.weight", vec![D, 24]),
    ]);
    if qwen2 {
        list.extend([
            ("model.layers.0.self_attn.q_proj.bias", vec![16]),
            ("model.layers.0.self_attn.k_proj.bias", vec![8]),
            ("model.layers.0.self_attn.v_proj.bias", vec![8]),
        ]);
    }
    list.into_iter().map(|(name, shape)| Tensor::f32(name, &shape)).collect()
}

/// A safetensors file of `tensors`, in their order.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    for Tensor { name, dtype, shape, bytes } in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend_from_slice(bytes);
    }
    framed(Value::from(header).to_string(), &data)
}

/// The length of `header`, `header`, `data`.
pub(crate) fn framed(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// GPT-2's printable character for a byte.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return byte.into();
    }
    let n_before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + n_before).expect("a character of Latin Extended-A")
}

fn special(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
}

/// Byte-level BPE as the Llama 3 and Qwen2 families use it: ids are bytes, then [`MERGES`], then [`SPECIALS`].
pub(crate) fn byte_level_tokenizer() -> Value {
    let mut vocab: Map<String, Value> = (0..=255u8).map(|b| (byte_char(b).to_string(), json!(b))).collect();
    vocab.extend(MERGES.iter().enumerate().map(|(i, merge)| (merge.concat(), json!(256 + i))));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let specials: Vec<Value> = SPECIALS.iter().enumerate().map(|(i, name)| special(END + i as u32, name)).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": specials,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": MERGES},
    })
}
