//! How each token of a text came about: its probability under the base, the pair and all together.
//!
//!     cargo run --release --example record

use proxytune::engine::{Draft, Engine, EngineOptions, Event, Request, Trio};
use proxytune::text::{PromptRequest, Roles};
use std::sync::Arc;

fn main() -> proxytune::Result<()> {
    let trio = Arc::new(Trio::open(&proxytune::cli::demo::sources(), &[])?);
    let text = "Where was Tilda Thorn born?".into();
    let prompt = PromptRequest { text, chat: Roles::EXPERT, ..PromptRequest::default() };
    let prompts = prompt.encode(&trio.models().role_texts())?.ids;
    // With the two best tokens of every step.
    let mut draft = Draft { prompts, record: Some(2), ..Draft::default() };
    draft.sampling.max_tokens = 48;
    let request = Request::new(draft, &trio.limits())?;
    let engine = Engine::start(trio.clone(), EngineOptions::sized_for(std::slice::from_ref(&request)))?;

    let done = engine.generate(request)?.into_iter().find_map(|event| match event {
        Event::Done { completion, .. } => Some(completion),
        Event::Token { .. } => None,
    });
    let completion = done.expect("every text ends");
    println!("{:>10}  {:>8}  {:>8}  {:>8}  {:>8}  second best", "token", "combined", "base", "expert", "anti");
    for step in &completion.record {
        let token = |id| String::from_utf8_lossy(trio.bytes_of(id)).into_owned();
        let [base, expert, anti, combined] = step.logprob.map(f32::exp);
        let (chosen, second) = (token(step.chosen), token(step.top[1].id));
        println!("{chosen:>10}  {combined:8.4}  {base:8.4}  {expert:8.4}  {anti:8.4} {second}");
    }
    completion.error.map_or(Ok(()), Err)
}
