//! The tiny models of the tests in memory, so that a fuzzer touches no disk.

use super::model::ModelDir;
use proxytune::checkpoint::{FileBytes, Source};
use std::sync::LazyLock;

/// Names of the tiny Llama's files and their bytes.
static LLAMA: LazyLock<Vec<(&str, &[u8])>> = LazyLock::new(|| {
    let model = ModelDir::llama();
    let names =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    names.into_iter().map(|name| (name, &*model.read(name).leak())).collect()
});

/// The tiny Llama with `files` in place of its own, or beside them.
pub(super) fn llama_with(files: impl IntoIterator<Item = (&'static str, FileBytes)>) -> Source {
    // The first of two files with one name counts.
    let own = LLAMA.iter().map(|&(name, bytes)| (name, FileBytes::Borrowed(bytes)));
    Source::memory("model", files.into_iter().chain(own))
}
