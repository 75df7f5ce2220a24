//! `demo`.

use super::{ANSWER, QUESTION, Saved, good, objects, run, stderr, stdout};
use serde_json::json;
use std::fs;
use std::path::Path;

#[test]
fn the_demo_shows_and_counts() {
    let output = run(&["demo", "--backend", "cpu"]);
    let shown = good(&output);
    assert!(shown.contains("[Tilda] Thorn [was] born in Torun. [end]"), "{shown}");
    assert!(!shown.contains('\x1b'), "no colour in a pipe");
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    let report = objects(good(&run(&["demo", "--backend", "cpu", "--json"]))).remove(0);
    // The shares that transformers gave, in demo/README.md.
    assert_eq!(report["accuracy"], json!({ "base": 0.0, "expert": 0.19, "proxy": 0.95, "target": 1.0 }));
    assert_eq!(report["form"], json!({ "base": 0.0, "expert": 1.0, "proxy": 1.0, "target": 1.0 }));
    assert_eq!(report["gap_closed"], 0.95);
    assert_eq!(report["questions"].as_array().map(Vec::len), Some(200));
    for row in ["proxy-tuned            95.0 %   100.0 %", "gap closed               95.0 %"] {
        assert!(shown.contains(row), "{row} in {shown}");
    }
}

#[test]
fn the_demo_takes_a_question_and_alpha() {
    let own = |alpha: &str| {
        let output = run(&["demo", QUESTION, "--alpha", alpha, "--json", "--backend", "cpu"]);
        objects(good(&output)).remove(0)["answers"].clone()
    };
    assert_eq!(own("1")["proxy"], ANSWER);
    let base = own("0");
    assert_eq!(base["proxy"], base["base"]);
    assert_ne!(own("-1")["proxy"], base["base"]);
    let shown = run(&["demo", QUESTION, "--backend", "cpu"]);
    assert!(good(&shown).starts_with(QUESTION) && good(&shown).contains("[Tilda] Thorn"), "{}", stdout(&shown));
}

#[test]
fn saved_models_are_the_demos_and_are_not_written_over() {
    let saved = Saved::new();
    let [base, expert, anti] = saved.paths();
    let output =
        run(&["generate", "--base", &base, "--expert", &expert, "--anti-expert", &anti, "--chat", "-p", QUESTION]);
    assert_eq!(good(&output), format!("{ANSWER}\n"));
    good(&run(&["demo", "--save", &saved.path("")]));
    fs::write(saved.path("expert/config.json"), "{}").expect("written");
    fs::remove_file(saved.path("base/config.json")).expect("removed");
    let refused = run(&["demo", "--save", &saved.path("")]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("config.json") && stderr(&refused).contains("differs"), "{}", stderr(&refused));
    assert!(!Path::new(&saved.path("base/config.json")).exists(), "nothing is written where one file is refused");
}
