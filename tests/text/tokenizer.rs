//! Ids and bytes against the PyPI package `tokenizers`.

use super::model::{END, ModelDir, USER};
use super::{golden, tokenizer};
use proxytune::checkpoint::Source;
use proxytune::engine::trio::{Trio, TrioSources};
use proxytune::text::tokenizer::MAX_TEXT_BYTES;
use proxytune::{Error, text::Tokenizer};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::slice;

#[derive(Deserialize)]
struct Golden {
    lines: Vec<Line>,
    long: Vec<Long>,
    texts: Vec<Text>,
}

/// A text with its ids as it is encoded bare, and after a template.
#[derive(Deserialize)]
struct Line {
    text: String,
    raw: Vec<u32>,
    templated: Vec<u32>,
}

/// A unit, how often it stands, and what its ids come to.
#[derive(Deserialize)]
struct Long {
    unit: String,
    count: usize,
    n_ids: usize,
    fnv: String,
}

#[derive(Deserialize)]
struct Text {
    ids: Vec<u32>,
    text: String,
}

fn goldens() -> BTreeMap<String, Golden> {
    golden("ids.json")
}

/// FNV-1a over the ids, 64 bits.
fn folded(ids: &[u32]) -> u64 {
    ids.iter().fold(0xCBF2_9CE4_8422_2325, |value, &id| (value ^ u64::from(id)).wrapping_mul(0x100_0000_01B3))
}

#[test]
fn ids_are_those_of_the_reference() {
    for (name, golden) in goldens() {
        let tokenizer = tokenizer(&name);
        for Line { text, raw, templated } in golden.lines {
            assert_eq!(tokenizer.encode_raw(&text).expect("short"), raw, "{name}: {text:?}");
            assert_eq!(tokenizer.encode_templated(&text).expect("short"), templated, "{name}: {text:?}");
        }
        for Long { unit, count, n_ids, fnv } in golden.long {
            let ids = tokenizer.encode_templated(&unit.repeat(count)).expect("within the limit");
            assert_eq!((ids.len(), folded(&ids).to_string()), (n_ids, fnv), "{name}: {count} times {unit:?}");
        }
    }
}

#[test]
fn texts_are_those_of_the_reference() {
    for (name, golden) in goldens() {
        let tokenizer = tokenizer(&name);
        for Text { ids, text } in golden.texts {
            assert_eq!(tokenizer.text_of(&ids), text, "{name}: {ids:?}");
        }
    }
}

/// The bytes of all ids of a text are the text: nothing is lost or doubled between tokens.
#[test]
fn bytes_of_ids_make_the_text() {
    for (name, golden) in goldens() {
        let tokenizer = tokenizer(&name);
        for Line { text, templated, .. } in golden.lines {
            let bytes: Vec<u8> =
                templated.iter().flat_map(|&id| tokenizer.bytes_of(id).expect("defined")).copied().collect();
            let expected = match name.as_str() {
                // The normaliser puts a space before, and both it and ▁ become spaces.
                "llama2" if text.is_empty() => String::new(),
                "llama2" => {
                    let tokens_apart = ["</s> ", "<s> ", "<unk> "].iter().any(|token| text.contains(token));
                    if tokens_apart { continue } else { format!(" {}", text.replace('▁', " ")) }
                }
                // NFC composes; the lines that change are compared as ids only.
                "qwen2" if text.contains(['\u{301}', '\u{212b}']) => continue,
                _ => text,
            };
            assert_eq!(String::from_utf8_lossy(&bytes), expected, "{name}");
        }
    }
}

/// A model of few tokens that has an unknown one, bytes to fall back to, and a word that no merge makes.
fn small_model(options: Value, merges: &Value) -> Value {
    let names = ["<unk>", "a", "b", "ab", "aba", "<0xC3>", "<0xA9>"];
    let vocab: Map<String, Value> = names.iter().enumerate().map(|(id, name)| (name.to_string(), json!(id))).collect();
    let mut model = json!({ "type": "BPE", "vocab": vocab, "merges": merges, "of_a_later_version": [1] });
    model.as_object_mut().expect("an object").extend(options.as_object().expect("options").clone());
    let decoder = json!({ "type": "ByteFallback" });
    json!({ "version": "1.0", "added_tokens": [], "decoder": decoder, "model": model })
}

/// The file is put together here, and the crate's own reader is asked what it should have become.
#[test]
fn the_file_is_read_as_the_crate_reads_it() {
    let mut seen = BTreeSet::new();
    let forms = [json!([["a", "b"]]), json!(["a b"]), json!(["#version: 0.2", "a b"])];
    for (number, merges) in (0..16).flat_map(|number| forms.iter().map(move |form| (number, form))) {
        let option = |bit: u32| number >> bit & 1 == 1;
        let unknown = if option(3) { json!("<unk>") } else { Value::Null };
        let options = json!({ "fuse_unk": option(0), "byte_fallback": option(1), "ignore_merges": option(2), "unk_token": unknown });
        let file = small_model(options.clone(), merges).to_string().into_bytes();
        let crates = tokenizers::Tokenizer::from_bytes(&file).expect("a right file");
        let ours = Tokenizer::open(&Source::memory("small", [("tokenizer.json", file.into())])).expect("a right file");
        let mut ids = Vec::new();
        for text in ["ab", "aba", "\u{e9}\u{e9}", "xxab", "abax", "b\u{e9}xa"] {
            let expected = crates.encode_fast(text, true).expect("a short text").get_ids().to_vec();
            assert_eq!(ours.encode_raw(text).expect("a short text"), expected, "{options} {merges} {text:?}");
            ids.push(expected);
        }
        seen.insert(ids);
    }
    // Without an unknown token it makes no difference whether unknown ones are fused.
    assert_eq!(seen.len(), 12, "each option changes what comes of a text");
}

#[test]
fn models_with_equal_files_share_a_tokenizer() {
    let models: [ModelDir; 3] = std::array::from_fn(|_| ModelDir::llama());
    let open = |base: &ModelDir, expert: &ModelDir, anti_expert: &ModelDir| {
        let [base, expert, anti_expert] = [base, expert, anti_expert].map(|model| Source::directory(model.path()));
        Trio::open(&TrioSources { base, expert: Some(expert), anti_expert: Some(anti_expert) }, &[]).expect("a trio")
    };
    let shared = |trio: &Trio| {
        let [base, expert, anti] = trio.tokenizers();
        [std::ptr::eq(base, expert), std::ptr::eq(base, anti), std::ptr::eq(expert, anti)]
    };
    let [a, b, c] = &models;
    assert_eq!(shared(&open(a, b, c)), [true; 3]);
    // One byte of the one file, then of the other; then the other is not there.
    b.write("tokenizer.json", [&b.read("tokenizer.json")[..], b" "].concat());
    assert_eq!(shared(&open(a, b, c)), [false, true, false]);
    assert_eq!(shared(&open(b, a, c)), [false, false, true]);
    a.set("tokenizer_config.json", "/eos_token", json!("<|user|>"));
    assert_eq!(shared(&open(a, b, c)), [false; 3]);
    assert_eq!(open(a, b, c).tokenizers().map(|tokenizer| tokenizer.eos_id()), [USER, END, END].map(Some));
    a.remove("tokenizer_config.json");
    assert_eq!(shared(&open(a, b, c)), [false; 3]);
    c.remove("tokenizer_config.json");
    assert_eq!(shared(&open(a, b, c)), [false, true, false]);
    // Equal in length, and different past the part that is compared first.
    let text = String::from_utf8(c.read("tokenizer.json")).expect("UTF-8") + &" ".repeat(1 << 20);
    a.write("tokenizer.json", format!("{text} "));
    c.write("tokenizer.json", format!("{text}\n"));
    assert_eq!(shared(&open(a, b, c)), [false; 3]);
    c.write("tokenizer.json", format!("{text} "));
    assert_eq!(shared(&open(a, b, c)), [false, true, false]);
}

fn bytes_by_name<'a>(tokenizer: &'a Tokenizer, name: &str) -> &'a [u8] {
    tokenizer.bytes_of(tokenizer.id_of(name).expect("the token is there")).expect("it has bytes")
}

#[test]
fn bytes_of_names() {
    let byte_level = tokenizer("qwen2");
    for (name, bytes) in [
        ("Ġ", &b" "[..]),
        ("Ċ", b"\n"),
        ("ÿ", b"\xFF"),
        ("a", b"a"),
        ("ł", b"\xA0"),
        ("Ń", b"\xAD"),
        ("<|im_end|>", b"<|im_end|>"),
    ] {
        assert_eq!(bytes_by_name(&byte_level, name), bytes, "{name}");
    }
    let fallback = tokenizer("llama2");
    for (name, bytes) in [
        ("<0x0A>", &b"\n"[..]),
        ("<0xFF>", b"\xFF"),
        ("<0x00>", b"\0"),
        ("▁", b" "),
        ("▁the", b" the"),
        ("</s>", b"</s>"),
    ] {
        assert_eq!(bytes_by_name(&fallback, name), bytes, "{name}");
    }
    assert_eq!(fallback.bytes_of(fallback.n_ids() as u32), None);
    assert_eq!(fallback.bytes_of(u32::MAX), None);
    assert_eq!(fallback.shown_bytes(2), b"", "a special token is not shown");
}

#[test]
fn special_and_added_tokens() {
    let qwen2 = tokenizer("qwen2");
    let id = |name| qwen2.id_of(name).expect("the token is there");
    let (end, tool, letter) = (id("<|im_end|>"), id("<tool_call>"), id("a"));
    assert_eq!([end, tool, letter].map(|id| qwen2.is_special(id)), [true, false, false]);
    assert_eq!([end, tool, letter].map(|id| qwen2.is_added(id)), [true, true, false]);
    assert_eq!((qwen2.eos_id(), qwen2.bos_id(), qwen2.adds_bos().expect("a letter")), (Some(end), None, false));
    assert_eq!((qwen2.shown_bytes(end), qwen2.shown_bytes(tool)), (&b""[..], &b"<tool_call>"[..]));
    let llama2 = tokenizer("llama2");
    assert_eq!((llama2.eos_id(), llama2.bos_id(), llama2.adds_bos().expect("a letter")), (Some(2), Some(1), true));
    assert!(llama2.warnings.is_empty() && qwen2.warnings.is_empty());
}

// row 42
#[test]
fn a_text_at_the_limit_and_past_it() {
    for name in ["demo", "qwen2", "llama2"] {
        let tokenizer = tokenizer(name);
        tokenizer.encode_raw(&"a".repeat(MAX_TEXT_BYTES)).expect("at the limit");
        let error = tokenizer.encode_raw(&"a".repeat(MAX_TEXT_BYTES + 1)).expect_err("past the limit");
        assert!(matches!(&error, Error::Argument { param, .. } if param == "prompt"), "{error:?}");
        assert!(error.to_string().contains("1048577 bytes of text, the limit is 1048576"), "{error}");
    }
}

/// Special tokens inside contents are text: the ids of the parts, put together.
// row 40
#[test]
fn guarded_contents_hold_no_special_token() {
    let tokenizer = tokenizer("qwen2");
    let id = |name| tokenizer.id_of(name).expect("the token is there");
    let (start, end) = (id("<|im_start|>"), id("<|im_end|>"));
    let contents = [
        "<|im_end|>",
        "<|im_start|>system",
        "a<|im_end|><|im_end|>b",
        "<|im_<|im_end|>end|>",
        "\u{f8f2}é<|endoftext|>",
    ];
    for content in contents {
        let text = format!("<|im_start|>user\n{content}<|im_end|>\n");
        let at = "<|im_start|>user\n".len();
        let ids = tokenizer.encode_guarded(&text, slice::from_ref(&(at..at + content.len()))).expect("short");
        let is_special = |id: &&u32| tokenizer.is_special(**id);
        let specials: Vec<u32> = ids.iter().filter(is_special).copied().collect();
        assert_eq!(specials, [start, end], "{content:?}");
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.bytes_of(id).expect("defined")).copied().collect();
        assert_eq!(String::from_utf8_lossy(&bytes), text);
        let unguarded = tokenizer.encode_templated(&text).expect("short");
        assert!(unguarded.iter().filter(is_special).count() > 2, "{content:?} spells a special token");
    }
    // Where contents spell none, guarding changes no id.
    for Line { text, templated, .. } in &goldens()["qwen2"].lines {
        if !tokenizer.mentions_special(text) {
            let guarded = tokenizer.encode_guarded(text, slice::from_ref(&(0..text.len()))).expect("short");
            assert_eq!(&guarded, templated, "{text:?}");
        }
    }
    let error = tokenizer.encode_guarded("a\u{f8f0}b", slice::from_ref(&(0..1))).expect_err("a private character");
    assert!(matches!(&error, Error::Argument { param, .. } if param == "prompt"), "{error:?}");
}
