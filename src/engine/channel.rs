//! The way from the engine's thread to whoever reads a request: a queue of items that can be taken by blocking, with a
//! time limit, or by polling.
//!
//! [`Sender::send`] puts an item where the receiver finds it and wakes nobody; [`Sender::flush`] wakes a receiver that
//! waits for one. So the engine says how often it pays for a wake-up, which costs as much as a step of a small model.
//! Nothing here knows what an item is; `sync` is the standard library's, or that of a test that tries all schedules.

use super::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::collections::VecDeque;
use std::sync::mpsc::RecvTimeoutError;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Both ends of a new channel.
pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { items: VecDeque::new(), ended: false, deserted: false, sleeps: false, waker: None };
    let shared = Arc::new(Shared { state: Mutex::new(state), more: Condvar::new() });
    (Sender(shared.clone()), Receiver { shared, taken: VecDeque::new() })
}

struct Shared<T> {
    state: Mutex<State<T>>,
    more: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    /// The sender is gone.
    ended: bool,
    /// The receiver is gone.
    deserted: bool,
    /// The receiver waits for [`Shared::more`].
    sleeps: bool,
    /// The receiver's task waits for this.
    waker: Option<Waker>,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing here leaves the state half done, so a panic (of a foreign waker) does not either.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the receiver if it waits.
    fn wake(&self, mut state: MutexGuard<'_, State<T>>) {
        let waker = state.waker.take();
        if std::mem::take(&mut state.sleeps) {
            self.more.notify_one();
        }
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Where items come from. The channel ends when it is dropped.
pub(crate) struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// Adds an item; [`Self::flush`] must follow in time. Where the receiver is gone, so is the item.
    pub(crate) fn send(&self, item: T) {
        let mut state = self.0.lock();
        if !state.deserted {
            state.items.push_back(item);
        }
    }

    /// Wakes the receiver if it waits and there is something to take.
    pub(crate) fn flush(&self) {
        let state = self.0.lock();
        if !state.items.is_empty() {
            self.0.wake(state);
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = true;
        self.0.wake(state);
    }
}

/// Where items go. Dropping it drops what was not taken.
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// Items that came together with one that was taken.
    taken: VecDeque<T>,
}

impl<T> Receiver<T> {
    /// The next item, waiting for it; none where the channel has ended.
    pub(crate) fn next(&mut self) -> Option<T> {
        self.wait(None).ok()
    }

    /// The next item within `timeout`; `Disconnected` where the channel has ended.
    pub(crate) fn next_timeout(&mut self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.wait(Instant::now().checked_add(timeout))
    }

    /// The next item, none where the channel has ended, or a promise to wake `context`.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.shared.lock();
        let next = take(&mut self.taken, &mut state);
        let waker = next.is_pending().then(|| context.waker().clone());
        let earlier = std::mem::replace(&mut state.waker, waker);
        // Not under the lock: dropping it may run code of others.
        drop(state);
        drop(earlier);
        next
    }

    fn wait(&mut self, until: Option<Instant>) -> Result<T, RecvTimeoutError> {
        let mut state = self.shared.lock();
        loop {
            if let Poll::Ready(next) = take(&mut self.taken, &mut state) {
                return next.ok_or(RecvTimeoutError::Disconnected);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(RecvTimeoutError::Timeout);
            }
            state.sleeps = true;
            state = match left {
                None => self.shared.more.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => self.shared.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
            state.sleeps = false;
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.deserted = true;
        let (items, waker) = (std::mem::take(&mut state.items), state.waker.take());
        // Not under the lock: dropping them may run code of others.
        drop(state);
        drop((items, waker));
    }
}

/// What there is now: an item, the end, or nothing yet. All items that have come are taken over at once.
fn take<T>(taken: &mut VecDeque<T>, state: &mut State<T>) -> Poll<Option<T>> {
    if taken.is_empty() {
        std::mem::swap(taken, &mut state.items);
    }
    match taken.pop_front() {
        Some(item) => Poll::Ready(Some(item)),
        None if state.ended => Poll::Ready(None),
        None => Poll::Pending,
    }
}
