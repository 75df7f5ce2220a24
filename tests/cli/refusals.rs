//! Wrong use: the exit code, and a message that names what is wrong.

use super::{QUESTION, Saved, ask, good, run, run_with, stderr, stdout};
use std::any::TypeId;
use std::fs;

#[test]
fn wrong_use_is_refused_by_name() {
    let long = "a ".repeat(300);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--alpa", "1"], 2, "--alpha"),
        (&["--alpha"], 2, "--alpha"),
        (&["--alpha", "1", "--alpha", "2"], 2, "--alpha"),
        (&["--ignore-eos=no"], 2, "--ignore-eos"),
        (&["--alpha", "nan"], 2, "alpha: NaN is not in [-1000, 1000]"),
        (&["--alpha", "-inf"], 2, "alpha: -inf is not in [-1000, 1000]"),
        (&["--alpha", "1e99"], 2, "alpha: inf is not in [-1000, 1000]"),
        (&["--alpha", ""], 2, "--alpha"),
        (&["--temperature", "-1"], 2, "temperature"),
        (&["--top-p", "0"], 2, "top_p: 0 is not in (0, 1]"),
        (&["--top-k", "-2"], 2, "top_k"),
        (&["--min-p", "2"], 2, "min_p"),
        (&["--seed", "9999999999999999999999"], 2, "--seed"),
        (&["--seed", "0x10"], 2, "--seed"),
        (&["-n", "0"], 2, "max_tokens"),
        (&["-n", "-1"], 2, "--max-tokens"),
        (&["-n", "249"], 2, "248 left: the prompt of expert has 8 tokens, its limit is 256"),
        (&["--max-model-len", "20", "-n", "13"], 2, "its limit is 20 (max_model_len)"),
        (&["--max-model-len", "8"], 2, "prompt: no room"),
        (&["--expert-prompt", &long], 2, "prompt: no room"),
        (&["--max-model-len", "99999"], 2, "max_model_len: 99999, the models were made for 256"),
        (&["--min-tokens", "9", "-n", "8"], 2, "min_tokens: 9 is above max_tokens = 8"),
        (&["--min-tokens", "249"], 2, "min_tokens: 249 is more than the 248 left: the prompt of expert has 8 tokens"),
        (&["--n", "0"], 2, "n: 0 is not in [1, 128]"),
        (&["--n", "129"], 2, "n: 129"),
        (&["--logit-bias", "1"], 2, "ID=X"),
        (&["--logit-bias", "1=2", "--logit-bias", "1=3"], 2, "logit_bias: id 1 is named twice"),
        (&["--logit-bias", "5000=1"], 2, "logit_bias: id 5000"),
        (&["--stop-token-ids", "5000"], 2, "stop_token_ids: id 5000"),
        (&["--stop", ""], 2, "stop"),
        (&["--bad-words", ""], 2, "bad_words"),
        (&["--bad-words-first", " "], 2, "bad_words_first"),
        (&["--id-policy", "5=keep"], 2, "ID=delta"),
        (&["--id-policy", "5000=zero"], 2, "id_policy: id 5000"),
        (&["--record", "21", "--json"], 2, "record"),
        (&["--record", "1"], 2, "--json"),
        (&["--response-prefix", "x "], 0, ""),
        (&["-f", "-"], 2, "'--prompt <TEXT>' cannot be used with '--file <FILE>'"),
        (&["-i", "-"], 2, "'--prompt <TEXT>' cannot be used with '--input-file <IN.jsonl>'"),
        (&["--overwrite"], 2, "--output-file"),
        (&["--json=true"], 2, "--json"),
        (&["--json", "--json"], 2, "--json"),
        (&["--max-model-len", "0"], 2, "--max-model-len"),
        (&["--max-model-len", "4294967296"], 2, "--max-model-len"),
        (&["-o", "x"], 2, "--input-file"),
        (&["-t", "0"], 2, "--threads"),
        (&["--mode", "anti-expert"], 2, "[possible values: combined, base, expert]"),
        (&["--mode", "expert", "--base-top-p", "0.5"], 2, "base_top_p: compares with the base"),
        (&["--mode", "expert", "--record", "1", "--json"], 2, "record: compares with the base"),
        (&["--kv-cache-memory-bytes", "1.5G"], 2, "is not a number of bytes, such as 2000000000, 1.5g (10^9) or 2G"),
        (&["--kv-cache-memory-bytes", "4k"], 5, "KV cache of the longest text (kv_cache_memory_bytes sets the limit)"),
        (&["--kv-cache-memory-bytes", "900t"], 5, "KV cache of kv_cache_memory_bytes"),
        (&["--max-num-seqs", "0"], 2, "--max-num-seqs"),
        (&["--chunked-prefill-size", "32769"], 2, "--chunked-prefill-size"),
        (&["--device", "7"], 5, "cpu: there is one device"),
        (&["--kv-cache-dtype", "f8"], 2, "--kv-cache-dtype"),
        (&["--base", "x"], 2, "--demo"),
    ];
    for (args, code, part) in cases {
        let output = ask(args);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
        assert!(*code == 0 || stdout(&output).is_empty(), "{args:?}");
    }
}

#[test]
fn other_refusals_have_their_exit_codes() {
    let cases: &[(&[&str], i32, &str)] = &[
        (&["generate", "-p", "a"], 2, "base: missing"),
        (&["generate", "--demo"], 2, "prompt: missing"),
        (&["generate", "--demo", "-p", ""], 2, "prompt"),
        (&["generate", "--demo", "-p", "a", "--system-prompt", "b"], 2, "system_prompt"),
        (&["generate", "--demo", "-p", "a", "--chat-template", "t"], 2, "chat_template"),
        (&["generate", "--demo", "-p", "a", "--chat", "nobody"], 2, "chat"),
        (&["generate", "--demo", "-f", "/no/such/file"], 2, "/no/such/file"),
        (&["generate", "--demo", "-i", "/no/such/file"], 2, "/no/such/file"),
        (&["generate", "--base", "/no/such/dir", "-p", "a"], 3, "/no/such/dir"),
        (&["generate", "--demo", "-p", "a", "--chat", "--chat-template", "/no/such/file"], 3, "/no/such/file"),
        (&["compat", "--base", "/no/such/dir"], 3, "/no/such/dir"),
        (&["compat"], 2, "base: missing"),
        // No machine has so many.
        (&["generate", "--demo", "-p", "a", "--backend", "cuda", "--device", "999"], 5, "cuda: "),
        (&["demo", "--backend", "cuda", "--device", "999"], 5, "cuda: "),
        (&["demo", "--alpha", "2000"], 2, "alpha: 2000"),
        (&["demo", "", "--backend", "cpu"], 2, "prompt"),
        (&["dmeo"], 2, "demo"),
        (&["generate", "--demo", "-p", "a", "--chat", "none", "--chat-template", "t"], 2, "chat_template"),
        (&["generate", "--demo", "-p", "a", "--config", "/no/such/file"], 2, "/no/such/file"),
    ];
    for (args, code, part) in cases {
        let output = run(args);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

/// Every flag that takes a number, with texts that are none or out of every range. What is accepted is listed.
#[test]
fn bad_numbers_are_refused_by_every_flag() {
    const BAD: [&str; 8] = ["", "-1", "0x10", "1e99", "NaN", "-inf", "9999999999999999999", "1,5"];
    const FINE: [(&str, &str); 10] = [
        ("alpha", "-1"),
        ("top-k", "-1"),
        ("presence-penalty", "-1"),
        ("frequency-penalty", "-1"),
        ("seed", "9999999999999999999"),
        ("temperature", "9999999999999999999"),
        ("repetition-penalty", "9999999999999999999"),
        // A list of ids.
        ("stop-token-ids", "1,5"),
        // Refused too, with the code of a device that is not there, or has not so much memory.
        ("device", "9999999999999999999"),
        ("kv-cache-memory-bytes", "9999999999999999999"),
    ];
    let is_number = |flag: &&clap::Arg| {
        let kind = flag.get_value_parser().type_id();
        let number = [TypeId::of::<f32>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<i64>()];
        number.iter().chain(&[TypeId::of::<u64>(), TypeId::of::<usize>()]).any(|number| kind == *number)
    };
    let definition = proxytune::cli::definition();
    let generate = definition.find_subcommand("generate").expect("a command");
    let flags: Vec<&str> = generate.get_arguments().filter(is_number).filter_map(|flag| flag.get_long()).collect();
    assert!(flags.len() > 15, "{flags:?}");
    for (flag, value) in flags.iter().flat_map(|flag| BAD.map(|value| (*flag, value))) {
        if FINE.contains(&(flag, value)) {
            continue;
        }
        let output = run(&["generate", "--demo", "-p", "a", "--json", &format!("--{flag}={value}")]);
        assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""), "--{flag}={value}: {}", stderr(&output));
        let said = stderr(&output);
        assert!(said.contains(flag) || said.contains(&flag.replace('-', "_")), "--{flag}={value}: {said}");
    }
}

/// What is odd and may be meant runs, with a word on standard error.
#[test]
fn odd_trios_and_settings_are_told_of() {
    let saved = Saved::new();
    let [base, expert, anti] = saved.paths();
    let template = saved.path("t.jinja");
    fs::write(&template, "{{ messages[0].content }}").expect("written");
    let moot = "expert and anti-expert are one model with one prompt: alpha changes nothing";
    let exchanged = "expert is larger than the base; are they exchanged?";
    let cases: &[(&[&str], &[&str])] = &[
        (&["--base", &base, "--expert", &expert, "--anti-expert", &anti], &[]),
        (&["--base", &base], &[]),
        (&["--base", &base, "--expert", &base, "--anti-expert", &base], &[]),
        (&["--base", &base, "--alpha", "2"], &[moot]),
        (&["--base", &base, "--alpha", "0"], &[]),
        (&["--base", &base, "--expert", &expert, "--anti-expert", &expert], &[moot]),
        (&["--base", &expert, "--expert", &base, "--anti-expert", &anti], &[exchanged]),
        (&["--base", &expert, "--expert", &anti, "--anti-expert", &base], &["anti_expert is larger than the base"]),
    ];
    for (models, warnings) in cases {
        let alone = ["generate", "--backend", "cpu", "-p", QUESTION, "-n", "2"];
        let batch = ["generate", "--backend", "cpu", "-n", "2", "-i", "-"];
        for start in [&alone[..], &batch] {
            let output = run_with(&[start, models].concat(), b"{\"prompt\": \"Who?\"}");
            assert_eq!(output.status.code(), Some(0), "{models:?}: {}", stderr(&output));
            let said: Vec<&str> = stderr(&output).lines().collect();
            assert_eq!(said.len(), warnings.len(), "{models:?}: {said:?}");
            let all =
                said.iter().zip(*warnings).all(|(said, part)| said.starts_with("warning: ") && said.contains(part));
            assert!(all, "{models:?}: {said:?}");
        }
    }
    let compat = run(&["compat", "--base", &base, "--expert", &expert, "--anti-expert", &expert]);
    assert!(good(&compat).contains("warning: expert and anti-expert are one model"), "{}", stdout(&compat));
    let compat = run(&["compat", "--base", &expert, "--expert", &base, "--anti-expert", &anti]);
    assert!(good(&compat).contains(exchanged), "{}", stdout(&compat));
    let unused = ["generate", "--demo", "-n", "2", "--chat-template", &template, "-i", "-"];
    for (line, n_warnings) in [(r#"{"prompt": "Who?"}"#, 1), (r#"{"prompt": "Who?", "chat": true}"#, 0)] {
        let output = run_with(&unused, line.as_bytes());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let warning = "chat_template: has no effect, no line uses chat";
        assert_eq!(stderr(&output).matches(warning).count(), n_warnings, "{line}");
    }
}

#[cfg(unix)]
#[test]
fn files_without_permission_are_named() {
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o000)).expect("changed");
    if fs::File::open(file.path()).is_ok() {
        // Nothing is hidden from root.
        return;
    }
    let path = file.path().to_str().expect("UTF-8");
    let cases: [(&[&str], i32); 5] = [
        (&["-f", path], 2),
        (&["-i", path], 2),
        (&["-i", "-", "-o", path], 2),
        (&["-p", "a", "--config", path], 2),
        (&["-p", "a", "--chat", "--chat-template", path], 3),
    ];
    for (args, code) in cases {
        let output = run(&[&["generate", "--demo"], args].concat());
        assert_eq!((output.status.code(), stdout(&output)), (Some(code), ""), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(path), "{args:?}: {}", stderr(&output));
    }
}
