//! The engine's thread: it loads the models, then takes messages and steps until it is told to close and all is done.

use super::core::Core;
use super::handle::{Board, Submission};
use super::limits::{Limits, PageLimits};
use super::machine::Machine;
use super::options::EngineOptions;
use super::trio::Trio;
use crate::backend::Backend;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

/// Messages taken between two steps at most, so that a flood of them stops nobody who runs.
const MESSAGES_PER_STEP: usize = 64;

/// What a thread is told.
pub(super) enum Message {
    /// A request.
    Submit(Submission),
    /// Nobody reads these samples any more.
    Cancel(Range<u64>),
    /// The last handle is gone.
    Close,
}

/// What a thread says when its engine is ready.
pub(super) struct Started {
    pub(super) device: String,
    pub(super) is_whole: bool,
    pub(super) limits: Limits,
}

/// Where the thread ends, by a panic too, nothing waits or runs any more.
struct Closing(Arc<Board>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.clear();
    }
}

pub(super) fn run<B: Backend>(
    backend: Result<B>,
    trio: &Arc<Trio>,
    options: &EngineOptions,
    board: Arc<Board>,
    inbox: &Receiver<Message>,
    ready: &Sender<Result<Started>>,
) {
    let closing = Closing(board.clone());
    let load = |backend: B| {
        let device = backend.describe();
        let machine =
            Machine::load(backend, &trio.checkpoints(), trio.member_of_role(), trio.vocabulary(), &options.machine())?;
        let limits = limits(trio, &machine, options);
        let started = Started { device, is_whole: machine.is_whole(), limits };
        Ok((Core::new(machine, trio.clone(), board, options.max_waiting), started))
    };
    match backend.and_then(load) {
        Ok((mut core, started)) => {
            // Goes before the core: whoever sees a stream end finds nothing counted any more.
            let _closing = closing;
            if ready.send(Ok(started)).is_ok() {
                serve(&mut core, inbox);
            }
        }
        // The starter waits for this answer; if it is gone there is nobody to tell.
        Err(error) => drop(ready.send(Err(error))),
    }
}

fn limits<B: Backend>(trio: &Trio, machine: &Machine<B>, options: &EngineOptions) -> Limits {
    let of_trio = trio.limits().with_max_model_len(options.max_model_len);
    Limits {
        max_samples: of_trio.max_samples.min(u32::try_from(options.max_waiting).unwrap_or(u32::MAX)),
        penalties: machine.penalises(),
        record_top: machine.record_top(),
        pages: Some(PageLimits {
            n_pages: machine.n_pages(),
            page_tokens: machine.seats().map(|seat| machine.page_tokens(seat)),
            seats: machine.seats(),
        }),
        ..of_trio
    }
}

/// Until it is closed and all is done; after a device error, refuses everything.
fn serve<B: Backend>(core: &mut Core<B>, inbox: &Receiver<Message>) {
    let (mut dead, mut is_open): (Option<Error>, bool) = (None, true);
    loop {
        let first = match (core.is_idle(), is_open) {
            (false, _) => None,
            (true, false) => return,
            // Closed by a message; where none can come any more, not even that, all is done too.
            (true, true) => Some(inbox.recv().unwrap_or(Message::Close)),
        };
        for message in first.into_iter().chain(inbox.try_iter()).take(MESSAGES_PER_STEP) {
            match (message, &dead) {
                (Message::Submit(submission), Some(error)) => core.refuse(&submission, error),
                (Message::Submit(submission), None) => core.arrive(submission),
                (Message::Cancel(ids), _) => core.cancel(ids),
                (Message::Close, _) => is_open = false,
            }
        }
        if dead.is_none() {
            core.expire();
            if let Err(error) = core.step() {
                core.fail_all(&error);
                dead = Some(error);
            }
        }
    }
}
