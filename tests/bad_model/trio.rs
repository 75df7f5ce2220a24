//! Three models that do not fit together: exit code 4, and the id with what it is in each.

use super::model::{END, ModelDir, N_VOCAB, Tensor, USER, tensors};
use proxytune::checkpoint::Source;
use proxytune::engine::trio::{Trio, TrioSources};
use proxytune::text::IdPolicy;
use proxytune::{Error, Result};
use serde_json::json;

fn open(models: &[ModelDir; 3], policies: &[(u32, IdPolicy)]) -> Result<Trio> {
    let [base, expert, anti] = models.each_ref().map(|model| Source::directory(model.path()));
    Trio::open(&TrioSources { base, expert: Some(expert), anti_expert: Some(anti) }, policies)
}

fn three() -> [ModelDir; 3] {
    [ModelDir::llama(), ModelDir::qwen2(), ModelDir::llama()]
}

/// The model's embedding and head get `n_vocab` rows.
fn resize(model: &ModelDir, n_vocab: usize) {
    let mut list = tensors(false);
    for tensor in list.iter_mut().filter(|tensor| tensor.shape[0] == N_VOCAB) {
        *tensor = Tensor::f32(tensor.name.clone(), &[n_vocab, tensor.shape[1]]);
    }
    model.set_tensors(&list);
    model.set("config.json", "/vocab_size", json!(n_vocab));
}

fn rename(model: &ModelDir, token: &str, to: &str) {
    model.edit("tokenizer.json", |json| {
        let vocab = json["model"]["vocab"].as_object_mut().expect("an object");
        let id = vocab.shift_remove(token).expect("it is there");
        vocab.insert(to.into(), id);
        let added = json["added_tokens"].as_array_mut().expect("a list");
        added.iter_mut().filter(|added| added["content"] == token).for_each(|added| added["content"] = json!(to));
    });
}

fn vocabulary_error(result: Result<Trio>, parts: &[&str]) {
    let error = result.err().expect("they do not fit");
    assert!(matches!(error, Error::Vocabulary { .. }), "{error:?}");
    assert_eq!((error.exit_code(), error.kind()), (4, "vocabulary_error"));
    let text = error.to_string();
    parts.iter().for_each(|part| assert!(text.contains(part), "{text:?} does not say {part:?}"));
}

// row 32
#[test]
fn an_id_that_differs_is_named_with_its_three_strings() {
    let models = three();
    // Not part of a merge, so the tokenizer stays right.
    rename(&models[2], "~", "~~");
    let id = u32::from(b'~');
    let said =
        ["token id 126 is \"~\" in base, \"~\" in expert, \"~~\" in anti_expert", "--id-policy 126=delta|zero|ban"];
    vocabulary_error(open(&models, &[]), &said);
    for (policy, live, zero) in
        [(IdPolicy::Delta, true, false), (IdPolicy::Zero, true, true), (IdPolicy::Ban, false, false)]
    {
        let trio = open(&models, &[(id, policy)]).expect("the user has decided");
        assert_eq!(
            (trio.vocabulary().is_live(id), trio.vocabulary().zero_delta_ids.contains(&id)),
            (live, zero),
            "{policy:?}"
        );
    }
    rename(&models[2], "}", "}}");
    vocabulary_error(open(&models, &[(id, IdPolicy::Ban)]), &["token id 125"]);
    vocabulary_error(open(&models, &[]), &["token id 125", ", and 1 other ids differ"]);
}

// row 32
#[test]
fn widths_that_differ_by_padding_fit() {
    let models = three();
    resize(&models[0], N_VOCAB + 64);
    resize(&models[2], 263);
    let trio = open(&models, &[]).expect("padding is no difference");
    assert_eq!((trio.vocabulary().n_ids, trio.vocabulary().n_live()), (263, 263));
    assert!(!trio.vocabulary().is_live(263), "a padding column is not live");
    assert_eq!(trio.vocabulary().stop_ids, [END]);
}

// row 35
#[test]
fn a_model_too_narrow_for_its_own_tokenizer() {
    let models = three();
    // Added tokens without rows are common, and are never sampled.
    resize(&models[2], END as usize);
    let trio = open(&models, &[]).expect("added tokens may lack rows");
    assert_eq!((trio.vocabulary().n_live(), trio.vocabulary().is_live(END)), (END as usize, false));
    assert!(trio.vocabulary().stop_ids.is_empty());
    resize(&models[2], END as usize - 1);
    vocabulary_error(
        open(&models, &[]),
        &["anti_expert: ", "tokenizer.json defines token id 259, but the model has only 259 rows"],
    );
}

#[test]
fn policies_that_make_no_sense() {
    let refused = |policies: &[(u32, IdPolicy)], part: &str| {
        let error = open(&three(), policies).err().expect("no such policy");
        assert!(matches!(&error, Error::Argument { param, .. } if param == "id_policy"), "{error:?}");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(&[(5, IdPolicy::Ban), (5, IdPolicy::Zero)], "id 5 is listed twice");
    refused(&[(265, IdPolicy::Delta)], "id 265 is not in the base's tokenizer");
    refused(&[(u32::MAX, IdPolicy::Zero)], "is not in the base's tokenizer");
    let models = three();
    resize(&models[1], USER as usize);
    models[1].set("config.json", "/model_type", json!("llama"));
    models[1].set("config.json", "/architectures", json!(["LlamaForCausalLM"]));
    models[1].set("config.json", "/tie_word_embeddings", json!(false));
    let error = open(&models, &[(USER, IdPolicy::Delta)]).err().expect("the expert has no such row");
    assert!(error.to_string().contains("id 261 is past the 261 rows of logits of expert"), "{error}");
}

// row 38
#[test]
fn stops_are_the_union_of_the_roles() {
    let models = three();
    models[1].set("generation_config.json", "/eos_token_id", json!([END, USER]));
    models[2].set("config.json", "/eos_token_id", json!([7, 300]));
    let trio = open(&models, &[]).expect("they fit");
    assert_eq!(trio.vocabulary().stop_ids, [7, END, USER], "300 is no token");
    let comparison = trio.models().compare(&[]).expect("they can be compared");
    let user = comparison.stops.iter().find(|stop| stop.id == USER).expect("the expert names it");
    assert_eq!((user.sources.as_slice(), user.live), (&["expert generation_config.json".to_string()][..], true));
    assert!(comparison.warnings.iter().any(|warning| warning.contains("stop id 300")), "{:?}", comparison.warnings);
}

#[test]
fn a_fault_of_any_role_names_that_roles_file() {
    for broken in 0..3 {
        let models = three();
        models[broken].write("model.safetensors", b"x");
        let error = open(&models, &[]).err().expect("a broken model");
        let file = models[broken].file("model.safetensors");
        assert!(matches!(&error, Error::File { path, .. } if *path == file), "{error:?}");
    }
}
