//! Weights in several files: what the index may name, and what the files must hold.

use super::model::{ModelDir, Tensor as T, safetensors, tensors};
use super::{Expect, case, open, refuse};
use Expect::{Field, File, Tensor};
use serde_json::json;

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const EMBEDDING: &str = "model.embed_tokens.weight";

fn sharded() -> ModelDir {
    let model = ModelDir::llama();
    model.shard(&tensors(false));
    model
}

/// A shard that is replaced while it is open is read as it was; one that is cut is an error.
// row 15
#[test]
fn a_shard_that_changes_after_it_was_opened() {
    let model = sharded();
    let checkpoint = open(&model).expect("a right model");
    let before = checkpoint.read(EMBEDDING).expect("readable");
    std::fs::rename(model.file(SECOND), model.file("moved")).expect("it can be moved");
    model.write(SECOND, vec![0xFF; 1_000_000]);
    assert_eq!(checkpoint.read(EMBEDDING).expect("readable"), before);
    let last = "model.layers.0.mlp.down_proj.weight";
    checkpoint.read(last).expect("the open file is the one that was moved");
    model.write("moved", b"");
    let error = checkpoint.read(last).expect_err("its bytes are gone");
    let said = error.to_string();
    assert!(said.contains(SECOND) && said.contains("the file ends early") && error.exit_code() == 3, "{said}");
}

/// A sharded model that `change` breaks.
fn broken(label: &'static str, change: impl Fn(&ModelDir) + 'static, expect: Expect) -> super::Case {
    let breakage = move |model: &ModelDir| {
        model.shard(&tensors(false));
        change(model);
    };
    case(label, breakage, expect)
}

/// The index says that the embedding is in `file`.
fn names(label: &'static str, file: &'static str, part: &'static str) -> super::Case {
    let change = move |model: &ModelDir| model.edit(INDEX, |index| index["weight_map"][EMBEDDING] = json!(file));
    broken(label, change, File(INDEX, part))
}

#[test]
fn shards_are_the_model_in_one_file() {
    let (single, sharded) =
        (open(&ModelDir::llama()).expect("a right model"), open(&sharded()).expect("a right model"));
    assert_eq!(single.tensors().count(), sharded.tensors().count());
    for (name, info) in single.tensors() {
        assert_eq!(info.shape, sharded.tensor(name).expect("it is in a shard").shape);
        assert_eq!(single.read(name).expect("readable"), sharded.read(name).expect("readable"), "{name}");
    }
}

#[test]
fn one_file_goes_before_the_index() {
    let model = sharded();
    model.set_tensors(&tensors(false));
    model.write(INDEX, b"not even JSON");
    open(&model).expect("as transformers, model.safetensors is taken");
}

// row 14
#[test]
fn names_in_the_index() {
    let mut cases = vec![
        names(
            "absent",
            "model-00003-of-00002.safetensors",
            "names the shard \"model-00003-of-00002.safetensors\", which is not there",
        ),
        names("no name", "", "not a plain file name"),
        names("longer than any name", Box::leak("a".repeat(100_000).into_boxed_str()), "which is not there"),
    ];
    for path in ["../x", "..", ".", "/etc/passwd", "sub/x", "./x", "x/", "C:\\x", "\\\\host\\x", "a\\b", "c:x", "a\0b"]
    {
        cases.push(names(path, path, "which is not a plain file name"));
    }
    refuse(cases, open);
}

// row 14
#[test]
fn an_index_of_the_wrong_form() {
    let text =
        |label, text: &'static str, part| broken(label, move |model| model.write(INDEX, text), File(INDEX, part));
    let absent = |file: &'static str| move |model: &ModelDir| model.remove(file);
    refuse(
        vec![
            text("empty", "", "EOF while parsing"),
            text("no map", "{}", "missing field `weight_map`"),
            text("a list", r#"{"weight_map":["x"]}"#, "expected an object of strings"),
            text("a number", r#"{"weight_map":{"t":1}}"#, "invalid type: integer `1`, expected a string"),
            text("a tensor twice", r#"{"weight_map":{"t":"a","t":"b"}}"#, "\"t\" stands twice"),
            text("two maps", r#"{"weight_map":{},"weight_map":{}}"#, "duplicate field `weight_map`"),
            broken("no tensor at all", |m| m.write(INDEX, r#"{"weight_map":{}}"#), Tensor("", EMBEDDING, "missing")),
            broken("a lost shard", absent(SECOND), File(INDEX, "which is not there")),
            broken("an empty shard", |m| m.write(SECOND, b""), File(SECOND, "too short")),
            broken(
                "in the other shard",
                |m| m.edit(INDEX, |index| index["weight_map"][EMBEDDING] = json!(SECOND)),
                Tensor(
                    INDEX,
                    EMBEDDING,
                    "is not in the shard \"model-00002-of-00002.safetensors\" that the index names",
                ),
            ),
            broken(
                "in no shard",
                |m| m.edit(INDEX, |index| index["weight_map"]["no.such"] = json!(FIRST)),
                Tensor(INDEX, "no.such", "is not in the shard"),
            ),
            broken(
                "in both shards",
                |m| {
                    let mut list = tensors(false);
                    let half = list.len() / 2;
                    list.drain(1..half);
                    m.write(SECOND, safetensors(&list));
                },
                Tensor(SECOND, EMBEDDING, "as well"),
            ),
            broken(
                "a configuration for one more layer",
                |m| m.set("config.json", "/hidden_size", json!(0)),
                Field("config.json", "hidden_size", "from 1"),
            ),
        ],
        open,
    );
}

#[test]
fn tensors_that_the_index_forgets_are_still_the_models() {
    let model = sharded();
    model.edit(INDEX, |index| {
        index["weight_map"].as_object_mut().expect("an object").shift_remove(EMBEDDING);
    });
    open(&model).expect("as in transformers, what a shard holds counts");
    let mut list: Vec<T> = tensors(false);
    list.drain(..list.len() / 2);
    list.push(T::f32("stray", &[1]));
    model.write(SECOND, safetensors(&list));
    let error = open(&model).expect_err("a stray tensor");
    Tensor("", "stray", "config.json does not ask for it").check(model.path(), &error).expect("the error of the test");
}

// row 14
#[cfg(unix)]
#[test]
fn links_stay_inside_the_model_or_its_hub_cache() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().expect("a directory");
    let stolen = outside.path().join("stolen");
    let model = sharded();
    std::fs::rename(model.file(FIRST), &stolen).expect("it can be moved");
    symlink(&stolen, model.file(FIRST)).expect("a link");
    let error = open(&model).expect_err("a link out of the directory");
    File(FIRST, "outside the model's directory").check(model.path(), &error).expect("the error of the test");

    for (target, part) in [
        ("/dev/zero", "outside the model's directory"),
        ("../stolen", "which is not there"),
        (FIRST, "which is not there"),
        (".", "not a regular file"),
    ] {
        std::fs::remove_file(model.file(FIRST)).expect("a link");
        symlink(target, model.file(FIRST)).expect("a link");
        let said = open(&model).expect_err(target).to_string();
        assert!(said.contains(part), "{target}: {said}");
    }

    // The hub's cache: snapshots/REVISION/FILE links to blobs/HASH.
    let hub = tempfile::tempdir().expect("a directory");
    let (snapshot, blobs) = (hub.path().join("snapshots/abc"), hub.path().join("blobs"));
    std::fs::create_dir_all(&snapshot).expect("a directory");
    std::fs::create_dir(&blobs).expect("a directory");
    let model = sharded();
    for entry in std::fs::read_dir(model.path()).expect("the model is there") {
        let name = entry.expect("a file").file_name();
        std::fs::copy(model.path().join(&name), blobs.join(&name)).expect("it can be copied");
        symlink(blobs.join(&name), snapshot.join(&name)).expect("a link");
    }
    proxytune::checkpoint::Checkpoint::open(proxytune::checkpoint::Source::directory(&snapshot)).expect("a hub cache");
}
