//! `bench` and `plan`: figures that follow from the models' sizes, every flag, and what is refused before it is made.

use super::{QUESTION, Saved, good, objects, run, stderr, stdout};
use serde_json::{Value, json};
use std::fs;

const TINY: [&str; 4] = ["--shape-base", "tiny", "--shape-pair", "tiny-pair"];

/// `bench` on the tiny shapes, in JSON, with the CPU unless `args` say otherwise.
fn bench(args: &[&str]) -> Value {
    let output = run(&[&["bench", "--json", "--backend", "cpu"], &TINY[..], args].concat());
    objects(good(&output)).remove(0)
}

fn plan(args: &[&str]) -> Value {
    let output = run(&[&["plan", "--json", "--backend", "cpu"], args].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    objects(stdout(&output)).remove(0)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

#[test]
fn bench_compares_the_trio_with_its_base() {
    let report = bench(&["--setting", "4,3", "--setting", "6,5,2", "--runs", "1", "-t", "1"]);
    assert!(report["device"].as_str().is_some_and(|device| device.contains("1 threads")), "{}", report["device"]);
    assert_eq!(report["runs"], 1);
    let of = |name: &str| report["models"].as_array().expect("models").iter().map(|m| number(&m[name])).collect();
    let (weights, kv): (Vec<f64>, Vec<f64>) = (of("weight_bytes"), of("kv_bytes_per_token"));
    // 2 bytes; 4 layers of 2 heads of 32, and 2 layers of 1 head of 32; keys and values.
    assert_eq!(kv, [1_024.0, 256.0, 256.0]);
    let rows = report["rows"].as_array().expect("rows");
    let settings: Vec<_> = rows.iter().map(|row| [&row["prompt"], &row["output"], &row["batch"]]).collect();
    assert_eq!(settings, [[&json!(4), &json!(3), &json!(1)], [&json!(6), &json!(5), &json!(2)]]);
    let same = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9; // a few roundings of f64
    for row in rows {
        let [prompt, output, batch] = ["prompt", "output", "batch"].map(|name| number(&row[name]));
        // Tied models read all weights in a step. Steps 1 to n - 1 look back on prompt + i tokens.
        let step =
            |n: usize| weights[..n].iter().sum::<f64>() + batch * (prompt + output / 2.0) * kv[..n].iter().sum::<f64>();
        let text = |n: usize| weights[..n].iter().sum::<f64>() + (output - 1.0) * step(n);
        for (side, n) in [("base", 1), ("trio", 3)] {
            let side = &row[side];
            assert_eq!(number(&side["bytes_per_step"]), step(n), "{row}");
            let per_token = number(&side["ms_per_token"]);
            assert!(per_token > 0.0 && number(&side["prompt_ms"]) > 0.0);
            assert!(same(number(&side["tokens_per_second"]), 1e3 * batch / per_token), "{row}");
            // One run: what it takes in all is its prompt and its steps.
            let total = number(&side["prompt_ms"]) + (output - 1.0) * per_token;
            assert!(same(number(&side["total_ms"]), total), "{row}");
            let share = step(n) / (1e-3 * per_token * number(&row["read_bytes_per_second"]));
            assert!(same(number(&side["share_of_bandwidth"]), share), "{row}");
        }
        assert!(same(number(&row["floor"]), text(3) / text(1)), "{row}");
        let slow_down = number(&row["trio"]["total_ms"]) / number(&row["base"]["total_ms"]);
        assert!(same(number(&row["slow_down"]), slow_down), "{row}");
        assert!(same(number(&row["slow_down_over_floor"]), slow_down / number(&row["floor"])), "{row}");
    }
}

#[test]
fn flags_of_bench_show() {
    let kv = |args: &[&str]| bench(&[&["--setting", "2,2", "--runs", "1"], args].concat())["models"][0].clone();
    assert_eq!(kv(&["--kv-cache-dtype", "f32"])["kv_bytes_per_token"], 2_048);
    let quick = bench(&["--quick"]);
    let rows = quick["rows"].as_array().expect("rows").iter();
    let settings: Vec<_> = rows.map(|row| ["prompt", "output", "batch"].map(|name| row[name].as_u64())).collect();
    let expected = [[8, 64, 1], [64, 8, 1], [8, 8, 1], [8, 8, 4], [8, 8, 16]].map(|setting| setting.map(Some));
    assert_eq!((settings, &quick["runs"]), (expected.to_vec(), &json!(3)));

    let wgpu = run(&[&["bench", "--json", "--backend", "wgpu", "--setting", "2,2", "--runs", "1"], &TINY[..]].concat());
    let report = objects(stdout(&wgpu)).remove(0);
    assert!(report["device"].as_str().is_some_and(|device| device.starts_with("wgpu")), "{report}");

    // The demo's models end at 256 positions.
    let demo = run(&["bench", "--demo", "--backend", "cpu", "--setting", "8,512", "--setting", "3,4", "--runs", "1"]);
    assert_eq!(demo.status.code(), Some(0));
    assert_eq!(stderr(&demo), "warning: left out: 8 and 512 tokens are more than the models' 256 positions\n");
    let lines: Vec<&str> = stdout(&demo).lines().collect();
    for start in ["base         demo/base", "expert ", "anti_expert ", "device       cpu (", "prompt output batch"] {
        assert!(lines.iter().any(|line| line.starts_with(start)), "{start}: {lines:?}");
    }
    assert!(lines.iter().any(|line| line.trim_start().starts_with("3      4     1  base")), "{lines:?}");

    let saved = Saved::new();
    let [base, expert, anti] = saved.paths();
    let models = ["--base", &base, "--expert", &expert, "--anti-expert", &anti];
    let rest = ["--backend", "cpu", "--setting", "3,4", "--runs", "1", "--json"];
    let report = objects(good(&run(&[&["bench"], &models[..], &rest].concat()))).remove(0);
    assert_eq!(report["models"][2]["name"], anti.as_str());
}

#[test]
fn plan_counts_bytes_and_finds_what_fits() {
    let tiny = plan(&TINY);
    assert_eq!(
        (&tiny["fits"], &tiny["largest_batch"], &tiny["longest_model_len"]),
        (&json!(true), &json!(64), &json!(2_048))
    );
    let sum: f64 = tiny["models"].as_array().expect("models").iter().map(|model| number(&model["weights"])).sum();
    assert_eq!(number(&tiny["weights"]), sum);
    let parts = ["weights", "workspace", "kv_cache"].map(|name| number(&tiny[name]));
    assert_eq!(number(&tiny["total"]), parts.iter().sum::<f64>());
    // 2,048 tokens of 1,024, 256 and 256 bytes; the pair has two layers of the pool's four, whose pages it also holds.
    assert_eq!(parts[2], 2_048.0 * (1_024.0 + 2.0 * 512.0));
    let twice = plan(&[&TINY[..], &["--max-num-seqs", "2"]].concat());
    assert_eq!(number(&twice["kv_cache"]), 2.0 * parts[2]);
    let half = plan(&[&TINY[..], &["--max-model-len", "1024"]].concat());
    assert_eq!(number(&half["kv_cache"]), 0.5 * parts[2]);
    let wide = plan(&[&TINY[..], &["--kv-cache-dtype", "f32"]].concat());
    assert_eq!(number(&wide["kv_cache"]), 2.0 * parts[2]);
    let chunked = plan(&[&TINY[..], &["--chunked-prefill-size", "8"]].concat());
    assert!(number(&chunked["workspace"]) < parts[1], "fewer rows at a time");
    // Three texts of the 2,048 tokens, and a page that is not whole.
    let bytes = (3.5 * parts[2]).to_string();
    let set = plan(&[&TINY[..], &["--kv-cache-memory-bytes", &bytes]].concat());
    assert_eq!((number(&set["kv_cache"]), &set["largest_batch"]), (3.5 * parts[2], &json!(3)));
    let four =
        [&["plan", "--max-num-seqs", "4", "--kv-cache-memory-bytes", &bytes, "--backend", "cpu"], &TINY[..]].concat();
    let refused = run(&four);
    let numbers =
        format!("(kv_cache_memory_bytes sets the limit) needs {} bytes, the limit is {bytes}", 4.0 * parts[2]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(stderr(&refused).contains(&numbers), "{}", stderr(&refused));

    // A pair that is the base is not loaded again.
    let saved = Saved::new();
    let [base, expert, _] = saved.paths();
    let alone = plan(&["--base", &base]);
    assert_eq!((&alone["weights"], &alone["models"][1]["shared"]), (&alone["models"][0]["weights"], &json!(true)));
    let text = run(&["plan", "--base", &base, "--expert", &expert, "--backend", "cpu", "--max-num-seqs", "3"]);
    for part in [
        "KV a token",
        "shared",
        "for 3 texts of 256 tokens",
        "fits",
        "longest text",
        "tokens at batch 3",
        "largest batch",
    ] {
        assert!(good(&text).contains(part), "{part}: {}", stdout(&text));
    }
    let wgpu = run(&[&["plan", "--json", "--backend", "wgpu"], &TINY[..]].concat());
    let report = objects(stdout(&wgpu)).remove(0);
    assert!(report["device"].as_str().is_some_and(|device| device.starts_with("wgpu")), "{report}");
    assert!(number(&report["binding_limit"]) >= f64::from(1 << 27), "{report}");
}

#[test]
fn what_does_not_fit_is_refused_with_numbers_before_it_is_made() {
    const LARGE: [&str; 4] = ["--shape-base", "llama-2-70b", "--shape-pair", "llama-2-70b"];
    // Three times 138 GB, of a hundredth of what is free.
    let little = ["--backend", "cpu", "--gpu-memory-utilization", "0.01"];
    let planned = run(&[&["plan", "--json"], &LARGE[..], &little].concat());
    let report = objects(stdout(&planned)).remove(0);
    assert_eq!((planned.status.code(), &report["fits"]), (Some(5), &json!(false)));
    assert_eq!((&report["longest_model_len"], &report["largest_batch"]), (&Value::Null, &Value::Null));
    assert!(stderr(&planned).contains(&format!("weights ({})", report["weights"])), "{}", stderr(&planned));
    let text = run(&[&["plan"], &LARGE[..], &little].concat());
    assert!(stdout(&text).contains("none fits") && text.status.code() == Some(5), "{}", stdout(&text));
    // A buffer that lavapipe does not bind: 300 MB of keys and values a layer. What would fit is still said.
    let planned = run(&[
        "plan",
        "--json",
        "--backend",
        "wgpu",
        "--shape-base",
        "smollm2-135m",
        "--shape-pair",
        "smollm2-135m",
        "--max-model-len",
        "2048",
        "--max-num-seqs",
        "64",
    ]);
    let report = objects(stdout(&planned)).remove(0);
    assert_eq!((planned.status.code(), &report["fits"], &report["total"]), (Some(5), &json!(false), &Value::Null));
    assert!(report["longest_model_len"].is_u64() && report["largest_batch"].is_number(), "{report}");
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("KV cache") && stderr(&planned).contains(reason), "{reason}: {}", stderr(&planned));
    for command in [&["bench"][..], &["bench", "--setting", "2,2"]] {
        let refused = run(&[command, &LARGE[..], &little].concat());
        assert_eq!((refused.status.code(), stdout(&refused)), (Some(5), ""), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("memory for weights (413"), "{}", stderr(&refused));
    }
    // A KV cache that has no room for one text names the least that would do.
    let refused =
        run(&["generate", "--demo", "-p", QUESTION, "--backend", "cpu", "--gpu-memory-utilization", "0.00000001"]);
    assert_eq!((refused.status.code(), stdout(&refused)), (Some(5), ""), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("KV cache of the longest text ("), "{}", stderr(&refused));
}

#[test]
fn wrong_use_of_bench_and_plan_is_refused() {
    let cases: &[(&[&str], i32, &str)] = &[
        (&["bench"], 2, "base: missing"),
        (&["plan"], 2, "base: missing"),
        (&["bench", "--shape-base", "tiny"], 2, "--shape-pair"),
        (&["bench", "--shape-base", "tiny", "--shape-pair", "gpt-2"], 2, "qwen2.5-7b"),
        (&["bench", "--demo", "--shape-base", "tiny", "--shape-pair", "tiny"], 2, "--demo"),
        (&["plan", "--demo", "--chat-template", "x"], 2, "unexpected argument '--chat-template'"),
        (&["bench", "--demo", "--setting", "8"], 2, "PROMPT,OUTPUT"),
        (&["bench", "--demo", "--setting", "8,8,8,8"], 2, "PROMPT,OUTPUT"),
        (&["bench", "--demo", "--setting", "8,1"], 2, "2 of output"),
        (&["bench", "--demo", "--setting", "0,8"], 2, "1 token of prompt"),
        (&["bench", "--demo", "--setting", "8,8,65"], 2, "1 to 64 texts"),
        (&["bench", "--demo", "--setting", "18446744073709551615,2"], 2, "at most 16777216 tokens"),
        (&["bench", "--demo", "--setting", "1,18446744073709551615,64"], 2, "at most 16777216 tokens"),
        (&["bench", "--demo", "--setting", "16777217,2"], 2, "at most 16777216 tokens"),
        (
            &["bench", "--demo", "--setting", "16777216,16777216,64", "--backend", "cpu"],
            2,
            "setting: 16777216 and 16777216 tokens are more",
        ),
        (&["bench", "--demo", "--setting", "8,512", "--backend", "cpu"], 2, "setting: 8 and 512 tokens"),
        (&["bench", "--demo", "--quick", "--setting", "8,8"], 2, "--quick"),
        // 32,768 rows are the most of a step.
        (
            &[&["bench", "--backend", "cpu", "--setting", "1024,2,33"], &TINY[..]].concat(),
            2,
            "33 prompts of 1024 tokens are more than one step takes: 32768 tokens",
        ),
        (&["bench", "--demo", "--runs", "0"], 2, "--runs"),
        (&["bench", "--demo", "--backend", "cuda", "--device", "999"], 5, "cuda: "),
        (&["plan", "--demo", "--backend", "cuda", "--device", "999"], 5, "cuda: "),
        (&["plan", "--demo", "--max-num-seqs", "65"], 2, "--max-num-seqs"),
        (&["plan", "--demo", "--max-model-len", "257"], 2, "max_model_len: 257"),
        (&["plan", "--demo", "--device", "1", "--backend", "cpu"], 5, "there is one device"),
        (
            &["generate", "--demo", "-p", "a", "--backend", "cpu", "--gpu-memory-utilization", "0"],
            2,
            "gpu_memory_utilization: 0 is not in (0, 1]",
        ),
        (
            &["generate", "--demo", "-p", "a", "--backend", "cpu", "--gpu-memory-utilization", "1.5"],
            2,
            "gpu_memory_utilization",
        ),
        (
            &["generate", "--demo", "-p", "a", "--backend", "cpu", "--gpu-memory-utilization", "nan"],
            2,
            "gpu_memory_utilization",
        ),
        (&["plan", "--demo", "--backend", "cpu", "--gpu-memory-utilization", "-1"], 2, "gpu_memory_utilization"),
    ];
    for (args, code, part) in cases {
        let output = run(args);
        assert_eq!((output.status.code(), stdout(&output)), (Some(*code), ""), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
    }
    for flag in ["--revision=v1", "--base-revision=v1", "--id-policy=5=ban", "--allow-non-finite-weights"] {
        for command in ["bench", "plan"] {
            let output = run(&[command, "--shape-base", "tiny", "--shape-pair", "tiny", flag]);
            assert_eq!(output.status.code(), Some(2), "{command} {flag}");
            let name = flag.split('=').next().expect("a name");
            assert!(stderr(&output).contains(&format!("cannot be used with '{name}")), "{}", stderr(&output));
        }
    }
    let saved = Saved::new();
    let [base, expert, _] = saved.paths();
    let two = run(&["bench", "--base", &base, "--expert", &expert, "--backend", "cpu"]);
    assert_eq!((two.status.code(), stdout(&two)), (Some(2), ""));
    assert!(stderr(&two).contains("three different models"), "{}", stderr(&two));
}

#[test]
fn weights_that_are_not_finite_are_refused_unless_allowed() {
    let saved = Saved::new();
    let [base, expert, anti] = saved.paths();
    let path = saved.path("expert/model.safetensors");
    let mut bytes = fs::read(&path).expect("read");
    // The demo's weights are bf16: the last one becomes NaN.
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7FC0u16.to_le_bytes());
    fs::write(&path, bytes).expect("written");
    let models = ["--base", &base, "--expert", &expert, "--anti-expert", &anti, "--backend", "cpu"];
    let generate = [&["generate", "-p", QUESTION, "-n", "4", "--json"], &models[..]].concat();
    let refused = run(&generate);
    assert_eq!((refused.status.code(), stdout(&refused)), (Some(3), ""));
    for part in [path.as_str(), "tensor `", "element [", "] is NaN", "--allow-non-finite-weights"] {
        assert!(stderr(&refused).contains(part), "{part}: {}", stderr(&refused));
    }
    let allowed = run(&[&generate[..], &["--allow-non-finite-weights"]].concat());
    assert_eq!(allowed.status.code(), Some(6), "{}", stderr(&allowed));
    assert_eq!(objects(stdout(&allowed))[0]["error"]["type"], "numeric_error");
    // A plan reads no weight.
    good(&run(&[&["plan"], &models[..]].concat()));
}
