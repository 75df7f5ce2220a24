//! `compat`, `devices`, `doctor` and the help.

use super::{Saved, good, objects, run, stderr, stdout};
use serde_json::{Value, json};
use std::fs;

#[test]
fn compat_reports_and_judges() {
    let fine = run(&["compat", "--demo"]);
    for part in ["shared ids     1024", "0 \"<|end|>\"", "first token", "can be combined"] {
        assert!(good(&fine).contains(part), "{part}: {}", stdout(&fine));
    }
    let report = objects(good(&run(&["compat", "--demo", "--json"]))).remove(0);
    assert_eq!((&report["compatible"], &report["error"]), (&json!(true), &Value::Null));
    assert_eq!(report["vocabulary"]["widths"], json!([1024, 1024, 1024]));
    assert_eq!((&report["roles"][1]["in_chat"], &report["roles"][0]["max_positions"]), (&json!(true), &json!(256)));
    assert!(report["first_tokens"][0]["agrees"].as_bool().expect("a flag"));

    let saved = Saved::new();
    saved.exchange_in_expert(["s", "t"]);
    let [base, expert, anti] = saved.paths();
    let models = ["--base", &base, "--expert", &expert, "--anti-expert", &anti];
    for extra in [&[][..], &["--json"]] {
        let broken = run(&[&["compat"], &models[..], extra].concat());
        assert_eq!(broken.status.code(), Some(4), "{}", stdout(&broken));
        assert!(stdout(&broken).contains("differing") && stderr(&broken).contains("--id-policy"), "{broken:?}");
    }
    assert_eq!(run(&[&["generate", "-p", "a"], &models[..]].concat()).status.code(), Some(4));
    let report = objects(stdout(&run(&[&["compat", "--json"], &models[..]].concat()))).remove(0);
    assert_eq!((&report["compatible"], &report["vocabulary"]["n_differing"]), (&json!(false), &json!(2)));
    let differing = report["vocabulary"]["differing"].as_array().expect("a list");
    let policies = differing.iter().map(|id| format!("--id-policy={}=ban", id["id"])).collect::<Vec<_>>();
    let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
    good(&run(&[&["compat"], &models[..], &policies].concat()));

    // A template that ends in a space takes the word's own space away.
    let template = saved.path("t.jinja");
    fs::write(&template, "{{ messages[0].content }} ").expect("written");
    let spaced = run(&["compat", "--demo", "--chat", "--chat-template", &template]);
    assert!(good(&spaced).contains("no response can begin with the same token"), "{}", stdout(&spaced));
}

#[test]
fn compat_shows_how_layers_differ() {
    let golden = |trio: &str| {
        let path = |role: &str| format!("{}/tests/golden/{trio}/{role}", env!("CARGO_MANIFEST_DIR"));
        let [base, expert, anti] = ["base", "expert", "anti-expert"].map(path);
        let run = run(&["compat", "--base", &base, "--expert", &expert, "--anti-expert", &anti]);
        good(&run).to_string()
    };
    let gemma3 = golden("gemma3");
    for part in ["theta 300 and theta 9000, linear x 8", "30 in 3 of 4 layers", "text only: the ", "can be combined"] {
        assert!(gemma3.contains(part), "{part}: {gemma3}");
    }
    let smollm3 = golden("smollm3");
    for part in ["theta 900, none in 1 of 3 layers", "40 in 1 of 3 layers", "  none "] {
        assert!(smollm3.contains(part), "{part}: {smollm3}");
    }
    assert!(golden("mistral").contains("theta 300   "), "one base, no scaling");
    let report = objects(good(&run(&["compat", "--demo", "--json"]))).remove(0);
    let base = &report["roles"][0];
    assert_eq!(base["rotary"], json!([{"theta": 10_000.0, "scaling": "default", "factor": 1.0}]));
    assert_eq!((&base["windows"], &base["layers_without_rotary"]), (&json!([]), &json!(0)));
}

#[test]
fn help_names_what_there_is() {
    let short = run(&[]);
    assert!(good(&short).contains("proxytune demo") && good(&short).lines().count() < 15);
    let help = run(&["generate", "--help"]);
    let help = good(&help);
    for flag in [
        "--base ",
        "--expert ",
        "--anti-expert ",
        "--demo",
        "--alpha",
        "--temperature",
        "--temp",
        "--top-k",
        "--top-p",
        "--min-p",
        "--repetition-penalty",
        "--presence-penalty",
        "--frequency-penalty",
        "--logit-bias",
        "-s, --seed",
        "-n, --max-tokens",
        "--min-tokens",
        "--ignore-eos",
        "--stop ",
        "--stop-token-ids",
        "--bad-words ",
        "--bad-words-first",
        "--base-top-p",
        "--base-min-p",
        "--n ",
        "--max-model-len",
        "--chat ",
        "--system-prompt",
        "--chat-template",
        "--expert-prompt",
        "--anti-expert-prompt",
        "--response-prefix",
        "-p, --prompt",
        "-f, --file",
        "--backend",
        "--device",
        "--kv-cache-dtype",
        "-t, --threads",
        "--id-policy",
        "-i, --input-file",
        "-o, --output-file",
        "--json",
        "--record",
    ] {
        assert!(help.contains(flag), "{flag} is missing in the help");
    }
    for heading in ["Models:", "Prompt:", "Sampling:", "Length and stops:", "Output:", "Batch:", "Device:"] {
        assert!(help.contains(heading), "{heading} is missing in the help");
    }
    assert!(good(&run(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn devices_and_doctor_describe_the_machine() {
    let devices = run(&["devices"]);
    assert_eq!(devices.status.code(), Some(0));
    assert!(stdout(&devices).contains("--backend auto takes"), "{}", stdout(&devices));
    let listed = objects(stdout(&run(&["devices", "--json"]))).remove(0);
    let cpu = listed["cpu"]["name"].as_str().expect("a name");
    assert!(stdout(&devices).contains(cpu) && cpu.starts_with("cpu ("), "{listed}");
    assert!(listed["cpu"]["instruction_sets"].as_array().is_some_and(|sets| sets.contains(&json!("portable"))));
    for adapter in listed["wgpu"].as_array().expect("a list") {
        assert!(stdout(&devices).contains(adapter["name"].as_str().expect("a name")), "{adapter}");
        assert!(adapter["max_binding_bytes"].as_u64().is_some_and(|bytes| bytes >= 1 << 27), "{adapter}");
    }

    for missing in listed["cuda"]["missing"].as_array().expect("a list") {
        assert!(stdout(&devices).contains(missing.as_str().expect("a sentence")), "{missing}");
    }

    let doctor = run(&["doctor", "--demo"]);
    for part in [env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, cpu, "demo/anti-expert", "combined     can be"] {
        assert!(stdout(&doctor).contains(part), "{part}: {}", stdout(&doctor));
    }
    let report = objects(stdout(&run(&["doctor", "--json", "--demo", "--backend", "cpu"]))).remove(0);
    assert_eq!((&report["models"]["compatible"], &report["devices"]["wgpu"]), (&json!(true), &Value::Null));
    assert_eq!(report["devices"]["cuda"], Value::Null);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(report.get("self_test").is_none());
}

#[test]
fn the_self_test_has_a_line_per_op() {
    const OPS: [&str; 10] = [
        "copy_pages",
        "embed",
        "norm_matmul",
        "rope_append",
        "attention",
        "matmul_add",
        "norm_add",
        "norm_gate_up",
        "combine_sample",
        "record",
    ];
    let shown = run(&["doctor", "--self-test", "--backend", "cpu"]);
    for op in OPS {
        assert!(good(&shown).lines().any(|line| line.starts_with("  ok") && line.contains(op)), "{}", stdout(&shown));
    }
    let output = run(&["doctor", "--self-test", "--backend", "cpu", "--json"]);
    let report = objects(good(&output)).remove(0);
    let lines = report["self_test"].as_array().expect("lines");
    for op in OPS {
        let mut of_op = lines.iter().filter(|line| line["op"] == op).peekable();
        assert!(
            of_op.peek().is_some() && of_op.all(|line| line["passed"] == true && line["worst"].is_number()),
            "{op}"
        );
    }
    assert!(lines.iter().all(|line| line["backend"].as_str().is_some_and(|name| name.starts_with("cpu"))));
    let cases = |lines: &[Value]| lines.iter().map(|line| line["cases"].as_u64().expect("a number")).sum::<u64>();
    let output = run(&["doctor", "--self-test", "--self-test-every", "10", "--backend", "cpu", "--json"]);
    let part = objects(good(&output)).remove(0);
    let part = cases(part["self_test"].as_array().expect("lines"));
    assert!(part > 0 && 5 * part < cases(lines), "{part} of {} cases", cases(lines));
}
