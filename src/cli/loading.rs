//! Starting an engine, with a bar on a terminal while weights are read.

use super::output;
use super::progress::Bar;
use crate::Result;
use crate::engine::trio::Trio;
use crate::engine::{Engine, EngineOptions, Handle};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// How long loading may take before there is a bar, and how often it moves.
const TICK: Duration = Duration::from_millis(100);

/// As [`Engine::start`], and says where a card is left alone.
pub(super) fn start(trio: &Arc<Trio>, options: EngineOptions) -> Result<Handle> {
    warn_of_idle_cards(&options);
    thread::scope(|scope| {
        let (done, is_done) = mpsc::channel::<()>();
        scope.spawn(move || watch(trio, &is_done));
        let handle = Engine::start(trio.clone(), options);
        drop(done);
        handle
    })
}

/// Says what a card that is here lacks to be used: what takes its place may be many times slower.
pub(super) fn warn_of_idle_cards(options: &EngineOptions) {
    let lacks = options.backend.why_not_cuda(&options.kernels).join("; ");
    if !lacks.is_empty() {
        output::warn(&format!("the NVIDIA card is not used: {lacks}"));
    }
}

/// Shows how much of the weights was read, until the other end of `is_done` is gone.
fn watch(trio: &Trio, is_done: &mpsc::Receiver<()>) {
    let waits = || is_done.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout);
    let checkpoints = trio.checkpoints();
    let n_read = || checkpoints.iter().map(|checkpoint| checkpoint.n_read()).sum::<u64>();
    if !waits() {
        return;
    }
    let mut shown = n_read();
    let total = checkpoints.iter().map(|checkpoint| checkpoint.n_bytes()).sum();
    let bar = Bar::of_bytes("loading".into(), total, shown);
    while waits() {
        let now = n_read();
        bar.advance(now - shown);
        shown = now;
    }
}
