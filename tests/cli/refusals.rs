//! Wrong use: the exit code, and a message that names what is wrong.

use super::{ask, run, stderr, stdout};

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
        (&["--min-tokens", "9", "-n", "8"], 2, "min_tokens"),
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
        (&["-f", "-"], 2, "both a prompt and a file"),
        (&["-i", "-"], 2, "input_file"),
        (&["-o", "x"], 2, "--input-file"),
        (&["-t", "0"], 2, "--threads"),
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
        (&["generate", "--demo", "-p", "a", "--backend", "cuda"], 5, "cuda"),
        (&["demo", "--backend", "cuda"], 5, "cuda"),
        (&["doctor", "--backend", "cuda"], 5, "cuda"),
        (&["demo", "--alpha", "2000"], 2, "alpha: 2000"),
        (&["demo", "", "--backend", "cpu"], 2, "prompt"),
        (&["dmeo"], 2, "demo"),
    ];
    for (args, code, part) in cases {
        let output = run(args);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}
