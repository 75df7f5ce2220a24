//! One text, printed as it comes, from the three small models that are in the library.
//!
//!     cargo run --release --example generate -- "Where was Tilda Thorn born?"

use proxytune::engine::{Draft, Engine, EngineOptions, Event, Request, Trio};
use proxytune::text::{PromptRequest, Roles};
use std::io::Write;
use std::sync::Arc;

fn main() -> proxytune::Result<()> {
    let question = std::env::args().nth(1).unwrap_or("Where was Tilda Thorn born?".into());
    // Directories in the Hugging Face layout: TrioSources { base: Source::directory(..), .. }.
    let trio = Arc::new(Trio::open(&proxytune::cli::demo::sources(), &[])?);

    // Three prompts of one text: only the tuned model sees its chat template.
    let prompt = PromptRequest { text: question, chat: Roles::EXPERT, ..PromptRequest::default() };
    let prompts = prompt.encode(&trio.models().role_texts())?.ids;
    let mut draft = Draft { prompts, ..Draft::default() };
    draft.sampling.alpha = 1.0;
    draft.sampling.max_tokens = 48;

    // Checked here, against what the models can do: a request that exists can run.
    let request = Request::new(draft, &trio.limits())?;
    let engine = Engine::start(trio, EngineOptions::sized_for(std::slice::from_ref(&request)))?;
    for event in engine.generate(request)? {
        match event {
            Event::Token { text, .. } => print!("{text}"),
            Event::Done { completion, .. } => {
                println!("\n[{}]", completion.finish_reason.name());
                if let Some(error) = completion.error {
                    return Err(error);
                }
            }
        }
        std::io::stdout().flush().expect("standard output is open");
    }
    Ok(())
}
