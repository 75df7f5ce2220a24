//! `compat` and `plan`: of files of weights that the cache lacks, no more than their headers is asked for.

use super::server::{Asked, Fault, Files, Server, hash};
use super::{Desk, INDEX, NEEDED, TOKEN, WEIGHTS, golden, golden_path, good, names, refused, sharded, text, weights};
use serde_json::{Value, json};
use std::fs;
use std::process::Output;

const BASE: [&str; 2] = ["--base", "tiny/base"];
/// What is asked for at a time: the first 64 KiB, which hold most headers.
const AHEAD: usize = 1 << 16;

impl Desk {
    /// A command that describes models, with `args`.
    fn describe(&self, command: &str, args: &[&str], variables: &[(&str, &str)]) -> Output {
        let device: &[&str] = if command == "plan" { &["--backend", "cpu"] } else { &[] };
        let mut command = self.command(&[&[command, "--json"], device, args].concat());
        let output = command.envs(variables.iter().copied()).output().expect("the binary runs");
        assert!(!text(&output.stderr).contains(TOKEN), "{}", text(&output.stderr));
        output
    }
}

/// A report without what names the place of the models or changes from run to run.
fn report(output: &Output) -> Value {
    let mut report: Value = serde_json::from_str(good(output)).expect("JSON");
    let roles = if report["roles"].is_array() { "roles" } else { "models" };
    for role in report[roles].as_array_mut().expect("three roles") {
        for place in ["name", "model", "chat_template"] {
            role[place] = Value::Null;
        }
    }
    report["memory"] = Value::Null;
    report
}

/// Bytes up to the end of the header.
fn n_header(file: &[u8]) -> usize {
    8 + u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize
}

/// First and last byte asked for of files of weights.
fn ranges(log: &[Asked]) -> Vec<(Option<usize>, Option<usize>)> {
    let log = log.iter().filter(|asked| asked.file().ends_with(".safetensors"));
    log.map(|asked| (asked.start, asked.end)).collect()
}

#[test]
fn headers_describe_a_model_as_its_files_do() {
    let path = |role: &str| golden_path(role).display().to_string();
    let paths = ["base", "expert", "anti-expert"].map(path);
    let directories = ["--base", &paths[0], "--expert", &paths[1], "--anti-expert", &paths[2]];
    let ids = ["--base", "tiny/base", "--expert", "tiny/expert", "--anti-expert", "tiny/anti"];
    for command in ["compat", "plan"] {
        let desk = Desk::new();
        let described = desk.describe(command, &ids, &[]);
        assert_eq!(report(&described), report(&desk.describe(command, &directories, &[])), "{command}");
        let said = text(&described.stderr);
        assert!(said.contains("reading the header of tiny/anti model.safetensors\n"), "{said}");
        assert!(!said.contains("fetching tiny/anti model.safetensors"), "{said}");
        let log = desk.hub.log();
        assert_eq!(log.len(), 3 * (1 + NEEDED.len()), "{command}");
        assert_eq!(ranges(&log), [(Some(0), Some(AHEAD)); 3], "{command}");
    }
}

/// Nothing in the cache passes for the weights, and who runs the model then gets them whole.
#[test]
fn nothing_of_a_header_gets_into_the_cache() {
    let desk = Desk::new();
    good(&desk.describe("compat", &BASE, &[]));
    let small = golden("base").into_iter().filter(|(name, _)| name != WEIGHTS);
    let (mut files, mut blobs): (Vec<_>, Vec<_>) =
        small.map(|(name, bytes)| (name.clone(), hash(&name, &bytes))).unzip();
    files.sort();
    blobs.sort();
    let snapshots = desk.cached("base").join("snapshots");
    assert_eq!((names(&snapshots.join(&names(&snapshots)[0])), desk.blobs()), (files, blobs));
    let offline = [("HF_HUB_OFFLINE", "1")];
    for command in ["compat", "plan"] {
        refused(&desk.describe(command, &BASE, &offline), &["tiny/base at main: it is not in the cache"]);
    }
    desk.hub.log();
    good(&desk.base());
    assert_eq!(ranges(&desk.hub.log()), [(None, None)]);
    for command in ["compat", "plan"] {
        good(&desk.describe(command, &BASE, &offline));
    }
}

#[test]
fn offline_with_nothing_there_is_refused() {
    let desk = Desk::new();
    for command in ["compat", "plan"] {
        let output = desk.describe(command, &BASE, &[("HF_HUB_OFFLINE", "1")]);
        refused(
            &output,
            &["tiny/base at main: it is not in the cache ", "unset HF_HUB_OFFLINE to fetch what is missing"],
        );
    }
    assert_eq!(desk.hub.log(), []);
}

#[test]
fn whole_files_in_the_cache_are_used() {
    let desk = Desk::new();
    let commit = desk.hub.publish("tiny/base", "main", golden("base"));
    good(&desk.base());
    desk.hub.log();
    for command in ["compat", "plan"] {
        let output = desk.describe(command, &BASE, &[]);
        assert_eq!((good(&output).is_empty(), text(&output.stderr)), (false, ""));
    }
    // Nobody links to the blob: it is found by its hash.
    fs::remove_file(desk.cached("base").join("snapshots").join(commit).join(WEIGHTS)).expect("it is there");
    good(&desk.describe("compat", &BASE, &[]));
    assert_eq!(desk.hub.files_asked(), [""; 0]);
    // Cut short, it is no file.
    fs::write(desk.cached("base").join("blobs").join(hash(WEIGHTS, &weights())), b"lost").expect("written");
    good(&desk.describe("compat", &BASE, &[]));
    assert_eq!(ranges(&desk.hub.log()), [(Some(0), Some(AHEAD))]);
}

/// Who runs a model offline keeps the commit that is there whole.
#[test]
fn the_old_commit_stays_what_a_branch_is() {
    let desk = Desk::new();
    let before = desk.base();
    desk.hub.publish("tiny/base", "main", golden("expert"));
    good(&desk.describe("plan", &BASE, &[]));
    let offline = desk.generate(&BASE, &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(good(&offline), good(&before));
}

/// tiny/base whose header is longer than what is asked for at first.
fn with_long_header() -> Files {
    with_longer_header(2 * AHEAD)
}

/// tiny/base whose header has more than `n` bytes.
fn with_longer_header(n: usize) -> Files {
    let mut files = golden("base");
    let whole = weights();
    let mut header: Value = serde_json::from_slice(&whole[8..n_header(&whole)]).expect("a header");
    header["__metadata__"] = json!({ "a": "b".repeat(n) });
    let text = header.to_string();
    let file = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &whole[n_header(&whole)..]].concat();
    files.insert(WEIGHTS.into(), file);
    files
}

#[test]
fn a_long_header_takes_two_requests() {
    let desk = Desk::new();
    let expected = report(&desk.describe("compat", &BASE, &[]));
    let files = with_long_header();
    let end = n_header(&files[WEIGHTS]);
    desk.hub.publish("tiny/base", "main", files);
    desk.hub.log();
    assert_eq!(report(&desk.describe("compat", &BASE, &[])), expected);
    assert_eq!(ranges(&desk.hub.log()), [(Some(0), Some(AHEAD)), (Some(AHEAD), Some(end))]);
}

/// Less than was asked for is no fault: the rest is asked for.
#[test]
fn a_server_may_send_less_at_a_time() {
    let desk = Desk::new();
    let expected = report(&desk.describe("compat", &BASE, &[]));
    let files = with_long_header();
    let end = n_header(&files[WEIGHTS]);
    desk.hub.publish("tiny/base", "main", files);
    desk.hub.log();
    desk.hub.plan(WEIGHTS, usize::MAX, Fault::Short(50_000));
    assert_eq!(report(&desk.describe("compat", &BASE, &[])), expected);
    let asked = [(0, AHEAD), (50_000, end), (100_000, end.max(100_000 + AHEAD))];
    assert_eq!(ranges(&desk.hub.log()), asked.map(|(start, end)| (Some(start), Some(end))));
}

#[test]
fn each_shard_has_a_header() {
    let desk = Desk::new();
    let expected = report(&desk.describe("compat", &BASE, &[]));
    desk.hub.publish("tiny/base", "main", sharded("all of it.safetensors"));
    desk.hub.log();
    assert_eq!(report(&desk.describe("compat", &BASE, &[])), expected);
    assert_eq!(desk.hub.files_asked(), [INDEX, "all%20of%20it.safetensors"]);
}

/// All headers stay in memory until the model is described.
#[test]
fn headers_are_bounded_together() {
    const QUARTER: usize = 16 << 20;
    let names = ["1.safetensors", "2.safetensors", "3.safetensors", "4.safetensors"];
    let desk = Desk::new();
    for (n_last, part) in [
        // Right up to the limit all come, and then the first is no JSON.
        (QUARTER, "1.safetensors: byte 8: the header is not valid"),
        (QUARTER + 1, "4.safetensors: with its header all are 67108865 bytes, the limit is 67108864"),
    ] {
        let mut files = golden("base");
        files.remove(WEIGHTS).expect("it has weights");
        for (name, n_bytes) in names.into_iter().zip([QUARTER, QUARTER, QUARTER, n_last]) {
            let mut shard = vec![0; n_bytes];
            shard[..8].copy_from_slice(&(n_bytes as u64 - 8).to_le_bytes());
            files.insert(name.into(), shard);
        }
        let map: serde_json::Map<_, _> = names.into_iter().map(|name| (format!("in {name}"), json!(name))).collect();
        files.insert(INDEX.into(), json!({ "weight_map": map }).to_string().into_bytes());
        desk.hub.publish("tiny/base", "main", files);
        desk.hub.log();
        refused(&desk.describe("compat", &BASE, &[]), &[part]);
        // Of the last header no more than what says its length.
        assert_eq!(ranges(&desk.hub.log()).len(), if n_last > QUARTER { 7 } else { 8 });
    }
}

/// It sends all of the file; nothing comes behind the header, and who reads on waits for an hour.
#[test]
fn a_server_without_ranges_is_read_to_the_end_of_the_header() {
    for files in [golden("base"), with_long_header()] {
        let desk = Desk::new();
        let expected = report(&desk.describe("compat", &BASE, &[]));
        let end = n_header(&files[WEIGHTS]);
        desk.hub.publish("tiny/base", "main", files);
        fs::remove_dir_all(desk.hf_home()).expect("it is there");
        desk.hub.log();
        desk.hub.plan(WEIGHTS, 1, Fault::WholeStall(8));
        desk.hub.plan(WEIGHTS, 1, Fault::WholeStall(end));
        let described = desk.describe("compat", &BASE, &[("HF_HUB_DOWNLOAD_TIMEOUT", "3600")]);
        assert_eq!(report(&described), expected);
        assert_eq!(ranges(&desk.hub.log()), [(Some(0), Some(AHEAD)), (Some(8), Some(end.max(8 + AHEAD)))]);
    }
}

#[test]
fn a_cut_connection_is_taken_up_again() {
    let desk = Desk::new();
    desk.hub.plan(WEIGHTS, 1, Fault::Cut(5));
    desk.hub.plan(WEIGHTS, 1, Fault::Status(503, ""));
    desk.hub.plan(WEIGHTS, 1, Fault::Cut(100));
    good(&desk.describe("compat", &BASE, &[]));
    let starts: Vec<_> = ranges(&desk.hub.log()).into_iter().map(|(start, _)| start).collect();
    assert_eq!(starts, [Some(0), Some(5), Some(5), Some(105)]);
    // It ends.
    for fault in [Fault::Cut(0), Fault::Unannounced(Vec::new())] {
        let desk = Desk::new();
        desk.hub.plan(WEIGHTS, usize::MAX, fault);
        refused(&desk.describe("compat", &BASE, &[]), &["model.safetensors: ", "the connection broke after 0 bytes"]);
        assert_eq!(ranges(&desk.hub.log()).len(), 5);
    }
}

/// Many more times than in a row without a byte.
#[test]
fn a_connection_that_is_cut_for_ever_is_enough() {
    let desk = Desk::new();
    let expected = report(&desk.describe("compat", &BASE, &[]));
    let files = with_longer_header(40_000);
    let end = n_header(&files[WEIGHTS]);
    desk.hub.publish("tiny/base", "main", files);
    desk.hub.log();
    desk.hub.plan(WEIGHTS, usize::MAX, Fault::Cut(5_000));
    assert_eq!(report(&desk.describe("compat", &BASE, &[])), expected);
    let starts: Vec<_> = ranges(&desk.hub.log()).into_iter().filter_map(|(start, _)| start).collect();
    assert_eq!(starts, (0..end).step_by(5_000).collect::<Vec<_>>());
}

#[test]
fn an_answer_that_cannot_be_it_is_refused() {
    let page = b"<html>Log in</html>".to_vec();
    let with_length = |n: u64| [&n.to_le_bytes(), &weights()[8..]].concat();
    for (fault, parts) in [
        (Fault::Other(page.clone()), &["the server has 19 bytes, the hub's listing says 324272"][..]),
        (Fault::Range("bytes 7-9/324272"), &["bytes 0-65535, the server answers Some(\"bytes 7-9/324272\")"]),
        (Fault::Range("bytes 0-65536/324272"), &["asked for bytes 0-65535, the server answers", "0-65536/324272"]),
        (Fault::Range("bytes 0-/324272"), &["asked for bytes 0-65535, the server answers", "bytes 0-/324272"]),
        (Fault::Range("bytes 0-9/324272"), &["the server announces bytes 0-9, and then 65536 bytes"]),
        (Fault::Range("bytes 0-65535/99"), &["the server has 99 bytes, the hub's listing says 324272"]),
        (Fault::Other(with_length(0)), &["snapshots", "byte 0: header length 0, must be 2 to 324264"]),
        (Fault::Other(with_length(1 << 40)), &["snapshots", "header length 1099511627776, must be 2 to 324264"]),
        (Fault::Other([&weights()[..8], &[b' '; 324_264]].concat()), &["snapshots", "the header is not valid"]),
        (Fault::Status(404, ""), &["tiny/base at main, model.safetensors: HTTP 404: the repository has no such file"]),
        (Fault::Status(403, "GatedRepo"), &["model.safetensors: HTTP 403: a gated repository, ask for access at"]),
    ] {
        let desk = Desk::new();
        desk.hub.plan(WEIGHTS, usize::MAX, fault);
        refused(&desk.describe("compat", &BASE, &[]), parts);
        assert_eq!(ranges(&desk.hub.log()).len(), 1, "{parts:?}");
    }
    // No file has bytes past its end to ask for.
    let desk = Desk::new();
    let mut files = golden("base");
    files.insert(WEIGHTS.into(), b"short".to_vec());
    desk.hub.publish("tiny/base", "main", files);
    refused(&desk.describe("compat", &BASE, &[]), &["too short for a safetensors file: 5 bytes"]);
    assert_eq!(ranges(&desk.hub.log()), [(Some(0), Some(5))]);
    // Of another server's page that is sent whole, nothing is taken either.
    let desk = Desk::new();
    let cdn = Server::start();
    let mut files = golden("base");
    files.insert(WEIGHTS.into(), page);
    cdn.publish("tiny/base", "main", files);
    desk.hub.plan(WEIGHTS, 1, Fault::Elsewhere(cdn.endpoint()));
    cdn.plan(WEIGHTS, 1, Fault::Whole(usize::MAX));
    refused(&desk.describe("compat", &BASE, &[]), &["the server offers 19 bytes, the hub's listing says 324272"]);
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let desk = Desk::new();
    let cdn = Server::start();
    // Commits are numbered alike on both.
    cdn.publish("tiny/base", "main", golden("base"));
    desk.hub.plan(WEIGHTS, 1, Fault::Elsewhere(cdn.endpoint()));
    good(&desk.describe("compat", &BASE, &[("HF_TOKEN", TOKEN)]));
    let shown = Some(format!("Bearer {TOKEN}"));
    assert!(desk.hub.log().iter().all(|asked| asked.authorization == shown));
    let log = cdn.log();
    assert_eq!(log.iter().map(|asked| (asked.file(), &asked.authorization)).collect::<Vec<_>>(), [(WEIGHTS, &None)]);
    assert_eq!(ranges(&log), [(Some(0), Some(AHEAD))]);
}
