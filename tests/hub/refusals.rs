//! What cannot be had: who says so, about which file of which revision, and what to do. All before any weights.

use super::server::Fault;
use super::{Desk, INDEX, TOKEN, WEIGHTS, ended, golden, refused};
use proxytune::checkpoint::hub::Revision;
use serde_json::{Value, json};

#[test]
fn refusals_of_the_hub_say_what_to_do() {
    let cases: &[(&str, Fault, Option<&str>, &[&str])] = &[
        ("/api/", Fault::Status(401, ""), None, &["tiny/base at main: HTTP 401: no such repository", "set HF_TOKEN"]),
        ("/api/", Fault::Status(401, ""), Some(TOKEN), &["HTTP 401", "the token (HF_TOKEN, or the file of"]),
        ("/api/", Fault::Status(403, ""), Some(TOKEN), &["HTTP 403: access is refused", "the token (HF_TOKEN"]),
        ("/api/", Fault::Status(404, "RepoNotFound"), None, &["HTTP 404: no such repository, nor a directory"]),
        ("/api/", Fault::Status(404, "RevisionNotFound"), None, &["HTTP 404: the repository has no such branch"]),
        (
            "/config.json",
            Fault::Status(401, "GatedRepo"),
            None,
            &[
                "tiny/base at main, config.json: HTTP 401: a gated repository, ask for access at http://127.0.0.1:",
                "/tiny/base; set HF_TOKEN",
            ],
        ),
        ("/config.json", Fault::Status(403, "GatedRepo"), Some(TOKEN), &["HTTP 403: a gated", "is not one that may"]),
        ("/config.json", Fault::Status(404, "EntryNotFound"), None, &["config.json: HTTP 404", "has no such file"]),
        (WEIGHTS, Fault::Status(404, ""), None, &["model.safetensors: HTTP 404: the repository has no such file"]),
        (WEIGHTS, Fault::Status(416, ""), None, &["model.safetensors: HTTP 416: range not satisfiable"]),
        (WEIGHTS, Fault::Status(302, ""), None, &["HTTP 302: found"]),
        (WEIGHTS, Fault::Elsewhere("ftp://127.0.0.1".into()), None, &["redirected to no address that may be"]),
        (WEIGHTS, Fault::Elsewhere(String::new()), None, &["more than 10 redirects"]),
        ("/api/", Fault::Other(b"<html>".to_vec()), None, &["the answer is not a hub's listing: expected value"]),
        ("/api/", Fault::Listing(|l| l["sha"] = json!("../../x")), None, &["sha \"../../x\" is not a commit"]),
        ("/api/", Fault::Listing(|l| l["siblings"] = json!([])), None, &["config.json: the repository has no such"]),
        ("/api/", Fault::Listing(without_sizes), None, &["config.json: the hub's listing does not say its size"]),
        ("/api/", Fault::Listing(huge), None, &["config.json: 100000000000 bytes, the limit is 67108864"]),
        ("/api/", Fault::Listing(hash_is_path), None, &["config.json: the hub's listing does not say its size"]),
    ];
    for (part, fault, token, parts) in cases {
        let desk = Desk::new();
        desk.hub.plan(part, usize::MAX, fault.clone());
        let variables: Vec<_> = token.iter().map(|token| ("HF_TOKEN", *token)).collect();
        refused(&desk.generate(&["--base", "tiny/base"], &variables), parts);
    }
}

fn without_sizes(listing: &mut Value) {
    for file in listing["siblings"].as_array_mut().expect("a list") {
        *file = json!({ "rfilename": file["rfilename"] });
    }
}

fn huge(listing: &mut Value) {
    for file in listing["siblings"].as_array_mut().expect("a list") {
        file["size"] = json!(100_000_000_000u64);
    }
}

fn hash_is_path(listing: &mut Value) {
    for file in listing["siblings"].as_array_mut().expect("a list") {
        file["blobId"] = json!("../../../../../../../../../../../../tmp/x");
    }
}

#[test]
fn what_is_not_there_is_named() {
    let desk = Desk::new();
    refused(&desk.generate(&["--base", "tiny/none"], &[]), &["tiny/none at main: HTTP 404: no such repository"]);
    let args = ["--base", "tiny/base", "--revision", "no/such"];
    refused(&desk.generate(&args, &[]), &["tiny/base at no/such: HTTP 404"]);
    let args = ["--base", "tiny/base", "--expert", "tiny/none"];
    refused(&desk.generate(&args, &[]), &["tiny/none at main"]);
}

/// tiny/base as `change` makes it, which must be refused before the weights are asked for.
fn refused_early(change: impl Fn(&mut super::Files), parts: &[&str]) {
    let desk = Desk::new();
    let mut files = golden("base");
    change(&mut files);
    desk.hub.publish("tiny/base", "main", files);
    refused(&desk.base(), parts);
    let asked = desk.hub.files_asked();
    assert!(asked.iter().all(|file| file.ends_with(".json")), "{parts:?}: {asked:?}");
}

fn without_weights(files: &mut super::Files, instead: &str, bytes: &[u8]) {
    files.remove(WEIGHTS);
    files.insert(instead.into(), bytes.to_vec());
}

#[test]
fn what_cannot_be_run_is_refused_before_the_weights() {
    refused_early(
        |files| _ = files.insert("config.json".into(), br#"{"model_type":"mamba"}"#.to_vec()),
        &["snapshots", "config.json", "mamba"],
    );
    refused_early(|files| _ = files.remove("config.json"), &["tiny/base at main, config.json: the repository has no"]);
    refused_early(|files| _ = files.remove("tokenizer.json"), &["tokenizer.json: the repository has no such file"]);
    refused_early(|files| without_weights(files, "pytorch_model.bin", b"x"), &["tiny/base at main: holds", "pickled"]);
    refused_early(|files| without_weights(files, "q4.gguf", b"x"), &["\"q4.gguf\": GGUF is not read"]);
    refused_early(|files| _ = files.remove(WEIGHTS), &["has neither model.safetensors nor model.safetensors.index"]);
}

#[test]
fn an_index_leads_nowhere_else() {
    for name in ["../x", "/etc/passwd", "a/b", "..", "C:x", "a\\b"] {
        let index = json!({ "weight_map": { "model.norm.weight": name } }).to_string();
        refused_early(
            |files| without_weights(files, INDEX, index.as_bytes()),
            &[INDEX, "names the shard", "not a plain file name"],
        );
    }
    for name in ["pytorch_model.bin", "modeling_x.py", "x.safetensors.bin", "config.json"] {
        let index = json!({ "weight_map": { "model.norm.weight": name } }).to_string();
        refused_early(
            |files| {
                without_weights(files, INDEX, index.as_bytes());
                files.entry(name.into()).or_insert_with(|| b"never".to_vec());
            },
            &[INDEX, &format!("names the shard {name:?}, which is not a safetensors file")],
        );
    }
    let index = json!({ "weight_map": { "model.norm.weight": "absent.safetensors" } }).to_string();
    refused_early(
        |files| without_weights(files, INDEX, index.as_bytes()),
        &["tiny/base at main, absent.safetensors: the repository has no such file"],
    );
}

#[test]
fn bad_ids_ask_nobody() {
    let long = format!("tiny/{}", "x".repeat(100));
    for (named, part) in [
        ("a/b/c", "no such directory, and no model id of the hub: that is org/name, with one slash"),
        ("gpt2", "with one slash"),
        ("tiny/", "a letter, a digit or _"),
        ("tiny/base/", "with one slash"),
        ("tiny/ba se", "' ' is not in [A-Za-z0-9._-]"),
        ("tiny/b\u{e4}se", "'\u{e4}' is not in [A-Za-z0-9._-]"),
        ("tiny/base@v1", "'@' is not in"),
        ("tiny/-base", "begin and end with"),
        ("tiny/base.", "begin and end with"),
        ("tiny/b--e", "it has no --"),
        ("tiny/b..e", "it has no --, no .."),
        ("tiny/base.git", "no .git"),
        (&long, "105 characters, the limit is 96"),
        ("../no-such-model", "No such file or directory"),
        ("./tiny/base", "No such file or directory"),
        ("/tiny/base", "No such file or directory"),
        ("~/base", "No such file or directory"),
    ] {
        let desk = Desk::new();
        refused(&desk.generate(&["--base", named], &[]), &[named.trim_end_matches('/'), part]);
        assert_eq!(desk.hub.log(), [], "{named}");
    }
}

/// The type alone gets into paths and addresses.
#[test]
fn a_revision_leads_nowhere_else() {
    for good in ["main", "v1.0", "refs/pr/1", "feature/a_b-c", "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"] {
        assert_eq!(Revision::parse(good).map(|revision| revision.to_string()).as_deref(), Ok(good));
    }
    let long = "x".repeat(256);
    for bad in
        ["", "/", "..", "../x", "x/../y", "x/..", "/etc", "x//y", ".x", "x.", "C:x", "a\\b", "a b", "a\0b", &long]
    {
        assert_eq!(Revision::parse(bad), Err(format!("{bad:?} is not a branch, a tag or a commit")));
    }
}

#[test]
fn wrong_use_is_refused_by_name() {
    let desk = Desk::new();
    let here = desk.home.path().to_str().expect("UTF-8");
    let id = ["--base", "tiny/base"];
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: &[Case] = &[
        (&["--revision", "../x"], &[], "revision: \"../x\" is not a branch, a tag or a commit"),
        (&["--base-revision", "a b"], &[], "base_revision: \"a b\""),
        (&["--revision", ""], &[], "revision: \"\""),
        (&["--revision", "/v1"], &[], "revision"),
        (&["--expert-revision", "v1"], &[], "expert_revision: has no effect"),
        (&["--anti-expert", here, "--anti-expert-revision", "v1"], &[], "anti_expert_revision: has no effect"),
        (&["--base-revision", "main", "--revision", "v1"], &[], "revision: has no effect"),
        (&[], &[("HF_ENDPOINT", "huggingface.co")], "HF_ENDPOINT: \"huggingface.co\" does not begin with https://"),
        (&[], &[("HF_ENDPOINT", "http://")], "HF_ENDPOINT"),
        // The token here is a password there: no run may print it.
        (&[], &[("HF_ENDPOINT", "https://user:hf_thisIsNobodysToken@mirror")], "HF_ENDPOINT: holds an @"),
        (&[], &[("HF_ENDPOINT", "user:hf_thisIsNobodysToken@mirror")], "HF_ENDPOINT: holds an @"),
        (&[], &[("HF_HUB_DOWNLOAD_TIMEOUT", "0")], "HF_HUB_DOWNLOAD_TIMEOUT: \"0\" is not a number of seconds"),
        (&[], &[("HF_HUB_DOWNLOAD_TIMEOUT", "soon")], "HF_HUB_DOWNLOAD_TIMEOUT: \"soon\""),
        (&[], &[("HF_TOKEN", "hf_thisIsNobodysToken\u{7}")], "HF_TOKEN: holds characters that no token has"),
    ];
    for (args, variables, part) in cases {
        ended(&desk.generate(&[&id, *args].concat(), variables), 2, &[part]);
    }
    let demo = ["generate", "--demo", "-p", "a", "--revision", "v1"];
    ended(&desk.command(&demo).output().expect("it runs"), 2, &["--revision"]);
}
