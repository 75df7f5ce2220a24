//! The cache without the hub: offline, out of reach, and laid out by others.

use super::server::hash;
use super::{Desk, INDEX, NEEDED, WEIGHTS, golden, good, names, refused, sharded, text};
use serde_json::json;
use std::fs;
use std::path::Path;

const OFFLINE: [(&str, &str); 1] = [("HF_HUB_OFFLINE", "1")];
const BASE: [&str; 2] = ["--base", "tiny/base"];

#[test]
fn offline_needs_the_cache_alone() {
    let desk = Desk::new();
    let commit = desk.hub.publish("tiny/base", "main", golden("base"));
    refused(
        &desk.generate(&BASE, &OFFLINE),
        &["tiny/base at main: it is not in the cache ", "hf/hub; unset HF_HUB_OFFLINE to fetch what is missing"],
    );
    assert_eq!(desk.hub.log(), []);
    let online = desk.base();
    desk.hub.log();
    for variables in [OFFLINE[0], ("HF_HUB_OFFLINE", "true"), ("TRANSFORMERS_OFFLINE", "1")] {
        let offline = desk.generate(&BASE, &[variables]);
        assert_eq!((good(&offline), text(&offline.stderr)), (good(&online), ""));
    }
    good(&desk.generate(&["--base", "tiny/base", "--revision", &commit], &OFFLINE));
    refused(&desk.generate(&["--base", "tiny/base", "--revision", "v9"], &OFFLINE), &["tiny/base at v9: it is not"]);
    assert_eq!(desk.hub.log(), []);
}

#[test]
fn offline_names_what_is_missing() {
    let index = json!({ "weight_map": { "a": "1.safetensors", "b": "2.safetensors" } }).to_string();
    let cases: &[(&[&str], Option<&str>, &str)] = &[
        (&[WEIGHTS], None, "model.safetensors of commit"),
        (&["config.json", "tokenizer.json"], None, "config.json, tokenizer.json of commit"),
        (&[WEIGHTS], Some(&index), "1.safetensors, 2.safetensors of commit"),
    ];
    for (removed, index, part) in cases {
        let desk = Desk::new();
        let commit = desk.hub.publish("tiny/base", "main", golden("base"));
        good(&desk.base());
        let snapshot = desk.cached("base").join("snapshots").join(&commit);
        for file in *removed {
            fs::remove_file(snapshot.join(file)).expect("it is there");
        }
        if let Some(index) = index {
            fs::write(snapshot.join(INDEX), index).expect("written");
        }
        refused(&desk.generate(&BASE, &OFFLINE), &[part, "not in the cache"]);
    }
}

#[test]
fn out_of_reach_the_cache_is_used_with_a_word() {
    let desk = Desk::new();
    let nobody = [("HF_ENDPOINT", "http://127.0.0.1:9")];
    refused(&desk.generate(&BASE, &nobody), &["tiny/base at main: http://127.0.0.1:9: io: Connection refused"]);
    let online = desk.base();
    let output = desk.generate(&BASE, &nobody);
    assert_eq!(good(&output), good(&online));
    let said = text(&output.stderr);
    assert!(said.starts_with("warning: http://127.0.0.1:9: io: Connection refused"), "{said}");
    assert!(said.ends_with("; using tiny/base@0000000 from the cache\n"), "{said}");
    // A refusal is no lack of a network.
    desk.hub.plan("/api/", usize::MAX, super::server::Fault::Status(401, ""));
    refused(&desk.base(), &["HTTP 401"]);
}

/// `hf download tiny/base config.json tokenizer.json model.safetensors`: nobody asked for the small files.
#[test]
fn a_snapshot_that_may_be_short_is_asked_for() {
    let lacks = "using tiny/base@0000000 from the cache, which may lack generation_config.json, special_tokens_map.json, \
                 chat_template.jinja, chat_template.json\n";
    for (variables, start, end) in [
        (&[][..], "fetching tiny/base generation_config.json", " chat_template.jinja, 25 B\n"),
        (&OFFLINE, "warning: offline; using", lacks),
        (&[("HF_ENDPOINT", "http://127.0.0.1:9")], "warning: http://127.0.0.1:9: io: Connection refused", lacks),
    ] {
        let desk = Desk::new();
        let mut files = golden("base");
        files.insert("chat_template.jinja".into(), b"{{ messages[0].content }}".to_vec());
        let commit = desk.hub.publish("tiny/base", "main", files.clone());
        let whole = desk.base();
        let small = ["generation_config.json", "chat_template.jinja"];
        for file in small {
            fs::remove_file(desk.cached("base").join("snapshots").join(&commit).join(file)).expect("it is there");
            fs::remove_file(desk.cached("base").join("blobs").join(hash(file, &files[file]))).expect("it is there");
        }
        fs::remove_dir_all(desk.cached("base").join(".no_exist")).expect("it is there");
        desk.hub.log();
        let pinned = [&BASE[..], &["--revision", &commit]].concat();
        let output = desk.generate(&pinned, variables);
        let said = text(&output.stderr);
        assert_eq!(good(&output), good(&whole), "{variables:?}");
        assert!(said.starts_with(start) && said.ends_with(end), "{said}");
        if variables.is_empty() {
            assert_eq!(desk.hub.files_asked(), small);
            good(&desk.generate(&pinned, &[]));
        }
        assert_eq!(desk.hub.log(), [], "{variables:?}");
    }
}

/// What a process that was killed between two steps left behind.
#[cfg(unix)]
#[test]
fn leavings_are_in_nobodys_way() {
    let desk = Desk::new();
    let commit = desk.hub.publish("tiny/base", "main", golden("base"));
    let snapshot = desk.cached("base").join("snapshots").join(&commit);
    fs::create_dir_all(&snapshot).expect("made");
    std::os::unix::fs::symlink("nowhere", snapshot.join("config.json.tmp")).expect("linked");
    fs::write(desk.cached("base").join("ref.tmp"), "half").expect("written");
    good(&desk.base());
    let mut needed = NEEDED;
    needed.sort_unstable();
    assert_eq!(names(&snapshot), needed);
    assert_eq!(names(&desk.cached("base")), [".no_exist", "blobs", "refs", "snapshots"]);
}

#[test]
fn a_fetch_that_fails_leaves_the_old_commit() {
    let desk = Desk::new();
    let online = desk.base();
    desk.hub.publish("tiny/base", "main", golden("expert"));
    desk.hub.plan(WEIGHTS, usize::MAX, super::server::Fault::Status(404, ""));
    refused(&desk.base(), &["HTTP 404"]);
    assert_eq!(good(&desk.generate(&BASE, &OFFLINE)), good(&online));
}

#[test]
fn compat_shows_the_commit() {
    let desk = Desk::new();
    let output = desk.command(&["compat", "--base", "tiny/base"]).output().expect("it runs");
    assert!(good(&output).contains(" tiny/base@0000000 "), "{}", good(&output));
}

/// What huggingface_hub 2 makes of a file that several repositories share: a link out of the repository.
#[cfg(unix)]
#[test]
fn blobs_may_be_shared_by_the_whole_cache_only() {
    use std::os::unix::fs::symlink;
    for (store, is_good) in [("hf/hub/blobs/ab", true), ("elsewhere", false)] {
        let desk = Desk::new();
        let commit = "a".repeat(40);
        let repository = desk.cached("base");
        let snapshot = repository.join("snapshots").join(&commit);
        let store = desk.home.path().join(store);
        for directory in [&snapshot, &repository.join("refs"), &repository.join("blobs"), &store] {
            fs::create_dir_all(directory).expect("made");
        }
        fs::write(repository.join("refs/main"), &commit).expect("written");
        // Shards alone are held to the model's directory.
        for (name, bytes) in sharded("shard.safetensors") {
            let hash = hash(&name, &bytes);
            fs::write(store.join(&hash), bytes).expect("written");
            symlink(store.join(&hash), repository.join("blobs").join(&hash)).expect("linked");
            symlink(Path::new("../../blobs").join(&hash), snapshot.join(name)).expect("linked");
        }
        let output = desk.generate(&BASE, &OFFLINE);
        if is_good {
            good(&output);
        } else {
            refused(&output, &["shard.safetensors", "outside the model's directory"]);
        }
    }
}
