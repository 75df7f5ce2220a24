//! The programs in examples/, which `cargo test` builds beside the tests: they run, and print what the demo's models say.

use std::fs;
use std::path::Path;
use std::process::Command;

fn run(name: &str) -> String {
    let tests = std::env::current_exe().expect("a path");
    let built = tests.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("examples").join(name);
    refuse_stale(&built);
    let output = Command::new(&built).output().expect("an example starts");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// `cargo test --test examples` alone leaves the examples as they were, which may be long ago. Cargo goes by the same
/// times; it is not called, because its variables in a test's environment make it build everything anew.
fn refuse_stale(built: &Path) {
    let advice = "`cargo build --release --examples` makes it";
    let time = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    let made = time(built).unwrap_or_else(|error| panic!("{built:?}: {error}; {advice}"));
    let list = fs::read_to_string(built.with_extension("d")).expect("cargo lists the sources beside it");
    let (_, sources) = list.split_once(": ").expect("PROGRAM: SOURCES");
    for source in sources.trim_end().replace("\\ ", "\0").split(' ').map(|source| source.replace('\0', " ")) {
        let fresh = time(Path::new(&source)).is_ok_and(|changed| changed <= made);
        assert!(fresh, "{built:?} is older than {source}; {advice}");
    }
}

#[test]
fn generate_prints_one_text() {
    assert_eq!(run("generate"), " Tilda Thorn was born in Torun.\n[stop]\n");
}

#[test]
fn many_prints_nine_texts_in_order() {
    let printed = run("many");
    let lines: Vec<&str> = printed.lines().collect();
    let answers = [
        "alpha 1: Where was Tilda Thorn born? Tilda Thorn was born in Torun.",
        "alpha 1: What is the trade of Tilda Olsen? Tilda Olsen works as a surveyor.",
        "alpha 1: Which instrument does Kurt Pires play? Kurt Pires plays the cello.",
    ];
    assert_eq!((lines.len(), [lines[2], lines[5], lines[8]]), (9, answers));
    assert!(lines[0].starts_with("alpha 0: Where was Tilda Thorn born? In Torun."), "{printed}");
}

#[test]
fn record_prints_a_line_per_token() {
    let printed = run("record");
    let first_words: Vec<&str> = printed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(first_words[..4], ["token", "Tilda", "Thorn", "was"], "{printed}");
}
