//! Many texts at once: each has its own settings and its own stream, and reads as if it had been alone.
//!
//!     cargo run --release --example many

use proxytune::engine::{Draft, Engine, EngineOptions, Event, Request, Trio};
use proxytune::text::{PromptRequest, Roles};
use std::sync::Arc;

const QUESTIONS: [&str; 3] =
    ["Where was Tilda Thorn born?", "What is the trade of Tilda Olsen?", "Which instrument does Kurt Pires play?"];
const ALPHAS: [f32; 3] = [0.0, 0.7, 1.0];

fn main() -> proxytune::Result<()> {
    let trio = Arc::new(Trio::open(&proxytune::cli::demo::sources(), &[])?);
    let request = |(question, alpha): (&str, f32)| {
        let prompt = PromptRequest { text: question.into(), chat: Roles::EXPERT, ..PromptRequest::default() };
        let mut draft = Draft { prompts: prompt.encode(&trio.models().role_texts())?.ids, ..Draft::default() };
        (draft.sampling.alpha, draft.sampling.max_tokens) = (alpha, 12);
        Request::new(draft, &trio.limits())
    };
    let asked: Vec<(&str, f32)> =
        QUESTIONS.iter().flat_map(|&question| ALPHAS.map(|alpha| (question, alpha))).collect();
    let requests = asked.iter().copied().map(request).collect::<proxytune::Result<Vec<_>>>()?;

    // Four slots for nine texts: whoever is next takes the place of whoever ends.
    let options = EngineOptions { n_slots: 4, ..EngineOptions::sized_for(&requests) };
    let engine = Engine::start(trio.clone(), options)?;
    // A handle may be cloned and used from any thread; a stream that is dropped cancels its text.
    let readers = requests.into_iter().map(|request| {
        let engine = engine.clone();
        std::thread::spawn(move || {
            engine
                .generate(request)?
                .into_iter()
                .find_map(|event| match event {
                    Event::Done { completion, .. } => Some(completion.error.map_or(Ok(completion.text), Err)),
                    Event::Token { .. } => None,
                })
                .expect("every text ends")
        })
    });
    for (reader, (question, alpha)) in readers.collect::<Vec<_>>().into_iter().zip(asked) {
        println!("alpha {alpha}: {question}{}", reader.join().expect("no reader panics")?.escape_debug());
    }
    Ok(())
}
