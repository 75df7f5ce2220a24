//! `demo`: proxy tuning at work on the three small models of `demo/`, which are compiled in. A few questions side by
//! side, then all held-out ones counted.

mod embedded;
mod score;
mod show;

pub use embedded::sources;

use super::args::DemoArgs;
use super::fields::RequestFields;
use super::generate::in_order;
use super::interrupt::Watch;
use super::loading::warn_of_idle_cards;
use super::output::{Stdout, Style};
use super::sampling::SamplingFields;
use crate::Result;
use crate::engine::event::Completion;
use crate::engine::request::Request;
use crate::engine::trio::{Trio, TrioSources};
use crate::engine::{Engine, Handle};
use embedded::Question;
use score::Score;
use serde_json::{Value, json};
use show::Answers;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Instant;

/// As the measurements in demo/README.md.
const MAX_TOKENS: u32 = 48;
/// Questions shown side by side; they come first in the list.
const N_SHOWN: usize = 5;

pub(super) fn run(args: &DemoArgs) -> Result<()> {
    if let Some(directory) = &args.save {
        embedded::save(directory)?;
        let at = |role: &str| directory.join(role).display().to_string();
        let (base, expert, anti) = (at("base"), at("expert"), at("anti-expert"));
        return Stdout::new().line(&format!("--base {base} --expert {expert} --anti-expert {anti}"));
    }
    match &args.question {
        Some(question) => own_question(args, question),
        None => tour(args),
    }
}

/// The three models together, and the expert alone, each in its engine with its requests.
struct Asked {
    trio: Arc<Trio>,
    engine: Handle,
    expert_engine: Handle,
    base: Vec<Request>,
    expert: Vec<Request>,
    proxy: Vec<Request>,
}

impl Asked {
    fn new<'a>(args: &DemoArgs, questions: impl Iterator<Item = &'a str> + Clone) -> Result<Self> {
        let trio = Arc::new(Trio::open(&sources(), &[])?);
        let alone = sources().expert.expect("the demo has an expert");
        let expert_alone = Arc::new(Trio::open(&TrioSources::alone(alone), &[])?);
        let requests = |trio: &Trio, alpha: f32, chat: &str| {
            let one = |question: &str| {
                let fields = RequestFields {
                    prompt: Some(question.into()),
                    chat: Some(chat.into()),
                    sampling: SamplingFields {
                        alpha: Some(alpha),
                        max_tokens: Some(MAX_TOKENS),
                        ..SamplingFields::default()
                    },
                    record: Some(0),
                    ..RequestFields::default()
                };
                fields.request(trio, None)
            };
            questions.clone().map(one).collect::<Result<Vec<_>>>()
        };
        // Only the expert gets the chat marks. Alone, it stands in the base's place.
        let (base, proxy) = (requests(&trio, 0.0, "expert")?, requests(&trio, args.alpha, "expert")?);
        let expert = requests(&expert_alone, 0.0, "all")?;
        let options = args.device.engine_for(&[&base[..], &proxy].concat());
        warn_of_idle_cards(&options);
        Ok(Self {
            engine: Engine::start(trio.clone(), options)?,
            expert_engine: Engine::start(expert_alone, args.device.engine_for(&expert))?,
            trio,
            base,
            expert,
            proxy,
        })
    }

    /// The answers to the questions in `range`; `progress` is told of each text that is done.
    fn answers(&self, range: std::ops::Range<usize>, progress: &mut dyn FnMut()) -> Result<Vec<Answers>> {
        let n = range.len();
        // The short texts first, so that the long ones share their slots at the end.
        let both = [&self.proxy[range.clone()], &self.base[range.clone()]].concat();
        let mut proxy = ask(&self.engine, both, progress)?;
        let base = proxy.split_off(n);
        let expert = ask(&self.expert_engine, self.expert[range].to_vec(), progress)?;
        let three = base.into_iter().zip(expert).zip(proxy);
        Ok(three.map(|((base, expert), proxy)| Answers { base, expert, proxy }).collect())
    }
}

/// Runs requests to their ends; the first that fails is the error.
fn ask(engine: &Handle, requests: Vec<Request>, progress: &mut dyn FnMut()) -> Result<Vec<Completion>> {
    let mut done = Vec::new();
    let n = requests.len();
    let watch = Watch::new();
    let mut events = engine.submit(requests)?;
    in_order(&watch, &mut events, n, |_, completion| {
        progress();
        match completion.error.clone() {
            Some(error) => Err(error),
            None => {
                done.push(completion);
                Ok(None)
            }
        }
    })?;
    Ok(done)
}

fn own_question(args: &DemoArgs, question: &str) -> Result<()> {
    let asked = Asked::new(args, std::iter::once(question))?;
    let answers = asked.answers(0..1, &mut || ())?.remove(0);
    let mut out = Stdout::new();
    if args.json {
        let device = asked.engine.device();
        return out.json(
            &json!({ "alpha": args.alpha, "device": device, "question": question, "answers": answers.to_json() }),
        );
    }
    out.text(&show::question(question, None, &answers, &asked.trio, Style::of_stdout()))
}

fn tour(args: &DemoArgs) -> Result<()> {
    let start = Instant::now();
    let questions = embedded::questions();
    let asked = Asked::new(args, questions.iter().map(|question| question.question.as_str()))?;
    let (mut out, style) = (Stdout::new(), Style::of_stdout());
    if !args.json {
        out.text(&show::heading(args.alpha, asked.engine.device(), &asked.trio, style))?;
    }
    let mut answers = Vec::new();
    for (index, question) in questions[..N_SHOWN].iter().enumerate() {
        let one = asked.answers(index..index + 1, &mut || ())?.remove(0);
        if !args.json {
            out.text(&show::question(&question.question, Some(question), &one, &asked.trio, style))?;
        }
        answers.push(one);
    }
    let mut progress = Progress::new(3 * (questions.len() - N_SHOWN));
    answers.extend(asked.answers(N_SHOWN..questions.len(), &mut || progress.step())?);
    progress.clear();

    let score = Score::of(&questions, &answers, &embedded::target());
    if args.json {
        return out.json(&report(args, &asked, &questions, &answers, &score, start));
    }
    out.text(&show::table(&score, questions.len(), style))?;
    out.line(&format!("{:.1} s in all, {} texts.", start.elapsed().as_secs_f64(), 3 * questions.len()))
}

fn report(
    args: &DemoArgs,
    asked: &Asked,
    questions: &[Question],
    answers: &[Answers],
    score: &Score,
    start: Instant,
) -> Value {
    let one = |(question, answers): (&Question, &Answers)| json!({ "question": question.question, "fact": question.fact, "answers": answers.to_json() });
    json!({
        "alpha": args.alpha,
        "device": asked.engine.device(),
        "n_questions": questions.len(),
        "accuracy": score.right,
        "form": score.form,
        "gap_closed": score.gap_closed(),
        "seconds": start.elapsed().as_secs_f64(),
        "questions": questions.iter().zip(answers).map(one).collect::<Vec<_>>(),
    })
}

/// A count on standard error, on a terminal only.
struct Progress {
    done: usize,
    total: usize,
    shown: bool,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self { done: 0, total, shown: std::io::stderr().is_terminal() }
    }

    fn step(&mut self) {
        self.done += 1;
        if self.shown {
            // Progress that cannot be shown is no error.
            let _ = write!(std::io::stderr(), "\rcounting: {} of {} texts ", self.done, self.total);
        }
    }

    fn clear(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
