//! What goes out: standard output with typed errors, warnings, marks that suit where they are shown, and tables.

use crate::{Error, Result};
use std::io::{self, IsTerminal, Write};

/// Standard output, flushed with every piece, so that a reader sees it at once and a closed pipe is noticed.
pub(super) struct Stdout(io::Stdout);

impl Stdout {
    pub(super) fn new() -> Self {
        Self(io::stdout())
    }

    /// Writes text as it is.
    pub(super) fn text(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let mut out = self.0.lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| io_error(&error))
    }

    /// Writes text and a line's end.
    pub(super) fn line(&mut self, text: &str) -> Result<()> {
        self.text(&format!("{text}\n"))
    }

    /// Writes a value as one line of JSON.
    pub(super) fn json(&mut self, value: &impl serde::Serialize) -> Result<()> {
        self.line(&to_json(value))
    }
}

/// One line of JSON. Numbers that are not finite become null.
pub(super) fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("results hold strings, numbers and lists")
}

/// An error of standard output.
pub(super) fn io_error(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Error::ClosedPipe,
        _ => Error::Io { message: format!("standard output: {error}") },
    }
}

/// A line on standard error. Where that is closed there is nobody to tell.
pub(super) fn to_stderr(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A warning on standard error.
pub(super) fn warn(text: &str) {
    to_stderr(&format!("warning: {text}"));
}

/// Whether standard error is a terminal that can redraw a line.
pub(super) fn stderr_redraws() -> bool {
    io::stderr().is_terminal() && !is_dumb_terminal()
}

fn is_dumb_terminal() -> bool {
    std::env::var_os("TERM").is_some_and(|value| value == "dumb")
}

/// How marks are shown: colours on a terminal, unless NO_COLOR is set; plain characters elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Style {
    colour: bool,
}

impl Style {
    /// The style of standard output.
    pub(super) fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: io::stdout().is_terminal() && !refused && !is_dumb_terminal() }
    }

    /// Text that stands out, in brackets where there is no colour.
    pub(super) fn marked(self, text: &str) -> String {
        if self.colour { format!("\x1b[1;36m{text}\x1b[0m") } else { format!("[{text}]") }
    }

    /// A heading.
    pub(super) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// Text of less weight.
    pub(super) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// Something good.
    pub(super) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Something bad.
    pub(super) fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

/// Rows with their columns aligned, two spaces between; the last column is left as it is.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..n_columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Bytes for people, in units of 10^9, as files and memory are sold.
pub(super) fn gigabytes(bytes: u64) -> String {
    let gigabytes = bytes as f64 / 1e9;
    if gigabytes < 1.0 { format!("{:.1} MB", 1e3 * gigabytes) } else { format!("{gigabytes:.2} GB") }
}
