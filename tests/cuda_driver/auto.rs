//! What `--backend auto` makes of a card: it is used where its kernels can be had, and a card that could be used and is not
//! is told of.

use super::{QUESTION, cache, command, nvrtc, run, stderr, stdout};
use std::process::Output;

const ASK: [&str; 7] = ["generate", "--demo", "--chat", "-p", QUESTION, "--max-tokens", "8"];
/// No compiler knows it.
const UNKNOWN: &str = "arch=190";

/// What the CPU says.
fn text_of_cpu() -> String {
    let cpu = run("cards=0", &[&ASK[..], &["--backend", "cpu"]].concat());
    assert_eq!((cpu.status.code(), stderr(&cpu)), (Some(0), ""));
    stdout(&cpu).into()
}

/// Warnings of a run that succeeds. What stands there besides is of the drivers of other GPUs.
fn warnings(output: &Output) -> Vec<&str> {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stderr(output).lines().filter(|line| line.starts_with("warning: ")).collect()
}

#[test]
fn a_card_with_kernels_is_used() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log");
    let (nvrtc, cache) = (nvrtc(), cache());
    let kernels = ["--nvrtc", &nvrtc, "--kernel-cache", &cache];
    let played = format!("log={}", log.display());
    let card = run(&played, &[&ASK[..], &kernels].concat());
    assert_eq!((card.status.code(), stderr(&card)), (Some(0), ""));
    assert_eq!(stdout(&card), text_of_cpu());
    let counts = std::fs::read_to_string(&log).expect("a card was opened");
    assert!(counts.contains("launches ") && counts.contains("replays "), "{counts}");

    let devices = run("", &["devices", "--nvrtc", &nvrtc]);
    assert!(stdout(&devices).contains("--backend auto takes cuda;"), "{}", stdout(&devices));
    let plan = run("", &[&["plan", "--demo"], &kernels[..]].concat());
    assert!(stdout(&plan).contains("cuda (Played Card, sm_90)"), "{}", stdout(&plan));
    // Who names another backend gets it.
    std::fs::remove_file(&log).expect("it was written");
    run(&played, &[&ASK[..], &kernels, &["--backend", "cpu"]].concat());
    assert!(!log.exists(), "no card was opened");
}

#[test]
fn a_card_without_kernels_is_left_alone_with_a_word() {
    let warned = |output: &Output| {
        let said = warnings(output);
        assert_eq!(said.len(), 1, "{}", stderr(output));
        for part in ["the NVIDIA card is not used: ", "pip install nvidia-cuda-nvrtc-cu12", "--cubins"] {
            assert!(said[0].contains(part), "{part}: {}", said[0]);
        }
    };
    let text = run(UNKNOWN, &ASK);
    warned(&text);
    assert_eq!(stdout(&text), text_of_cpu());
    for args in [&["plan", "--demo"][..], &["demo", QUESTION], &["chat", "--demo"]] {
        warned(&run(UNKNOWN, args));
    }
    let devices = run(UNKNOWN, &["devices"]);
    assert!(!stdout(&devices).contains("auto takes cuda"), "{}", stdout(&devices));
    assert!(stdout(&devices).contains("pip install nvidia-cuda-nvrtc-cu12"), "{}", stdout(&devices));
}

#[test]
fn nothing_is_said_where_nothing_can_be_done() {
    // No card, one that is too old, an old driver; and whoever names a backend knows.
    for (played, named) in [("cards=0", "auto"), ("arch=75", "auto"), ("driver=11080", "auto"), (UNKNOWN, "cpu")] {
        let text = run(played, &[&ASK[..], &["--backend", named]].concat());
        assert_eq!(warnings(&text), [""; 0], "{played}");
    }
}

/// Whoever says where the kernels of a card come from wants them.
#[test]
fn kernels_that_are_named_and_not_there_are_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let none = directory.path().join("none").to_str().expect("a path of text").to_string();
    for flag in ["--nvrtc", "--cubins"] {
        let refused = run("", &[&ASK[..], &[flag, &none]].concat());
        assert_eq!((refused.status.code(), stdout(&refused)), (Some(5), ""), "{flag}: {}", stderr(&refused));
        assert!(stderr(&refused).contains("error: cuda: ") && stderr(&refused).contains(&none), "{}", stderr(&refused));
        // Without a card there is nothing to have them for.
        let text = run("cards=0", &[&ASK[..], &[flag, &none]].concat());
        assert_eq!(warnings(&text), [""; 0], "{flag}");
    }
    let variable = command("", &ASK).env("PROXYTUNE_NVRTC", &none).output().expect("the binary starts");
    assert_eq!(variable.status.code(), Some(5), "{}", stderr(&variable));
}
