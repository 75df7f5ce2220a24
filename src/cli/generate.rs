//! `generate`: one prompt to text as it comes, or to JSON. Batches are in [`super::jsonl`].

use super::args::GenerateArgs;
use super::interrupt::Watch;
use super::jsonl;
use super::loading;
use super::open::{check_model_len, pair_is_one_model};
use super::output::{self, Stdout};
use super::result::{Asked, ResultJson};
use crate::engine::event::{Completion, Event};
use crate::engine::request::Request;
use crate::engine::trio::Trio;
use crate::engine::{self, EventStream};
use crate::{Error, Result};
use serde_json::Value;
use std::sync::Arc;

/// Flags that say nothing without one of others beside them. Typed they are refused then; of a file or the environment,
/// which hold for many runs, they are set aside.
pub(super) const NEEDED_BESIDE: [(&str, &[&str]); 4] = [
    ("output_file", &["input_file"]),
    ("overwrite", &["output_file"]),
    ("record", &["input_file", "json"]),
    ("chat_template", &["input_file", "chat"]),
];

/// Stands between the texts of several samples.
const SEPARATOR: &str = "---";

pub(super) fn run(mut args: GenerateArgs) -> Result<()> {
    // Not a `requires` of clap, which waives it where a prompt excludes the input file.
    if args.output_file.is_some() && args.input_file.is_none() {
        return Err(Error::argument("output_file", "takes the results of a batch: name its lines by --input-file"));
    }
    args.request.settle()?;
    if args.input_file.is_some() {
        return jsonl::run(&args);
    }
    if args.request.record.is_some() && !args.json {
        return Err(Error::argument("record", "shown in JSON only: add --json"));
    }
    if args.models.chat_template.is_some() && !args.request.uses_chat() {
        return Err(Error::argument("chat_template", "has no effect without --chat"));
    }
    let trio = open_trio(&args)?;
    let request = args.request.request(&trio, args.max_model_len)?;
    if pair_is_moot(&trio, &request) {
        warn_of_moot_pair(&args, &trio);
    }
    let engine = loading::start(&trio, args.step.bound(args.device.engine_for(std::slice::from_ref(&request))))?;
    let (n, asked) = (request.n as usize, Asked::by(&request));
    let watch = Watch::new();
    let mut events = engine.generate(request)?;
    if args.json {
        let id = Value::from(0);
        let mut out = Stdout::new();
        in_order(&watch, &mut events, n, |index, completion| {
            out.json(&ResultJson::new(&id, index as u32, &completion, asked, &trio))?;
            Ok(completion.error)
        })
    } else {
        stream(&watch, &mut events, n)
    }
}

/// The models, which must be made for texts as long as may be asked for.
pub(super) fn open_trio(args: &GenerateArgs) -> Result<Arc<Trio>> {
    let trio = args.models.open_trio()?;
    check_model_len(args.max_model_len, args.request.sampling.positions(&trio))?;
    Ok(trio)
}

/// True where the difference of expert and anti-expert is zero whatever the models say.
pub(super) fn pair_is_moot(trio: &Trio, request: &Request) -> bool {
    let [_, expert, anti] = trio.member_of_role();
    expert == anti && request.prompts[1] == request.prompts[2] && request.alpha() != 0.0
}

/// Says so where a pair was asked for.
pub(super) fn warn_of_moot_pair(args: &GenerateArgs, trio: &Trio) {
    if args.request.sampling.alpha.is_some() || pair_is_one_model(trio.models()) {
        output::warn("expert and anti-expert are one model with one prompt: alpha changes nothing");
    }
}

/// Hands completions on in the order of their requests, each as soon as those before it are done. Gives the first
/// error that `each` found in one.
pub(super) fn in_order(
    watch: &Watch,
    events: &mut EventStream,
    n: usize,
    mut each: impl FnMut(usize, Completion) -> Result<Option<Error>>,
) -> Result<()> {
    let mut done: Vec<Option<Completion>> = vec![None; n];
    let (mut next, mut first_error) = (0, None);
    while next < n {
        if let Event::Done { sample, completion } = watch.next(events)?.ok_or_else(engine::lost)? {
            done[sample] = Some(*completion);
        }
        while let Some(completion) = done.get_mut(next).and_then(Option::take) {
            first_error = first_error.or(each(next, completion)?);
            next += 1;
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// Prints the first text as it comes; the others wait for their turn.
fn stream(watch: &Watch, events: &mut EventStream, n: usize) -> Result<()> {
    let mut out = Stdout::new();
    let mut texts: Vec<Waiting> = (0..n).map(|_| Waiting::default()).collect();
    let (mut current, mut first_error) = (0, None);
    while current < n {
        let event = match watch.next(events) {
            Ok(event) => event.ok_or_else(engine::lost)?,
            Err(Error::Interrupted) => return out.line("").and(Err(Error::Interrupted)),
            Err(error) => return Err(error),
        };
        match event {
            Event::Token { sample, text, .. } => texts[sample].push(&text),
            Event::Done { sample, completion } => texts[sample].finish(*completion),
        }
        while let Some(waiting) = texts.get_mut(current) {
            out.text(&std::mem::take(&mut waiting.text))?;
            if !waiting.done {
                break;
            }
            out.line("")?;
            first_error = first_error.or(waiting.error.take());
            current += 1;
            if current < n {
                out.line(SEPARATOR)?;
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// Text of a sample that is not printed yet.
#[derive(Default)]
struct Waiting {
    text: String,
    /// Bytes that came so far, printed or not.
    n_bytes: usize,
    done: bool,
    error: Option<Error>,
}

impl Waiting {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.n_bytes += text.len();
    }

    /// Takes what the end set free.
    fn finish(&mut self, completion: Completion) {
        self.push(&completion.text[self.n_bytes..]);
        self.done = true;
        self.error = completion.error;
    }
}
