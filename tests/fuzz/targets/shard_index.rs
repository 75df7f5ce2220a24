//! The index of a sharded model.

use super::model;
use proxytune::checkpoint::{Checkpoint, FileBytes, Source};
use std::sync::LazyLock;

const INDEX: &str = "model.safetensors.index.json";

/// The tiny Llama in two shards, without their index.
static SHARDS: LazyLock<Vec<(&str, &[u8])>> = LazyLock::new(|| {
    let model = model::ModelDir::llama();
    model.shard(&model::tensors(false));
    let names = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    names.into_iter().map(|name| (name, &*model.read(name).leak())).collect()
});

/// The tensors, as they were before they were split.
static TENSORS: LazyLock<Vec<model::Tensor>> = LazyLock::new(|| model::tensors(false));

/// `data` is the index. What it opens is the whole model.
pub fn run(data: &[u8]) {
    let shards = SHARDS.iter().map(|&(name, bytes)| (name, FileBytes::Borrowed(bytes)));
    let source = Source::memory("model", shards.chain([(INDEX, data.to_vec().into())]));
    match Checkpoint::open(source) {
        Err(error) => assert_eq!(error.exit_code(), 3, "{error:?}"),
        Ok(checkpoint) => {
            assert_eq!(checkpoint.tensors().count(), TENSORS.len());
            for tensor in TENSORS.iter() {
                let bytes = checkpoint.read(&tensor.name).expect("an open model's tensors can be read");
                assert_eq!(bytes, tensor.bytes, "{}", tensor.name);
            }
        }
    }
}
