//! The driver half of the CUDA backend through the binary, on a library that plays the driver (tests/cuda_host/libcuda.cpp):
//! memory, copies, branches, graphs, faults; and what is said where there is no card. The kernels run as C++, but are
//! compiled by NVRTC too, as they are for a card.

mod absent;
mod auto;
#[allow(dead_code, reason = "the runner's process is for tests/cuda_host")]
#[path = "../cuda_host/build.rs"]
mod build;
mod kernels;
mod sources;
mod steps;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

const QUESTION: &str = "Where was Tilda Thorn born?";

/// The NVRTC that scripts/nvidia-tools has fetched.
fn nvrtc() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nvidia/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
    assert!(file.exists(), "{} is not here: scripts/nvidia-tools fetches it", file.display());
    text(&file)
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path of text").into()
}

/// What is kept from run to run: compiling takes longer than all else here.
fn cache() -> String {
    text(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_driver"))
}

/// The binary with a driver that plays what `played` says, and nothing else in its environment: no flags of whoever runs the
/// tests, no Python, no home.
fn command(played: &str, args: &[&str]) -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_proxytune")), played, args)
}

/// As [`command`], of a binary that stands elsewhere.
fn command_of(binary: &Path, played: &str, args: &[&str]) -> Command {
    static DRIVER: OnceLock<PathBuf> = OnceLock::new();
    let library = DRIVER.get_or_init(|| build::runner(build::Flavour::Driver));
    let mut command = Command::new(binary);
    command.env_clear().env("HOME", "/no/such/home").env("PLAYED_CUDA", played);
    command.env("LD_LIBRARY_PATH", library.parent().expect("it stands in a directory"));
    command.args(args).stdin(Stdio::null());
    command
}

fn run(played: &str, args: &[&str]) -> Output {
    command(played, args).output().expect("the binary starts")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}
