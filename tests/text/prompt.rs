//! One request to three prompts: templates for some roles, special tokens in contents, prefixes, beginnings.

use super::model::{END, ModelDir, N_VOCAB, SPECIALS, USER};
use proxytune::checkpoint::Source;
use proxytune::engine::trio::{Models, TrioSources};
use proxytune::text::prompt::Turn;
use proxytune::text::{PromptRequest, Prompts, Roles};
use proxytune::{Error, Result};
use serde_json::json;

const TEMPLATE: &str = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}";

/// Three directories, so that each role can differ; the expert has a template.
fn trio() -> [ModelDir; 3] {
    let models = [ModelDir::llama(), ModelDir::llama(), ModelDir::llama()];
    models[1].write("chat_template.jinja", TEMPLATE);
    models
}

fn open(models: &[ModelDir; 3]) -> Models {
    let [base, expert, anti] = models.each_ref().map(|model| Source::directory(model.path()));
    Models::open(&TrioSources { base, expert: Some(expert), anti_expert: Some(anti) }).expect("three right models")
}

fn encode(models: &[ModelDir; 3], request: &PromptRequest) -> Result<Prompts> {
    request.encode(&open(models).role_texts())
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(id).collect()
}

/// The tiny tokenizer's ids of bytes are the bytes.
fn id(byte: u8) -> u32 {
    byte.into()
}

fn request(text: &str, chat: Roles) -> PromptRequest {
    PromptRequest { text: text.into(), chat, ..PromptRequest::default() }
}

// row 40
#[test]
fn a_bare_prompt_is_parsed_and_a_chat_s_content_is_text() {
    let raw = encode(&trio(), &request("a<|end|>", Roles::NONE)).expect("a right prompt");
    assert_eq!(raw.ids, [0, 1, 2].map(|_| vec![id(b'a'), END]), "special tokens in a raw prompt are parsed");
    let chat = encode(&trio(), &request("a<|end|>", Roles::EXPERT)).expect("a right prompt");
    let expected = [&[USER][..], &bytes("a<|end|>"), &[END]].concat();
    assert_eq!(chat.ids, [vec![id(b'a'), END], expected, vec![id(b'a'), END]]);
}

/// A template reads messages, and what spells a special token in them is text; a plain role goes on from what it had.
#[test]
fn earlier_turns_are_messages_for_a_template_and_text_for_the_others() {
    let turns = [("a", " b"), ("c", "<|end|>d\n")];
    let turns = turns.map(|(message, reply)| Turn { message: message.into(), reply: reply.into() });
    let request = PromptRequest { turns: turns.to_vec(), ..request("e", Roles::EXPERT) };
    let prompts = encode(&trio(), &request).expect("a right prompt");
    let plain = [bytes("a b\nc"), vec![END], bytes("d\n\ne")].concat();
    let message = |text: &str| [&[USER], &bytes(text)[..], &[END]].concat();
    let templated = ["a", "b", "c", "<|end|>d", "e"].map(message).concat();
    assert_eq!(prompts.ids, [plain.clone(), templated, plain]);
    let alone = PromptRequest { turns: Vec::new(), ..request };
    assert_eq!(encode(&trio(), &alone).expect("a right prompt").ids[0], bytes("e"));
}

#[test]
fn each_role_has_its_own_text_template_and_bos() {
    let models = trio();
    models[2].set("tokenizer_config.json", "/bos_token", json!(SPECIALS[2]));
    let template = json!({"type": "TemplateProcessing", "pair": [], "special_tokens":
        {"<|pad|>": {"id": "<|pad|>", "ids": [262], "tokens": ["<|pad|>"]}},
        "single": [{"SpecialToken": {"id": "<|pad|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
    models[2].set("tokenizer.json", "/post_processor", template);
    let mut request = request("a", Roles::EXPERT);
    request.system = Some("s".into());
    request.anti_text = Some("b".into());
    let prompts = encode(&models, &request).expect("a right prompt");
    let expert = vec![USER, id(b's'), END, USER, id(b'a'), END];
    assert_eq!(prompts.ids, [vec![id(b'a')], expert, vec![262, id(b'b')]]);
    request.expert_text = Some("c".into());
    assert_eq!(encode(&models, &request).expect("a right prompt").ids[1][4], id(b'c'));
}

fn refused(models: &[ModelDir; 3], request: &PromptRequest, param: &str, part: &str) {
    let error = encode(models, request).expect_err(part);
    assert!(matches!(&error, Error::Argument { param: found, .. } if found == param), "{error:?}");
    assert_eq!((error.exit_code(), error.param()), (2, Some(param)));
    assert!(error.to_string().contains(part), "{error}");
}

// rows 39, 54
#[test]
fn requests_that_make_no_prompt() {
    refused(&trio(), &request("", Roles::NONE), "prompt", "gives no token for base");
    refused(&trio(), &request("a", Roles::ALL), "chat", "base has no chat template");
    let system = PromptRequest { system: Some("s".into()), ..request("a", Roles::NONE) };
    refused(&trio(), &system, "system_prompt", "has no effect without chat");
    let models = trio();
    models[1].write("chat_template.jinja", "{{ messages[0].content | upper }}");
    refused(&models, &request("a<|end|>", Roles::EXPERT), "prompt", "the chat template changes contents");
    refused(&trio(), &request(&"a".repeat((1 << 20) + 1), Roles::NONE), "prompt", "the limit is 1048576");
    models[1].write("chat_template.jinja", "{{ raise_exception('only questions') }}");
    refused(&models, &request("a", Roles::EXPERT), "chat", "only questions");
}

/// A template that is wrong stops the chats of its role, with its file and line, and nothing else.
// row 46
#[test]
fn a_broken_template_stops_chats_alone() {
    let models = trio();
    models[1].write("chat_template.jinja", "a\nb\n{% if %}");
    let plain = encode(&models, &request("a", Roles::NONE)).expect("no chat is asked for");
    assert_eq!(plain.ids, [0, 1, 2].map(|_| bytes("a")));
    let error = encode(&models, &request("a", Roles::EXPERT)).expect_err("a chat is asked for");
    assert!(matches!(&error, Error::File { path, .. } if *path == models[1].file("chat_template.jinja")), "{error:?}");
    assert!(error.to_string().contains("chat template: line 3: syntax error"), "{error}");
    let mut open = open(&models);
    models[0].write("mended.jinja", TEMPLATE);
    open.set_chat_template(&models[0].file("mended.jinja")).expect("a right template");
    request("a", Roles::EXPERT).encode(&open.role_texts()).expect("it stands in for the broken one");
}

// row 35
#[test]
fn an_id_without_a_row_is_refused_with_its_role() {
    let models = trio();
    // A tokenizer with a token past the model's rows: rows are 272, so ids up to 263 are defined; one more is added.
    models[2].edit("tokenizer.json", |json| {
        let added = json["added_tokens"].as_array_mut().expect("a list");
        for (i, id) in (263..=N_VOCAB).enumerate() {
            let mut token = added[0].clone();
            (token["id"], token["content"]) = (json!(id), json!(format!("<extra{i}>")));
            added.push(token);
        }
    });
    encode(&models, &request("<extra8>", Roles::NONE)).expect("the last row");
    let error = encode(&models, &request("<extra9>", Roles::NONE)).expect_err("past the rows");
    assert!(matches!(error, Error::Vocabulary { .. }), "{error:?}");
    assert!(
        error.to_string().contains("anti_expert: the prompt holds token id 272, the model has 272 rows"),
        "{error}"
    );
}

#[test]
fn a_response_prefix_is_the_same_ids_in_each_role() {
    let mut request = request("a", Roles::EXPERT);
    request.response_prefix = Some("xy".into());
    let prompts = encode(&trio(), &request).expect("it fits each prompt");
    assert_eq!(prompts.n_prefix, 2);
    prompts.ids.iter().for_each(|ids| assert_eq!(ids[ids.len() - 2..], bytes("xy")));

    // "h" and "e" of a bare prompt become one token; after the template's end they cannot.
    request.text = "h".into();
    request.response_prefix = Some("e".into());
    let error = encode(&trio(), &request).expect_err("it changes the prompt");
    assert!(matches!(error, Error::Vocabulary { .. }), "{error:?}");
    assert!(error.to_string().contains("\"e\" changes the last tokens of the prompt of base: \"h\""), "{error}");

    // One tokenizer lacks a merge: same text, other ids.
    let models = trio();
    models[2].set("tokenizer.json", "/model/merges", json!([]));
    request.text = "a ".into();
    request.response_prefix = Some("ll".into());
    let error = encode(&models, &request).expect_err("the ids differ");
    assert!(error.to_string().contains("after the prompt of base, [108, 108] after that of anti_expert"), "{error}");
}

#[test]
fn first_tokens_show_a_template_that_ends_in_a_space() {
    let models = trio();
    let first = |models: &[ModelDir; 3]| {
        let open = open(models);
        let found = request("a", Roles::EXPERT).first_tokens(&open.role_texts()).expect("right prompts");
        found.into_iter().map(|token| token.agrees).collect::<Vec<_>>()
    };
    assert_eq!(first(&models), [true, true]);
    // "a" + " t" merges the space into the token; after "<|end|> " there is a space already.
    models[1].write("chat_template.jinja", format!("{TEMPLATE} "));
    assert_eq!(first(&models), [false, true]);
}

#[test]
fn roles_as_a_user_names_them() {
    for (text, roles) in [
        ("all", [true; 3]),
        ("none", [false; 3]),
        ("expert", [false, true, false]),
        ("base,anti-expert", [true, false, true]),
        ("anti_expert, base", [true, false, true]),
    ] {
        assert_eq!(text.parse::<Roles>().expect("roles"), Roles(roles), "{text}");
    }
    for text in ["", "experts", "base,", "all,base", "Base"] {
        let error = text.parse::<Roles>().expect_err(text);
        assert!(matches!(&error, Error::Argument { param, .. } if param == "chat"), "{error:?}");
    }
}
