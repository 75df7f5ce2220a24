//! Lines from a person, who gets a mark, an editor and a history, or from a pipe, which gets none of them.

use crate::text::tokenizer::MAX_TEXT_BYTES;
use crate::{Error, Result};
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};
use std::io::{self, BufRead, IsTerminal, Read};

/// Bytes that are read of a pipe's line: a text of the greatest length and the line's end.
const MAX_LINE_BYTES: u64 = MAX_TEXT_BYTES as u64 + 2;
const MARK: &str = "> ";

/// Where lines come from.
pub(super) enum Input {
    Person(Box<Editor<(), MemHistory>>),
    Pipe,
}

/// What came.
pub(super) enum Said {
    Line(String),
    /// A line that is no text; the next one may be.
    Unreadable(Error),
    /// Ctrl-C where there was nothing to stop.
    Nothing,
    End,
}

impl Input {
    /// A person where both ends are a terminal: marks in what is written to a file would be part of the text.
    pub(super) fn new() -> Result<Self> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Input::Pipe);
        }
        let config = Config::builder().auto_add_history(true).build();
        let editor = Editor::with_history(config, MemHistory::new()).map_err(|error| failed(&error))?;
        Ok(Input::Person(Box::new(editor)))
    }

    /// Whether a person sits there.
    pub(super) fn is_person(&self) -> bool {
        matches!(self, Input::Person(_))
    }

    /// Waits for the next line.
    pub(super) fn next(&mut self) -> Result<Said> {
        match self {
            Input::Person(editor) => match editor.readline(MARK) {
                Ok(line) => Ok(Said::Line(line)),
                Err(ReadlineError::Eof) => Ok(Said::End),
                Err(ReadlineError::Interrupted) => Ok(Said::Nothing),
                Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    Ok(Said::Unreadable(Error::argument("message", "invalid utf-8")))
                }
                Err(error) => Err(failed(&error)),
            },
            Input::Pipe => line_of(&mut io::stdin().lock()),
        }
    }
}

fn line_of(from: &mut impl BufRead) -> Result<Said> {
    let mut bytes = Vec::new();
    let n = from.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes).map_err(|error| failed(&error))?;
    if n == 0 {
        return Ok(Said::End);
    }
    if bytes.pop_if(|byte| *byte == b'\n').is_some() {
        bytes.pop_if(|byte| *byte == b'\r');
    } else if n as u64 == MAX_LINE_BYTES {
        from.skip_until(b'\n').map_err(|error| failed(&error))?;
        let message = format!("longer than {MAX_TEXT_BYTES} bytes");
        return Ok(Said::Unreadable(Error::argument("message", message)));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(line) => Said::Line(line),
        Err(error) => Said::Unreadable(Error::argument("message", error.utf8_error().to_string())),
    })
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::Io { message: format!("standard input: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gives_lines_whatever_is_in_them() {
        let long = vec![b'x'; MAX_TEXT_BYTES];
        // One byte more, and a letter of two bytes where reading stops.
        let (longer, cut) = ([&long[..], b"xx\n"].concat(), [&long[..], "x\u{e9}\n".as_bytes()].concat());
        let bytes = [b"a\r\n\n\xff\xfe\n", &long[..], b"\r\n", &longer, &cut, b"last\r"].concat();
        let mut from = &bytes[..];
        let mut seen = Vec::new();
        loop {
            match line_of(&mut from).expect("memory can be read") {
                Said::Line(line) => seen.push(line),
                Said::Unreadable(error) => seen.push(error.to_string()),
                Said::Nothing => panic!("nobody presses a key"),
                Said::End => break,
            }
        }
        assert_eq!((seen.len(), &seen[0][..], &seen[1][..], seen[3].len()), (7, "a", "", MAX_TEXT_BYTES));
        assert!(seen[2].starts_with("message: invalid utf-8"), "{}", seen[2]);
        let too_long = "message: longer than 1048576 bytes";
        assert_eq!(seen[4..], [too_long, too_long, "last\r"]);
    }
}
