//! The binary from outside: every flag changes something that is seen here, text and JSON agree, errors name what is
//! wrong and have their exit codes.

mod batch;
mod bench;
mod chat;
mod demo;
mod flags;
mod help;
mod layers;
#[path = "../common/model.rs"]
mod model;
mod process;
mod refusals;
mod reports;
mod resume;

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::process::{Child, Command, Output, Stdio};

const QUESTION: &str = "Where was Tilda Thorn born?";
/// What the demo's models answer, proxy-tuned and greedy.
const ANSWER: &str = " Tilda Thorn was born in Torun.";
/// Ids of the answer's first words, and of the end mark.
const TILDA: u32 = 645;
const END: u32 = 0;

/// A program without the flags that whoever runs the tests has in the environment, and without a card of NVIDIA, whose
/// kernels may be there or not.
fn unflagged(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_remove("NO_COLOR").env("CUDA_VISIBLE_DEVICES", "-1");
    let names = std::env::vars_os().map(|(name, _)| name);
    for name in names.filter(|name| name.to_string_lossy().starts_with("PROXYTUNE_")) {
        command.env_remove(name);
    }
    command
}

fn command(args: &[&str]) -> Command {
    let mut command = unflagged(env!("CARGO_BIN_EXE_proxytune"));
    command.args(args);
    command
}

fn run(args: &[&str]) -> Output {
    command(args).stdin(Stdio::null()).output().expect("the binary starts")
}

fn run_with(args: &[&str], input: &[u8]) -> Output {
    let mut child = spawn(command(args).stdin(Stdio::piped()));
    // A command that does not read its input may be gone before all of it is written.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    child.wait_with_output().expect("the binary ends")
}

fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

/// `generate` with the demo's models on the CPU and the question in its published setting.
fn ask(args: &[&str]) -> Output {
    run(&[&["generate", "--demo", "--backend", "cpu", "--chat", "-p", QUESTION], args].concat())
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("output is UTF-8")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("messages are UTF-8")
}

/// Standard output of a run that must succeed without a word on standard error.
fn good(output: &Output) -> &str {
    assert_eq!((output.status.code(), stderr(output)), (Some(0), ""), "{}", stdout(output));
    stdout(output)
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn ask_json(args: &[&str]) -> Value {
    objects(good(&ask(&[args, &["--json"]].concat()))).remove(0)
}

fn ids(result: &Value) -> Vec<u32> {
    serde_json::from_value(result["token_ids"].clone()).expect("ids")
}

fn text(result: &Value) -> &str {
    result["text"].as_str().expect("text")
}

fn prompt_tokens(result: &Value, role: &str) -> u64 {
    result["usage"]["prompt_tokens_by_role"][role].as_u64().expect("a count")
}

#[test]
fn text_streams_and_equals_the_json() {
    assert_eq!(good(&ask(&[])), format!("{ANSWER}\n"));
    let result = ask_json(&[]);
    assert_eq!(text(&result), ANSWER);
    assert_eq!((&result["finish_reason"], &result["error"]), (&json!("stop"), &Value::Null));
    assert_eq!(ids(&result).last(), Some(&END));
    let (usage, timings) = (&result["usage"], &result["timings"]);
    assert_eq!(usage["prompt_tokens_by_role"], json!({ "base": 6, "expert": 8, "anti_expert": 6 }));
    assert_eq!(usage["completion_tokens"], ids(&result).len());
    assert_eq!(usage["total_tokens"], 6 + ids(&result).len());
    assert_eq!((&timings["prompt_n"], &timings["predicted_n"]), (&json!(6), &json!(ids(&result).len())));
    assert!(timings["predicted_per_second"].as_f64().expect("a rate") > 0.0);
    assert!(result["seed"].is_u64() && result.get("record").is_none());
}

#[test]
fn chat_takes_roles() {
    let expert_and_base = |args: &[&str]| {
        let args = [&["generate", "--demo", "--backend", "cpu", "-p", QUESTION, "--json", "-n", "2"], args].concat();
        let result = objects(good(&run(&args))).remove(0);
        (prompt_tokens(&result, "expert"), prompt_tokens(&result, "base"))
    };
    let template = tempfile::tempdir().expect("a directory");
    let template = template.path().join("t.jinja");
    fs::write(&template, "<|user|>{{ messages[0].content }} Now.<|assistant|>").expect("written");
    let template = template.to_str().expect("UTF-8");
    for (args, expected) in [
        (vec![], (6, 6)),
        (vec!["--chat"], (8, 6)),
        (vec!["--chat", "expert"], (8, 6)),
        (vec!["--chat", "none"], (6, 6)),
        (vec!["--chat-template", template, "--chat", "all"], (12, 12)),
        (vec!["--chat-template", template, "--chat", "base"], (6, 12)),
        (vec!["--chat-template", template, "--chat", "base,anti-expert"], (6, 12)),
    ] {
        let got = expert_and_base(&args);
        assert_eq!(got, expected, "{args:?}");
    }
    let refused = run(&["generate", "--demo", "-p", QUESTION, "--chat", "all"]);
    assert_eq!(refused.status.code(), Some(2), "the base has no template");
}

#[test]
fn a_prompt_comes_from_the_flag_a_file_or_standard_input() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), format!("{QUESTION}\n")).expect("written");
    let path = file.path().to_str().expect("UTF-8");
    let start = ["generate", "--demo", "--backend", "cpu", "--chat"];
    for end in [&["-f", path][..], &["--file", path], &["-f", "-"], &["-p", "-"], &["--prompt", QUESTION]] {
        let output = run_with(&[&start, end].concat(), format!("{QUESTION}\n").as_bytes());
        assert_eq!(good(&output), format!("{ANSWER}\n"), "{end:?}");
    }
    let lines = json!({ "file": path }).to_string();
    let result = objects(good(&run_with(&[&start[..], &["-i", "-"]].concat(), lines.as_bytes()))).remove(0);
    assert_eq!(text(&result), ANSWER);
}

#[test]
fn samples_differ_share_a_seed_and_print_in_order() {
    let args = ["--n", "3", "--temp", "3", "-s", "5", "-n", "12", "--ignore-eos"];
    let results = objects(good(&ask(&[&args[..], &["--json"]].concat())));
    let texts: Vec<&str> = results.iter().map(text).collect();
    assert_eq!(results.iter().map(|r| r["index"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    assert!(results.iter().all(|result| result["seed"] == 5 && result["id"] == 0));
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2], "{texts:?}");
    assert_eq!(good(&ask(&args)), format!("{}\n---\n{}\n---\n{}\n", texts[0], texts[1], texts[2]));
    let line = json!({ "id": 4, "prompt": QUESTION, "chat": "expert", "n": 3, "temperature": 3, "seed": 5,
        "max_tokens": 12, "ignore_eos": true });
    let batch = run_with(&["generate", "--demo", "--backend", "cpu", "-i", "-"], line.to_string().as_bytes());
    assert_eq!(objects(good(&batch)).iter().map(text).collect::<Vec<_>>(), texts);
    let seeds = [ask_json(&["--temp", "1"]), ask_json(&["--temp", "1"])].map(|result| result["seed"].clone());
    assert_ne!(seeds[0], seeds[1], "an absent seed is drawn");
}

#[test]
fn records_have_the_fields_of_a_step() {
    let result = ask_json(&["--record", "2"]);
    let steps = result["record"].as_array().expect("a record");
    assert_eq!(steps.len(), ids(&result).len());
    let first = &steps[0];
    assert_eq!((&first["position"], &first["id"], &first["token"]), (&json!(0), &json!(TILDA), &json!(" Tilda")));
    assert_eq!((&first["argmax_changed"], &first["alpha"]), (&json!(true), &json!(1.0)));
    assert_ne!(first["base_argmax"], TILDA);
    for name in ["logprob", "rank", "entropy"] {
        for row in ["base", "expert", "anti_expert", "combined"] {
            assert!(first[name][row].is_number(), "{name} of {row}: {first}");
        }
    }
    for name in ["kl_combined_base", "kl_expert_anti_expert", "cross_entropy"] {
        assert!(first[name].as_f64().is_some_and(|x| x > 0.0), "{name}: {first}");
    }
    // Where the pair has no weight it is not run, and has no numbers.
    for alone in [&["--alpha", "0"][..], &["--mode", "base"]] {
        let first = &ask_json(&[&["--record", "1"], alone].concat())["record"][0];
        for name in ["logprob", "rank", "entropy"] {
            let [base, expert, anti, combined] = ["base", "expert", "anti_expert", "combined"].map(|r| &first[name][r]);
            assert!(base.is_number() && base == combined && expert.is_null() && anti.is_null(), "{name}: {first}");
        }
        let of_pair = [&first["kl_expert_anti_expert"], &first["cross_entropy"], &first["top"][0]["z_expert"]];
        assert_eq!((&first["kl_combined_base"], of_pair), (&json!(0.0), [&Value::Null; 3]), "{first}");
    }
    let top = &first["top"][0];
    let z = |name: &str| top[name].as_f64().unwrap_or_else(|| panic!("{name} of {top}"));
    // f32 printed in full: three roundings of numbers below 32, each at most 2^-20.
    assert!((z("s") - (z("z_base") + z("z_expert") - z("z_anti_expert"))).abs() < 3.0 / 1_048_576.0, "{top}");
    assert_eq!((&top["id"], &top["token"]), (&first["id"], &first["token"]));
}

#[test]
fn a_missing_model_is_stood_in_for_by_the_base() {
    let saved = Saved::new();
    let [base, expert, anti] = saved.paths();
    let start = ["generate", "--backend", "cpu", "-p", QUESTION, "-n", "20", "--json"];
    let of = |models: &[&str]| {
        let output = run(&[&start[..], models].concat());
        text(&objects(good(&output)).remove(0)).to_string()
    };
    let alone = of(&["--base", &base]);
    assert_eq!(alone, of(&["--base", &base, "--expert", &expert, "--anti-expert", &anti, "--alpha", "0"]));
    assert_eq!(of(&["--base", &base, "--expert", &expert]), of(&["--base", &expert]), "b + (e - b)");
    assert_ne!(of(&["--base", &base, "--anti-expert", &anti]), alone);
    let moot = run(&["generate", "--base", &base, "--alpha", "2", "-p", QUESTION, "-n", "2"]);
    assert!(moot.status.success() && stderr(&moot).contains("alpha changes nothing"), "{}", stderr(&moot));
}

#[test]
fn a_failed_text_is_an_error_in_every_form() {
    // The base's nucleus is its best token alone, and that is banned: nothing is allowed.
    let args = ["--base-top-p", "0.00001", "--bad-words", "In"];
    let plain = ask(&args);
    assert_eq!((plain.status.code(), stdout(&plain)), (Some(6), "\n"));
    assert!(stderr(&plain).starts_with("error: no token is allowed"), "{}", stderr(&plain));
    let json = ask(&[&args[..], &["--json"]].concat());
    assert_eq!((json.status.code(), stderr(&json)), (plain.status.code(), stderr(&plain)));
    let result = objects(stdout(&json)).remove(0);
    assert_eq!((&result["finish_reason"], &result["error"]["type"]), (&json!("error"), &json!("numeric_error")));
    let lines = [
        json!({ "prompt": QUESTION, "base_top_p": 0.00001, "bad_words": "In" }).to_string(),
        json!({ "prompt": QUESTION, "chat": true }).to_string(),
    ];
    let batch = run_with(&["generate", "--demo", "--backend", "cpu", "-i", "-"], lines.join("\n").as_bytes());
    assert_eq!((batch.status.code(), stderr(&batch)), (Some(6), "error: 1 of 2 requests failed\n"));
    assert_eq!(objects(stdout(&batch))[0]["error"], result["error"]);
    assert_eq!(text(&objects(stdout(&batch))[1]), ANSWER);
}

#[test]
fn wgpu_gives_the_text_of_the_cpu() {
    let wgpu =
        |args: &[&str]| run(&[&["generate", "--demo", "--backend", "wgpu", "--chat", "-p", QUESTION], args].concat());
    // Drivers print on standard error what they like.
    assert_eq!(stdout(&wgpu(&[])), format!("{ANSWER}\n"));
    assert_eq!(stdout(&wgpu(&["--device", "0"])), format!("{ANSWER}\n"));
    let absent = wgpu(&["--device", "99"]);
    assert_eq!((absent.status.code(), stdout(&absent)), (Some(5), ""));
    assert!(stderr(&absent).contains("no adapter 99; adapters found: "), "{}", stderr(&absent));
}

/// The demo's models as directories.
struct Saved(tempfile::TempDir);

impl Saved {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_str().expect("UTF-8").to_string();
        good(&run(&["demo", "--save", &path]));
        Self(directory)
    }

    fn path(&self, end: &str) -> String {
        self.0.path().join(end).to_str().expect("UTF-8").to_string()
    }

    fn paths(&self) -> [String; 3] {
        ["base", "expert", "anti-expert"].map(|role| self.path(role))
    }

    /// Exchanges the ids of two tokens in the expert's tokenizer.
    fn exchange_in_expert(&self, [a, b]: [&str; 2]) {
        let path = self.path("expert/tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
        let vocabulary = &mut tokenizer["model"]["vocab"];
        let (id_a, id_b) = (vocabulary[a].clone(), vocabulary[b].clone());
        assert!(id_a.is_u64() && id_b.is_u64());
        (vocabulary[a], vocabulary[b]) = (id_b, id_a);
        fs::write(path, tokenizer.to_string()).expect("written");
    }
}
