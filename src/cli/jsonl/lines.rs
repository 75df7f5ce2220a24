//! The input of a batch, a line at a time, and what a line asks for.

use crate::cli::args::GenerateArgs;
use crate::cli::fields::RequestFields;
use crate::engine::request::{MAX_N, Request};
use crate::engine::trio::Trio;
use crate::{Error, Result};
use clap::{Args, Command};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Longest input that is not a file, which is held because it can be read once only.
const MAX_HELD_BYTES: u64 = 1 << 30;
/// Longest line: five texts of a prompt, each at its limit, with every character escaped.
const MAX_LINE_BYTES: u64 = 32 << 20;

/// An input that can be read again and again.
pub(super) struct Input {
    path: PathBuf,
    bytes: Bytes,
}

enum Bytes {
    File(File),
    Held(Cursor<Vec<u8>>),
}

impl Input {
    /// Opens a file, or takes in all of standard input or of a pipe.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let refused = |error: io::Error| refused(path, &error);
        if path.as_os_str() == "-" {
            return Self::held(path, &mut io::stdin().lock());
        }
        let mut file = File::open(path).map_err(refused)?;
        if !file.metadata().map_err(refused)?.is_file() {
            return Self::held(path, &mut file);
        }
        Ok(Self { path: path.into(), bytes: Bytes::File(file) })
    }

    fn held(path: &Path, from: &mut impl Read) -> Result<Self> {
        let mut bytes = Vec::new();
        from.take(MAX_HELD_BYTES + 1).read_to_end(&mut bytes).map_err(|error| refused(path, &error))?;
        if bytes.len() as u64 > MAX_HELD_BYTES {
            let message = format!("longer than {MAX_HELD_BYTES} bytes, which is what is held of a pipe; use a file");
            return Err(refused(path, &message));
        }
        Ok(Self { path: path.into(), bytes: Bytes::Held(Cursor::new(bytes)) })
    }

    /// The lines from the first on.
    pub(super) fn lines(&mut self) -> Result<Lines<'_>> {
        let path = &self.path;
        let reader: Box<dyn BufRead + '_> = match &mut self.bytes {
            Bytes::File(file) => {
                file.rewind().map_err(|error| refused(path, &error))?;
                Box::new(BufReader::new(file))
            }
            Bytes::Held(bytes) => {
                bytes.set_position(0);
                Box::new(bytes)
            }
        };
        Ok(Lines { path, reader, number: 0, index: 0 })
    }
}

/// Reading along an input.
pub(super) struct Lines<'a> {
    path: &'a Path,
    reader: Box<dyn BufRead + 'a>,
    number: usize,
    index: usize,
}

/// A line that is not blank.
pub(super) struct Line {
    /// Counts all lines, from 1.
    number: usize,
    /// Counts those that are not blank, from 0.
    pub index: usize,
    /// None where it is too long.
    bytes: Option<Vec<u8>>,
}

impl Lines<'_> {
    /// The next line that is not blank.
    pub(super) fn next(&mut self) -> Result<Option<Line>> {
        loop {
            let mut bytes = Vec::new();
            let mut read = || {
                let n = (&mut self.reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes)?;
                let too_long = n as u64 == MAX_LINE_BYTES && bytes.last() != Some(&b'\n');
                if too_long {
                    self.reader.skip_until(b'\n')?;
                }
                Ok((n, too_long))
            };
            let (n, too_long) = read().map_err(|error: io::Error| refused(self.path, &error))?;
            if n == 0 {
                return Ok(None);
            }
            self.number += 1;
            if too_long || !bytes.trim_ascii().is_empty() {
                self.index += 1;
                let bytes = (!too_long).then_some(bytes);
                return Ok(Some(Line { number: self.number, index: self.index - 1, bytes }));
            }
        }
    }
}

fn refused(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::argument("input_file", format!("{path:?}: {error}"))
}

/// A line that could not run when the engine was sized, and now could.
pub(super) fn changed(line: &Line) -> Error {
    Error::argument("input_file", format!("line {} has changed while the batch was running", line.number))
}

/// What a line says, over the flags.
pub(super) struct Parser {
    max_model_len: Option<u32>,
    flags: Map<String, Value>,
    /// Names that a line may have, and those that hold for the whole run.
    of_line: Vec<String>,
    of_run: Vec<String>,
}

/// A line as far as it can be read without the models.
pub(super) struct Parsed {
    /// The id, or the line's index where it has none.
    pub id: Value,
    pub fields: Result<RequestFields>,
}

impl Parsed {
    /// How many results the line has when it has run; none where it cannot.
    pub(super) fn n(&self) -> Option<u32> {
        let n = self.fields.as_ref().ok()?.n.unwrap_or(1);
        (1..=MAX_N).contains(&n).then_some(n)
    }

    /// The request of the line.
    pub(super) fn request(self, trio: &Trio, line: &Line, parser: &Parser) -> Result<Request> {
        let request = self.fields.and_then(|fields| fields.request(trio, parser.max_model_len));
        request.map_err(|error| at_line(error, line.number))
    }
}

/// The request of one line of `generate -i`, checked in full against the models. What the line does not name has the
/// library's default.
pub fn request_of_line(line: &[u8], trio: &Trio) -> Result<Request> {
    static PARSER: LazyLock<Parser> = LazyLock::new(|| Parser::over(&RequestFields::default(), None));
    let line = Line { number: 1, index: 0, bytes: Some(line.to_vec()) };
    PARSER.parse(&line).request(trio, &line, &PARSER)
}

impl Parser {
    pub(super) fn new(args: &GenerateArgs) -> Self {
        Self::over(&args.request, args.max_model_len)
    }

    fn over(flags: &RequestFields, max_model_len: Option<u32>) -> Self {
        let flags = match serde_json::to_value(flags).expect("fields are strings, numbers and lists") {
            Value::Object(object) => object,
            _ => unreachable!("fields are an object"),
        };
        let names = |command: Command| command.get_arguments().map(|arg| arg.get_id().to_string()).collect();
        Self {
            max_model_len,
            flags,
            of_line: names(RequestFields::augment_args(Command::new("line"))),
            of_run: names(GenerateArgs::augment_args(Command::new("run"))),
        }
    }

    /// Reads a line. Null is the same as absent.
    pub(super) fn parse(&self, line: &Line) -> Parsed {
        let mut id = Value::from(line.index);
        let fields = line.object().and_then(|object| {
            if let Some(named @ (Value::String(_) | Value::Number(_))) = object.get("id") {
                id = named.clone();
            }
            let fields = self.fields(object)?;
            // The map has kept the last of a name that stands twice.
            let bytes = line.bytes.as_deref().unwrap_or_default();
            serde_json::from_slice::<RequestFields>(bytes).map_err(|error| invalid(&error))?;
            Ok(fields)
        });
        Parsed { id, fields }
    }

    /// The fields of a line over the flags.
    fn fields(&self, mut line: Map<String, Value>) -> Result<RequestFields> {
        line.retain(|_, value| !value.is_null());
        for (name, value) in &line {
            if name == "id" {
                if !(value.is_string() || value.is_number()) {
                    return Err(Error::argument("id", format!("{value} is not a string or a number")));
                }
            } else if !self.of_line.contains(name) {
                let what = if self.of_run.contains(name) {
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
        let mut all = self.flags.clone();
        all.extend(line);
        serde_json::from_value(Value::Object(all)).map_err(|error| invalid(&error))
    }
}

impl Line {
    fn object(&self) -> Result<Map<String, Value>> {
        let too_long = || Error::argument("line", format!("longer than {MAX_LINE_BYTES} bytes"));
        let text = std::str::from_utf8(self.bytes.as_deref().ok_or_else(too_long)?).map_err(|error| invalid(&error))?;
        serde_json::from_str(text).map_err(|error| invalid(&error))
    }
}

fn invalid(error: &dyn std::fmt::Display) -> Error {
    // Every line is parsed by itself: the parser's own "line 1" would mislead.
    let error = error.to_string().replace(" at line 1 column ", " at column ");
    Error::argument("line", format!("not a request: {error}"))
}

/// The error with the number of its line, where it is about the request.
fn at_line(error: Error, number: usize) -> Error {
    match error {
        Error::Argument { param, message } => Error::Argument { param, message: format!("{message} (line {number})") },
        Error::Vocabulary { message } => Error::Vocabulary { message: format!("{message} (line {number})") },
        other => other,
    }
}
