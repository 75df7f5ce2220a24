//! `chat`: one conversation, kept as text. Each message makes a new request of all that was said, in which each role reads
//! its own form of it ([`PromptRequest::turns`]); the engine finds the pages of what it has computed before.
//!
//! Standard output has the replies and the records that were asked for; everything else goes to standard error.

mod commands;
mod input;
mod record;

use super::args::ChatArgs;
use super::interrupt::{self, Watch};
use super::loading;
use super::open::model_len;
use super::output::{Stdout, to_stderr};
use super::sampling::{Room, SamplingFields};
use crate::backend::params::StepRecord;
use crate::engine::event::{Completion, Event, FinishReason};
use crate::engine::request::{Draft, Mode, Request, Sampling};
use crate::engine::trio::Trio;
use crate::engine::{self, EngineOptions, EventStream, Handle};
use crate::text::prompt::{PromptRequest, Roles, Turn};
use crate::{Error, Result};
use commands::{Command, HELP, KEYS};
use input::{Input, Said};
use std::sync::Arc;

pub(super) fn run(args: ChatArgs) -> Result<()> {
    let roles: Roles = args.chat.as_deref().unwrap_or("expert").parse()?;
    if args.models.chat_template.is_some() && roles == Roles::NONE {
        return Err(Error::argument("chat_template", "has no effect without --chat"));
    }
    let trio = args.models.open_trio()?;
    let mut chat = Chat {
        prompt: PromptRequest { chat: roles, system: args.system_prompt, ..PromptRequest::default() },
        max_model_len: model_len(args.max_model_len, args.sampling.positions(&trio))?,
        sampling: args.sampling,
        record: None,
        trio,
    };
    // What no message could mend is refused before weights are read.
    let (_, first) = chat.request(chat.opening())?;
    let sized = EngineOptions { max_model_len: chat.max_model_len, ..EngineOptions::sized_for(&[first]) };
    let engine = loading::start(&chat.trio, args.device.engine(sized))?;
    let mut input = Input::new()?;
    if input.is_person() {
        interrupt::spare_the_idle();
        let (device, len) = (engine.device(), chat.max_model_len);
        to_stderr(&format!("{} on {device}, {len} tokens\n/help lists commands, Ctrl-D ends", chat.source()));
    }
    chat.converse(&engine, &mut input)
}

/// A conversation.
struct Chat {
    trio: Arc<Trio>,
    sampling: SamplingFields,
    /// All that was said, and the system message.
    prompt: PromptRequest,
    /// Tokens of the longest conversation.
    max_model_len: usize,
    /// Of the last reply.
    record: Option<Vec<StepRecord>>,
}

impl Chat {
    /// Until the input ends. Whoever wrote a file of messages learns by the exit code that some were wrong.
    fn converse(&mut self, engine: &Handle, input: &mut Input) -> Result<()> {
        let (mut total, mut failed) = (0, 0);
        loop {
            let done = match input.next()? {
                Said::End => break,
                Said::Line(line) if line.trim().is_empty() => continue,
                Said::Nothing => {
                    to_stderr("Ctrl-D ends the chat");
                    continue;
                }
                Said::Unreadable(error) => Err(error),
                Said::Line(line) => match Command::parse(&line) {
                    Some(command) => command.and_then(|command| self.obey(command, input)),
                    None => self.answer(engine, &line, input),
                },
            };
            total += 1;
            match done {
                Ok(()) => {}
                Err(error @ (Error::Device { .. } | Error::Io { .. } | Error::ClosedPipe | Error::Interrupted)) => {
                    return Err(error);
                }
                Err(error) => {
                    failed += 1;
                    to_stderr(&format!("error: {error}"));
                }
            }
        }
        match failed {
            _ if input.is_person() => Stdout::new().line(""),
            0 => Ok(()),
            failed => Err(Error::Partial { failed, total }),
        }
    }

    fn obey(&mut self, command: Command, input: &Input) -> Result<()> {
        match command {
            Command::Help => {
                to_stderr(HELP);
                if input.is_person() {
                    to_stderr(KEYS);
                }
            }
            Command::Reset => {
                self.prompt.turns.clear();
                self.record = None;
            }
            Command::Alpha(_) if self.sampling.mode() != Mode::Combined => {
                return Err(Error::argument("alpha", "has no say where one model speaks alone"));
            }
            Command::Alpha(None) => to_stderr(&self.source()),
            Command::Alpha(Some(alpha)) => {
                self.trio.limits().check_alpha(alpha)?;
                self.sampling.alpha = Some(alpha);
            }
            Command::System(Some(_)) if self.prompt.chat == Roles::NONE => {
                return Err(Error::argument("system_prompt", "has no effect without chat"));
            }
            Command::System(text) => {
                let opening = PromptRequest { system: text.clone(), ..self.opening() };
                self.request(opening).map_err(|error| match error {
                    Error::Argument { param, message } if param == "prompt" => {
                        Error::argument("system_prompt", message)
                    }
                    other => other,
                })?;
                self.prompt.system = text;
            }
            Command::Record => {
                let none = || Error::argument("/record", "there is no reply yet, or none of the base");
                let record = self.record.as_ref().ok_or_else(none)?;
                Stdout::new().line(&record::of_reply(record, &self.trio))?;
            }
        }
        Ok(())
    }

    /// Answers a message, and remembers both. A message that fails is as if it had not been said.
    fn answer(&mut self, engine: &Handle, message: &str, input: &Input) -> Result<()> {
        let prompt = PromptRequest { text: message.into(), ..self.prompt.clone() };
        let (room, request) = self.request(prompt)?;
        let most = request.sampling.max_tokens as usize;
        let mut reply = String::new();
        self.record = None;
        let printed = print(&mut engine.generate(request)?, &mut reply);
        if input.is_person() {
            // A key that came after the reply's last look was meant for it too, not for the next.
            interrupt::forget();
        }
        match printed {
            Ok(completion) => {
                if completion.finish_reason == FinishReason::Length {
                    let why = if most == room.left { room.full() } else { "--max-tokens".into() };
                    to_stderr(&format!("cut off after {most} tokens: {why}"));
                }
                self.record = (!completion.record.is_empty()).then_some(completion.record);
            }
            Err(Error::Interrupted) if input.is_person() && reply.is_empty() => {
                to_stderr("stopped before the reply began: the message is forgotten");
                return Ok(());
            }
            Err(Error::Interrupted) if input.is_person() => {}
            Err(error) => return Err(error),
        }
        self.prompt.turns.push(Turn { message: message.into(), reply });
        Ok(())
    }

    /// A first message: where it cannot be answered, none can.
    fn opening(&self) -> PromptRequest {
        PromptRequest { text: "Hello".into(), turns: Vec::new(), ..self.prompt.clone() }
    }

    /// The request of a conversation whose next message is the prompt's text, and the room that it leaves.
    fn request(&self, prompt: PromptRequest) -> Result<(Room, Request)> {
        let prompts = prompt.encode(&self.trio.models().role_texts())?.ids;
        let mode = self.sampling.mode();
        let room = Room::after(&prompts, mode, &self.trio, Some(self.max_model_len as u32));
        let min_tokens = self.sampling.min_tokens.unwrap_or(0);
        let room = room.and_then(|room| room.fits("min_tokens", min_tokens).map(|()| room));
        let room = room.map_err(|error| match error {
            Error::Argument { param, message } if !prompt.turns.is_empty() => {
                Error::argument(param, format!("{message}; /reset starts anew"))
            }
            other => other,
        })?;
        let most = self.sampling.max_tokens.unwrap_or(Sampling::default().max_tokens);
        let draft = self.sampling.draft(&self.trio, prompts, most.min(room.left as u32))?;
        let record = (mode != Mode::ExpertOnly).then_some(0);
        let request = Request::new(Draft { record, ..draft }, &self.trio.limits())?;
        Ok((room, request))
    }

    /// What the replies come from.
    fn source(&self) -> String {
        match self.sampling.mode() {
            Mode::Combined => {
                format!("base + {} * (expert - anti-expert)", self.sampling.alpha.unwrap_or(Sampling::default().alpha))
            }
            Mode::BaseOnly => "the base alone".into(),
            Mode::ExpertOnly => "the expert alone".into(),
        }
    }
}

/// Prints what comes, and keeps it in `reply`.
fn print(events: &mut EventStream, reply: &mut String) -> Result<Completion> {
    let (mut out, watch) = (Stdout::new(), Watch::new());
    let done = loop {
        let event = match watch.next(events) {
            Ok(event) => event.ok_or_else(engine::lost)?,
            Err(error) => break Err(error),
        };
        let (text, ended) = match event {
            Event::Token { text, .. } => (text, None),
            Event::Done { completion, .. } => (completion.text[reply.len()..].to_string(), Some(completion)),
        };
        out.text(&text)?;
        reply.push_str(&text);
        if let Some(mut completion) = ended {
            break completion.error.take().map_or(Ok(*completion), Err);
        }
    };
    out.line("")?;
    done
}
