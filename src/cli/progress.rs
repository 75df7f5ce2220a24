//! Progress of what takes long (downloads, loading), on standard error: a bar where a person watches, nothing elsewhere.

use super::output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// No colours, so that NO_COLOR has nothing to turn off.
const BYTES: &str = "{msg} {wide_bar} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";

const LINES: &str = "{msg} {wide_bar} {pos} of {len} lines, {eta} left";

/// A bar, drawn only where standard error is a terminal that can redraw a line; gone when dropped.
///
/// May be advanced from several threads.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// A bar of `total` bytes of which `done` are there already, with `label` before it.
    pub(super) fn of_bytes(label: String, total: u64, done: u64) -> Self {
        Self::new(BYTES, label, total, done)
    }

    /// A bar of `total` lines of a batch of which `done` are there already.
    pub(super) fn of_lines(label: String, total: u64, done: u64) -> Self {
        Self::new(LINES, label, total, done)
    }

    fn new(style: &str, label: String, total: u64, done: u64) -> Self {
        let target = if output::stderr_redraws() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template(style).expect("the template is right");
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style).with_message(label);
        // What is there already is not part of the speed.
        Self(bar.with_position(done))
    }

    /// `n` more are done.
    pub(super) fn advance(&self, n: u64) {
        self.0.inc(n);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
