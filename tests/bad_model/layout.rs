//! Tensors against the configuration, and directories that hold something else than safetensors.

use super::model::{ModelDir, Tensor as T, tensors};
use super::{Case, Expect, case, open, refuse};
use Expect::{File, Tensor};
use proxytune::Error;
use proxytune::checkpoint::{Checkpoint, Dtype, Source};
use std::fs;

fn changed(label: &'static str, change: impl Fn(&mut Vec<T>) + 'static, expect: Expect) -> Case {
    let breakage = move |model: &ModelDir| {
        let mut list = tensors(false);
        change(&mut list);
        model.set_tensors(&list);
    };
    case(label, breakage, expect)
}

fn named<'a>(list: &'a mut [T], end: &str) -> &'a mut T {
    list.iter_mut().find(|tensor| tensor.name.ends_with(end)).expect("the model has it")
}

// rows 11, 12, 29
#[test]
fn tensors_against_the_configuration() {
    const Q: &str = "model.layers.0.self_attn.q_proj.weight";
    const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
    let retyped = |dtype: &'static str, bytes_per_element: usize| {
        move |list: &mut Vec<T>| {
            let tensor = named(list, "q_proj.weight");
            tensor.dtype = dtype;
            tensor.bytes = vec![0; 16 * 16 * bytes_per_element];
        }
    };
    refuse(
        vec![
            changed("missing", |list| list.retain(|t| t.name != Q), Tensor("", Q, "missing, shape [16, 16] is needed")),
            changed(
                "extra",
                |list| list.push(T::f32("model.layers.1.mlp.up_proj.weight", &[24, 16])),
                Tensor("", "model.layers.1.mlp.up_proj.weight", "config.json does not ask for it"),
            ),
            changed(
                "a bias that is not asked for",
                |list| list.push(T::f32("model.layers.0.self_attn.q_proj.bias", &[16])),
                Tensor("", "model.layers.0.self_attn.q_proj.bias", "config.json does not ask for it"),
            ),
            changed(
                "transposed",
                |list| named(list, "down_proj.weight").shape = vec![24, 16],
                Tensor("", DOWN, "shape [24, 16], config.json asks for [16, 24]"),
            ),
            changed(
                "flattened",
                |list| named(list, "down_proj.weight").shape = vec![384],
                Tensor("", DOWN, "shape [384]"),
            ),
            case(
                "another architecture",
                |model| model.set_tensors(&tensors(true)),
                Tensor("", "lm_head.weight", "missing"),
            ),
            changed(
                "F8",
                retyped("F8_E4M3", 1),
                Tensor("model.safetensors", Q, "dtype F8_E4M3 is not supported; accepted are"),
            ),
            changed("I64", retyped("I64", 8), Tensor("model.safetensors", Q, "dtype I64 is not supported")),
            changed("F64", retyped("F64", 8), Tensor("model.safetensors", Q, "dtype F64 is not supported")),
            changed("U8", retyped("U8", 1), Tensor("model.safetensors", Q, "dtype U8 is not supported")),
            case(
                "more layers than there are",
                |model| model.set("config.json", "/num_hidden_layers", 3.into()),
                // 18 tensors are missing; ten are listed.
                Tensor("", "model.layers.1.input_layernorm.weight", "\n  and 8 more"),
            ),
        ],
        open,
    );
}

#[test]
fn no_control_character_of_a_name_reaches_the_message() {
    let model = ModelDir::llama();
    let mut list = tensors(false);
    list.push(T::f32("x\u{1b}[2J\nerror: all is well", &[1]));
    model.set_tensors(&list);
    let text = open(&model).expect_err("an extra tensor").to_string();
    assert!(!text.contains(['\n', '\u{1b}']), "{text:?}");
    assert!(text.contains("x\\u{1b}[2J\\nerror"), "{text:?}");
}

#[test]
fn tensors_that_change_nothing_are_read_past() {
    let model = ModelDir::qwen2();
    let mut list = tensors(true);
    list.push(T::f32("lm_head.weight", &[272, 16]));
    list.push(T::f32("model.layers.0.self_attn.rotary_emb.inv_freq", &[4]));
    model.set_tensors(&list);
    let head_is_used = |checkpoint: Checkpoint| {
        assert!(!checkpoint.config.tied && checkpoint.tensor("lm_head.weight").is_some());
        let warnings = &checkpoint.config.warnings;
        assert!(warnings[0].contains("the files hold a head"), "{warnings:?}");
    };
    // Tied, a head that is not the embedding is used all the same, as transformers does.
    head_is_used(open(&model).expect("both are known"));
    // Untied, it is a tensor of the model like any other.
    model.set("config.json", "/tie_word_embeddings", false.into());
    let checkpoint = open(&model).expect("all are asked for");
    assert!(checkpoint.tensor("lm_head.weight").is_some() && checkpoint.config.warnings.is_empty());
    // The embedding once more changes nothing, and is not told apart: that would be to read both.
    let embedding = named(&mut list, "embed_tokens.weight").bytes.clone();
    named(&mut list, "lm_head.weight").bytes = embedding;
    model.set_tensors(&list);
    model.set("config.json", "/tie_word_embeddings", true.into());
    head_is_used(open(&model).expect("both are known"));
}

#[test]
fn types_may_differ_from_tensor_to_tensor() {
    let model = ModelDir::llama();
    let mut list = tensors(false);
    // 1 and -2 in each type.
    let numbers = [("BF16", vec![0x80, 0x3F, 0x00, 0xC0]), ("F16", vec![0x00, 0x3C, 0x00, 0xC0])];
    for (tensor, (dtype, pair)) in list.iter_mut().filter(|t| t.name.contains("layernorm")).zip(numbers) {
        tensor.dtype = dtype;
        tensor.bytes = pair.repeat(8);
    }
    model.set_tensors(&list);
    let checkpoint = open(&model).expect("three types");
    for (name, dtype) in [("input", Dtype::Bf16), ("post_attention", Dtype::F16)] {
        let name = format!("model.layers.0.{name}_layernorm.weight");
        assert_eq!(checkpoint.tensor(&name).expect("it is there").dtype, dtype);
        assert_eq!(checkpoint.read_f32(&name).expect("it can be read"), [1.0, -2.0].repeat(8));
    }
    let error = checkpoint.read("no.such").expect_err("no such tensor");
    assert!(matches!(&error, Error::Tensor { tensor, .. } if tensor == "no.such"), "{error:?}");
}

// row 30
#[test]
fn directories_that_hold_something_else() {
    let only = |file: &'static str| {
        move |model: &ModelDir| {
            model.remove("model.safetensors");
            model.write(file, b"?");
        }
    };
    let bare = |file: &'static str| {
        move |model: &ModelDir| {
            only(file)(model);
            model.remove("config.json");
        }
    };
    refuse(
        vec![
            case(
                "pickle",
                only("pytorch_model.bin"),
                File(
                    "",
                    "\"pytorch_model.bin\": pickled weights can run code and are never read, convert to safetensors",
                ),
            ),
            case("old pickle", only("consolidated.00.pth"), File("", "convert to safetensors")),
            case("checkpoint", only("model.ckpt"), File("", "convert to safetensors")),
            case("GGUF", only("model-q4.gguf"), File("", "\"model-q4.gguf\": GGUF is not read")),
            case(
                "GGUF without a configuration",
                bare("model.gguf"),
                File("", "no config.json, and it holds \"model.gguf\": GGUF"),
            ),
            case(
                "pickle without a configuration",
                bare("model.pt"),
                File("", "no config.json, and it holds \"model.pt\": pickled"),
            ),
            case("no weights", |model| model.remove("model.safetensors"), File("", "neither model.safetensors nor")),
            case("no configuration", |model| model.remove("config.json"), File("", "no config.json")),
            case(
                "nothing there at all",
                |model| fs::remove_dir_all(model.path()).expect("it is there"),
                File("", "No such file"),
            ),
        ],
        open,
    );
}

#[test]
fn paths_that_are_no_directories() {
    let model = ModelDir::llama();
    model.write("model.gguf", b"GGUF");
    let refused = |name: &str, part: &str| {
        let path = model.file(name);
        let error = Checkpoint::open(Source::directory(&path)).expect_err(name);
        assert!(matches!(&error, Error::File { path: found, offset: None, .. } if *found == path), "{error:?}");
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains(part), "{error}");
        error.to_string()
    };
    refused("config.json", "not a directory");
    refused("model.gguf", "GGUF is not read");
    refused("nowhere", "No such file");
    refused("config.json/inside", "ot a directory");
    let escaped = refused("no\nwhere\u{1b}", "No such file");
    assert!(!escaped.contains(['\n', '\u{1b}']), "{escaped:?}");
    refused("with\0zero", "NUL byte");
}

#[cfg(unix)]
#[test]
fn paths_that_cannot_be_read() {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;
    let path = std::path::Path::new(std::ffi::OsStr::from_bytes(b"/no\xFFwhere"));
    let text = Checkpoint::open(Source::directory(path)).expect_err("no such path").to_string();
    assert!(text.contains("\\xFFwhere"), "{text}");

    let model = ModelDir::llama();
    fs::set_permissions(model.file("config.json"), fs::Permissions::from_mode(0o000)).expect("the file is ours");
    if fs::read(model.file("config.json")).is_ok() {
        return; // Root reads everything.
    }
    let error = open(&model).expect_err("not permitted");
    File("config.json", "ermission denied").check(model.path(), &error).expect("the error of the test");
}
