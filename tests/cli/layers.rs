//! Flags by PROXYTUNE_* variables and by `--config` files: each can be given by either, what wins over what, and where
//! the blame for a bad value goes.

use super::model::{ModelDir, tensors};
use super::{ANSWER, QUESTION, Saved, command, good, ids, objects, run, stderr, stdout};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

fn run_in(environment: &[(&str, &str)], args: &[&str]) -> Output {
    command(args).envs(environment.iter().copied()).stdin(Stdio::null()).output().expect("it ends")
}

/// A question to the demo's models with everything settled.
const ASK: [&str; 11] =
    ["--demo", "--backend", "cpu", "--chat", "-p", QUESTION, "--json", "--seed", "1", "--max-tokens", "12"];

/// `ASK` without one of its flags, and with others.
fn asking<'a>(without: &str, more: &[&'a str]) -> Vec<&'a str> {
    let at = ASK.iter().position(|flag| *flag == without);
    let n = if matches!(without, "--demo" | "--chat" | "--json") { 1 } else { 2 };
    let kept = ASK.iter().enumerate().filter(|(index, _)| !at.is_some_and(|at| (at..at + n).contains(index)));
    kept.map(|(_, flag)| *flag).chain(more.iter().copied()).collect()
}

/// A flag, a value as the environment has it, the same as a file has it, and what stands beside it on the command line.
type Row<'a> = (&'a str, &'a str, Value, Vec<&'a str>);

/// A model with a weight that is NaN, where no text of a few letters meets it.
fn model_with_nan() -> ModelDir {
    let model = ModelDir::llama();
    let mut tensors = tensors(false);
    let embeddings = &mut tensors[0].bytes;
    let last = embeddings.len() - 4;
    embeddings[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    model.set_tensors(&tensors);
    model
}

fn rows<'a>(place: &'a str, base: &'a str, with_nan: &'a str) -> Vec<Row<'a>> {
    let path = |name: &str| -> &'a str { Box::leak(format!("{place}/{name}").into_boxed_str()) };
    let ask = |more: &[&'a str]| asking("", more);
    let batch = [asking("-p", &["-i", path("in.jsonl")]), vec!["-o", path("junk.jsonl")]].concat();
    let ramble = || asking("--max-tokens", &["--alpha", "0", "-n", "60"]);
    let hot = || ask(&["--temperature", "9"]);
    // Alone, and without a template.
    let own = |base| vec!["--base", base, "--backend", "cpu", "-p", QUESTION, "--json", "--seed", "1", "-n", "2"];
    let own_model = || own(base);
    vec![
        ("base", "/no/such", json!("/no/such"), asking("--demo", &[])),
        ("expert", "/no/such", json!("/no/such"), own_model()),
        ("anti-expert", "/no/such", json!("/no/such"), own_model()),
        // Of a directory there are no revisions.
        ("revision", "v1", json!("v1"), own_model()),
        ("base-revision", "v1", json!("v1"), own_model()),
        ("expert-revision", "v1", json!("v1"), own_model()),
        ("anti-expert-revision", "v1", json!("v1"), own_model()),
        ("demo", "true", json!(true), asking("--demo", &[])),
        ("chat-template", path("t.jinja"), json!(path("t.jinja")), ask(&[])),
        ("allow-non-finite-weights", "true", json!(true), own(with_nan)),
        ("id-policy", "0=ban", json!(["0=ban"]), ask(&[])),
        ("prompt", "Who?", json!("Who?"), asking("-p", &[])),
        ("file", path("prompt.txt"), json!(path("prompt.txt")), asking("-p", &[])),
        ("chat", "expert", json!(true), asking("--chat", &[])),
        ("system-prompt", "Be brief.", json!("Be brief."), ask(&[])),
        ("expert-prompt", "Who?", json!("Who?"), ask(&[])),
        ("anti-expert-prompt", "Who?", json!("Who?"), ask(&[])),
        ("response-prefix", " Tilda", json!(" Tilda"), ask(&[])),
        ("alpha", "-0.5", json!(-0.5), ask(&[])),
        ("temperature", "9", json!(9), ask(&[])),
        ("top-k", "1", json!(1), hot()),
        ("top-p", "1e-5", json!(1e-5), hot()),
        ("min-p", "1", json!(1.0), hot()),
        ("repetition-penalty", "1.5", json!(1.5), ramble()),
        ("presence-penalty", "2", json!(2), ramble()),
        ("frequency-penalty", "2", json!(2.0), ramble()),
        ("logit-bias", "645=-100", json!(["645=-100"]), ask(&[])),
        ("base-top-p", "0.00001", json!(0.00001), ask(&[])),
        ("base-min-p", "1", json!(1), ask(&[])),
        ("seed", "7", json!(7), asking("--seed", &[])),
        ("n", "2", json!(2), ask(&[])),
        ("max-tokens", "3", json!(3), asking("--max-tokens", &[])),
        ("min-tokens", "11", json!(11), ask(&[])),
        ("ignore-eos", "1", json!(true), ask(&[])),
        ("stop", " born", json!(" born"), ask(&[])),
        ("stop-token-ids", "697,322", json!([697, 322]), ask(&[])),
        ("bad-words", "Thorn", json!(["Thorn"]), ask(&[])),
        ("bad-words-first", "Tilda", json!("Tilda"), ask(&[])),
        ("record", "2", json!(2), ask(&[])),
        ("input-file", path("in.jsonl"), json!(path("in.jsonl")), asking("-p", &[])),
        ("output-file", path("out.jsonl"), json!(path("out.jsonl")), asking("-p", &["-i", path("in.jsonl")])),
        ("overwrite", "yes", json!(true), batch),
        ("json", "on", json!(true), asking("--json", &[])),
        ("backend", "cuda", json!("cuda"), asking("--backend", &[])),
        ("device", "7", json!(7), ask(&[])),
        // Where there is nothing, so that what CUDA lacks is another thing.
        ("nvrtc", path("libnvrtc.so"), json!(path("libnvrtc.so")), asking("--backend", ON_CUDA)),
        ("cubins", path("nowhere"), json!(path("nowhere")), asking("--backend", ON_CUDA)),
        ("kernel-cache", path("prompt.txt/kernels"), json!(path("prompt.txt/kernels")), asking("--backend", ON_CUDA)),
        // Out of its range, because threads change no text.
        ("threads", "2000", json!(2000), ask(&[])),
        // So little that nothing fits.
        ("gpu-memory-utilization", "1e-8", json!(1e-8), ask(&[])),
        ("kv-cache-memory-bytes", "4k", json!("4k"), ask(&[])),
        // Out of their ranges, because company and chunks change no text.
        ("max-num-seqs", "2000", json!(2000), ask(&[])),
        ("chunked-prefill-size", "0", json!(0), ask(&[])),
        ("mode", "base", json!("base"), ask(&[])),
        ("kv-cache-dtype", "f32", json!("f32"), ask(&["--record", "0"])),
        ("max-model-len", "10", json!(10), asking("--max-tokens", &[])),
    ]
}

/// Where there is no card, what is said of that is all that a flag of CUDA changes.
const ON_CUDA: &[&str] = &["--backend", "cuda"];

/// What a run comes to, without times; with what is said of CUDA.
fn outcome(output: &Output) -> (Option<i32>, String) {
    let untimed = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(mut value) => {
            value.as_object_mut().map(|object| object.remove("timings"));
            value.to_string()
        }
        Err(_) => line.to_string(),
    };
    let said = stderr(output).lines().filter(|line| line.starts_with("error: cuda: "));
    (
        output.status.code(),
        stdout(output).lines().map(untimed).chain(said.map(String::from)).collect::<Vec<_>>().join("\n"),
    )
}

fn variable(flag: &str) -> String {
    format!("PROXYTUNE_{}", flag.replace('-', "_").to_uppercase())
}

#[test]
fn every_flag_of_generate_can_be_given_by_a_variable_and_by_a_file() {
    let (place, saved) = (tempfile::tempdir().expect("a directory"), Saved::new());
    let path = |name: &str| place.path().join(name);
    fs::write(path("t.jinja"), "<|user|>{{ messages[0].content }} Now.<|assistant|>").expect("written");
    fs::write(path("prompt.txt"), "Who?").expect("written");
    fs::write(path("in.jsonl"), "{\"prompt\": \"Who?\"}").expect("written");
    let [base, ..] = saved.paths();
    let with_nan = model_with_nan();
    let [here, with_nan] = [place.path(), with_nan.path()].map(|path| path.to_str().expect("UTF-8"));
    let rows = rows(here, &base, with_nan);

    let definition = proxytune::cli::definition();
    let generate = definition.find_subcommand("generate").expect("a command");
    let defined: Vec<&str> = generate.get_arguments().filter_map(|flag| flag.get_long()).collect();
    for flag in defined.iter().filter(|flag| **flag != "config") {
        assert!(
            rows.iter().any(|row| row.0 == *flag),
            "--{flag} needs a row here: a value that changes what is printed"
        );
    }
    let config = path("flags.toml");
    for (flag, value, in_file, beside) in rows {
        let run_with = |more: &[String], environment: &[(&str, &str)]| {
            fs::write(path("junk.jsonl"), "junk\n").expect("written");
            let _ = fs::remove_file(path("out.jsonl"));
            let args: Vec<&str> = ["generate"].into_iter().chain(more.iter().map(String::as_str)).collect();
            let output = run_in(environment, &[&args, &beside[..]].concat());
            (outcome(&output), stderr(&output).to_string())
        };
        let switch = in_file == json!(true) && flag != "chat";
        let typed = if switch { format!("--{flag}") } else { format!("--{flag}={value}") };
        let (typed, _) = run_with(&[typed], &[]);
        let (without, _) = run_with(&[], &[]);
        assert_ne!(typed, without, "--{flag} changes nothing");
        let (by_variable, said) = run_with(&[], &[(&variable(flag), value)]);
        assert_eq!(by_variable, typed, "{}: {said}", variable(flag));
        for name in [flag.to_string(), flag.replace('-', "_")] {
            fs::write(&config, format!("{name} = {in_file}\n")).expect("written");
            let (by_file, said) = run_with(&[format!("--config={}", config.display())], &[]);
            assert_eq!(by_file, typed, "{name}: {said}");
        }
    }
}

/// Ids of an answer of at most `n` tokens.
fn n_tokens(environment: &[(&str, &str)], args: &[&str]) -> usize {
    let output = run_in(environment, &[&["generate"], args, &asking("--max-tokens", &[])[..]].concat());
    ids(&objects(good(&output)).remove(0)).len()
}

fn config(text: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), text).expect("written");
    let path = file.path().to_str().expect("UTF-8").to_string();
    (file, path)
}

#[test]
fn what_is_typed_wins_then_the_environment_then_the_file() {
    let (_file, path) =
        config("# all commands\nmax_tokens = 6\n\n[generate]\nmax-tokens = 5\n\n[compat]\nchat = \"all\"\n");
    let (_other, only_for_all) = config("max_tokens = 6\nsave = \"a flag of demo alone\"\n");
    let variable = [("PROXYTUNE_MAX_TOKENS", "4")];
    let by_variable = [("PROXYTUNE_CONFIG", path.as_str())];
    assert_eq!(n_tokens(&[], &[]), 11, "all of the answer");
    assert_eq!(n_tokens(&[], &["--config", &only_for_all]), 6);
    assert_eq!(n_tokens(&[], &["--config", &path]), 5);
    assert_eq!(n_tokens(&by_variable, &[]), 5);
    assert_eq!(n_tokens(&by_variable, &["--config", &only_for_all]), 6);
    assert_eq!(n_tokens(&variable, &["--config", &path]), 4);
    assert_eq!(n_tokens(&variable, &["--config", &path, "-n", "3"]), 3);
    // A variable can take back what a file switches on.
    let (_file, path) = config("ignore_eos = true\nmax_tokens = 20\n");
    assert_eq!(n_tokens(&[], &["--config", &path]), 20);
    assert_eq!(n_tokens(&[("PROXYTUNE_IGNORE_EOS", "false")], &["--config", &path]), 11);
}

#[test]
fn a_value_gives_way_to_what_excludes_it() {
    let (_file, path) = config("base = \"/no/such\"\nexpert = \"/no/such\"\nprompt = \"Who?\"\n");
    let (_question, question) = config(QUESTION);
    let args = ["generate", "--config", &path, "--demo", "--chat", "--backend", "cpu"];
    assert_ne!(good(&run(&args)), format!("{ANSWER}\n"), "its prompt counts");
    assert_eq!(good(&run(&[&args[..], &["-f", &question]].concat())), format!("{ANSWER}\n"));
    let args = ["generate", "--config", &path, "--chat", "--backend", "cpu", "-p", QUESTION];
    assert_eq!(good(&run_in(&[("PROXYTUNE_DEMO", "1")], &args)), format!("{ANSWER}\n"));
    let named = run_in(&[("PROXYTUNE_DEMO", "0")], &args);
    assert_eq!(named.status.code(), Some(3), "{}", stderr(&named));
    let both = run_in(&[("PROXYTUNE_DEMO", "1"), ("PROXYTUNE_BASE", "x")], &args);
    assert_eq!(both.status.code(), Some(2));
    assert!(
        stderr(&both).contains("PROXYTUNE_DEMO: cannot be given together with PROXYTUNE_BASE"),
        "{}",
        stderr(&both)
    );
}

#[test]
fn a_value_is_set_aside_where_what_it_belongs_to_is_not_given() {
    let batch = "input_file = \"/no/such\"\noutput_file = \"/no/such\"\noverwrite = true\nrecord = 2\n";
    let (_file, path) = config(&format!("{batch}chat_template = \"/no/such\"\n"));
    let start = ["generate", "--config", &path, "--demo", "--backend", "cpu", "-p", QUESTION];
    assert_eq!(good(&run(&start)), good(&run(&[&["generate"], &start[3..]].concat())));
    let with_template = run(&[&start[..], &["--chat"]].concat());
    assert_eq!(with_template.status.code(), Some(3), "{}", stderr(&with_template));
    assert!(good(&run(&[&start[..], &["--json"]].concat())).contains("\"record\":[{"));
    for variable in [("PROXYTUNE_OVERWRITE", "1"), ("PROXYTUNE_OUTPUT_FILE", "x"), ("PROXYTUNE_RECORD", "2")] {
        assert_eq!(
            good(&run_in(&[variable], &["generate", "--demo", "--chat", "-p", QUESTION])),
            format!("{ANSWER}\n")
        );
    }
    // Typed, it is a slip.
    assert_eq!(run(&[&start[..], &["-o", "x"]].concat()).status.code(), Some(2));
}

#[test]
fn a_template_is_set_aside_where_no_role_has_one() {
    let (_template, path) = config("{{ messages[0].content }}");
    let (_file, by_file) = config(&format!("chat_template = {path:?}\n[chat]\nchat = \"none\"\n"));
    let template = ("PROXYTUNE_CHAT_TEMPLATE", path.as_str());
    let chat = ["chat", "--demo", "--backend", "cpu"];
    let with_none = [&chat[..], &["--chat", "none"]].concat();
    assert_eq!(good(&run_in(&[template], &with_none)), "");
    assert_eq!(good(&run_in(&[template, ("PROXYTUNE_CHAT", "none")], &chat)), "");
    assert_eq!(good(&run_in(&[], &[&chat[..], &["--config", &by_file]].concat())), "");
    let generate = ["generate", "--demo", "--backend", "cpu", "-p", QUESTION, "-n", "3", "--chat", "none"];
    assert_eq!(good(&run_in(&[template], &generate)), good(&run(&generate)));
    // It counts where a role has one.
    let used = run_in(&[("PROXYTUNE_CHAT_TEMPLATE", "/no/such")], &chat);
    assert_eq!(used.status.code(), Some(3), "{}", stderr(&used));
}

#[test]
fn what_the_help_allows_can_be_given_by_layers() {
    let (_file, path) = config("temp = 9\n");
    let asked = [&["generate"], &ASK[..]].concat();
    let hot = outcome(&run(&[&asked[..], &["--temp", "9"]].concat()));
    assert_ne!(hot, outcome(&run(&asked)));
    assert_eq!(outcome(&run(&[&asked[..], &["--config", &path]].concat())), hot);
    assert_eq!(outcome(&run_in(&[("PROXYTUNE_TEMP", "9")], &asked)), hot);
    let twice = run_in(&[("PROXYTUNE_TEMP", "9"), ("PROXYTUNE_TEMPERATURE", "1")], &asked);
    assert!(stderr(&twice).contains("cannot be given together with PROXYTUNE_TEMP"), "{}", stderr(&twice));
    let bare = ["generate", "--demo", "--backend", "cpu", "-p", QUESTION];
    assert_eq!(good(&run_in(&[("PROXYTUNE_CHAT", "true")], &bare)), format!("{ANSWER}\n"));
    assert_eq!(good(&run_in(&[("PROXYTUNE_CHAT", "false")], &bare)), good(&run(&bare)));
}

#[cfg(unix)]
#[test]
fn the_program_may_be_called_like_a_command() {
    use std::os::unix::process::CommandExt;
    let mut renamed = command(&["generate", "--demo", "--backend", "cpu", "-p", QUESTION]);
    let output = renamed.arg0("generate").env("PROXYTUNE_CHAT", "expert").output().expect("it ends");
    assert_eq!(good(&output), format!("{ANSWER}\n"));
}

#[test]
fn a_bad_file_is_refused_by_line_and_flag() {
    let cases = [
        ("alpah = 1", "line 1: \"alpah\" is no flag of proxytune; did you mean alpha?"),
        ("\n\ntop_pp = 1", "line 3: \"top_pp\" is no flag of proxytune; did you mean top_p?"),
        ("[generate]\nsave = \"x\"", "line 2: \"save\" is no flag of generate"),
        ("[compat]\ntemperature = 1", "line 2: \"temperature\" is no flag of compat"),
        ("config = \"x\"", "line 1: \"config\" is no flag"),
        ("help = true", "line 1: \"help\" is no flag"),
        ("[sampling]\nalpha = 1", "line 1: \"sampling\" is no flag"),
        ("alpha = \"high\"", "line 1: alpha: invalid value 'high'"),
        ("alpha = true", "line 1: alpha: must be a number or a string, not a boolean"),
        ("alpha = [1, 2]", "line 1: alpha: must be a number or a string, not an array"),
        ("top-k = 1.5", "line 1: top-k: invalid value '1.5'"),
        ("prompt = 7", "line 1: prompt: must be a string, not an integer"),
        ("stop = [\"a\", 1]", "line 1: stop: must be a string, not an integer"),
        ("stop = { a = 1 }", "line 1: stop: must be a string, not a table"),
        ("ignore_eos = \"yes\"", "line 1: ignore_eos: must be true or false, not a string"),
        ("backend = \"tpu\"", "line 1: backend: invalid value 'tpu' for '--backend <NAME>' [possible values: auto"),
        ("threads = 0", "line 1: threads: invalid value '0'"),
        ("seed = 0x1_0000_0000_0000_0000_0", "line 1: seed: invalid value"),
        ("logit_bias = { 5 = \"x\" }", "line 1: logit_bias: invalid value '5=x'"),
        ("alpha = 1979-05-27", "line 1: alpha: must be a number or a string, not a date"),
        ("alpha = 1\nalpha = 2", "line 2: duplicate key"),
        ("top_p = 1\ntop-p = 1", "line 2: top-p: cannot be given together with top_p in line 1"),
        ("demo = true\nbase = \"x\"", "line 2: base: cannot be given together with demo in line 1"),
        ("alpha 1", "line 1: "),
        ("alpha = 1\nprompt = \"", "line 2: "),
    ];
    for (text, part) in cases {
        let (_file, path) = config(text);
        let output = run(&["generate", "-p", "a", "--config", &path]);
        assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""), "{text:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with(&format!("error: config: {path:?}: ")), "{text:?}: {}", stderr(&output));
        // `prompt` is typed, and so only its place in the file can be seen.
        assert!(
            stderr(&output).contains(part) && stderr(&output).lines().count() == 1,
            "{text:?}: {}",
            stderr(&output)
        );
    }
    let (_file, path) = config("alpha = inf\nlogit_bias = { 5 = -1, 6 = 0.5 }\n");
    let output = run(&["generate", "--demo", "-p", "a", "--config", &path]);
    assert!(stderr(&output).contains("alpha: inf is not in [-1000, 1000]"), "{}", stderr(&output));
    let not_text = Path::new(env!("CARGO_BIN_EXE_proxytune")).to_str().expect("UTF-8");
    for path in ["/no/such/file", "/", not_text] {
        let output = run(&["generate", "--demo", "-p", "a", "--config", path]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).starts_with(&format!("error: config: {path:?}: ")), "{}", stderr(&output));
    }
}

#[test]
fn a_bad_variable_is_refused_by_name() {
    let cases = [
        ("PROXYTUNE_ALPHA", "x", "invalid value 'x' for '--alpha <X>'"),
        ("PROXYTUNE_ALPHA", "", "value"),
        ("PROXYTUNE_JSON", "maybe", "\"maybe\" is neither true nor false"),
        ("PROXYTUNE_JSON", "", "\"\" is neither"),
        ("PROXYTUNE_THREADS", "0", "1..=1024"),
        ("PROXYTUNE_BASE", "", "value"),
        ("PROXYTUNE_BACKEND", "tpu", "possible values: auto, cuda, wgpu, cpu"),
    ];
    for (name, value, part) in cases {
        let output = run_in(&[(name, value)], &["generate", "-p", "a"]);
        assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""), "{name}={value}: {}", stderr(&output));
        let said = stderr(&output);
        assert!(said.starts_with(&format!("error: {name}: ")) && said.contains(part), "{name}={value}: {said}");
    }
    // What is typed sets a bad variable aside; one that means nothing is told of.
    let output = run_in(&[("PROXYTUNE_ALPHA", "x")], &["generate", "--demo", "--chat", "-p", QUESTION, "--alpha", "1"]);
    assert_eq!(good(&output), format!("{ANSWER}\n"));
    let output = run_in(&[("PROXYTUNE_ALPAH", "0")], &["generate", "--demo", "--chat", "-p", QUESTION]);
    assert_eq!(stdout(&output), format!("{ANSWER}\n"));
    assert_eq!(stderr(&output), "warning: PROXYTUNE_ALPAH is no flag of proxytune; did you mean PROXYTUNE_ALPHA?\n");
}

#[test]
fn other_commands_have_layers_too() {
    let (_file, path) = config("demo = true\ntemperature = 0.5\n");
    assert!(good(&run(&["compat", "--config", &path])).contains("can be combined"));
    let output =
        run_in(&[("PROXYTUNE_JSON", "true"), ("PROXYTUNE_ALPHA", "0")], &["demo", QUESTION, "--backend", "cpu"]);
    let result = objects(good(&output)).remove(0);
    assert_eq!(result["alpha"], 0.0);
    assert!(result["answers"]["proxy"].as_str().is_some_and(|text| text.starts_with(" In Torun.")), "{result}");
}
