//! tokenizer.json and tokenizer_config.json. Several of these files end in a panic inside the tokenizers crate.

use super::model::ModelDir;
use super::{Case, Expect, case, refuse};
use Expect::{Field, File};
use proxytune::Error;
use proxytune::checkpoint::Source;
use proxytune::engine::trio::{Trio, TrioSources};
use proxytune::text::Tokenizer;
use serde_json::{Value, json};

const FILE: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

fn open(model: &ModelDir) -> Result<Tokenizer, Error> {
    Tokenizer::open(&Source::directory(model.path()))
}

/// The value at `pointer` of tokenizer.json is this one.
fn set(label: &'static str, pointer: &'static str, value: Value, expect: Expect) -> Case {
    case(label, move |model| model.set(FILE, pointer, value.clone()), expect)
}

fn text(label: &'static str, text: impl Into<Vec<u8>>, part: &'static str) -> Case {
    let text = text.into();
    case(label, move |model| model.write(FILE, &text), File(FILE, part))
}

// row 34
#[test]
fn files_that_are_no_tokenizers() {
    let deep = format!("{{\"model\":{}", "[".repeat(100_000));
    let deep_decoder = format!("{}null{}", r#"{"type":"Sequence","decoders":["#.repeat(5_000), "]}".repeat(5_000));
    let deep_decoder = format!("{{\"model\":{{\"vocab\":{{}},\"merges\":[]}},\"decoder\":{deep_decoder}}}");
    refuse(
        vec![
            case("absent", |model| model.remove(FILE), File(FILE, "there is no such file")),
            text("empty", "", "EOF while parsing"),
            text("no model", "{}", "missing field `model`"),
            text("not UTF-8", b"{\"model\":\"\xFF\"}".to_vec(), "invalid unicode"),
            text("deep", deep, "line 1"),
            text("deep decoder", deep_decoder, "recursion limit exceeded"),
            text("over 64 MiB", vec![b' '; (64 << 20) + 1], "67108865 bytes, the limit is 67108864"),
            case(
                "1 GiB, of which nothing is read",
                |model| std::fs::File::create(model.file(FILE)).and_then(|file| file.set_len(1 << 30)).expect("a file"),
                File(FILE, "1073741824 bytes, the limit"),
            ),
            set(
                "another version",
                "/version",
                json!("2.0"),
                Field(FILE, "version", "\"2.0\" is not supported, only \"1.0\""),
            ),
        ],
        open,
    );
}

// row 34
#[test]
fn models_that_are_not_read() {
    let model = |label, value, field, part| set(label, "/model", value, Field(FILE, field, part));
    refuse(
        vec![
            model(
                "Unigram",
                json!({"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}),
                "model.type",
                "\"Unigram\" is not supported, only BPE",
            ),
            model(
                "WordPiece",
                json!({"type": "WordPiece", "vocab": {}}),
                "model.type",
                "\"WordPiece\" is not supported",
            ),
            set("dropout", "/model/dropout", json!(0.1), Field(FILE, "model.dropout", "other ids each time")),
            set(
                "prefix",
                "/model/continuing_subword_prefix",
                json!("##"),
                Field(FILE, "model.continuing_subword_prefix", "not supported"),
            ),
            set(
                "suffix",
                "/model/end_of_word_suffix",
                json!("</w>"),
                Field(FILE, "model.end_of_word_suffix", "not supported"),
            ),
        ],
        open,
    );
}

// row 36
#[test]
fn merges_that_make_no_token() {
    let merges = |label, value, field, part| set(label, "/model/merges", value, Field(FILE, field, part));
    let first = "model.merges[0]";
    refuse(
        vec![
            // In the crate the joined name overruns the buffer made for the longest name.
            merges("no such whole", json!([["hell", "hell"]]), first, "\"hellhell\" is not in the vocabulary"),
            merges(
                "no such half",
                json!([["h", "e"], ["h", "zz"]]),
                "model.merges[1]",
                "\"zz\" is not in the vocabulary",
            ),
            merges("old form", json!(["h e", "h h"]), "model.merges[1]", "\"hh\" is not in the vocabulary"),
            merges("one word", json!(["he"]), first, "must be two tokens with a space between"),
            merges("three words", json!(["h e l"]), first, "must be two tokens"),
            merges("empty halves", json!([["", ""]]), first, "\"\" is not in the vocabulary"),
            set("three halves", "/model/merges", json!([["h", "e", "l"]]), File(FILE, "did not match any variant")),
            set("no list", "/model/merges", json!(7), File(FILE, "invalid type: integer `7`")),
            set("no merges", "/model/merges", Value::Null, File(FILE, "missing field `merges`")),
        ],
        open,
    );
}

/// Ids between others that no token has are never sampled, and no text has them.
// row 35
#[test]
fn ids_that_are_left_out() {
    let model = ModelDir::llama();
    model.edit(FILE, |json| {
        let vocab = json["model"]["vocab"].as_object_mut().expect("an object");
        vocab.shift_remove("~").expect("it is there");
        // Added tokens that the vocabulary lacks would move up by one, which is refused.
        vocab.extend((super::model::END..).zip(super::model::SPECIALS).map(|(id, name)| (name.to_string(), json!(id))));
    });
    let tokenizer = open(&model).expect("a gap is no fault");
    let gap = u32::from(b'~');
    assert_eq!((tokenizer.n_ids(), tokenizer.bytes_of(gap)), (super::model::N_IDS, None));
    assert!(!tokenizer.encode_raw("a~b").expect("the letter is left out").contains(&gap));
    let trio = Trio::open(&TrioSources::alone(Source::directory(model.path())), &[]).expect("a right model");
    assert!(!trio.vocabulary().is_live(gap) && trio.vocabulary().is_live(gap - 1));
}

/// As many merges as the file has room for are read once; a merge that stands again changes nothing.
// row 36
#[test]
fn merges_without_number() {
    let model = ModelDir::llama();
    let plain = open(&model).expect("a right model").encode_raw("hello there").expect("a short text");
    model.edit(FILE, |json| {
        let merges = json["model"]["merges"].as_array_mut().expect("a list");
        let again = merges.clone();
        (0..50_000).for_each(|_| merges.extend(again.iter().cloned()));
    });
    let many = open(&model).expect("200,004 merges").encode_raw("hello there").expect("a short text");
    assert_eq!(many, plain);
}

// row 35
#[test]
fn ids_that_do_not_work() {
    let id = |label, value, expect| set(label, "/model/vocab/hell", value, expect);
    let huge = |value| id("a huge id", value, Field(FILE, "model.vocab", "the limit is 1048576"));
    refuse(
        vec![
            huge(json!(1 << 20)),
            huge(json!(u32::MAX)),
            id("past 2^32", json!(1u64 << 32), File(FILE, "invalid value: integer `4294967296`")),
            id("negative", json!(-1), File(FILE, "invalid value: integer `-1`")),
            id("a float", json!(1.5), File(FILE, "invalid type: floating point")),
            id("an id twice", json!(5), File(FILE, "an id stands twice")),
            set("no token", "/model", json!({"type": "BPE", "vocab": {}, "merges": []}), File(FILE, "")),
            set(
                "an added id moved",
                "/added_tokens/0/id",
                json!(999),
                File(FILE, "added token \"<|end|>\" has id 999, its place gives it 260"),
            ),
            set(
                "an added id past the limit",
                "/added_tokens/0/id",
                json!(1 << 20),
                File(FILE, "token id 1048576, the limit is 1048576"),
            ),
            set("an empty added token", "/added_tokens/0/content", json!(""), File(FILE, "added token 260 is empty")),
            set(
                "an added token twice",
                "/added_tokens/1/content",
                json!("<|end|>"),
                File(FILE, "has id 261, its place gives it 260"),
            ),
        ],
        open,
    );
}

// row 34
#[test]
fn parts_of_the_pipeline_that_are_not_read() {
    let part = |label, field: &'static str, value: Value, part| {
        case(
            label,
            move |model: &ModelDir| model.set(FILE, &format!("/{field}"), value.clone()),
            Field(FILE, field, part),
        )
    };
    let template = |single: Value| {
        json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens":
        {"<s>": {"id": "<s>", "ids": [999_999], "tokens": ["<s>"]}}})
    };
    let token = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = |id: Value| json!({"Sequence": {"id": id, "type_id": 0}});
    let inside = |name: &str, list: &str, part: Value| json!({"type": name, list: [part]});
    let metaspace = |label, value| part(label, "decoder", value, "Metaspace needs a replacement of one character");
    refuse(
        vec![
            part(
                "a normaliser of bytes",
                "normalizer",
                json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
                "\"Precompiled\" is not supported",
            ),
            part("without type", "normalizer", json!({"precompiled_charsmap": "AAAA"}), "has no type"),
            part(
                "inside a sequence",
                "normalizer",
                inside("Sequence", "normalizers", json!({"type": "Precompiled"})),
                "\"Precompiled\"",
            ),
            part(
                "a regex",
                "normalizer",
                json!({"type": "Replace", "pattern": {"Regex": "a*"}, "content": "b"}),
                "plain string",
            ),
            part(
                "a long prefix",
                "normalizer",
                json!({"type": "Prepend", "prepend": "x".repeat(65)}),
                "more than 64 times as long",
            ),
            part(
                "a text for a letter",
                "normalizer",
                json!({"type": "Replace", "pattern": {"String": "a"}, "content": "x".repeat(65)}),
                "more than 64 times as long",
            ),
            part(
                "one after the other",
                "normalizer",
                json!({"type": "Sequence", "normalizers": vec![json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaa"}); 4]}),
                "more than 64 times",
            ),
            part(
                "pieces of no length",
                "pre_tokenizer",
                json!({"type": "FixedLength", "length": 0}),
                "\"FixedLength\" is not supported",
            ),
            part(
                "an unknown type",
                "pre_tokenizer",
                json!({"type": "Later"}),
                "\"Later\" is not supported; accepted are Sequence",
            ),
            part(
                "a bad regex",
                "pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": false}),
                "expression \"(a\"",
            ),
            part("no object", "pre_tokenizer", json!("ByteLevel"), "has no type"),
            part(
                "Bert's",
                "post_processor",
                json!({"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}),
                "\"BertProcessing\"",
            ),
            part(
                "an undefined token",
                "post_processor",
                template(json!([token("<t>"), text(json!("A"))])),
                "holds \"<t>\", which special_tokens does not define",
            ),
            part(
                "a second text",
                "post_processor",
                template(json!([text(json!("B"))])),
                "must be the text, A, or a special token",
            ),
            part(
                "a second text, spelled oddly",
                "post_processor",
                template(json!([text(json!({"B": null}))])),
                "must be the text",
            ),
            part(
                "inside a sequence",
                "post_processor",
                inside("Sequence", "processors", template(json!([token("<t>")]))),
                "does not define",
            ),
            part(
                "an id that is nowhere",
                "post_processor",
                template(json!([token("<s>"), text(json!("A"))])),
                "adds id 999999, which is not defined",
            ),
            part("no decoder", "decoder", Value::Null, "missing; accepted are"),
            part(
                "a decoder across tokens",
                "decoder",
                json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
                "\"WordPiece\" is not supported",
            ),
            part(
                "a regex",
                "decoder",
                json!({"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"}),
                "plain string",
            ),
            part(
                "a decoder that grows",
                "decoder",
                json!({"type": "Replace", "pattern": {"String": "a"}, "content": "bb"}),
                "by the longer \"bb\"",
            ),
            part(
                "a decoder of nothing",
                "decoder",
                json!({"type": "Replace", "pattern": {"String": ""}, "content": ""}),
                "not supported",
            ),
            metaspace("a Metaspace without replacement", json!({"type": "Metaspace"})),
            metaspace("a number for it", json!({"type": "Metaspace", "replacement": 7})),
            metaspace("two characters", json!({"type": "Metaspace", "replacement": "ab"})),
            metaspace("none, which doubles each time", {
                let doubles = json!({"type": "Metaspace", "replacement": ""});
                json!({"type": "Sequence", "decoders": vec![doubles; 3]})
            }),
            part(
                "stripping ends",
                "decoder",
                json!({"type": "Strip", "content": " ", "start": 0, "stop": 1}),
                "\"Strip\" is not supported",
            ),
        ],
        open,
    );
}

// row 38
#[test]
fn tokenizer_config() {
    let set = |name: &'static str, value: Value, part| {
        case(name, move |m: &ModelDir| m.set(CONFIG, &format!("/{name}"), value.clone()), Field(CONFIG, name, part))
    };
    refuse(
        vec![
            set("eos_token", json!("</s>"), "\"</s>\" is not in tokenizer.json"),
            set("bos_token", json!("<s>"), "\"<s>\" is not in tokenizer.json"),
            set("eos_token", json!(2), "2, must be a string"),
            set("add_bos_token", json!("no"), "must be true or false"),
            case(
                "no content",
                |m| m.set(CONFIG, "/eos_token", json!({"id": 1})),
                Field(CONFIG, "eos_token.content", "missing"),
            ),
            case("no object", |m| m.write(CONFIG, "[]"), File(CONFIG, "not a JSON object")),
        ],
        open,
    );
    let model = ModelDir::llama();
    model.set(CONFIG, "/eos_token", json!({"__type": "AddedToken", "content": "<|user|>", "lstrip": false}));
    assert_eq!(open(&model).expect("the long form").eos_id(), Some(super::model::USER));
    model.remove(CONFIG);
    assert_eq!(open(&model).expect("it may be absent").eos_id(), None);
    // No EOS anywhere: said, because every response then goes on to max_tokens.
    model.write("generation_config.json", "{}");
    for eos in [json!(null), json!(-1), json!(super::model::N_IDS), json!(u32::MAX)] {
        model.set("config.json", "/eos_token_id", eos);
        let trio = Trio::open(&TrioSources::alone(Source::directory(model.path())), &[]).expect("it can still run");
        assert_eq!(trio.vocabulary().stop_ids, [0u32; 0]);
        let said = trio.warnings().join("\n");
        assert!(said.contains("no stop id can be sampled: a response ends only at max_tokens"), "{said}");
    }
}

#[test]
fn truncation_and_padding_in_the_file_are_not_applied() {
    let model = ModelDir::llama();
    let plain = open(&model).expect("a right model").encode_raw("hello there").expect("text");
    model.set(
        FILE,
        "/truncation",
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}),
    );
    model.set(FILE, "/padding", json!({"strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}));
    assert_eq!(open(&model).expect("both are read past").encode_raw("hello there").expect("text"), plain);
}
