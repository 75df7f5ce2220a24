//! Models by their id, through the binary, against a hub that plays on this machine: what is fetched and what is not,
//! what is resumed, what is refused, and that the token goes nowhere else.

mod broken;
mod cache;
mod describe;
mod fetch;
mod refusals;
mod server;
mod shared;

use serde_json::{Value, json};
use server::{Files, Server};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const TOKEN: &str = "hf_thisIsNobodysToken";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What every run needs of one of the golden models.
const NEEDED: [&str; 5] = ["config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json", WEIGHTS];

/// A hub with the golden Qwen2 trio as tiny/base, tiny/expert and tiny/anti, and a machine that knows nothing yet.
struct Desk {
    hub: Server,
    home: TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { hub: Server::start(), home: tempfile::tempdir().expect("a directory") };
        for (repo, role) in [("tiny/base", "base"), ("tiny/expert", "expert"), ("tiny/anti", "anti-expert")] {
            desk.hub.publish(repo, "main", golden(role));
        }
        desk
    }

    /// The binary with no variable of the hub's but the address and the home.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proxytune"));
        for (name, _) in std::env::vars_os() {
            let upper = name.to_string_lossy().to_uppercase();
            if upper.starts_with("HF_") || upper.starts_with("HUGGING") || upper.ends_with("_PROXY") {
                command.env_remove(name);
            }
        }
        command.args(args).current_dir(self.home.path()).stdin(Stdio::null());
        command.env("HOME", self.home.path()).env("HF_HOME", self.hf_home()).env("HF_ENDPOINT", self.hub.endpoint());
        command
    }

    /// Runs `generate` on the CPU with variables of the environment; nothing that is printed may hold the token.
    fn generate(&self, args: &[&str], variables: &[(&str, &str)]) -> Output {
        let start = ["generate", "--backend", "cpu", "-p", "abc", "-n", "8", "--ignore-eos"];
        let mut command = self.command(&[&start, args].concat());
        let output = command.envs(variables.iter().copied()).output().expect("the binary runs");
        let printed = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert!(!printed.contains(TOKEN), "{printed}");
        output
    }

    fn base(&self) -> Output {
        self.generate(&["--base", "tiny/base"], &[])
    }

    fn hf_home(&self) -> PathBuf {
        self.home.path().join("hf")
    }

    /// The part of the cache that belongs to tiny/`name`.
    fn cached(&self, name: &str) -> PathBuf {
        self.hf_home().join(format!("hub/models--tiny--{name}"))
    }

    /// Names in the blobs of tiny/base.
    fn blobs(&self) -> Vec<String> {
        names(&self.cached("base").join("blobs"))
    }

    /// Where the weights of tiny/base are while they come.
    fn partial(&self) -> PathBuf {
        self.cached("base").join("blobs").join(format!("{}.incomplete", server::hash(WEIGHTS, &weights())))
    }
}

/// The files of a golden model.
fn golden(role: &str) -> Files {
    let directory = golden_path(role);
    let read = |name: String| (name.clone(), fs::read(directory.join(name)).expect("a golden file"));
    names(&directory).into_iter().map(read).collect()
}

/// tiny/base with its weights in one shard, and an index.
fn sharded(shard: &str) -> Files {
    let mut files = golden("base");
    let whole = files.remove(WEIGHTS).expect("it has weights");
    let n_header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&whole[8..n_header]).expect("a header");
    let tensors = header.as_object().expect("an object").keys().filter(|name| *name != "__metadata__");
    let map: serde_json::Map<_, _> = tensors.map(|name| (name.clone(), json!(shard))).collect();
    files.insert(shard.into(), whole);
    files.insert(INDEX.into(), json!({ "weight_map": map }).to_string().into_bytes());
    files
}

fn golden_path(role: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen2").join(role)
}

/// The weights of tiny/base.
fn weights() -> Vec<u8> {
    golden("base").remove(WEIGHTS).expect("it has weights")
}

/// Names in a directory, sorted; none where it is not there.
fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("readable").file_name().into_string();
    let mut names: Vec<String> = entries.map(|entry| name(entry).expect("UTF-8")).collect();
    names.sort();
    names
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// Standard output of a run that must succeed.
fn good(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// A run that must end with the exit code of model files and say all `parts`.
fn refused(output: &Output, parts: &[&str]) {
    ended(output, 3, parts);
}

fn ended(output: &Output, code: i32, parts: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{parts:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?} in {said:?}");
    }
    assert_eq!(text(&output.stdout), "", "{parts:?}");
}
