//! The cache is shared with huggingface_hub itself, in both directions.

use super::{Desk, NEEDED, golden, good, text};
use std::fs;

/// Runs `PYTHON` (else `python3`) on a script with the desk's variables; gives what it prints.
fn python(desk: &Desk, script: &str, offline: &str) -> String {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let mut command = std::process::Command::new(python);
    command.args(["-c", script]).env("HF_HOME", desk.hf_home()).env("HF_ENDPOINT", desk.hub.endpoint());
    let output = command.env("HF_HUB_OFFLINE", offline).output().expect("a Python that runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).into()
}

const EACH: &str = "
from huggingface_hub import hf_hub_download
for file in 'config.json tokenizer.json generation_config.json tokenizer_config.json model.safetensors'.split():
    print(hf_hub_download('tiny/base', file))
";

#[test]
#[ignore = "needs a Python with huggingface_hub: PYTHON=.. cargo test --release --test hub -- --ignored"]
fn what_is_fetched_here_is_found_there() {
    let desk = Desk::new();
    good(&desk.base());
    let whole = "from huggingface_hub import snapshot_download\nprint(snapshot_download('tiny/base'))";
    assert!(python(&desk, whole, "1").contains("/models--tiny--base/snapshots/"));
    let paths = python(&desk, EACH, "1");
    for (path, file) in paths.lines().zip(NEEDED) {
        assert_eq!(fs::read(path).expect("a path"), golden("base")[file], "{path}");
    }
    assert_eq!(paths.lines().count(), NEEDED.len());
}

#[test]
#[ignore = "needs a Python with huggingface_hub: PYTHON=.. cargo test --release --test hub -- --ignored"]
fn what_is_fetched_there_is_found_here() {
    let desk = Desk::new();
    let expected = desk.base();
    fs::remove_dir_all(desk.hf_home()).expect("it is there");
    assert_eq!(python(&desk, EACH, "0").lines().count(), NEEDED.len());
    desk.hub.log();
    let offline = desk.generate(&["--base", "tiny/base"], &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(good(&offline), good(&expected));
    assert!(text(&offline.stderr).contains("which may lack special_tokens_map.json"), "{}", text(&offline.stderr));
    let online = desk.base();
    assert_eq!((good(&online), text(&online.stderr)), (good(&expected), ""));
    assert_eq!(desk.hub.files_asked(), [""; 0]);
}
