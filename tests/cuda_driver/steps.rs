//! Steps on a played card: the text is that of the CPU in whatever order things run, nothing is left behind, and a card that
//! breaks down ends every request.

use super::{QUESTION, cache, nvrtc, run, stderr, stdout};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;

/// `generate` on the played card, and what the card has counted.
fn generate(played: &str, args: &[&str]) -> (Output, BTreeMap<String, usize>) {
    generate_with(&cache(), played, args)
}

fn generate_with(cache: &str, played: &str, args: &[&str]) -> (Output, BTreeMap<String, usize>) {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log");
    let (nvrtc, played) = (nvrtc(), format!("{played} log={}", log.display()));
    let on_card = ["--backend", "cuda", "--nvrtc", &nvrtc, "--kernel-cache", cache];
    let output = run(&played, &[&["generate", "--demo", "--chat", "--json"], &on_card[..], args].concat());
    let counts = std::fs::read_to_string(log).unwrap_or_default();
    let count = |line: &str| line.split_once(' ').map(|(name, n)| (name.to_string(), n.parse().expect("a number")));
    (output, counts.lines().filter_map(count).collect())
}

fn ids(output: &Output) -> Vec<serde_json::Value> {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    let objects = stdout(output).lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    objects.map(|object| object["token_ids"].clone()).collect()
}

#[test]
fn a_text_is_that_of_the_cpu_in_any_order_of_streams() {
    // Prompts of fewer and of more tokens than there can be texts.
    for question in [QUESTION, &[QUESTION; 12].join(" ")] {
        let asked = ["-p", question, "--max-tokens", "12"];
        let cpu = run("", &[&["generate", "--demo", "--chat", "--json", "--backend", "cpu"], &asked[..]].concat());
        for last in ["last=0", "last=1"] {
            let (card, counts) = generate(last, &asked);
            assert_eq!(ids(&card), ids(&cpu), "{last}: {question}");
            let count = |name: &str| counts.get(name).copied().unwrap_or(0);
            assert_eq!(counts.get("alive"), Some(&0), "{counts:?}");
            // The prompt is launched kernel by kernel, all tokens after it are one graph.
            assert_eq!(count("graphs"), 1, "{counts:?}");
            assert!(count("launches") > 0, "{counts:?}");
            assert!(count("replays") > count("graphs"), "{counts:?}");
            assert!(count("overlaps") > count("recorded") / 2, "{counts:?}");
        }
    }
}

/// Many texts at a time fill and empty every buffer of the host; older cards have no launches that overlap.
#[test]
fn samples_run_beside_each_other_on_an_older_card() {
    let asked = ["-p", QUESTION, "--n", "5", "--temperature", "1", "--seed", "3", "--max-tokens", "8"];
    let cpu = run("", &[&["generate", "--demo", "--chat", "--json", "--backend", "cpu"], &asked[..]].concat());
    let (card, counts) = generate("arch=80 last=1", &asked);
    assert_eq!(ids(&card), ids(&cpu));
    assert_eq!((counts.get("alive"), counts.get("overlaps")), (Some(&0), None), "{counts:?}");
}

#[test]
fn a_card_that_breaks_down_ends_every_request_with_its_error() {
    // Where a step is waited for, launched, recorded, or copied from and to; each with three texts under way. A fault may be
    // that of any step that was not read yet, and is laid to the first: the one after those that the host has waited for.
    // Loading the weights takes two waits.
    let cases = [
        ("cuEventSynchronize:700:4", "cuEventSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access", 2),
        ("cuEventSynchronize:700:7", "cuEventSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access", 5),
        ("cuGraphLaunch:700:3", "cuGraphLaunch: CUDA_ERROR_ILLEGAL_ADDRESS", 2),
        ("cuGraphLaunch:700:8", "cuGraphLaunch: CUDA_ERROR_ILLEGAL_ADDRESS", 7),
        ("cuLaunchKernelEx:719:70", "cuLaunchKernelEx: CUDA_ERROR_LAUNCH_FAILED", 1),
        ("cuMemcpyDtoHAsync_v2:700:9", "cuMemcpyDtoHAsync_v2: CUDA_ERROR_ILLEGAL_ADDRESS", 6),
        ("cuMemcpyHtoDAsync_v2:700:130", "cuMemcpyHtoDAsync_v2: CUDA_ERROR_ILLEGAL_ADDRESS", 1),
    ];
    for (call, said, step) in cases {
        let asked = ["-p", QUESTION, "--n", "3", "--ignore-eos", "--max-tokens", "40"];
        let (broken, counts) = generate(&format!("fail={call}"), &asked);
        assert_eq!(broken.status.code(), Some(5), "{call}: {}", stderr(&broken));
        let ended = stdout(&broken).lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let ended: Vec<_> = ended.map(|result| result["error"]["message"].to_string()).collect();
        assert_eq!(ended.len(), 3, "{call}: {}", stdout(&broken));
        let in_step = format!(", in step {step} or later");
        for message in ended.iter().map(String::as_str).chain([stderr(&broken)]) {
            for part in [said, "Played Card, sm_90", &in_step] {
                assert!(message.contains(part), "{call}: {part}: {message}");
            }
        }
        assert_eq!((counts["alive"], counts["waits"]), (0, step + 1), "{call}: {counts:?}");
    }
}

/// A second start compiles nothing, but what is broken in the cache.
#[test]
fn a_broken_entry_of_the_cache_is_made_again() {
    let asked = ["-p", QUESTION, "--max-tokens", "1"];
    let (first, _) = generate("", &asked);
    let own = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(cache()).expect("it is there by now") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), own.path().join(entry.file_name())).expect("copied");
    }
    let whole = || -> BTreeMap<PathBuf, Vec<u8>> {
        let files = std::fs::read_dir(&own).expect("it is there").map(|entry| entry.expect("an entry").path());
        files.map(|file| (file.clone(), std::fs::read(file).expect("read"))).collect()
    };
    let before = whole();
    // Those of other versions of the program may stand there too.
    let of_module = |file: &&PathBuf| file.to_string_lossy().contains("copy_pages.sm_90.");
    for file in before.keys().filter(of_module) {
        std::fs::write(file, &before[file][..100]).expect("written");
    }
    let (second, _) = generate_with(own.path().to_str().expect("a path of text"), "", &asked);
    assert_eq!(ids(&first), ids(&second));
    let after = whole();
    assert_eq!(before.keys().filter(of_module).filter(|file| after[*file] == before[*file]).count(), 1, "made again");
    assert!(before.keys().filter(|file| !of_module(file)).all(|file| after[file] == before[file]), "as they were");
    assert_eq!(after.len(), before.len());
}

#[test]
fn too_little_memory_is_said_before_anything_runs() {
    let (full, counts) = generate("memory=1000000", &["-p", QUESTION]);
    assert_eq!(full.status.code(), Some(5), "{}", stderr(&full));
    assert!(stderr(&full).contains("bytes, the limit is "), "{}", stderr(&full));
    assert_eq!(counts.get("replays"), None, "{counts:?}");
}

#[test]
fn the_time_of_each_kernel_is_told() {
    let (nvrtc, cache) = (nvrtc(), cache());
    let on_card = ["--backend", "cuda", "--nvrtc", &nvrtc, "--kernel-cache", &cache];
    let bench = ["bench", "--demo", "--setting", "8,4", "--timeline"];
    let told = run("", &[&bench[..], &on_card].concat());
    assert_eq!(told.status.code(), Some(0), "{}", stderr(&told));
    let total = stdout(&told).lines().find(|line| line.starts_with("in all ")).expect("a last line");
    // The played card takes a quarter of a millisecond for a launch of any kernel.
    assert!(total.contains("  250.00  ") && total.ends_with("100.0 %"), "{total}");
    for op in ["embed", "norm_matmul", "attention", "combine_sample"] {
        assert!(stdout(&told).lines().any(|line| line.starts_with(op)), "{op}: {}", stdout(&told));
    }
    let cpu = run("", &[&bench[..], &["--backend", "cpu"]].concat());
    assert_eq!(cpu.status.code(), Some(2), "{}", stderr(&cpu));
    assert!(stderr(&cpu).contains("timeline: only the CUDA backend"), "{}", stderr(&cpu));
}

/// Every op with whatever it launches, through memory, copies and graphs of the driver.
#[test]
fn the_self_test_passes_through_the_driver() {
    let (nvrtc, cache) = (nvrtc(), cache());
    let doctor =
        run("last=1", &["doctor", "--self-test", "--backend", "cuda", "--nvrtc", &nvrtc, "--kernel-cache", &cache]);
    assert_eq!(doctor.status.code(), Some(0), "{}\n{}", stdout(&doctor), stderr(&doctor));
    assert!(stdout(&doctor).contains(" backends, 0 failed"), "{}", stdout(&doctor));
    assert!(stdout(&doctor).contains("cuda (Played Card, sm_90)\n"), "{}", stdout(&doctor));
}
