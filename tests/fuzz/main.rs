//! Replays what the fuzzers of fuzz/ found worth keeping: `corpus/` holds their inputs, one file per fuzzer, each a JSON
//! list of strings whose characters U+0000 to U+00FF are the bytes. `scripts/fuzz` runs the fuzzers themselves.

mod targets;

use std::panic::catch_unwind;

/// Runs every input of `corpus/NAME.json`.
fn replay(name: &str, run: fn(&[u8])) {
    let path = format!("{}/tests/fuzz/corpus/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let inputs: Vec<String> = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert!(inputs.len() >= 10, "{path} holds {} inputs", inputs.len());
    for input in inputs {
        let bytes: Vec<u8> = input.chars().map(|c| u8::try_from(u32::from(c)).expect("a byte")).collect();
        catch_unwind(|| run(&bytes)).unwrap_or_else(|_| panic!("{path}: the input {input:?} fails"));
    }
}

macro_rules! replayed {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name), targets::$name::run);
        })*
    };
}

replayed! { config jsonl_request safetensors_header shard_index stream template tokenizer_encode tokenizer_load }
