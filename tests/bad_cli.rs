//! Bad models and bad requests through the binary: the exit code, a message that names the file, the field or the id, nothing
//! on standard output, and never the words of a panic.

#[path = "common/model.rs"]
mod model;

use model::{END, ModelDir, N_VOCAB, Tensor, framed, tensors};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::process::{Command, Output, Stdio};

fn run(args: impl IntoIterator<Item = impl Into<OsString>>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proxytune"));
    command.args(args.into_iter().map(Into::into)).stdin(Stdio::null());
    command.output().expect("the binary starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("messages are UTF-8")
}

fn on(command: &str, [base, expert, anti]: [&ModelDir; 3], more: &[&str]) -> Output {
    let mut args: Vec<OsString> = vec![command.into()];
    for (flag, model) in [("--base", base), ("--expert", expert), ("--anti-expert", anti)] {
        args.extend([flag.into(), model.path().into()]);
    }
    args.extend(more.iter().map(OsString::from));
    run(args)
}

fn generate(models: [&ModelDir; 3], more: &[&str]) -> Output {
    on("generate", models, &[&["-p", "hello", "-n", "3", "--backend", "cpu", "-t", "1"], more].concat())
}

/// The output of a refusal: this code, one error that says each of `parts`, and nothing else.
fn refused(label: &str, output: &Output, code: i32, parts: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{label}: {said}");
    assert!(output.stdout.is_empty(), "{label}: {:?}", String::from_utf8_lossy(&output.stdout));
    let errors = said.lines().filter(|line| line.starts_with("error: ")).count();
    assert!(said.starts_with("error: ") && errors == 1, "{label}: {said}");
    assert!(!said.contains("panicked"), "{label}: {said}");
    parts.iter().for_each(|part| assert!(said.contains(part), "{label}: {said:?} does not say {part:?}"));
}

fn accepted(label: &str, output: &Output, warning: &str) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(0), "{label}: {said}");
    assert!(said.contains(warning) && said.is_empty() == warning.is_empty(), "{label}: {said:?}");
    assert!(!output.stdout.is_empty(), "{label}");
}

/// Each of these in each role: exit code 3, and the file of that role.
#[test]
fn broken_models_in_each_role() {
    const WEIGHTS: &str = "model.safetensors";
    let unnamed = |change: fn(&mut Vec<Tensor>)| {
        move |model: &ModelDir| {
            let mut list = tensors(false);
            change(&mut list);
            model.set_tensors(&list);
        }
    };
    type Breakage = Box<dyn Fn(&ModelDir)>;
    let table: Vec<(&str, Breakage, [&str; 2])> = vec![
        ("empty weights", Box::new(|m| m.write(WEIGHTS, b"")), [WEIGHTS, "too short"]),
        (
            "a huge header",
            Box::new(|m| m.write(WEIGHTS, u64::MAX.to_le_bytes())),
            [WEIGHTS, "byte 0: header length 18446744073709551615"],
        ),
        ("a broken header", Box::new(|m| m.write(WEIGHTS, framed("{\"t\"}", b""))), [WEIGHTS, "byte 12: "]),
        ("a deep header", Box::new(|m| m.write(WEIGHTS, framed("[".repeat(100_000), b""))), [WEIGHTS, "byte 8: "]),
        (
            "a missing tensor",
            Box::new(unnamed(|list| drop(list.pop()))),
            ["tensor `model.layers.0.mlp.down_proj.weight`", "missing"],
        ),
        (
            "a tensor of F8",
            Box::new(unnamed(|list| {
                list[0].dtype = "F8_E4M3";
                list[0].bytes.truncate(N_VOCAB * model::D_MODEL);
            })),
            ["tensor `model.embed_tokens.weight`", "dtype F8_E4M3"],
        ),
        (
            "no heads",
            Box::new(|m| m.set("config.json", "/num_attention_heads", json!(0))),
            ["config.json", "field `num_attention_heads`: 0"],
        ),
        (
            "another family",
            Box::new(|m| m.set("config.json", "/architectures", json!(["GPT2LMHeadModel"]))),
            ["field `architectures`", "GPT2LMHeadModel"],
        ),
        (
            "quantised",
            Box::new(|m| m.set("config.json", "/quantization_config", json!({"quant_method": "awq"}))),
            ["field `quantization_config`", "awq"],
        ),
        (
            "pickle",
            Box::new(|m| {
                m.remove(WEIGHTS);
                m.write("pytorch_model.bin", b"");
            }),
            ["pytorch_model.bin", "convert to safetensors"],
        ),
        ("no tokenizer", Box::new(|m| m.remove("tokenizer.json")), ["tokenizer.json", "there is no such file"]),
        (
            "a merge of nothing",
            Box::new(|m| m.set("tokenizer.json", "/model/merges", json!([["hell", "hell"]]))),
            ["tokenizer.json", "field `model.merges[0]`"],
        ),
        (
            "an odd normaliser",
            Box::new(|m| {
                m.set("tokenizer.json", "/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AA"}))
            }),
            ["tokenizer.json", "field `normalizer`"],
        ),
    ];
    for (label, breakage, parts) in &table {
        let (fine, broken) = (ModelDir::llama(), ModelDir::llama());
        breakage(&broken);
        let directory = broken.path().to_str().expect("UTF-8");
        for role in 0..3 {
            let mut models = [&fine; 3];
            models[role] = &broken;
            refused(&format!("{label} in role {role}"), &generate(models, &[]), 3, &[directory, parts[0], parts[1]]);
        }
        refused(label, &on("compat", [&broken, &fine, &fine], &[]), 3, &[directory, parts[0], parts[1]]);
    }
}

#[cfg(unix)]
#[test]
fn paths() {
    use std::os::unix::ffi::OsStringExt;
    let model = ModelDir::llama();
    let base = |path: OsString| run(["generate".into(), "--base".into(), path, "-p".into(), "a".into()]);
    refused("not UTF-8", &base(OsString::from_vec(b"/no\xFFwhere".to_vec())), 3, &["no\\xFFwhere"]);
    refused("a line of its own", &base("/no\nerror: fine\x1b[2J".into()), 3, &["/no\\nerror"]);
    refused("a file", &base(model.file("config.json").into()), 3, &["config.json: not a directory"]);
    model.write("m.gguf", b"GGUF");
    refused("GGUF", &base(model.file("m.gguf").into()), 3, &["m.gguf: GGUF is not read"]);
    refused("empty", &base("".into()), 2, &["a value is required for '--base"]);
    refused(
        "a directory as a template",
        &run(["generate", "--demo", "--chat", "-p", "a", "--chat-template", "/"]),
        3,
        &["/"],
    );
    refused("a directory as a prompt", &run(["generate", "--demo", "-f", "/"]), 2, &["file: \"/\""]);
    refused("a directory as a batch", &run(["generate", "--demo", "-i", "/"]), 2, &["input_file: \"/\""]);
    let odd: [OsString; 3] = ["generate".into(), "--demo".into(), OsString::from_vec(b"-p\xFF".to_vec())];
    let output = run(odd);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{}", stderr(&output));
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
}

#[test]
fn vocabularies_that_do_not_match() {
    let (fine, other) = (ModelDir::llama(), ModelDir::llama());
    other.edit("tokenizer.json", |json| {
        let vocab = json["model"]["vocab"].as_object_mut().expect("an object");
        let id = vocab.shift_remove("~").expect("it is there");
        vocab.insert("~~".into(), id);
    });
    let named = ["token id 126 is \"~\" in base, \"~~\" in expert, \"~\" in anti_expert"];
    refused("a differing id", &generate([&fine, &other, &fine], &[]), 4, &named);
    let compat = on("compat", [&fine, &other, &fine], &[]);
    assert_eq!(compat.status.code(), Some(4), "{}", stderr(&compat));
    accepted("with a policy", &generate([&fine, &other, &fine], &["--id-policy", "126=ban"]), "");
    refused(
        "a policy of no id",
        &generate([&fine, &other, &fine], &["--id-policy", "9999=zero"]),
        2,
        &["id_policy: id 9999"],
    );
}

#[test]
fn what_is_odd_and_right() {
    let (fine, padded) = (ModelDir::llama(), ModelDir::llama());
    let mut list = tensors(false);
    for tensor in list.iter_mut().filter(|tensor| tensor.shape[0] == N_VOCAB) {
        *tensor = Tensor::f32(tensor.name.clone(), &[N_VOCAB + 64, model::D_MODEL]);
    }
    padded.set_tensors(&list);
    padded.set("config.json", "/vocab_size", json!(N_VOCAB + 64));
    accepted("padding alone differs", &generate([&fine, &padded, &fine], &[]), "");
    accepted(
        "an expert larger than the base",
        &generate([&fine, &padded, &padded], &["--alpha", "-2"]),
        "alpha changes nothing",
    );
    accepted(
        "a base alone",
        &run([
            "generate".into(),
            "--base".into(),
            OsString::from(fine.path()),
            "-p".into(),
            "a".into(),
            "-n".into(),
            "1".into(),
        ]),
        "",
    );
    let alone = run([
        "generate".into(),
        "--base".into(),
        OsString::from(fine.path()),
        "-p".into(),
        "a".into(),
        "-n".into(),
        "1".into(),
        "--alpha".into(),
        "2".into(),
    ]);
    accepted("alpha without a pair", &alone, "alpha changes nothing");
    accepted(
        "a negative zero",
        &generate([&fine; 3], &["--temperature", "-0.0", "--top-k", "9223372036854775807", "--top-p", "1e-45"]),
        "",
    );
}

#[test]
fn weights_that_are_not_numbers() {
    const ALLOWED: &str = "--allow-non-finite-weights";
    let (fine, broken) = (ModelDir::llama(), ModelDir::llama());
    let mut list = tensors(false);
    list[1].bytes = f32::NAN.to_le_bytes().repeat(model::D_MODEL);
    broken.set_tensors(&list);
    for role in 0..3 {
        let mut models = [&fine; 3];
        models[role] = &broken;
        let output = generate(models, &["--json"]);
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(stderr(&output).contains("element [0] is NaN"), "{}", stderr(&output));
        let output = generate(models, &["--json", ALLOWED]);
        assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
        let result: Value = serde_json::from_slice(&output.stdout).expect("a result");
        assert_eq!(
            (&result["finish_reason"], &result["error"]["type"], &result["token_ids"]),
            (&json!("error"), &json!("numeric_error"), &json!([]))
        );
        assert!(stderr(&output).contains("NaN") && !stderr(&output).contains("panicked"), "{}", stderr(&output));
    }
    let alone = generate([&fine, &broken, &broken], &["--alpha", "0", ALLOWED]);
    accepted("the pair is not read", &alone, "");
}

#[test]
fn a_template_that_means_harm() {
    let (fine, harmful) = (ModelDir::llama(), ModelDir::llama());
    let chat = |template: &str| {
        harmful.write("chat_template.jinja", template);
        generate([&fine, &harmful, &fine], &["--chat"])
    };
    refused("a long chain", &chat(&format!("{{{{ messages{} }}}}", ".b".repeat(16_000))), 3, &["chat_template.jinja"]);
    refused(
        "a loop",
        &chat("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        3,
        &["more than 250000 steps"],
    );
    refused(
        "doubling",
        &chat("{% set ns = namespace(a='aa') %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}"),
        3,
        &["more than 250000 steps"],
    );
    refused(
        "what it raises",
        &chat("{{ raise_exception('only system messages') }}"),
        2,
        &["chat: ", "only system messages"],
    );
    refused("nothing", &chat(""), 2, &["prompt: gives no token for expert"]);
    // A warning when the model is opened, an error for who asks for a chat.
    let broken = chat("{% if %}");
    let said = stderr(&broken);
    assert_eq!(broken.status.code(), Some(3), "{said}");
    assert!(said.contains("\nerror: ") && said.matches("line 1: syntax error").count() == 2, "{said}");
}

/// Rows of one batch: each bad one has its error in its place, the good ones are as if alone, and the exit code says that
/// some failed.
#[test]
fn bad_lines_among_good_ones() {
    let bad: &[(&str, &str)] = &[
        (r#"{"prompt":"hello","alpha":1e30}"#, "alpha"),
        (r#"{"prompt":"hello","alpha":-1000.1}"#, "alpha"),
        (r#"{"prompt":"hello","alpha":[1,2]}"#, "alpha"),
        (r#"{"prompt":"hello","alpha":"1"}"#, "alpha"),
        (r#"{"prompt":"hello","temperature":-1}"#, "temperature"),
        (r#"{"prompt":"hello","temperature":1e39}"#, "temperature"),
        (r#"{"prompt":"hello","top_p":0}"#, "top_p"),
        (r#"{"prompt":"hello","top_p":1.0000002}"#, "top_p"),
        (r#"{"prompt":"hello","top_k":-2}"#, "top_k"),
        (r#"{"prompt":"hello","top_k":1.5}"#, "top_k"),
        (r#"{"prompt":"hello","min_p":1.1}"#, "min_p"),
        (r#"{"prompt":"hello","presence_penalty":2.1}"#, "presence_penalty"),
        (r#"{"prompt":"hello","frequency_penalty":-2.1}"#, "frequency_penalty"),
        (r#"{"prompt":"hello","repetition_penalty":0}"#, "repetition_penalty"),
        (r#"{"prompt":"hello","logit_bias":{"1":101}}"#, "logit_bias"),
        (r#"{"prompt":"hello","logit_bias":{"-1":1}}"#, "logit_bias"),
        (r#"{"prompt":"hello","logit_bias":{"263":1}}"#, "logit_bias"),
        (r#"{"prompt":"hello","seed":-1}"#, "seed"),
        (r#"{"prompt":"hello","seed":18446744073709551616}"#, "seed"),
        (r#"{"prompt":"hello","max_tokens":0}"#, "max_tokens"),
        (r#"{"prompt":"hello","max_tokens":4294967295}"#, "max_tokens"),
        (r#"{"prompt":"hello","max_tokens":9223372036854775808}"#, "max_tokens"),
        (r#"{"prompt":"hello","n":2147483647}"#, "n"),
        (r#"{"prompt":"hello","stop":[""]}"#, "stop"),
        (r#"{"prompt":"hello","stop":[1]}"#, "stop"),
        (r#"{"prompt":"hello","record":21}"#, "record"),
        (r#"{"prompt":"hello","chat_template":"{{ x }}"}"#, "chat_template"),
        (r#"{"prompt":"hello","base":"/etc"}"#, "base"),
        (r#"{"prompt":7}"#, "prompt"),
        (r#"{"prompt":""}"#, "prompt"),
        (r#"{"prompt":"hello","colour":1}"#, "colour"),
        (r#"{"prompt":"hello","alpha":NaN}"#, "line"),
        (r#"{"prompt":"hello","alpha":1e400}"#, "line"),
        (r#"{"prompt":"hello""#, "line"),
        (r#"["hello"]"#, "line"),
        ("\u{1}", "line"),
    ];
    let good = r#"{"prompt":"hello","max_tokens":3}"#;
    let deep = format!(r#"{{"prompt":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let long = format!(r#"{{"prompt":"{}"}}"#, "h".repeat((1 << 20) + 1));
    let mut lines: Vec<&str> = bad.iter().flat_map(|(line, _)| [*line, good]).collect();
    lines.extend([&deep, good, &long]);
    let model = ModelDir::llama();
    model.write("in.jsonl", lines.join("\n"));
    let alone = generate([&model; 3], &["--json", "--seed", "1"]);
    let alone: Value = serde_json::from_slice(&alone.stdout).expect("a result");
    let input = model.file("in.jsonl").into_os_string().into_string().expect("UTF-8");
    let output = on("generate", [&model; 3], &["-i", &input, "--backend", "cpu", "-t", "1"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains(&format!("{} of {} requests failed", bad.len() + 2, lines.len())), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let results: Vec<Value> = output
        .stdout
        .split(|&b| b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("JSON"))
        .collect();
    assert_eq!(results.len(), lines.len());
    let params = bad.iter().map(|(_, param)| *param).chain(["line", "prompt"]);
    for ((pair, param), line) in results.chunks(2).zip(params).zip(lines.iter().step_by(2)) {
        let shown: String = line.chars().take(60).collect();
        assert_eq!(pair[0]["error"]["param"], param, "{shown}: {}", pair[0]);
        assert_eq!(pair[0]["error"]["type"], "invalid_request_error", "{shown}");
        assert!(pair[0]["error"]["message"].as_str().is_some_and(|text| text.len() < 1_000), "{shown}");
        if let Some(good) = pair.get(1) {
            assert_eq!((&good["token_ids"], &good["error"]), (&alone["token_ids"], &Value::Null), "after {shown}");
        }
    }
}

#[test]
fn a_stop_id_that_cannot_be_sampled_is_no_stop() {
    let model = ModelDir::llama();
    model.set("config.json", "/eos_token_id", json!(4_000_000_000u32));
    model.set("generation_config.json", "/eos_token_id", json!(END));
    accepted("an EOS id past the vocabulary", &generate([&model; 3], &[]), "stop id 4000000000");
}
