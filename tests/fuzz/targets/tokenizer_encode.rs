//! Texts of prompts, by a byte-level tokenizer and by one with byte fallback.

use proxytune::checkpoint::Source;
use proxytune::text::Tokenizer;
use std::sync::LazyLock;

macro_rules! tokenizer {
    ($name:literal) => {
        Tokenizer::open(&Source::memory(
            $name,
            [
                ("tokenizer.json", include_bytes!(concat!("../../text/", $name, "/tokenizer.json")).into()),
                (
                    "tokenizer_config.json",
                    include_bytes!(concat!("../../text/", $name, "/tokenizer_config.json")).into(),
                ),
            ],
        ))
        .expect("the file in the repository is right")
    };
}

static TOKENIZERS: LazyLock<[Tokenizer; 2]> = LazyLock::new(|| [tokenizer!("qwen2"), tokenizer!("llama2")]);

/// `data` is a byte of form and a text. The form's lowest bit chooses the tokenizer, the next two what is done, and the
/// others say where content begins.
pub fn run(data: &[u8]) {
    let Some((&form, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (is_llama2, tokenizer) = (form % 2 == 1, &TOKENIZERS[usize::from(form % 2)]);
    let encoded = |ids: proxytune::Result<Vec<u32>>| {
        let ids = ids.expect("a short text can be encoded");
        assert!(ids.iter().all(|&id| tokenizer.bytes_of(id).is_some()));
        ids
    };
    if form / 2 % 4 == 0 {
        let (raw, templated) = (encoded(tokenizer.encode_raw(text)), encoded(tokenizer.encode_templated(text)));
        assert!(raw.ends_with(&templated), "only what comes before differs");
        // NFC changes other texts, and Llama 2's normaliser each piece between special tokens.
        if text.is_ascii() && !(is_llama2 && tokenizer.mentions_special(text)) {
            let bytes: Vec<u8> = templated.iter().filter_map(|&id| tokenizer.bytes_of(id)).flatten().copied().collect();
            let space = if is_llama2 && !text.is_empty() { " " } else { "" };
            assert_eq!(bytes, format!("{space}{text}").as_bytes());
        }
        return;
    }
    // Refused, and tested elsewhere.
    if text.contains(['\u{F8F0}', '\u{F8F1}']) {
        return;
    }
    let guarded = |content| encoded(tokenizer.encode_guarded(text, std::slice::from_ref(&content)));
    match form / 2 % 4 {
        1 => {
            let templated = encoded(tokenizer.encode_templated(text));
            assert_eq!(guarded(text.len()..text.len()), templated, "no content: as it is");
        }
        2 => {
            assert!(guarded(0..text.len()).iter().all(|&id| !tokenizer.is_special(id)), "all content: none is special")
        }
        _ => {
            let start = (usize::from(form / 8)..=text.len()).find(|&at| text.is_char_boundary(at));
            guarded(start.unwrap_or(text.len())..text.len());
        }
    }
}
