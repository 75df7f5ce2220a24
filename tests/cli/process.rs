//! The process among others: closed pipes, full disks, Ctrl-C, terminals.

use super::{QUESTION, command, spawn, stderr, unflagged};
use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// Runs long enough for anything to happen to it meanwhile: 128 texts of 240 tokens.
const LONG: [&str; 11] =
    ["generate", "--demo", "--backend", "cpu", "-p", QUESTION, "--alpha", "0", "--ignore-eos", "--n", "128"];

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_quiet() {
    for json in [&[][..], &["--json"]] {
        let mut child = spawn(&mut command(&[&LONG, json].concat()));
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!((output.status.code(), stderr(&output)), (Some(141), ""), "{json:?}");
    }
    let mut child = spawn(&mut command(&["generate", "--help"]));
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    // The help may be written before the pipe is closed.
    assert!(matches!(output.status.code(), Some(0 | 141)) && stderr(&output).is_empty(), "{output:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let output = command(&["generate", "--demo", "-p", QUESTION]).stdout(full()).output().expect("it ends");
    assert_eq!(output.status.code(), Some(6));
    assert!(stderr(&output).contains("standard output"), "{}", stderr(&output));
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_was_printed() {
    let mut child = spawn(&mut command(&LONG));
    let mut out = child.stdout.take().expect("a pipe");
    let mut begun = [0; 9];
    out.read_exact(&mut begun).expect("text comes");
    let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill is there");
    assert!(signalled.success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("UTF-8");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), stderr(&output)), (Some(130), ""));
    assert_eq!(&begun, b" In Torun");
    assert!(rest.ends_with('\n') && !rest.contains("\n---\n"), "{rest:?}");
}

#[cfg(unix)]
#[test]
fn a_second_ctrl_c_ends_it_at_once_and_quietly() {
    let mut child = spawn(&mut command(&LONG));
    let mut out = child.stdout.take().expect("a pipe");
    out.read_exact(&mut [0; 9]).expect("text comes");
    for _ in 0..2 {
        let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(signalled.expect("kill is there").success());
    }
    drop(out);
    let output = child.wait_with_output().expect("it ends");
    // The pipe may be found closed before the first Ctrl-C is seen.
    assert!(matches!(output.status.code(), Some(130 | 141)) && stderr(&output).is_empty(), "{output:?}");
}

#[cfg(unix)]
#[test]
fn a_batch_whose_reader_goes_away_is_quiet() {
    let line = serde_json::json!({ "prompt": QUESTION, "n": 64, "ignore_eos": true });
    let mut child = spawn(command(&["generate", "--demo", "--backend", "cpu", "-i", "-"]).stdin(Stdio::piped()));
    let mut input = child.stdin.take().expect("a pipe");
    drop(child.stdout.take());
    (0..8).for_each(|_| writeln!(input, "{line}").expect("it reads"));
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), stderr(&output)), (Some(141), ""));
}

#[cfg(target_os = "linux")]
#[test]
fn closed_standard_streams_are_no_panic() {
    for (redirection, args, code) in [
        ("<&-", "generate --demo --backend cpu -p -", 2),
        ("<&-", "generate --demo --backend cpu -i -", 0),
        (">&-", "devices", 0),
        ("2>&-", "generate --demo -p a --alpha 9999", 2),
    ] {
        let line = format!("exec {} {args} {redirection}", env!("CARGO_BIN_EXE_proxytune"));
        let output = unflagged("sh").args(["-c", &line]).output().expect("sh is there");
        assert_eq!(output.status.code(), Some(code), "{line}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{line}: {}", stderr(&output));
    }
}

/// What a command prints on a terminal, which util-linux's `script` plays.
#[cfg(target_os = "linux")]
fn on_a_terminal(arguments: &str, environment: &[(&str, &str)]) -> String {
    let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_proxytune"));
    let mut script = unflagged("script");
    script.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
    script.envs(environment.iter().copied());
    let output = script.output().expect("script is part of every Debian");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[cfg(target_os = "linux")]
#[test]
fn colour_is_for_terminals_that_want_it() {
    let demo = format!("demo '{QUESTION}' --backend cpu");
    let coloured = on_a_terminal(&demo, &[]);
    assert!(coloured.contains("\x1b[1;36mTilda\x1b[0m") && !coloured.contains("[Tilda]"), "{coloured:?}");
    let plain = on_a_terminal(&demo, &[("NO_COLOR", "1")]);
    assert!(plain.contains("[Tilda]") && !plain.contains('\x1b'), "{plain:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_bar_stands_beside_a_file_and_not_among_the_results() {
    let place = tempfile::tempdir().expect("a directory");
    let input = place.path().join("in.jsonl");
    fs::write(&input, "{\"prompt\":\"Who?\",\"max_tokens\":3}\n".repeat(3)).expect("written");
    let to = |output: &std::path::Path| {
        let args = format!("generate --demo --backend cpu -i {} -o {}", input.display(), output.display());
        on_a_terminal(&args, &[("NO_COLOR", "1")])
    };
    assert!(to(&place.path().join("out.jsonl")).contains("running "));
    let results = to("/dev/tty".as_ref());
    assert!(results.contains("\"index\":0") && !results.contains("running "), "{results:?}");
}
