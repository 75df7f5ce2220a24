//! Ctrl-C. While text is produced the first one asks the run to stop, so that what was printed stays whole and the
//! device is left in order; at any other time, and the second time, it ends the process at once.

use crate::engine::EventStream;
use crate::engine::event::Event;
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

const IDLE: u8 = 0;
const PRODUCING: u8 = 1;
const ASKED_TO_STOP: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// Whether the process goes on where it is interrupted while idle.
static IDLE_IS_SPARED: AtomicBool = AtomicBool::new(false);

/// How long an interrupt may go unseen while no token comes.
const POLL: Duration = Duration::from_millis(50);

/// Installs the handler.
pub(super) fn install() -> Result<()> {
    let handler = || {
        if press(IDLE_IS_SPARED.load(Ordering::SeqCst)) {
            std::process::exit(Error::Interrupted.exit_code().into());
        }
    };
    ctrlc::set_handler(handler).map_err(|error| Error::Io { message: format!("cannot watch for Ctrl-C: {error}") })
}

/// What Ctrl-C does: asks to stop, or ends the process where that is the answer. One look at the state decides, since what is
/// produced may end at any moment.
fn press(idle_is_spared: bool) -> bool {
    match STATE.compare_exchange(PRODUCING, ASKED_TO_STOP, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => false,
        Err(state) => state != IDLE || !idle_is_spared,
    }
}

/// From now on Ctrl-C ends nothing but what is being produced: one that comes just after its end is meant for it.
pub(super) fn spare_the_idle() {
    IDLE_IS_SPARED.store(true, Ordering::SeqCst);
}

/// What was asked to stop has stopped, and something else may be produced.
pub(super) fn forget() {
    change(ASKED_TO_STOP, IDLE);
}

/// Goes from one state to another, if that is the state it is in.
fn change(from: u8, to: u8) -> bool {
    STATE.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}

/// While it lives a first Ctrl-C asks to stop; one that an earlier run was asked to stop by still counts.
pub(super) struct Watch(());

impl Watch {
    /// Watches from now on.
    pub(super) fn new() -> Self {
        change(IDLE, PRODUCING);
        Self(())
    }

    /// An error once Ctrl-C is pressed.
    pub(super) fn check(&self) -> Result<()> {
        if STATE.load(Ordering::SeqCst) == ASKED_TO_STOP { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// The next event, or none after the last.
    pub(super) fn next(&self, events: &mut EventStream) -> Result<Option<Event>> {
        loop {
            self.check()?;
            match events.next_timeout(POLL) {
                Ok(event) => return Ok(Some(event)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        change(PRODUCING, IDLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The only test that touches the state: it is the process's.
    #[test]
    fn what_comes_too_late_for_one_text_counts_for_the_next_unless_it_is_forgotten() {
        let watch = Watch::new();
        assert!(watch.check().is_ok());
        assert!(!press(false), "the first asks");
        assert!(press(true), "the second ends");
        drop(watch);
        assert_eq!(Watch::new().check(), Err(Error::Interrupted), "a batch ends");
        forget();
        let watch = Watch::new();
        assert!(watch.check().is_ok(), "a chat goes on");
        drop(watch);
        assert!(press(false) && !press(true), "nothing is produced");
        forget();
        assert!(Watch::new().check().is_ok());
    }
}
