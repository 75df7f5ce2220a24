//! Every flag of a request changes something, and a line of a batch with the same fields gives the same.

use super::{
    ANSWER, END, QUESTION, TILDA, ask, ask_json, good, ids, objects, prompt_tokens, run, run_with, stderr, stdout, text,
};
use serde_json::{Value, json};

/// A request by flags, the one in question last, and as fields of a line; with what the flag in question shows.
#[derive(Clone)]
struct Case {
    flags: &'static [&'static str],
    line: Value,
    shows: fn(&Value) -> bool,
}

fn case(flags: &'static [&'static str], line: Value, shows: fn(&Value) -> bool) -> Case {
    Case { flags, line, shows }
}

fn has_plain_answer(result: &Value) -> bool {
    text(result) == ANSWER
}

fn has_base_answer(result: &Value) -> bool {
    text(result).starts_with(" In Torun.")
}

/// Base-only text of 60 tokens, which repeats itself: what penalties act on.
fn has_base_ramble(result: &Value) -> bool {
    text(result) == text(&ask_json(&["--alpha", "0", "-n", "60"]))
}

fn sampling_cases() -> Vec<Case> {
    vec![
        case(&["--alpha", "0"], json!({ "alpha": 0 }), has_base_answer),
        case(&["--alpha", "-1"], json!({ "alpha": -1 }), |r| !has_plain_answer(r)),
        case(&["-s", "1", "--temperature", "9"], json!({ "temperature": 9.0, "seed": 1 }), |r| !has_plain_answer(r)),
        case(&["--temp", "9", "--seed", "2"], json!({ "temperature": 9.0, "seed": 2 }), |r| r["seed"] == 2),
        case(
            &["--temp", "9", "-s", "1", "--top-k", "1"],
            json!({ "temperature": 9.0, "seed": 1, "top_k": 1 }),
            has_plain_answer,
        ),
        case(
            &["--temp", "9", "-s", "1", "--top-p", "0.00001"],
            json!({ "temperature": 9.0, "seed": 1, "top_p": 0.00001 }),
            has_plain_answer,
        ),
        case(
            &["--temp", "9", "-s", "1", "--min-p", "1"],
            json!({ "temperature": 9.0, "seed": 1, "min_p": 1 }),
            has_plain_answer,
        ),
        case(
            &["--alpha", "0", "-n", "60", "--repetition-penalty", "1.5"],
            json!({ "alpha": 0, "max_tokens": 60, "repetition_penalty": 1.5 }),
            |r| !has_base_ramble(r),
        ),
        case(
            &["--alpha", "0", "-n", "60", "--presence-penalty", "2"],
            json!({ "alpha": 0, "max_tokens": 60, "presence_penalty": 2 }),
            |r| !has_base_ramble(r),
        ),
        case(
            &["--alpha", "0", "-n", "60", "--frequency-penalty", "2"],
            json!({ "alpha": 0, "max_tokens": 60, "frequency_penalty": 2 }),
            |r| !has_base_ramble(r),
        ),
        case(
            &["-n", "1", "--logit-bias", "645=-100", "--logit-bias", "358=100"],
            json!({ "logit_bias": { "645": -100, "358": 100.0 }, "max_tokens": 1 }),
            |r| ids(r) == [358],
        ),
        case(&["--base-top-p", "0.00001"], json!({ "base_top_p": 0.00001 }), has_base_answer),
        case(&["--base-min-p", "1"], json!({ "base_min_p": 1 }), has_base_answer),
        case(&["--record", "3"], json!({ "record": 3 }), |r| r["record"][0]["top"].as_array().map(Vec::len) == Some(3)),
    ]
}

fn ending_cases() -> Vec<Case> {
    vec![
        case(&["-n", "3"], json!({ "max_tokens": 3 }), |r| ids(r).len() == 3 && r["finish_reason"] == "length"),
        case(&["--max-tokens", "4"], json!({ "max_tokens": 4 }), |r| ids(r).len() == 4),
        case(&["--min-tokens", "20"], json!({ "min_tokens": 20 }), |r| ids(r).len() > 20),
        case(&["-n", "40", "--ignore-eos"], json!({ "ignore_eos": true, "max_tokens": 40 }), |r| ids(r).len() == 40),
        case(&["--stop", " born"], json!({ "stop": " born" }), |r| {
            text(r) == " Tilda Thorn was" && r["finish_reason"] == "stop"
        }),
        case(&["--stop", "Torun", "--stop", " was"], json!({ "stop": ["Torun", " was"] }), |r| {
            text(r) == " Tilda Thorn"
        }),
        case(&["--stop-token-ids", "697"], json!({ "stop_token_ids": 697 }), |r| ids(r) == [TILDA, 697]),
        case(&["--stop-token-ids", "697,322"], json!({ "stop_token_ids": [322, 697] }), |r| ids(r) == [TILDA, 697]),
        case(&["--bad-words", "Thorn"], json!({ "bad_words": "Thorn" }), |r| !text(r).contains("Thorn")),
        case(
            &["--bad-words", "Torun", "--bad-words", "was born"],
            json!({ "bad_words": ["Torun", "was born"] }),
            |r| !text(r).contains("Torun") && !text(r).contains("was born"),
        ),
        case(&["--bad-words-first", "Tilda"], json!({ "bad_words_first": ["Tilda"] }), |r| ids(r)[0] != TILDA),
    ]
}

fn prompt_cases() -> Vec<Case> {
    vec![
        case(&["--system-prompt", "Be brief."], json!({ "system_prompt": "Be brief." }), |r| {
            prompt_tokens(r, "expert") > 8 && prompt_tokens(r, "base") == 6
        }),
        case(&["--expert-prompt", "Where?"], json!({ "expert_prompt": "Where?" }), |r| {
            prompt_tokens(r, "expert") < 8 && prompt_tokens(r, "base") == 6
        }),
        case(&["--anti-expert-prompt", "Where?"], json!({ "anti_expert_prompt": "Where?" }), |r| {
            prompt_tokens(r, "anti_expert") < 6 && prompt_tokens(r, "expert") == 8
        }),
        case(&["--response-prefix", " Tilda"], json!({ "response_prefix": " Tilda" }), |r| {
            text(r) == &ANSWER[" Tilda".len()..] && prompt_tokens(r, "base") == 7
        }),
    ]
}

/// Flags of one letter.
const NAMES: [&str; 2] = ["-n", "-s"];

#[test]
fn every_flag_shows_and_a_line_with_the_same_fields_gives_the_same() {
    let cases = [sampling_cases(), ending_cases(), prompt_cases()].concat();
    let mut lines = String::new();
    for (index, Case { line, .. }) in cases.iter().enumerate() {
        let mut line = line.clone();
        line["id"] = json!(format!("case {index}"));
        line["prompt"] = json!(QUESTION);
        lines += &format!("{line}\n");
    }
    let batch = run_with(&["generate", "--demo", "--backend", "cpu", "--chat", "-i", "-"], lines.as_bytes());
    let batch = objects(good(&batch));
    assert_eq!(batch.len(), cases.len());
    for (index, (Case { flags, shows, .. }, from_line)) in cases.iter().zip(&batch).enumerate() {
        let alone = ask_json(flags);
        assert!(shows(&alone), "{flags:?} does not show in {alone}");
        let name = flags.iter().rposition(|flag| flag.starts_with("--") || NAMES.contains(flag)).expect("a flag");
        assert!(!shows(&ask_json(&flags[..name])), "what {flags:?} shows is there without the last");
        assert_eq!(from_line["id"], format!("case {index}"));
        for field in ["text", "token_ids", "finish_reason", "usage", "record"] {
            assert_eq!(from_line[field], alone[field], "{field} of {flags:?}");
        }
    }
}

#[test]
fn engine_flags_show() {
    // The type of keys and values moves the log-probabilities; the demo's own type is bf16.
    let logprobs = |dtype: &str| ask_json(&["--record", "0", "--kv-cache-dtype", dtype])["record"].clone();
    let [auto, bf16, f16, f32] = ["auto", "bf16", "f16", "f32"].map(logprobs);
    assert_eq!(auto, bf16);
    assert!(bf16 != f16 && f16 != f32 && bf16 != f32);
    for (threads, said) in [("1", "1 threads"), ("2", "2 threads")] {
        let output = run(&["demo", QUESTION, "--json", "--backend", "cpu", "-t", threads]);
        let device = objects(good(&output)).remove(0)["device"].to_string();
        assert!(device.starts_with("\"cpu") && device.contains(said), "{device}");
    }
    let short = ask_json(&["--max-model-len", "10"]);
    assert_eq!((ids(&short).len(), &short["finish_reason"]), (2, &json!("length")), "8 prompt tokens and 2");
    let unending = ask(&["--id-policy", "0=ban", "-n", "20", "--json"]);
    assert!(stderr(&unending).contains("no stop id can be sampled"), "{}", stderr(&unending));
    let unending = objects(stdout(&unending)).remove(0);
    assert!(!ids(&unending).contains(&END));
    assert_eq!(unending["finish_reason"], "length");
}
