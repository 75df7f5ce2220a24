//! Texts and expressions that would take for ever, or that nothing should change: each is encoded, or refused in bounded time.

use super::model::{ModelDir, SPECIALS};
use super::tokenizer;
use proxytune::checkpoint::Source;
use proxytune::cli::request_of_line;
use proxytune::engine::trio::{Models, Trio, TrioSources};
use proxytune::text::tokenizer::MAX_TEXT_BYTES;
use proxytune::text::{PromptRequest, Roles, Tokenizer};
use proxytune::{Error, Result};
use serde_json::json;

/// The tiny byte-level tokenizer, which cuts its text by `expression` first.
fn split_by(expression: &str) -> Result<Tokenizer> {
    let model = ModelDir::llama();
    let split = json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    model.set("tokenizer.json", "/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [split, bytes]}));
    Tokenizer::open(&Source::directory(model.path()))
}

// row 37
#[test]
fn expressions_that_backtrack_for_ever() {
    let letters = "a".repeat(10_000);
    for (expression, text) in [
        // Exponential in 40 letters, cubic and quadratic in 5,000. What looks ahead keeps them from the linear engine.
        (r"(?:a+a?)+(?!a)b", &letters[..40]),
        (r"(?:a|a)+(?!a)b", &letters[..40]),
        (r"(a*)*\1b", &letters[..40]),
        (r"a*a*(?!a)a*(?!a)b", &letters),
        (r"a+(?!a)b", &letters),
    ] {
        let error = split_by(expression).and_then(|tokenizer| tokenizer.encode_raw(text)).expect_err(expression);
        assert!(matches!(&error, Error::File { path, .. } if path.ends_with("tokenizer.json")), "{error:?}");
        let said = error.to_string();
        assert!(said.contains("takes too many steps on a text of"), "{said}");
        assert!(said.contains(&format!("{expression:?}")), "{said}");
    }
    // The same expression and a text that it matches at once.
    let ids = split_by(r"(?:a+a?)+(?!a)b").expect("the expression is right").encode_raw("aab").expect("it is short");
    assert_eq!(ids, [b'a', b'a', b'b'].map(u32::from));
    // Steps back over all of a text are no fault by themselves.
    let ids = split_by(r"a+(?!a)b|a").expect("the expression is right").encode_raw(&letters[..2_000]);
    assert_eq!(ids.expect("2,000 steps for a match").len(), 2_000);
}

/// Every letter looks to the end of the text: nothing is tried twice, and all takes the square of the length.
// row 37
#[test]
fn expressions_that_look_far_ahead() {
    let tokenizer = split_by("a(?=.*b)|a").expect("the expression is right");
    let error = tokenizer.encode_raw(&"a".repeat(MAX_TEXT_BYTES)).expect_err("it takes minutes");
    assert!(error.to_string().contains("takes more than 10 seconds on a text of 1048576 bytes"), "{error}");
}

// row 39
#[test]
fn prompts_of_next_to_nothing() {
    // Llama 2 puts BOS first; Qwen2 has none, and a prompt of no token is refused.
    let ids = |name: &str, text: &str| tokenizer(name).encode_raw(text).expect("a short text");
    assert_eq!((ids("llama2", ""), ids("qwen2", "")), (vec![1], vec![]));
    assert_eq!((ids("llama2", "<s>"), ids("qwen2", "<|im_end|><|im_end|>").len()), (vec![1, 1], 2));
    for name in ["llama2", "qwen2"] {
        for blank in [" ", "   ", "\n", "\t \n", "\u{200b}", "\0"] {
            let tokenizer = tokenizer(name);
            let ids = tokenizer.encode_templated(blank).expect("a short text");
            assert!(tokenizer.text_of(&ids).ends_with(blank), "{name}: {blank:?}");
        }
    }
}

// row 41
#[test]
fn odd_characters_come_back_as_they_were() {
    let bidi = "a\u{202e}b\u{202c}c\u{2066}d\u{2069}\u{200f}\u{feff}";
    let odd =
        ["\0\0a\0", bidi, "\u{FFFD}\u{FFFD}", "\u{10FFFF}\u{FFFF}\u{E000}\u{F8F2}", "\x07\x1b[31m\x7f", "\u{0378}é"];
    for name in ["llama2", "qwen2", "demo"] {
        let tokenizer = tokenizer(name);
        for text in odd {
            let ids = tokenizer.encode_templated(text).expect("a short text");
            let decoded = tokenizer.text_of(&ids);
            // Llama 2's normaliser puts a space before the text.
            assert_eq!(if name == "llama2" { &decoded[1..] } else { &decoded }, text, "{name}");
        }
    }
}

/// Lines of a batch: what is no UTF-8, or would not be, is refused; what is odd is taken.
// row 41
#[test]
fn lines_that_are_no_text() {
    let model = ModelDir::llama();
    let trio = Trio::open(&TrioSources::alone(Source::directory(model.path())), &[]).expect("a right model");
    let prompt = |text: &[u8]| [br#"{"prompt":""#, text, br#""}"#].concat();
    let (lone, reversed) = (prompt(br"\ud83d"), prompt(br"\ude00\ud83d"));
    let (overlong, surrogate, cut) = (prompt(b"\xC0\xAF"), prompt(b"\xED\xA0\xBD"), prompt(b"a\xE6\x97"));
    for line in [lone, reversed, overlong, surrogate, cut] {
        let error = request_of_line(&line, &trio).expect_err("no text");
        assert_eq!((error.param(), error.exit_code()), (Some("line"), 2), "{error:?}");
        assert!(error.to_string().contains("not a request"), "{error}");
    }
    let pair = request_of_line(&prompt(br"\u0000\ud83d\ude00\ufffd"), &trio).expect("a text");
    assert_eq!(pair.prompts[0], "\0😀\u{FFFD}".bytes().map(u32::from).collect::<Vec<_>>());
}

/// The expert's template makes its prompt longer than that model takes, though the other two have room.
// row 55
#[test]
fn a_template_that_fills_one_models_context() {
    let models = [ModelDir::llama(), ModelDir::llama(), ModelDir::llama()];
    models[1].write("chat_template.jinja", "{{ messages[0].content * 4 }}");
    models[1].set("config.json", "/max_position_embeddings", json!(32));
    let [base, expert, anti] = models.each_ref().map(|model| Source::directory(model.path()));
    let sources = TrioSources { base, expert: Some(expert), anti_expert: Some(anti) };
    let trio = Trio::open(&sources, &[]).expect("three right models");
    let line =
        |more: &str| request_of_line(format!(r#"{{"prompt":"abcdefg","chat":"expert"{more}}}"#).as_bytes(), &trio);
    assert_eq!(line("").expect("28 tokens leave room").sampling.max_tokens, 4);
    for (more, param, part) in [
        (
            r#","max_tokens":5"#,
            "max_tokens",
            "5 is more than the 4 left: the prompt of expert has 28 tokens, its limit is 32",
        ),
        (r#","prompt":"abcdefgh""#, "line", "duplicate field"),
        (r#","expert_prompt":"abcdefgh""#, "prompt", "no room for a response: the prompt of expert has 32 tokens"),
    ] {
        let error = line(more).expect_err(part);
        assert_eq!((error.param(), error.exit_code()), (Some(param), 2), "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

// rows 41, 42
#[test]
fn long_runs_of_one_character_are_encoded() {
    for name in ["llama2", "qwen2", "demo"] {
        let tokenizer = tokenizer(name);
        for unit in ["a", " ", "\n", "1", "\u{301}", "日", "\0", "a ", "\n ", "'s", "<|im_end|>"] {
            // Of more than a million blanks in a row an engine that steps back loses count: see below.
            let n_bytes = if unit.trim().is_empty() { 500_000 } else { MAX_TEXT_BYTES };
            let text = unit.repeat(n_bytes / unit.len());
            let ids = tokenizer.encode_templated(&text).unwrap_or_else(|error| panic!("{name}: {unit:?}: {error}"));
            let n_bytes: usize = ids.iter().map(|&id| tokenizer.bytes_of(id).expect("defined").len()).sum();
            assert!(n_bytes >= text.len(), "{name}: {unit:?}: {n_bytes} bytes of {}", text.len());
        }
    }
    let error = tokenizer("qwen2").encode_raw(&" ".repeat(MAX_TEXT_BYTES)).expect_err("too many blanks");
    assert!(error.to_string().contains("takes too many steps on a text of 1048576 bytes"), "{error}");
    // What stands behind the blanks must not become one piece with them, nor the blanks one of their own.
    let behind = " ".repeat(1_000_100) + "hello world foo";
    for name in ["qwen2", "demo"] {
        let error = tokenizer(name).encode_raw(&behind).expect_err("too many blanks");
        assert!(error.to_string().contains("takes too many steps on a text of 1000115 bytes"), "{name}: {error}");
    }
    let over = "a".repeat(10 << 20);
    let error = tokenizer("demo").encode_raw(&over).expect_err("10 MiB");
    assert!(matches!(&error, Error::Argument { param, .. } if param == "prompt"), "{error:?}");
}

/// Special tokens of a content stay text at the limit on text too, though each takes more bytes while they are kept apart.
// row 40
#[test]
fn a_long_content_of_special_tokens_is_text() {
    let model = ModelDir::llama();
    model.write("chat_template.jinja", "<|user|>{{ messages[0].content }}<|end|>");
    let models = Models::open(&TrioSources::alone(Source::directory(model.path()))).expect("a right model");
    let text = SPECIALS[0].repeat(100_000);
    let request = PromptRequest { text, chat: Roles::ALL, ..PromptRequest::default() };
    let prompts = request.encode(&models.role_texts()).expect("it fits");
    let specials = prompts.ids[0].iter().filter(|&&id| id as usize >= super::model::N_IDS - SPECIALS.len());
    assert_eq!(specials.count(), 2, "those of the template");
}
