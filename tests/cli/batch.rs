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
