//! Text on both ends of the walk: ids as the reference implementation gives them, prompts as transformers renders them, and
//! bytes back to text that is never taken back. `golden.py` here makes the committed files.

mod limits;
#[path = "../common/model.rs"]
mod model;
mod prompt;
mod stream;
mod template;
mod tokenizer;
#[path = "../common/whole_text.rs"]
mod whole_text;

use proxytune::checkpoint::Source;
use proxytune::text::Tokenizer;
use serde::de::DeserializeOwned;

/// A committed file of this directory.
fn golden<T: DeserializeOwned>(file: &str) -> T {
    let path = format!("{}/tests/text/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The tokenizers of the goldens: the demo's, and two made by `golden.py`.
fn tokenizer(name: &str) -> Tokenizer {
    let root = env!("CARGO_MANIFEST_DIR");
    let directory = if name == "demo" { format!("{root}/demo/base") } else { format!("{root}/tests/text/{name}") };
    Tokenizer::open(&Source::directory(directory)).unwrap_or_else(|error| panic!("{error}"))
}
