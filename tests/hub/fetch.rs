//! When all goes well: the same text as from directories, nothing fetched that is not needed, nothing twice, and the
//! token for the hub alone.

use super::server::{Fault, Server};
use super::{Desk, INDEX, NEEDED, TOKEN, WEIGHTS, golden, golden_path, good, names, sharded, text, weights};
use std::fs;
use std::path::Path;

const TRIO: [&str; 6] = ["--base", "tiny/base", "--expert", "tiny/expert", "--anti-expert", "tiny/anti"];

#[test]
fn ids_give_the_text_of_directories() {
    let desk = Desk::new();
    let path = |role: &str| golden_path(role).display().to_string();
    let paths = ["base", "expert", "anti-expert"].map(path);
    let directories = ["--base", &paths[0], "--expert", &paths[1], "--anti-expert", &paths[2]];
    let expected = desk.generate(&directories, &[]);
    let fetched = desk.generate(&TRIO, &[]);
    assert_eq!(good(&fetched), good(&expected));
    let said = text(&fetched.stderr);
    assert!(said.contains("fetching tiny/base model.safetensors, 324.27 kB\n"), "{said}");
    assert_eq!(said.lines().count(), 3 * NEEDED.len(), "{said}");
    let asked = desk.hub.log();
    assert_eq!(asked.len(), 3 * (1 + NEEDED.len()));

    // What was compressed on the way would not have the listing's length.
    assert!(asked.iter().all(|asked| asked.encoding.as_deref() == Some("identity")), "{asked:?}");

    let again = desk.generate(&TRIO, &[]);
    assert_eq!((good(&again), text(&again.stderr)), (good(&expected), ""));
    assert!(desk.hub.log().iter().all(|asked| asked.path.ends_with("/revision/main?blobs=true")));
}

#[test]
fn the_layout_is_the_standard_one() {
    let desk = Desk::new();
    let commit = desk.hub.publish("tiny/base", "main", golden("base"));
    good(&desk.base());
    let repository = desk.cached("base");
    assert_eq!(fs::read_to_string(repository.join("refs/main")).expect("a ref"), commit);
    assert_eq!(names(&repository.join("snapshots")), std::slice::from_ref(&commit));
    let absent = ["chat_template.jinja", "chat_template.json", "special_tokens_map.json"];
    assert_eq!(names(&repository.join(".no_exist").join(&commit)), absent);
    let mut hashes = Vec::new();
    for (name, bytes) in golden("base") {
        let file = repository.join("snapshots").join(&commit).join(&name);
        let hash = super::server::hash(&name, &bytes);
        #[cfg(unix)]
        assert_eq!(fs::read_link(&file).expect("a link"), Path::new("../../blobs").join(&hash));
        assert_eq!(fs::read(&file).expect("readable"), bytes);
        hashes.push(hash);
    }
    hashes.sort();
    assert_eq!(desk.blobs(), hashes);
}

#[test]
fn only_what_an_engine_needs_is_fetched() {
    let desk = Desk::new();
    let mut files = golden("base");
    for other in ["pytorch_model.bin", "modeling_tiny.py", "README.md", "model.gguf", "consolidated.safetensors"] {
        files.insert(other.into(), b"never".to_vec());
    }
    files.insert("chat_template.jinja".into(), b"{{ messages[0].content }}".to_vec());
    desk.hub.publish("tiny/base", "main", files);
    good(&desk.base());
    let mut asked = desk.hub.files_asked();
    let mut expected = NEEDED.map(str::to_string).to_vec();
    expected.push("chat_template.jinja".into());
    asked.sort();
    expected.sort();
    assert_eq!(asked, expected);
}

#[test]
fn shards_come_with_their_index() {
    let desk = Desk::new();
    let expected = desk.base();
    // A name that has to be escaped in an address.
    desk.hub.publish("tiny/base", "main", sharded("all of it.safetensors"));
    desk.hub.log();
    assert_eq!(good(&desk.base()), good(&expected));
    // The bytes are the same as in one file: the blob is there.
    assert_eq!(desk.hub.files_asked(), [INDEX]);
    fs::remove_dir_all(desk.hf_home()).expect("it is there");
    assert_eq!(good(&desk.base()), good(&expected));
    assert_eq!(desk.hub.files_asked().last().expect("files"), "all%20of%20it.safetensors");
}

#[test]
fn a_moved_branch_brings_what_changed() {
    let desk = Desk::new();
    let old = desk.hub.publish("tiny/base", "main", golden("base"));
    let before = desk.base();
    desk.hub.publish("tiny/base", "main", golden("expert"));
    desk.hub.log();
    let after = desk.base();
    assert_ne!(good(&before), good(&after));
    // The other files are the same, and linked.
    assert_eq!(desk.hub.files_asked(), ["config.json", WEIGHTS]);
    // A commit never moves: nobody is asked.
    let pinned = desk.generate(&["--base", "tiny/base", "--revision", &old], &[]);
    assert_eq!((good(&pinned), desk.hub.log().len()), (good(&before), 0));
}

#[test]
fn every_role_has_its_revision() {
    let desk = Desk::new();
    for (revision, role) in [("refs/pr/1", "base"), ("v1", "expert"), ("v2", "anti-expert")] {
        desk.hub.publish("tiny/all", revision, golden(role));
    }
    let expected = desk.generate(&TRIO, &[]);
    let ids = ["--base", "tiny/all", "--expert", "tiny/all", "--anti-expert", "tiny/all"];
    for revisions in [
        ["--base-revision", "refs/pr/1", "--expert-revision", "v1", "--anti-expert-revision", "v2"],
        ["--revision", "v2", "--base-revision", "refs/pr/1", "--expert-revision", "v1"],
    ] {
        let output = desk.generate(&[&ids[..], &revisions[..]].concat(), &[]);
        assert_eq!(good(&output), good(&expected), "{revisions:?}");
    }
    assert_eq!(names(&desk.cached("all").join("refs")), ["refs", "v1", "v2"]);
}

#[test]
fn a_model_of_two_roles_is_looked_up_once() {
    let desk = Desk::new();
    good(&desk.generate(&["--base", "tiny/base", "--expert", "tiny/expert", "--anti-expert", "tiny/expert"], &[]));
    let listings = desk.hub.log().into_iter().filter(|asked| asked.path.starts_with("/api/"));
    assert_eq!(listings.count(), 2);
}

#[test]
fn a_bench_looks_its_models_up_once() {
    let desk = Desk::new();
    let models = ["--base", "tiny/base", "--expert", "tiny/expert", "--anti-expert", "tiny/anti"];
    let bench = ["bench", "--backend", "cpu", "--setting", "2,2", "--runs", "1"];
    good(&desk.command(&[&bench[..], &models].concat()).output().expect("the binary runs"));
    let listings = desk.hub.log().into_iter().filter(|asked| asked.path.starts_with("/api/"));
    assert_eq!(listings.count(), 3);
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let desk = Desk::new();
    let cdn = Server::start();
    // Commits are numbered alike on both.
    cdn.publish("tiny/base", "main", golden("base"));
    desk.hub.plan(WEIGHTS, 1, Fault::Elsewhere(cdn.endpoint()));
    // The same host, written as the hub does it for small files: the token goes along.
    desk.hub.plan("tokenizer.json", 1, Fault::Elsewhere(String::new()));
    good(&desk.generate(&["--base", "tiny/base"], &[("HF_TOKEN", TOKEN)]));
    let shown = Some(format!("Bearer {TOKEN}"));
    let log = desk.hub.log();
    assert_eq!(log.iter().filter(|asked| asked.file() == "tokenizer.json").count(), 2);
    assert!(log.iter().all(|asked| asked.authorization == shown), "{log:?}");
    let log = cdn.log();
    assert_eq!(log.iter().map(|asked| (asked.file(), &asked.authorization)).collect::<Vec<_>>(), [(WEIGHTS, &None)]);
}

#[test]
fn a_token_comes_from_the_variable_or_the_file() {
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    for (file, variables, expected) in [
        (None, &[][..], None),
        (Some("hf_ofTheFile\n"), &[], bearer("hf_ofTheFile")),
        (Some("hf_ofTheFile\n"), &[("HF_TOKEN", TOKEN)], bearer(TOKEN)),
        (Some("hf_ofTheFile\n"), &[("HF_TOKEN", "")], bearer("hf_ofTheFile")),
        (None, &[("HUGGING_FACE_HUB_TOKEN", TOKEN)], bearer(TOKEN)),
        (None, &[("HF_TOKEN", TOKEN), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None),
        (Some(" \n"), &[], None),
        (Some("hf_ofTheFile\n"), &[("HF_TOKEN_PATH", "another")], bearer("hf_ofAnother")),
    ] {
        let desk = Desk::new();
        if let Some(token) = file {
            fs::create_dir_all(desk.hf_home()).expect("made");
            fs::write(desk.hf_home().join("token"), token).expect("written");
            // Relative to where the binary runs.
            fs::write(desk.home.path().join("another"), "hf_ofAnother").expect("written");
        }
        good(&desk.generate(&["--base", "tiny/base"], variables));
        assert!(desk.hub.log().iter().all(|asked| asked.authorization == expected), "{file:?} {variables:?}");
    }
}

#[test]
fn the_cache_is_where_the_variables_say() {
    let desk = Desk::new();
    let home = desk.home.path().to_str().expect("UTF-8");
    let (one, two) = (format!("{home}/one"), format!("{home}/two"));
    for (variables, cache) in [
        (&[("HF_HUB_CACHE", one.as_str())][..], one.clone()),
        (&[("HF_HUB_CACHE", "~/three")], format!("{home}/three")),
        (&[("HF_HOME", &two)], format!("{two}/hub")),
        (&[("HF_HOME", ""), ("XDG_CACHE_HOME", &two)], format!("{two}/huggingface/hub")),
        (&[("HF_HOME", ""), ("XDG_CACHE_HOME", "")], format!("{home}/.cache/huggingface/hub")),
    ] {
        good(&desk.generate(&["--base", "tiny/base"], variables));
        assert!(Path::new(&cache).join("models--tiny--base/refs/main").is_file(), "{variables:?}");
    }
}

#[test]
fn two_at_once_fetch_once() {
    let desk = Desk::new();
    let args = ["generate", "--backend", "cpu", "-p", "abc", "-n", "2", "--base", "tiny/base"];
    let spawn = || {
        let mut command = desk.command(&args);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().expect("the binary runs")
    };
    let both = [spawn(), spawn()].map(|child| child.wait_with_output().expect("it ends"));
    assert_eq!(good(&both[0]), good(&both[1]));
    let mut asked = desk.hub.files_asked();
    asked.sort();
    let mut expected = NEEDED;
    expected.sort_unstable();
    assert_eq!(asked, expected);
}

/// util-linux's `script` plays the terminal.
#[cfg(target_os = "linux")]
#[test]
fn a_bar_is_for_terminals() {
    let desk = Desk::new();
    let line = format!("{} generate --backend cpu -p abc -n 2 --base tiny/base", env!("CARGO_BIN_EXE_proxytune"));
    let mut command = desk.command(&[]);
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).stdin(std::process::Stdio::null());
    script.current_dir(desk.home.path()).env("TERM", "xterm");
    for (name, value) in command.env("NO_COLOR", "1").get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let output = script.output().expect("script is part of every Debian");
    let shown = good(&output);
    assert!(shown.contains("fetching tiny/base model.safetensors, 324.27 kB\r\n"), "{shown:?}");
    assert!(shown.contains(" kB of 324.27 kB, "), "{shown:?}");
    assert!(!shown.contains("\x1b[3"), "colours: {shown:?}");
}

#[test]
fn a_path_goes_before_an_id() {
    let desk = Desk::new();
    let here = desk.home.path().join("tiny/base");
    fs::create_dir_all(&here).expect("made");
    for (name, bytes) in golden("base") {
        fs::write(here.join(name), bytes).expect("written");
    }
    good(&desk.base());
    good(&desk.generate(&["--base", "./tiny/base"], &[]));
    assert_eq!(desk.hub.log(), []);
    assert_eq!(weights(), fs::read(here.join(WEIGHTS)).expect("still there"));
}
