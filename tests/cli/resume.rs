//! `generate -i -o` over a file that is there: what was finished stays, the rest is done, and nothing is lost.

use super::{QUESTION, command, good, objects, run, run_with, spawn, stderr, stdout, unflagged};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Output};

/// A directory with an input and an output.
struct Place(tempfile::TempDir);

impl Place {
    fn new(lines: &[Value]) -> Self {
        let place = Self(tempfile::tempdir().expect("a directory"));
        place.write("in.jsonl", &text_of(lines));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("a text")
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let file = |name: &str| self.path(name).into_os_string().into_string().expect("UTF-8");
        let files = [file("in.jsonl"), "-o".into(), file("out.jsonl")];
        let start = ["generate", "--demo", "--backend", "cpu", "--chat", "-i"].map(String::from);
        [&start[..], &files, &more.iter().map(|arg| arg.to_string()).collect::<Vec<_>>()].concat()
    }

    fn run(&self, more: &[&str]) -> Output {
        let args = self.args(more);
        run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn spawn(&self) -> Child {
        let args = self.args(&[]);
        spawn(&mut command(&args.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    /// The output of a run in a place of its own that nothing interrupts.
    fn uninterrupted(lines: &[Value]) -> (String, Option<i32>) {
        let place = Place::new(lines);
        let output = place.run(&[]);
        (place.read("out.jsonl"), output.status.code())
    }

    fn has_partial(&self) -> bool {
        self.path("out.jsonl.partial").exists()
    }
}

fn text_of(lines: &[Value]) -> String {
    // A string stands for a line that is not JSON.
    lines.iter().map(|line| format!("{}\n", line.as_str().map_or_else(|| line.to_string(), String::from))).collect()
}

/// Results without the one part that differs from run to run.
fn timeless(results: &str) -> String {
    let cut = |line: &str| match line.split_once("\"timings\":{") {
        Some((before, after)) => format!("{before}{}\n", after.split_once('}').expect("an object").1),
        None => format!("{line}\n"),
    };
    results.lines().map(cut).collect()
}

/// Ids that are texts, numbers, absent and the same twice; several samples; lines that are wrong.
fn mixed() -> Vec<Value> {
    vec![
        json!({ "id": "a", "prompt": QUESTION, "seed": 1 }),
        json!({ "prompt": QUESTION, "seed": 2, "n": 3, "temperature": 2, "max_tokens": 5 }),
        json!({ "id": "a", "prompt": QUESTION, "alpha": 0, "max_tokens": 9, "seed": 3 }),
        json!("not JSON"),
        json!({ "id": 0.1, "prompt": QUESTION, "seed": 4, "n": 2, "max_tokens": 3 }),
        json!({ "id": "z\n", "prompt": QUESTION, "top_p": 7 }),
        json!({ "id": "a", "prompt": QUESTION, "seed": 5, "max_tokens": 4 }),
    ]
}

#[test]
fn a_run_cut_off_anywhere_resumes_to_the_same_file() {
    let (whole, code) = Place::uninterrupted(&mixed());
    assert_eq!((code, whole.lines().count()), (Some(6), 10));
    let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at + 1).collect();
    let torn = [3, ends[0] - 1, ends[0] + 1, ends[1] + 40, ends[3] - 2, ends[5] + 7, ends[9] - 1];
    for cut in ends.iter().copied().chain(torn).chain([0]) {
        let place = Place::new(&mixed());
        place.write("out.jsonl", &whole[..cut]);
        let output = place.run(&[]);
        assert_eq!((output.status.code(), stdout(&output)), (Some(6), ""), "cut at {cut}: {}", stderr(&output));
        let resumed = place.read("out.jsonl");
        assert_eq!(timeless(&resumed), timeless(&whole), "cut at {cut}");
        // Finished lines are kept to the byte, their timings too.
        if cut >= ends[0] {
            assert_eq!(resumed[..ends[0]], whole[..ends[0]], "cut at {cut}");
        }
        assert!(!place.has_partial());
    }
}

#[test]
fn failed_lines_run_again_in_their_place() {
    let mut lines = mixed();
    let (whole, _) = Place::uninterrupted(&lines);
    (lines[3], lines[5]) =
        (json!({ "prompt": QUESTION, "seed": 9, "n": 2 }), json!({ "id": "z\n", "prompt": "Who?", "seed": 6 }));
    let (mended, code) = Place::uninterrupted(&lines);
    assert_eq!(code, Some(0));
    for cut in [whole.len(), whole.len() - 1, whole.len() - 300] {
        let place = Place::new(&lines);
        place.write("out.jsonl", &whole[..cut]);
        let output = place.run(&[]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stderr(&output).contains("2 failed and run again"), "{}", stderr(&output));
        let resumed = place.read("out.jsonl");
        assert_eq!(timeless(&resumed), timeless(&mended));
        let kept = |results: &str, range: std::ops::Range<usize>| results.lines().collect::<Vec<_>>()[range].concat();
        assert_eq!(kept(&resumed, 0..5), kept(&whole, 0..5));
        assert_eq!(kept(&resumed, 7..9), kept(&whole, 6..8));
        assert!(!place.has_partial());
        // Nothing is left to do, and nothing is done.
        let again = place.run(&[]);
        assert_eq!((again.status.code(), place.read("out.jsonl")), (Some(0), resumed), "{}", stderr(&again));
        assert!(stderr(&again).contains("7 of 7 lines are finished"), "{}", stderr(&again));
    }
}

#[test]
fn a_line_whose_samples_failed_runs_again_as_a_whole() {
    // The base's nucleus is its best token alone, and that is banned: nothing is allowed.
    let stuck = json!({ "prompt": QUESTION, "n": 2, "seed": 1, "base_top_p": 0.00001, "bad_words": "In" });
    let lines = [stuck, json!({ "prompt": QUESTION, "max_tokens": 3, "seed": 2 })];
    let (whole, code) = Place::uninterrupted(&lines);
    assert_eq!((code, objects(&whole)[1]["error"]["type"].as_str()), (Some(6), Some("numeric_error")));
    let place = Place::new(&lines);
    place.write("out.jsonl", &whole);
    let again = place.run(&[]);
    assert_eq!(again.status.code(), Some(6));
    let said = "resuming: 1 of 2 lines are finished, 1 failed and run again; --overwrite starts anew\n";
    assert_eq!(stderr(&again), format!("{said}error: 1 of 2 requests failed\n"));
    let resumed = place.read("out.jsonl");
    assert_eq!(timeless(&resumed), timeless(&whole));
    assert_eq!(resumed.lines().last(), whole.lines().last());
}

#[test]
fn the_halves_that_a_crash_leaves_are_joined() {
    let mut lines = mixed();
    let (old, _) = Place::uninterrupted(&lines);
    lines[3] = json!({ "prompt": QUESTION, "seed": 9 });
    let (new, _) = Place::uninterrupted(&lines);
    let ends: Vec<usize> = new.match_indices('\n').map(|(at, _)| at + 1).collect();
    // The partial file ends before, in and after the line that ran again, and past the end of the old file.
    for (partial, old_end) in
        [(0, 10), (ends[4], 10), (ends[5] - 9, 10), (ends[5], 10), (ends[7] + 5, 10), (ends[8], 6)]
    {
        let place = Place::new(&lines);
        place.write("out.jsonl.partial", &new[..partial]);
        let old: String = old.lines().take(old_end).map(|line| format!("{line}\n")).collect();
        place.write("out.jsonl", &old);
        let output = place.run(&[]);
        assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
        let joined = place.read("out.jsonl");
        assert_eq!(timeless(&joined), timeless(&new), "{partial} bytes");
        assert!(!place.has_partial());
        // Each finished line has the bytes, timings and all, of the half that has it.
        for (index, line) in joined.lines().enumerate().filter(|(_, line)| line.contains("\"error\":null")) {
            let before = [new[..partial].lines().nth(index), old.lines().nth(index)];
            let known = before.iter().flatten().any(|half| *half == line);
            assert!(known || index == 5 || index >= old_end, "line {index} ran again");
        }
    }
}

#[test]
fn a_partial_file_alone_is_not_thrown_away() {
    let lines = [json!({ "prompt": QUESTION, "max_tokens": 2, "seed": 1 })];
    let (whole, _) = Place::uninterrupted(&lines);
    let place = Place::new(&lines);
    place.write("out.jsonl.partial", &whole);
    let alone = place.run(&[]);
    assert_eq!(alone.status.code(), Some(2));
    assert!(stderr(&alone).contains("out.jsonl.partial") && stderr(&alone).contains("rename it"), "{}", stderr(&alone));
    assert_eq!(place.read("out.jsonl.partial"), whole);
    assert_eq!(place.run(&["--overwrite"]).status.code(), Some(0));
    assert_eq!(timeless(&place.read("out.jsonl")), timeless(&whole));
    assert!(!place.has_partial());
    // Nor is an input that is called so.
    let place = Place::new(&lines);
    fs::rename(place.path("in.jsonl"), place.path("out.jsonl.partial")).expect("renamed");
    let file = |name: &str| place.path(name).into_os_string().into_string().expect("UTF-8");
    let (input, output) = (file("out.jsonl.partial"), file("out.jsonl"));
    for old in [None, Some(&whole)] {
        old.iter().for_each(|text| place.write("out.jsonl", text));
        let refused = run(&["generate", "--demo", "-i", &input, "-o", &output, "--overwrite"]);
        assert_eq!((refused.status.code(), stdout(&refused)), (Some(2), ""), "{}", stderr(&refused));
        assert_eq!(place.read("out.jsonl.partial"), text_of(&lines));
    }
}

#[test]
fn an_output_that_is_not_of_this_input_is_refused_and_left_alone() {
    let (whole, _) = Place::uninterrupted(&mixed());
    let lines: Vec<&str> = whole.lines().collect();
    let results = |chosen: &[&str]| chosen.iter().map(|line| format!("{line}\n")).collect::<String>();
    let cases = [
        ("a line is missing", results(&lines[1..]), "line 1 is not a result of the request \"a\""),
        ("a sample is missing", results(&[&lines[..2], &lines[3..]].concat()), "line 3 is not result 1 of 1"),
        ("samples are exchanged", results(&[lines[0], lines[2]]), "line 2 is not result 0 of 1"),
        ("too many", results(&[&lines[..], &lines[..1]].concat()), "line 11 belongs to no line"),
        ("torn past the end", format!("{whole}{{\"id\":"), "line 11 belongs to no line"),
        ("notes of somebody", "Remember the milk".into(), "line 1 is not a result"),
        ("the input", text_of(&mixed()), "line 1 "),
        ("not JSON", "{\"id\":\"a\",nonsense}\n".into(), "line 1 "),
        ("a result of a wrong line", whole.replace("{\"id\":3,", "{\"id\":3,\"index\":0,"), "wrong now"),
    ];
    for (label, text, part) in cases {
        let place = Place::new(&mixed());
        place.write("out.jsonl", &text);
        let output = place.run(&[]);
        assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""), "{label}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{label}: {}", stderr(&output));
        assert!(stderr(&output).contains("--overwrite") && stderr(&output).contains("out.jsonl"), "{label}");
        assert_eq!(place.read("out.jsonl"), text, "{label}");
        let anew = place.run(&["--overwrite"]);
        assert_eq!(anew.status.code(), Some(6), "{label}: {}", stderr(&anew));
        assert_eq!(timeless(&place.read("out.jsonl")), timeless(&whole), "{label}");
    }
    let place = Place::new(&mixed());
    place.write("out.jsonl", &whole);
    place.write("out.jsonl.partial", "Remember the milk\n");
    assert_eq!(place.run(&[]).status.code(), Some(2));
    assert_eq!((place.read("out.jsonl"), place.read("out.jsonl.partial")), (whole, "Remember the milk\n".into()));
}

#[test]
fn odd_places_for_results() {
    let place = Place::new(&mixed());
    fs::create_dir(place.path("out.jsonl")).expect("a directory");
    let at = |output: &str| {
        let input = place.path("in.jsonl");
        run(&["generate", "--demo", "--backend", "cpu", "-i", input.to_str().expect("UTF-8"), "-o", output])
    };
    let inside = place.path("nowhere/out.jsonl");
    let directory = place.path("out.jsonl");
    let refused =
        [(directory.to_str().expect("UTF-8"), "is a directory"), (inside.to_str().expect("UTF-8"), "nowhere")];
    for (path, part) in refused {
        let output = at(path);
        assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""), "{path}: {}", stderr(&output));
        assert!(stderr(&output).contains("output_file: ") && stderr(&output).contains(part), "{}", stderr(&output));
    }
    // A device that is not there costs nothing of what is there, and leaves nothing behind.
    let place = Place::new(&mixed()[..1]);
    assert_eq!(place.run(&["--device", "7"]).status.code(), Some(5));
    assert!(!place.path("out.jsonl").exists());
    place.write("out.jsonl", "{\"id\":\"a\",\"tor");
    assert_eq!(place.run(&["--device", "7"]).status.code(), Some(5));
    assert_eq!(place.read("out.jsonl"), "{\"id\":\"a\",\"tor");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(place.path("nothing"), place.path("dangling")).expect("a link");
        let output = at(place.path("dangling").to_str().expect("UTF-8"));
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("is a link to a file that is not there"), "{}", stderr(&output));
    }
    // Two runs at a time would spoil it.
    let held = fs::File::open(place.path("out.jsonl")).expect("a file");
    held.lock().expect("a lock");
    let second = place.run(&[]);
    assert_eq!(second.status.code(), Some(2));
    assert!(stderr(&second).contains("another run is writing it"), "{}", stderr(&second));
    drop(held);
    assert_eq!(place.run(&[]).status.code(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn devices_pipes_and_links() {
    let (whole, _) = Place::uninterrupted(&mixed());
    let place = Place::new(&mixed());
    let input = place.path("in.jsonl");
    let input = input.to_str().expect("UTF-8");
    let at = |output: &str| run(&["generate", "--demo", "--backend", "cpu", "--chat", "-i", input, "-o", output]);
    let full = at("/dev/full");
    assert_eq!(full.status.code(), Some(6));
    assert!(stderr(&full).contains("output file: "), "{}", stderr(&full));
    assert_eq!(stderr(&at("/dev/null")), "error: 2 of 7 requests failed\n");
    let piped = ["generate", "--demo", "--backend", "cpu", "--chat", "-i", "/dev/stdin", "-o", "/dev/stdout"];
    let piped = run_with(&piped, place.read("in.jsonl").as_bytes());
    assert_eq!(timeless(stdout(&piped)), timeless(&whole));
    // The file behind a link is completed, not the link replaced.
    let real = place.path("real.jsonl");
    fs::write(&real, &whole).expect("written");
    std::os::unix::fs::symlink(&real, place.path("out.jsonl")).expect("a link");
    place.write("in.jsonl", &place.read("in.jsonl").replace("not JSON", "{\"prompt\":\"Who?\",\"max_tokens\":2}"));
    assert_eq!(place.run(&[]).status.code(), Some(6));
    assert!(place.path("out.jsonl").is_symlink());
    assert_eq!(objects(&fs::read_to_string(real).expect("a text"))[5]["usage"]["completion_tokens"], 2);
}

/// More lines than run at a time, and than are under way: some are finished long before others begin.
fn many(n_lines: usize, max_tokens: usize) -> Vec<Value> {
    (0..n_lines)
        .map(|id| json!({ "id": id, "prompt": QUESTION, "max_tokens": max_tokens, "ignore_eos": true, "seed": id }))
        .collect()
}

#[test]
fn more_lines_than_are_under_way_keep_their_order() {
    let place = Place::new(&many(600, 1));
    assert_eq!(good(&place.run(&[])), "");
    let ids: Vec<u64> = objects(&place.read("out.jsonl")).iter().filter_map(|result| result["id"].as_u64()).collect();
    assert_eq!(ids, (0..600).collect::<Vec<u64>>());
    let long = format!("{{\"prompt\":\"{}\"}}", "a".repeat(33 << 20));
    let lines = [
        json!({ "prompt": QUESTION, "max_tokens": 1 }),
        Value::String(long),
        json!({ "prompt": "Who?", "max_tokens": 1 }),
    ];
    let place = Place::new(&lines);
    assert_eq!(place.run(&[]).status.code(), Some(6));
    let results = objects(&place.read("out.jsonl"));
    assert_eq!(results.iter().map(|result| result["id"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    assert!(results[1]["error"]["message"].as_str().is_some_and(|text| text.contains("longer than")));
}

/// Waits until the run has written something, and sends it a signal.
#[cfg(unix)]
fn signal(mut child: Child, signal: &str, has_begun: impl Fn() -> bool) -> Output {
    while !has_begun() {
        assert!(child.try_wait().expect("a child").is_none(), "the run ended before it was interrupted");
        std::thread::yield_now();
    }
    let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(sent.expect("kill is there").success());
    child.wait_with_output().expect("it ends")
}

/// Short lines, and the same with so much to do after the first 64 that no signal comes after the end. Resuming compares
/// ids alone: a run of the one goes on from what a run of the other has left.
#[cfg(unix)]
fn short_and_endless() -> [Vec<Value>; 2] {
    let short = many(72, 20);
    let mut endless = short.clone();
    endless[64..].iter_mut().for_each(|line| {
        line["n"] = json!(128);
        line["max_tokens"] = json!(200);
    });
    [short, endless]
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_whole_lines_and_can_go_on() {
    let [short, endless] = short_and_endless();
    let (whole, _) = Place::uninterrupted(&short);
    for (name, code) in [("-INT", Some(130)), ("-KILL", None)] {
        let place = Place::new(&endless);
        let begun = || fs::metadata(place.path("out.jsonl")).is_ok_and(|metadata| metadata.len() > 0);
        let output = signal(place.spawn(), name, begun);
        assert_eq!((output.status.code(), stderr(&output)), (code, ""));
        let begun = place.read("out.jsonl");
        assert!(begun.len() < whole.len(), "{name} came after the end");
        if code.is_some() {
            assert!(begun.ends_with('\n') && timeless(&whole).starts_with(&timeless(&begun)));
        }
        place.write("in.jsonl", &text_of(&short));
        assert_eq!(place.run(&[]).status.code(), Some(0));
        assert_eq!(timeless(&place.read("out.jsonl")), timeless(&whole));
        assert!(place.read("out.jsonl").starts_with(&begun[..begun.rfind('\n').map_or(0, |at| at + 1)]));
    }
}

/// Results of `many(n, ..)` of which all but the last have failed: it is what must not be lost.
#[cfg(unix)]
fn all_failed_but_the_last(whole: &str) -> (String, String) {
    let failed = |id: usize| {
        format!("{{\"id\":{id},\"error\":{{\"type\":\"device_error\",\"message\":\"gone\",\"param\":null}}}}\n")
    };
    let last = format!("{}\n", whole.lines().last().expect("a line"));
    let n_failed = whole.lines().count() - 1;
    (format!("{}{last}", (0..n_failed).map(failed).collect::<String>()), last)
}

#[cfg(unix)]
#[test]
fn an_interrupted_retry_loses_nothing() {
    let [short, endless] = short_and_endless();
    let (whole, _) = Place::uninterrupted(&short);
    let (old, last) = all_failed_but_the_last(&whole);
    // With as many results as the last line has here.
    let endless = [&endless[..71], &short[71..]].concat();
    for (name, code) in [("-INT", Some(130)), ("-KILL", None)] {
        let place = Place::new(&endless);
        place.write("out.jsonl", &old);
        let begun = || fs::metadata(place.path("out.jsonl.partial")).is_ok_and(|metadata| metadata.len() > 0);
        let output = signal(place.spawn(), name, begun);
        assert_eq!(output.status.code(), code, "{}", stderr(&output));
        let left = place.read("out.jsonl");
        assert!(left.ends_with(&last) && left.lines().count() == 72);
        assert_eq!(place.has_partial(), code.is_none());
        let n_done = match code {
            Some(_) => left.lines().filter(|line| line.contains("\"error\":null")).count() - 1,
            None => place.read("out.jsonl.partial").matches('\n').count(),
        };
        assert!(n_done > 0 && n_done < 71, "{n_done} lines were done before {name}");
        place.write("in.jsonl", &text_of(&short));
        let resumed = place.run(&[]);
        assert!(stderr(&resumed).contains(&format!("resuming: {} of 72 lines", n_done + 1)), "{}", stderr(&resumed));
        assert_eq!(resumed.status.code(), Some(0));
        let text = place.read("out.jsonl");
        assert!(timeless(&text) == timeless(&whole) && text.ends_with(&last) && !place.has_partial());
    }
}

/// The disk is full halfway, for new results and for those that are kept: what was there stays, and what was written
/// counts.
#[cfg(target_os = "linux")]
#[test]
fn a_failed_write_loses_nothing() {
    let lines = many(24, 60);
    let (whole, _) = Place::uninterrupted(&lines);
    let n_blocks = whole.len() / 2 / 512;
    let (failed_last, _) = all_failed_but_the_last(&whole);
    let failed = failed_last.lines().next().expect("a line");
    let one_failed = format!("{failed}\n{}", whole.split_once('\n').expect("lines").1);
    for (label, old) in [("new results", failed_last), ("kept results", one_failed)] {
        let place = Place::new(&lines);
        place.write("out.jsonl", &old);
        // Past the limit a write fails as on a full disk, where the signal for it is ignored.
        let script = format!("trap '' XFSZ; ulimit -f {n_blocks}; exec \"$0\" \"$@\"");
        let mut limited = unflagged("sh");
        limited.args(["-c", &script, env!("CARGO_BIN_EXE_proxytune")]).args(place.args(&[]));
        let output = limited.output().expect("sh is there");
        assert_eq!(output.status.code(), Some(6), "{label}: {}", stderr(&output));
        assert!(stderr(&output).contains("error: output file: "), "{label}: {}", stderr(&output));
        assert_eq!(place.read("out.jsonl"), old, "{label}");
        assert!(place.has_partial(), "{label}");
        let resumed = place.run(&[]);
        assert_eq!(resumed.status.code(), Some(0), "{label}: {}", stderr(&resumed));
        assert_eq!(timeless(&place.read("out.jsonl")), timeless(&whole), "{label}");
        assert!(!place.has_partial(), "{label}");
    }
}

#[test]
fn results_that_a_larger_n_leaves_out_are_told_of() {
    let line = |n: u32| [json!({ "id": "a", "prompt": QUESTION, "max_tokens": 2, "seed": 1, "n": n })];
    let place = Place::new(&line(1));
    assert_eq!(good(&place.run(&[])), "");
    place.write("in.jsonl", &text_of(&line(3)));
    let grown = place.run(&[]);
    assert_eq!(grown.status.code(), Some(0));
    let said = "ends with 1 of the 3 results of the request \"a\", which are left out\n";
    assert!(stderr(&grown).starts_with("warning: ") && stderr(&grown).ends_with(said), "{}", stderr(&grown));
    assert_eq!(timeless(&place.read("out.jsonl")), timeless(&Place::uninterrupted(&line(3)).0));
}
