//! `generate -i`: many requests, one JSON object a line, run as one batch; results one a line, in the order of the
//! input. A line that is wrong gives an error in its place, and the others run.

use super::args::GenerateArgs;
use super::fields::RequestFields;
use super::generate::in_order;
use super::interrupt::Watched;
use super::output::{Stdout, to_json};
use super::result::{ErrorJson, ResultJson};
use crate::engine::event::Completion;
use crate::engine::request::Request;
use crate::engine::trio::Trio;
use crate::engine::worker::Handle;
use crate::{Error, Result};
use clap::{Args, Command};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Longest input; all of it is held while it runs.
const MAX_INPUT_BYTES: u64 = 1 << 30;

pub(super) fn run(args: &GenerateArgs) -> Result<()> {
    let input = args.input_file.as_deref().expect("a batch has an input file");
    refuse_same_file(input, args.output_file.as_deref())?;
    let bytes = read(input)?;
    let trio = args.models.open_trio()?;
    let (entries, requests) = parse(&bytes, args, &trio)?;
    let total = entries.len();
    let started =
        |requests: Vec<Request>| Ok((Handle::start(trio.clone(), args.device.engine_for(&requests))?, requests));
    // Before the output is opened, so that a device that is not there leaves an older output alone.
    let engine = Some(requests).filter(|requests| !requests.is_empty()).map(started).transpose()?;
    let mut results = Results { entries, output: Output::open(args.output_file.as_deref())?, failed: 0 };
    results.write_failed()?;
    if let Some((engine, requests)) = engine {
        let n = requests.len();
        let mut events = Watched::new(engine.submit(requests)?);
        in_order(&mut events, n, |_, completion| results.write(&completion, &trio).map(|()| None))?;
    }
    match results.failed {
        0 => Ok(()),
        failed => Err(Error::Partial { failed, total }),
    }
}

/// One line of the output: a result to come, or an error already.
struct Entry {
    id: Value,
    kind: EntryKind,
}

enum EntryKind {
    Sample { index: u32, recorded: bool },
    Failed(Error),
}

/// What is still to be written, in order.
struct Results {
    entries: VecDeque<Entry>,
    output: Output,
    failed: usize,
}

impl Results {
    /// Writes the next result, and the errors that follow it.
    fn write(&mut self, completion: &Completion, trio: &Trio) -> Result<()> {
        if let Some(Entry { id, kind: EntryKind::Sample { index, recorded } }) = self.entries.pop_front() {
            self.failed += usize::from(completion.error.is_some());
            self.output.line(&to_json(&ResultJson::new(&id, index, completion, recorded, trio)))?;
        }
        self.write_failed()
    }

    /// Writes the errors up to the next result.
    fn write_failed(&mut self) -> Result<()> {
        #[derive(Serialize)]
        struct Failed<'a> {
            id: &'a Value,
            error: ErrorJson,
        }
        while let Some(Entry { id, kind: EntryKind::Failed(error) }) = self.entries.front() {
            self.output.line(&to_json(&Failed { id, error: ErrorJson::new(error) }))?;
            self.failed += 1;
            self.entries.pop_front();
        }
        Ok(())
    }
}

enum Output {
    Stdout(Stdout),
    File(File),
}

impl Output {
    fn open(path: Option<&Path>) -> Result<Self> {
        match path.filter(|path| path.as_os_str() != "-") {
            None => Ok(Output::Stdout(Stdout::new())),
            Some(path) => {
                let file = File::create(path);
                file.map(Output::File).map_err(|e| Error::argument("output_file", format!("{path:?}: {e}")))
            }
        }
    }

    fn line(&mut self, text: &str) -> Result<()> {
        match self {
            Output::Stdout(out) => out.line(text),
            Output::File(file) => {
                let written = file.write_all(format!("{text}\n").as_bytes());
                written.map_err(|error| Error::Io { message: format!("output file: {error}") })
            }
        }
    }
}

fn refuse_same_file(input: &Path, output: Option<&Path>) -> Result<()> {
    // A file that is not there yet has no canonical path, and is no input.
    let same = output.and_then(|output| output.canonicalize().ok()).zip(input.canonicalize().ok());
    match same {
        Some((output, input)) if output == input => {
            Err(Error::argument("output_file", format!("{output:?} is the input file")))
        }
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let refused = |error: std::io::Error| Error::argument("input_file", format!("{path:?}: {error}"));
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().lock().take(MAX_INPUT_BYTES + 1).read_to_end(&mut bytes).map_err(refused)?;
    } else {
        File::open(path).and_then(|f| f.take(MAX_INPUT_BYTES + 1).read_to_end(&mut bytes)).map_err(refused)?;
    }
    if bytes.len() as u64 > MAX_INPUT_BYTES {
        return Err(Error::argument("input_file", format!("{path:?} is longer than {MAX_INPUT_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The lines in order, blank ones left out, and the requests of those that are right.
fn parse(bytes: &[u8], args: &GenerateArgs, trio: &Trio) -> Result<(VecDeque<Entry>, Vec<Request>)> {
    let defaults = to_map(&args.request);
    let (mut entries, mut requests) = (VecDeque::new(), Vec::new());
    let lines = bytes.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    for (index, (number, line)) in lines.enumerate() {
        let mut id = Value::from(index);
        let parsed = object(line).and_then(|object| {
            if let Some(named @ (Value::String(_) | Value::Number(_))) = object.get("id") {
                id = named.clone();
            }
            let fields = fields(object, &defaults)?;
            // The map has kept the last of a name that stands twice.
            serde_json::from_slice::<RequestFields>(line).map_err(|error| invalid(&error))?;
            Ok((fields.record.is_some(), fields.requests(trio, args.max_model_len)?))
        });
        match parsed {
            Ok((recorded, samples)) => {
                let entry =
                    |r: &Request| Entry { id: id.clone(), kind: EntryKind::Sample { index: r.sample_index, recorded } };
                entries.extend(samples.iter().map(entry));
                requests.extend(samples);
            }
            Err(error) => entries.push_back(Entry { id, kind: EntryKind::Failed(at_line(error, number + 1)) }),
        }
    }
    Ok((entries, requests))
}

fn to_map(fields: &RequestFields) -> Map<String, Value> {
    match serde_json::to_value(fields).expect("fields are strings, numbers and lists") {
        Value::Object(object) => object,
        _ => unreachable!("fields are an object"),
    }
}

fn object(line: &[u8]) -> Result<Map<String, Value>> {
    let text = std::str::from_utf8(line).map_err(|error| invalid(&error))?;
    serde_json::from_str(text).map_err(|error| invalid(&error))
}

fn invalid(error: &dyn std::fmt::Display) -> Error {
    // Every line is parsed by itself: the parser's own "line 1" would mislead.
    let error = error.to_string().replace(" at line 1 column ", " at column ");
    Error::argument("line", format!("not a request: {error}"))
}

/// The fields of a line over those of the command line. Null is the same as absent.
fn fields(mut line: Map<String, Value>, defaults: &Map<String, Value>) -> Result<RequestFields> {
    line.retain(|_, value| !value.is_null());
    let known = RequestFields::augment_args(Command::new("line"));
    let whole_run = GenerateArgs::augment_args(Command::new("run"));
    let names = |command: &Command, name: &str| command.get_arguments().any(|arg| arg.get_id() == name);
    for (name, value) in &line {
        if name == "id" {
            if !(value.is_string() || value.is_number()) {
                return Err(Error::argument("id", format!("{value} is not a string or a number")));
            }
        } else if !names(&known, name) {
            let what = if names(&whole_run, name) {
                "holds for the whole run: give it on the command line"
            } else {
                "there is no such field"
            };
            return Err(Error::argument(name, what));
        }
        // One field at a time, so that the message can name it.
        let one = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        serde_json::from_value::<RequestFields>(one).map_err(|error| Error::argument(name, error.to_string()))?;
    }
    let mut all = defaults.clone();
    all.extend(line);
    serde_json::from_value(Value::Object(all)).map_err(|error| invalid(&error))
}

/// The error with the number of its line, where it is about the request.
fn at_line(error: Error, number: usize) -> Error {
    match error {
        Error::Argument { param, message } => Error::Argument { param, message: format!("{message} (line {number})") },
        Error::Vocabulary { message } => Error::Vocabulary { message: format!("{message} (line {number})") },
        other => other,
    }
}
