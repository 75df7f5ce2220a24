//! Random damage: whatever a byte or a field turns into, opening ends in a model or in a typed error.

use super::model::ModelDir;
use proxytune::checkpoint::Source;
use proxytune::engine::trio::{Models, TrioSources};
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Marsaglia's xorshift64: seeded, so a failure can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// Bytes that mean something to a parser come up as often as all others together.
const TELLING: &[u8] = b"\"{}[]:,-0159eE.\\u \0\xFF\x80";

fn damage_bytes(random: &mut Random, bytes: &mut Vec<u8>, n_fragile: usize) {
    for _ in 0..=random.below(3) {
        let n = n_fragile.min(bytes.len());
        if n == 0 {
            return;
        }
        let (at, other) = (random.below(n), random.below(n));
        let byte = if random.below(2) == 0 { *random.pick(TELLING) } else { random.next() as u8 };
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = byte,
            2 => bytes.insert(at, byte),
            3 => drop(bytes.drain(at..(at + 1 + random.below(8)).min(n))),
            _ => bytes.swap(at, other),
        }
    }
}

/// One value anywhere in the tree goes, or becomes another.
fn damage_value(random: &mut Random, value: &mut Value) {
    let is_leaf = random.below(5) == 0;
    let removes = random.below(6) == 0;
    match value {
        Value::Object(object) if !object.is_empty() && !is_leaf => {
            let at = random.below(object.len());
            let (key, child) = object.iter_mut().nth(at).expect("within the length");
            if removes {
                let key = key.clone();
                object.shift_remove(&key);
            } else {
                damage_value(random, child);
            }
        }
        Value::Array(list) if !list.is_empty() && !is_leaf => {
            let at = random.below(list.len());
            if removes { drop(list.remove(at)) } else { damage_value(random, &mut list[at]) }
        }
        leaf => *leaf = odd_value(random),
    }
}

/// As [`damage_value`]; in tokenizer.json mostly outside the vocabulary, which is nearly all of the file.
fn damage_json(random: &mut Random, value: &mut Value) {
    const PARTS: [&str; 6] =
        ["/model/merges", "/added_tokens", "/normalizer", "/pre_tokenizer", "/post_processor", "/decoder"];
    let part = *random.pick(&PARTS);
    match value.pointer_mut(part) {
        Some(part) if random.below(4) > 0 => damage_value(random, part),
        _ => damage_value(random, value),
    }
}

/// A tokenizer with every kind of part that is accepted, so that damage reaches each.
fn many_parts(tokenizer: &mut Value) {
    let replace = json!({"type": "Replace", "pattern": {"String": "x"}, "content": "y"});
    let split = json!({"type": "Split", "pattern": {"Regex": "[a-z]+|\\s+"}, "behavior": "Isolated", "invert": false});
    let token = json!({"SpecialToken": {"id": "<|pad|>", "type_id": 0}});
    tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, replace]});
    tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split, tokenizer["pre_tokenizer"]]});
    tokenizer["post_processor"] = json!({"type": "TemplateProcessing", "pair": [], "special_tokens":
        {"<|pad|>": {"id": "<|pad|>", "ids": [262], "tokens": ["<|pad|>"]}},
        "single": [token, {"Sequence": {"id": "A", "type_id": 0}}]});
}

fn odd_value(random: &mut Random) -> Value {
    let texts = [
        "null",
        "true",
        "0",
        "-1",
        "1",
        "8",
        "4294967295",
        "4294967296",
        "18446744073709551615",
        "1e308",
        "-0.0",
        "1e-320",
        "\"\"",
        "\"a\"",
        "\"BPE\"",
        "\"Sequence\"",
        "\"F32\"",
        "\"BF16\"",
        "\"A\"",
        "\"B\"",
        "\"\\u0000\"",
        "\"<|end|>\"",
        "\"\u{f8f0}\"",
        "[]",
        "{}",
        "[[]]",
        "[0,4]",
        "[\"a\",\"b\"]",
        "[\"hell\",\"hell\"]",
        "{\"type\":\"Sequence\"}",
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}",
        "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{}}",
        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\"},\"behavior\":\"Isolated\",\"invert\":true}",
        "{\"type\":\"Metaspace\",\"replacement\":\"\u{2581}\",\"prepend_scheme\":\"always\"}",
    ];
    serde_json::from_str(random.pick::<&str>(&texts)).expect("each is JSON")
}

/// Opens what is there, and uses what opens.
fn exercise(model: &ModelDir) -> bool {
    let Ok(models) = Models::open(&TrioSources::alone(Source::directory(model.path()))) else { return false };
    let [checkpoint, ..] = models.checkpoint_of_role();
    for (name, _) in checkpoint.tensors() {
        // The weights may have been cut; that too is an error, not a panic.
        let _ = checkpoint.read_f32(name);
    }
    let _ = models.compare(&[]).and_then(|comparison| comparison.vocabulary());
    let tokenizer = models.role_texts()[0].tokenizer;
    for text in ["", "hello <|end|> there", "\u{f8f0}1\u{f8f1} é\u{0}\u{301}\r\n\t  x"] {
        for ids in [
            tokenizer.encode_raw(text),
            tokenizer.encode_templated(text),
            tokenizer.encode_guarded(text, std::slice::from_ref(&(0..text.len()))),
        ] {
            let _ = ids.map(|ids| tokenizer.text_of(&ids));
        }
    }
    true
}

#[test]
fn damaged_models_open_or_are_refused() {
    let pristine = [ModelDir::llama(), ModelDir::qwen2()];
    pristine[1].shard(&super::model::tensors(true));
    pristine[1].edit("tokenizer.json", many_parts);
    let files = [
        &["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"][..],
        &["config.json", "tokenizer.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"][..],
    ];
    let mut n_open = 0;
    for seed in 1..=2_000u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let which = random.below(2);
        let file = *random.pick(files[which]);
        let before = pristine[which].read(file);
        let mut after = before.clone();
        // Damage to the weights themselves shows nowhere: all of it goes into the length and the header, which is
        // longer than this.
        let n_header = 1_000;
        match serde_json::from_slice::<Value>(&before) {
            Ok(mut value) if random.below(2) == 0 => {
                damage_json(&mut random, &mut value);
                after = value.to_string().into_bytes();
            }
            Ok(_) => damage_bytes(&mut random, &mut after, before.len()),
            Err(_) => damage_bytes(&mut random, &mut after, n_header),
        }
        pristine[which].write(file, &after);
        let opened = catch_unwind(AssertUnwindSafe(|| exercise(&pristine[which])));
        let opened = opened.unwrap_or_else(|_| {
            panic!("seed {seed}: panic after damage to {file}: {:?}", String::from_utf8_lossy(&after))
        });
        n_open += u32::from(opened);
        pristine[which].write(file, &before);
    }
    // The damage must reach both sides, or the test looks at one of them alone.
    assert!((50..1_950).contains(&n_open), "{n_open} of 2,000 damaged models open");
}
