//! `generate -i`: many requests, one JSON object a line; results one a line, in the order of the input. A line that is
//! wrong gives an error in its place, and the others run. What an earlier run of the same input has finished is kept.
//!
//! The input is read up to three times, a line at a time: against the earlier results, for the size of the engine, and
//! to run. Tokens are held for the lines under way alone.

mod earlier;
mod lines;
mod output;

pub use lines::request_of_line;

use super::args::GenerateArgs;
use super::generate::{in_order, open_trio, pair_is_moot, warn_of_moot_pair};
use super::interrupt::Watch;
use super::loading;
use super::output::{to_json, to_stderr, warn};
use super::progress::Bar;
use super::result::{Asked, ErrorJson, ResultJson};
use crate::backend::params::MAX_SLOTS;
use crate::engine::event::Completion;
use crate::engine::trio::Trio;
use crate::engine::{EngineOptions, EventStream, Handle};
use crate::{Error, Result};
use earlier::Earlier;
use lines::{Input, Line, Parser};
use output::{IfThere, Target, Writer};
use serde::Serialize;
use serde_json::Value;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Lines under way at most: enough for the slots of the engine to stay full while the oldest line is long.
const MAX_LINES: usize = 512;
/// Samples under way; a single line may have more, and all are fewer than an engine lets wait.
const MAX_SAMPLES: usize = 4_096;
/// Prompt tokens under way, all roles together; a single line may have more.
const MAX_TOKENS: usize = 1 << 24;

pub(super) fn run(args: &GenerateArgs) -> Result<()> {
    let path = args.input_file.as_deref().expect("a batch has an input file");
    let parser = Parser::new(args);
    let if_there = if args.overwrite { IfThere::Overwrite } else { IfThere::Resume };
    let mut target = Target::open(path, args.output_file.as_deref(), if_there)?;
    let mut input = Input::open(path)?;
    let earlier = target.earlier(&mut input, &parser)?;
    let trio = open_trio(args)?;
    let survey = Survey::new(&mut input, &parser, &earlier, &trio)?;
    survey.report(args, &earlier, &trio);
    // Before the output is touched, so that a device that is not there leaves it alone.
    let engine = survey.engine(args).map(|options| loading::start(&trio, options)).transpose()?;
    let writer = target.into_writer(&earlier)?;
    let bar = writer.is_a_file().then(|| survey.bar());
    let mut batch = Batch {
        bar,
        trio: &trio,
        engine: engine.as_ref(),
        writer,
        watch: Watch::new(),
        pending: VecDeque::new(),
        failed: 0,
    };
    let done = batch.run(&mut input, &parser, &earlier);
    let Batch { writer, failed, pending, .. } = batch;
    // What still runs is cancelled; what is written is put in place whatever has happened, but for a failed write.
    drop(pending);
    done.and(writer.finish())?;
    match failed {
        0 => Ok(()),
        failed => Err(Error::Partial { failed, total: survey.n_lines }),
    }
}

/// What a look at the lines tells before any of them runs.
struct Survey {
    n_lines: usize,
    n_to_run: usize,
    /// What the longest and the most demanding of them need; none where none can run.
    engine: Option<EngineOptions>,
    /// Tokens of as many samples as can run at a time, the longest ones.
    longest: BinaryHeap<Reverse<usize>>,
    uses_chat: bool,
    pair_is_moot: bool,
}

impl Survey {
    fn new(input: &mut Input, parser: &Parser, earlier: &[Earlier], trio: &Trio) -> Result<Self> {
        let (engine, longest) = (None, BinaryHeap::new());
        let mut survey = Self { n_lines: 0, n_to_run: 0, engine, longest, uses_chat: false, pair_is_moot: true };
        let mut lines = input.lines()?;
        while let Some(line) = lines.next()? {
            survey.n_lines += 1;
            if earlier.get(line.index).is_some_and(|block| block.finished) {
                continue;
            }
            survey.n_to_run += 1;
            let parsed = parser.parse(&line);
            survey.uses_chat |= parsed.fields.as_ref().is_ok_and(|fields| fields.uses_chat());
            let Ok(request) = parsed.request(trio, &line, parser) else { continue };
            survey.pair_is_moot &= pair_is_moot(trio, &request);
            let nothing = EngineOptions { n_slots: 0, ..EngineOptions::default() };
            survey.engine.get_or_insert(nothing).make_room_for(&request);
            for _ in 0..request.n {
                survey.longest.push(Reverse(request.n_tokens()));
                if survey.longest.len() > MAX_SLOTS {
                    survey.longest.pop();
                }
            }
        }
        Ok(survey)
    }

    /// The engine for the lines: its slots are filled again as texts end, and its pages are enough for the longest texts
    /// that can meet in them.
    fn engine(&self, args: &GenerateArgs) -> Option<EngineOptions> {
        let bounded = args.step.bound(args.device.engine(self.engine.clone()?));
        let mut longest: Vec<usize> = self.longest.iter().map(|Reverse(n_tokens)| *n_tokens).collect();
        longest.sort_unstable_by_key(|&n_tokens| Reverse(n_tokens));
        let kv_tokens = longest.iter().take(bounded.n_slots).sum();
        Some(EngineOptions { kv_tokens: Some(kv_tokens), ..bounded })
    }

    fn bar(&self) -> Bar {
        Bar::of_lines("running".into(), self.n_lines as u64, (self.n_lines - self.n_to_run) as u64)
    }

    /// What may matter to a person, on standard error.
    fn report(&self, args: &GenerateArgs, earlier: &[Earlier], trio: &Trio) {
        if !earlier.is_empty() {
            let failed = earlier.iter().filter(|block| !block.finished).count();
            let again = if failed > 0 { format!(", {failed} failed and run again") } else { String::new() };
            let (n_lines, finished) = (self.n_lines, self.n_lines - self.n_to_run);
            to_stderr(&format!("resuming: {finished} of {n_lines} lines are finished{again}; --overwrite starts anew"));
        }
        if self.engine.is_some() && args.models.chat_template.is_some() && !self.uses_chat {
            warn("chat_template: has no effect, no line uses chat");
        }
        if self.engine.is_some() && self.pair_is_moot {
            warn_of_moot_pair(args, trio);
        }
    }
}

/// The lines under way, oldest first.
struct Batch<'a> {
    /// Shown where the results themselves are not.
    bar: Option<Bar>,
    trio: &'a Trio,
    engine: Option<&'a Handle>,
    writer: Writer,
    watch: Watch,
    pending: VecDeque<Pending>,
    failed: usize,
}

struct Pending {
    /// Bytes of earlier results that stand in its place.
    n_earlier: u64,
    n_tokens: usize,
    n_samples: usize,
    kind: PendingKind,
}

enum PendingKind {
    /// Finished lines, one after the other.
    Finished,
    Failed {
        id: Value,
        error: Error,
    },
    Running {
        id: Value,
        n: usize,
        asked: Asked,
        events: EventStream,
    },
}

impl Batch<'_> {
    fn run(&mut self, input: &mut Input, parser: &Parser, earlier: &[Earlier]) -> Result<()> {
        let mut lines = input.lines()?;
        while let Some(line) = lines.next()? {
            self.watch.check()?;
            let earlier = earlier.get(line.index);
            self.push(line, parser, earlier)?;
            while self.pending.len() > MAX_LINES || self.is_full() && self.pending.len() > 1 {
                self.write_oldest()?;
            }
        }
        while !self.pending.is_empty() {
            self.write_oldest()?;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        let sum = |of: fn(&Pending) -> usize| self.pending.iter().map(of).sum::<usize>();
        sum(|pending| pending.n_tokens) > MAX_TOKENS || sum(|pending| pending.n_samples) > MAX_SAMPLES
    }

    fn push(&mut self, line: Line, parser: &Parser, earlier: Option<&Earlier>) -> Result<()> {
        let n_earlier = earlier.map_or(0, |block| block.n_bytes);
        if earlier.is_some_and(|block| block.finished) {
            match self.pending.back_mut() {
                Some(Pending { n_earlier: before, kind: PendingKind::Finished, .. }) => *before += n_earlier,
                _ => {
                    let kind = PendingKind::Finished;
                    self.pending.push_back(Pending { n_earlier, n_tokens: 0, n_samples: 0, kind });
                }
            }
            return Ok(());
        }
        let parsed = parser.parse(&line);
        let id = parsed.id.clone();
        let (n_tokens, n_samples, kind) = match parsed.request(self.trio, &line, parser) {
            Err(error) => (0, 0, PendingKind::Failed { id, error }),
            Ok(request) => {
                let engine = self.engine.ok_or_else(|| lines::changed(&line))?;
                let n_tokens = request.prompts.iter().map(Vec::len).sum();
                let (n, asked) = (request.n as usize, Asked::by(&request));
                (n_tokens, n, PendingKind::Running { id, n, asked, events: engine.generate(request)? })
            }
        };
        self.pending.push_back(Pending { n_earlier, n_tokens, n_samples, kind });
        Ok(())
    }

    /// Waits for the oldest line and writes its results, all at once: a reader never sees half of a line's samples.
    fn write_oldest(&mut self) -> Result<()> {
        let Some(Pending { n_earlier, kind, .. }) = self.pending.pop_front() else { return Ok(()) };
        let text = match kind {
            PendingKind::Finished => return self.writer.keep(n_earlier),
            PendingKind::Failed { id, error } => {
                self.failed += 1;
                failed_line(&id, &error)
            }
            PendingKind::Running { id, n, asked, mut events } => {
                let (mut text, mut failed) = (String::new(), false);
                in_order(&self.watch, &mut events, n, |index, completion| {
                    refuse_device_error(&completion)?;
                    failed |= completion.error.is_some();
                    text += &to_json(&ResultJson::new(&id, index as u32, &completion, asked, self.trio));
                    text.push('\n');
                    Ok(None)
                })?;
                self.failed += usize::from(failed);
                text
            }
        };
        self.writer.replace(n_earlier, &text)?;
        self.bar.iter().for_each(|bar| bar.advance(1));
        Ok(())
    }
}

/// A device that is gone is no fault of the line: the run ends here, and can go on from here later.
fn refuse_device_error(completion: &Completion) -> Result<()> {
    match &completion.error {
        Some(error @ Error::Device { .. }) => Err(error.clone()),
        _ => Ok(()),
    }
}

fn failed_line(id: &Value, error: &Error) -> String {
    #[derive(Serialize)]
    struct Failed<'a> {
        id: &'a Value,
        error: ErrorJson,
    }
    to_json(&Failed { id, error: ErrorJson::new(error) }) + "\n"
}
