//! The index of a sharded model.

use super::model;
use proxytune::checkpoint::{Checkpoint, FileBytes, Source};
use std::sync::LazyLock;

const INDEX: &str = "model.safetensors.index.json";

/// The tiny Llama in two shards, without their index. The second shard has a short name as well.
static SHARDS: LazyLock<Vec<(&str, &[u8])>> = LazyLock::new(|| {
    let model = model::ModelDir::llama();
    model.shard(&model::tensors(false));
    let names = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    names.into_iter().map(|name| (name, &*model.read(name).leak())).collect()
});

/// `data` is the index.
pub fn run(data: &[u8]) {
    let shards = SHARDS.iter().map(|&(name, bytes)| (name, FileBytes::Borrowed(bytes)));
    let source = Source::memory("model", shards.chain([(INDEX, data.to_vec().into())]));
    if let Err(error) = Checkpoint::open(source) {
        assert_eq!(error.exit_code(), 3, "{error:?}");
    }
}
