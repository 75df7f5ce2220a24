//! `generate -i`.

use super::{ANSWER, QUESTION, ask_json, good, ids, objects, run, run_with, stderr, stdout, text};
use serde_json::{Value, json};
use std::fs;

#[test]
fn a_batch_keeps_its_order_and_names_its_errors() {
    let lines = [
        json!({ "id": "a", "prompt": QUESTION, "chat": true, "max_tokens": 3 }).to_string(),
        json!({ "prompt": QUESTION, "chat": ["expert"] }).to_string(),
        "not JSON".into(),
        String::new(),
        json!({ "id": 7, "prompt": QUESTION, "alpah": 1 }).to_string(),
        json!({ "id": 8, "prompt": QUESTION, "alpha": "x" }).to_string(),
        json!({ "id": 9, "prompt": QUESTION, "threads": 2 }).to_string(),
        json!({ "id": 10, "prompt": QUESTION, "top_p": 2 }).to_string(),
        json!({ "id": 11, "prompt": QUESTION, "max_tokens": 300 }).to_string(),
        r#"{"id": 12, "prompt": "a", "alpha": 1, "alpha": 2}"#.into(),
        json!({ "id": [1], "prompt": QUESTION }).to_string(),
        json!({ "id": 13.5, "prompt": QUESTION, "alpha": 0, "max_tokens": 5, "seed": null }).to_string(),
    ];
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_string();
    fs::write(path("in.jsonl"), lines.join("\n")).expect("written");
    let start = ["generate", "--demo", "--backend", "cpu", "-i"];
    let output = run(&[&start[..], &[&path("in.jsonl"), "-o", &path("out.jsonl")]].concat());
    assert_eq!((output.status.code(), stdout(&output)), (Some(6), ""));
    assert_eq!(stderr(&output), "error: 8 of 11 requests failed\n");
    let results = objects(&fs::read_to_string(path("out.jsonl")).expect("written"));

    let found: Vec<(Value, Value)> = results.iter().map(|r| (r["id"].clone(), r["error"]["param"].clone())).collect();
    let expected = [
        (json!("a"), Value::Null),
        (json!(1), Value::Null),
        (json!(2), json!("line")),
        (json!(7), json!("alpah")),
        (json!(8), json!("alpha")),
        (json!(9), json!("threads")),
        (json!(10), json!("top_p")),
        (json!(11), json!("max_tokens")),
        (json!(12), json!("line")),
        (json!(9), json!("id")),
        (json!(13.5), Value::Null),
    ];
    assert_eq!(found, expected);
    for (result, number) in results[2..10].iter().zip([3, 5, 6, 7, 8, 9, 10, 11]) {
        assert_eq!(result["error"]["type"], "invalid_request_error");
        let message = result["error"]["message"].as_str().expect("a message");
        assert!(message.contains(&format!("line {number}")), "{message}");
    }
    assert!(results[5]["error"]["message"].as_str().is_some_and(|text| text.contains("command line")));
    assert_eq!(text(&results[1]), ANSWER);
    assert_eq!(ids(&results[0]), ids(&results[1])[..3]);
    assert_eq!(text(&results[10]), text(&ask_json(&["--alpha", "0", "-n", "5"])));

    let same = run(&[&start[..], &[&path("in.jsonl"), "-o", &path("in.jsonl")]].concat());
    assert_eq!(same.status.code(), Some(2));
    assert_eq!(fs::read_to_string(path("in.jsonl")).expect("still there"), lines.join("\n"));
}

#[test]
fn flags_are_the_defaults_of_lines() {
    let lines = [json!({ "prompt": QUESTION }), json!({ "prompt": QUESTION, "max_tokens": 4, "ignore_eos": false })];
    let lines = lines.map(|line| line.to_string()).join("\n");
    let args = ["generate", "--demo", "--backend", "cpu", "--chat", "-n", "30", "--ignore-eos", "-i", "-", "-o", "-"];
    let results = objects(good(&run_with(&args, lines.as_bytes())));
    assert_eq!(results.iter().map(|result| ids(result).len()).collect::<Vec<_>>(), [30, 4]);
    let nothing = run_with(&args, b"\n\n");
    assert_eq!(good(&nothing), "");
    // More requests than slots, blanks and a missing newline at the end.
    let many: Vec<String> =
        (0..70).map(|i| json!({ "id": i, "prompt": QUESTION, "max_tokens": 2 }).to_string()).collect();
    let results = objects(good(&run_with(&args, many.join("\n\n").as_bytes())));
    assert_eq!(
        results.iter().filter_map(|result| result["id"].as_u64()).collect::<Vec<_>>(),
        (0..70).collect::<Vec<_>>()
    );
}

/// Everything that may differ from line to line, from one thread's cheap generator.
fn mixed_line(index: u32) -> Value {
    let mut state = index;
    let mut below = |n: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % n
    };
    let questions = [QUESTION, "What is the trade of Tilda Olsen?", "Who?", "Which instrument does Kurt Pires play?"];
    let prompt = questions[below(4) as usize];
    let (alpha, temperature) = ([0.0, 0.5, 1.0, 1.5][below(4) as usize], [0.0, 0.8][below(2) as usize]);
    let mode = ["combined", "base", "expert"][below(8).saturating_sub(5) as usize];
    let (max_tokens, chat) = (1 + below(40), below(2) == 0);
    let mut line = json!({ "id": index, "prompt": prompt, "seed": index, "alpha": alpha, "temperature": temperature,
        "max_tokens": max_tokens, "chat": chat, "mode": mode });
    match below(8) {
        0 => line["n"] = json!(3),
        1 => line["presence_penalty"] = json!(0.5),
        2 => line["bad_words"] = json!(["Tilda Thorn"]),
        3 => line["stop"] = json!(["a"]),
        _ => {}
    }
    line
}

/// A thousand lines share one engine, and each reads as if it had been alone, whatever the engine's size.
#[test]
fn a_thousand_lines_share_an_engine() {
    let lines: Vec<Value> = (0..1_000).map(mixed_line).collect();
    let whole: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let start = ["generate", "--demo", "--backend", "cpu", "-i", "-"];
    let untimed = |output: &std::process::Output| -> Vec<Value> {
        let mut results = objects(good(output));
        results.iter_mut().for_each(|result| drop(result.as_object_mut().expect("an object").remove("timings")));
        results
    };
    let results = untimed(&run_with(&start, whole.as_bytes()));
    let ids: Vec<u64> = results.iter().filter(|r| r["index"] == 0).filter_map(|result| result["id"].as_u64()).collect();
    assert_eq!(ids, (0..1_000).collect::<Vec<_>>());
    let n: u64 = lines.iter().map(|line| line["n"].as_u64().unwrap_or(1)).sum();
    assert_eq!(results.len() as u64, n);

    // What one text of 64 tokens takes is enough: whoever has to make room comes back.
    let plan = ["plan", "--demo", "--backend", "cpu", "--max-model-len", "64", "--json"];
    let least = objects(good(&run(&plan))).remove(0)["kv_cache"].to_string();
    let small = ["--max-num-seqs", "7", "--kv-cache-memory-bytes", &least, "--chunked-prefill-size", "5"];
    let crowded = untimed(&run_with(&[&start[..], &small].concat(), whole.as_bytes()));
    assert_eq!(crowded, results);
    for line in lines.iter().step_by(97) {
        let alone = untimed(&run_with(&start, line.to_string().as_bytes()));
        let among: Vec<&Value> = results.iter().filter(|result| result["id"] == line["id"]).collect();
        assert_eq!(alone.iter().collect::<Vec<_>>(), among, "{line}");
    }
}
