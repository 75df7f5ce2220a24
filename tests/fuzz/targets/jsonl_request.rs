//! A line of `generate -i`, against three open models of which the expert has a chat template.

use super::{memory, model};
use proxytune::cli::request_of_line;
use proxytune::engine::request::Request;
use proxytune::engine::trio::{Trio, TrioSources};
use std::sync::LazyLock;

const TEMPLATE: &[u8] = b"{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}";

static TRIO: LazyLock<Trio> = LazyLock::new(|| {
    let sources = TrioSources {
        base: memory::llama_with([]),
        expert: Some(memory::llama_with([("chat_template.jinja", TEMPLATE.into())])),
        anti_expert: Some(memory::llama_with([])),
    };
    Trio::open(&sources, &[]).expect("three right models")
});

/// `data` is the line.
pub fn run(data: &[u8]) {
    // A path would make the result depend on the machine.
    if data.windows(6).any(|name| name == b"\"file\"") {
        return;
    }
    match request_of_line(data, &TRIO) {
        Ok(request) => {
            assert!(request.prompts.iter().flatten().all(|&id| (id as usize) < model::N_VOCAB));
            assert!(request.n_tokens() <= 128, "{} tokens", request.n_tokens());
            Request::new(request.into_draft(), &TRIO.limits()).expect("it was checked");
        }
        // 4 where a response prefix does not fit the prompts.
        Err(error) => assert!(matches!(error.exit_code(), 2 | 4), "{error:?}"),
    }
}
