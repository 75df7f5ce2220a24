//! The results of an earlier run, read along with the input: they stand in its order, so the two are walked side by
//! side. Results whose ids are not those of the input are refused, before anything is changed.

use super::lines::{Input, Parsed, Parser};
use crate::cli::output::{to_json, warn};
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;

/// Longest line that is taken for a result.
const MAX_RESULT_BYTES: u64 = 1 << 30;

/// The results of one line of the input, complete or failed as a whole.
pub(super) struct Earlier {
    /// Bytes they take, line ends included.
    pub n_bytes: u64,
    /// All of them are there, and none is an error.
    pub finished: bool,
}

/// The results in `file`, by line of the input, as many as are complete. A torn line at the end, and results of a line
/// whose others are missing, are left out.
pub(super) fn walk(file: &File, path: &Path, input: &mut Input, parser: &Parser) -> Result<Vec<Earlier>> {
    let mut results = Results::new(file, path)?;
    let mut found = Vec::new();
    let mut lines = input.lines()?;
    while let Some(line) = lines.next()? {
        match results.of_line(&parser.parse(&line))? {
            Some(block) => found.push(block),
            None => return Ok(found),
        }
    }
    match results.peek()? {
        Next::End => Ok(found),
        _ => Err(results.refused("belongs to no line of the input")),
    }
}

struct Results<'a> {
    path: &'a Path,
    reader: BufReader<&'a File>,
    /// The next line, if it was looked at.
    ahead: Vec<u8>,
    number: usize,
}

enum Next {
    Line,
    /// A line without an end.
    Torn,
    End,
}

/// What tells a result from an error, and a sample from its siblings.
#[derive(Deserialize)]
struct Head {
    index: Option<u32>,
    error: Option<IgnoredAny>,
}

impl<'a> Results<'a> {
    fn new(mut file: &'a File, path: &'a Path) -> Result<Self> {
        file.rewind().map_err(|error| refused(path, &error))?;
        Ok(Self { path, reader: BufReader::new(file), ahead: Vec::new(), number: 1 })
    }

    /// The results of the next line of the input; none where they are not all there, which is the end.
    fn of_line(&mut self, parsed: &Parsed) -> Result<Option<Earlier>> {
        let start = format!("{{\"id\":{},", to_json(&parsed.id));
        let belongs_not = || format!("is not a result of the request {}", to_json(&parsed.id));
        let mut block = Earlier { n_bytes: 0, finished: true };
        for expected in 0.. {
            match self.peek()? {
                Next::Torn
                    if !self.ahead.starts_with(start.as_bytes()) && !start.as_bytes().starts_with(&self.ahead) =>
                {
                    return Err(self.refused(belongs_not()));
                }
                Next::End | Next::Torn => {
                    self.warn_of_missing(expected, parsed);
                    return Ok(None);
                }
                Next::Line if self.ahead.starts_with(start.as_bytes()) => {}
                Next::Line => return Err(self.refused(belongs_not())),
            }
            let head: Head = serde_json::from_slice(&self.ahead).map_err(|error| self.refused(error))?;
            block.finished &= head.error.is_none();
            let last = match (head.index, parsed.n()) {
                (None, _) if expected == 0 && head.error.is_some() => true,
                (Some(index), Some(n)) if index == expected => index + 1 == n,
                (Some(_), None) => return Err(self.refused("is the result of a request that is wrong now")),
                _ => return Err(self.refused(format!("is not result {expected} of {}", to_json(&parsed.id)))),
            };
            block.n_bytes += self.ahead.len() as u64;
            self.number += 1;
            self.ahead.clear();
            if last {
                break;
            }
        }
        Ok(Some(block))
    }

    /// A crash can leave some of a line's samples, and so can an `n` that has grown since; they are not kept.
    fn warn_of_missing(&self, n_there: u32, parsed: &Parsed) {
        if let Some(n) = parsed.n().filter(|_| n_there > 0) {
            let (path, id) = (self.path, to_json(&parsed.id));
            warn(&format!("{path:?}: ends with {n_there} of the {n} results of the request {id}, which are left out"));
        }
    }

    fn peek(&mut self) -> Result<Next> {
        if self.ahead.is_empty() {
            let read = (&mut self.reader).take(MAX_RESULT_BYTES).read_until(b'\n', &mut self.ahead);
            let n = read.map_err(|error| refused(self.path, &error))?;
            if n as u64 == MAX_RESULT_BYTES {
                return Err(self.refused("is too long for a result"));
            }
        }
        Ok(match self.ahead.last() {
            None => Next::End,
            Some(b'\n') => Next::Line,
            Some(_) => Next::Torn,
        })
    }

    fn refused(&self, what: impl std::fmt::Display) -> Error {
        let what = what.to_string().replace(" at line 1 column ", " at column ");
        let message = format!("line {} {what}; nothing was changed: --overwrite starts anew", self.number);
        refused(self.path, &message)
    }
}

fn refused(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::argument("output_file", format!("{path:?}: {error}"))
}
