//! The outer seam: a handle that is not generic, and the streams of events that come back.

use super::channel::{Receiver, Sender, channel};
use super::event::{Completion, Event};
use super::limits::Limits;
use super::options::{BackendChoice, EngineOptions};
use super::request::Request;
use super::scheduler::{Counts, RequestId};
use super::trio::Trio;
use super::worker::{self, Message, Started};
use crate::backend::Backend;
use crate::backend::cuda::Cuda;
use crate::backend::wgpu::Wgpu;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Starts engines. One lives on a thread of its own, with its models and its device; a program can have several.
pub struct Engine(());

impl Engine {
    /// Starts the thread and loads the weights; returns when the engine is ready or could not be.
    pub fn start(trio: Arc<Trio>, options: EngineOptions) -> Result<Handle> {
        let chosen = options.clone();
        match options.backend.on_this_machine(&options.kernels) {
            BackendChoice::Auto | BackendChoice::Cpu => Self::start_on(trio, options, move || chosen.cpu()),
            BackendChoice::Wgpu => Self::start_on(trio, options, move || Wgpu::open(&chosen.wgpu())),
            BackendChoice::Cuda => Self::start_on(trio, options, move || Cuda::open(&chosen.cuda())),
        }
    }

    /// As [`Self::start`], on the backend that `open` gives instead of the one that the options name. It is opened on the
    /// engine's thread, where it stays.
    pub fn start_on<B: Backend>(
        trio: Arc<Trio>,
        options: EngineOptions,
        open: impl FnOnce() -> Result<B> + Send + 'static,
    ) -> Result<Handle> {
        options.validate(&trio)?;
        let max_waiting = options.max_waiting;
        let board = Arc::new(Board::default());
        let (sender, inbox) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let shared = board.clone();
        let run = move || worker::run(open(), &trio, &options, shared, &inbox, &ready);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(run);
        let thread = thread.map_err(|error| Error::Io { message: format!("cannot start the engine: {error}") })?;
        let started = started.recv().map_err(|_| lost())??;
        let inbox = Mutex::new(Inbox { sender, next_id: 0 });
        let process = std::process::id();
        Ok(Handle(Arc::new(Shared { inbox, board, started, max_waiting, process, thread: Some(thread) })))
    }
}

/// A running engine, to be cloned and used from any thread. Dropping the last clone waits until what runs has ended; drop
/// the streams first to cancel.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("device", &self.device()).finish_non_exhaustive()
    }
}

struct Shared {
    inbox: Mutex<Inbox>,
    board: Arc<Board>,
    started: Started,
    max_waiting: usize,
    /// The process that has the engine's thread: one that is forked from it has not.
    process: u32,
    thread: Option<JoinHandle<()>>,
}

/// Requests are numbered in the order in which the engine gets them, so both happen under one lock.
struct Inbox {
    sender: mpsc::Sender<Message>,
    next_id: u64,
}

/// What the engine's thread and the handles both see.
#[derive(Default)]
pub(super) struct Board {
    counts: Mutex<Counts>,
    /// Samples that were submitted and have never had a slot.
    queued: AtomicUsize,
}

/// A request on its way to the engine.
pub(super) struct Submission {
    /// Number of its first sample; the others follow.
    pub(super) first: RequestId,
    pub(super) request: Arc<Request>,
    pub(super) seed: u64,
    /// Number of the first sample in events.
    pub(super) first_index: usize,
    pub(super) events: Arc<Sender<Event>>,
    pub(super) arrived: Instant,
}

impl Board {
    pub(super) fn publish(&self, counts: Counts) {
        *lock(&self.counts) = counts;
    }

    /// Lets `n` samples into the queue if it then holds at most `limit`.
    pub(super) fn enter_queue(&self, n: usize, limit: usize) -> Result<()> {
        let room = |queued: usize| Some(queued + n).filter(|&queued| queued <= limit);
        let entered = self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
        entered.map(drop).map_err(|_| Error::Overloaded { limit })
    }

    /// `n` samples have got their first slot, or are gone.
    pub(super) fn leave_queue(&self, n: usize) {
        let left = |queued: usize| Some(queued.saturating_sub(n));
        let _ = self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
    }

    /// The engine is gone, and all that waited or ran with it.
    pub(super) fn clear(&self) {
        self.publish(Counts::default());
        self.queued.store(0, Ordering::Relaxed);
    }
}

impl Handle {
    /// The backend and the device that run it.
    pub fn device(&self) -> &str {
        &self.0.started.device
    }

    /// Whether there was room for as many texts and tokens at a time as the options asked for; else some will wait.
    pub fn is_whole(&self) -> bool {
        self.0.started.is_whole
    }

    /// What a request may ask for.
    pub fn limits(&self) -> &Limits {
        &self.0.started.limits
    }

    /// What waits, runs and is kept, as it stood after the last step or the last end of a sample.
    pub fn counts(&self) -> Counts {
        *lock(&self.0.board.counts)
    }

    /// Submits a request, for which the handle must live on: the last one waits for what runs when it is dropped. Refused at
    /// once: what this engine cannot run, what finds the queue full, and anything in a
    /// process that was forked from the engine's.
    pub fn generate(&self, request: Request) -> Result<EventStream> {
        self.submit(vec![request])
    }

    /// Submits requests together: all or none. Events count the samples of all of them.
    pub fn submit(&self, requests: Vec<Request>) -> Result<EventStream> {
        let Shared { inbox, board, max_waiting, process, started, .. } = &*self.0;
        if *process != std::process::id() {
            let message = "it runs in the process that this one was forked from; start an engine here";
            return Err(Error::device("engine", message));
        }
        requests.iter().try_for_each(|request| started.limits.check(request))?;
        let n_samples = requests.iter().map(|request| request.n as usize).sum();
        board.enter_queue(n_samples, *max_waiting)?;
        let (sender, events) = channel();
        let (sender, arrived) = (Arc::new(sender), Instant::now());
        let mut inbox = lock(inbox);
        let first_id = inbox.next_id;
        let mut unfinished = BTreeMap::new();
        for request in requests {
            let first_index = (inbox.next_id - first_id) as usize;
            let first = RequestId(inbox.next_id);
            inbox.next_id += u64::from(request.n);
            let seed = request.sampling.seed.unwrap_or_else(random_seed);
            let (request, events) = (Arc::new(request), sender.clone());
            unfinished.extend((0..request.n as usize).map(|n| {
                let request = request.clone();
                (first_index + n, Unfinished { request, seed, token_ids: Vec::new(), text: String::new() })
            }));
            let submission = Submission { first, request, seed, first_index, events, arrived };
            if inbox.sender.send(Message::Submit(submission)).is_err() {
                board.leave_queue(n_samples);
                return Err(lost());
            }
        }
        Ok(EventStream { events, unfinished, ids: first_id..inbox.next_id, cancel: inbox.sender.clone() })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.process != std::process::id() {
            // There is no such thread here, and nothing to give back.
            std::mem::forget(thread);
            return;
        }
        // Where the engine is gone there is nobody to tell.
        let _ = lock(&self.inbox).sender.send(Message::Close);
        // A reader that is woken on the engine's thread may hold the last handle.
        if thread.thread().id() != std::thread::current().id() {
            // A panic of the engine has been reported by its own message; there is nothing to add while dropping.
            let _ = thread.join();
        }
    }
}

/// The events of a request, until every sample of it is done: a [`futures_core::Stream`], or a blocking iterator,
/// [`Events`], for who does not wait in tasks. Dropping it cancels what still runs.
///
/// Each sample ends with one [`Event::Done`], whatever happens: with an error where the engine's thread is gone.
pub struct EventStream {
    events: Receiver<Event>,
    /// Samples whose end did not come yet.
    unfinished: BTreeMap<usize, Unfinished>,
    ids: Range<u64>,
    cancel: mpsc::Sender<Message>,
}

/// A sample as far as it came.
struct Unfinished {
    request: Arc<Request>,
    seed: u64,
    token_ids: Vec<u32>,
    text: String,
}

impl EventStream {
    /// The next event within `timeout`; `Disconnected` when all samples are done.
    pub fn next_timeout(&mut self, timeout: Duration) -> std::result::Result<Event, RecvTimeoutError> {
        match self.events.next_timeout(timeout) {
            Err(RecvTimeoutError::Timeout) => Err(RecvTimeoutError::Timeout),
            came => self.settle(came.ok()).ok_or(RecvTimeoutError::Disconnected),
        }
    }

    /// Notes which samples are done. After the last event that came, the others end here.
    fn settle(&mut self, came: Option<Event>) -> Option<Event> {
        match &came {
            Some(Event::Done { sample, .. }) => drop(self.unfinished.remove(sample)),
            Some(Event::Token { sample, id, text }) => {
                let unfinished = self.unfinished.get_mut(sample).expect("a token comes before the end");
                unfinished.token_ids.push(*id);
                unfinished.text += text;
            }
            None => {
                let (sample, Unfinished { request, seed, token_ids, text }) = self.unfinished.pop_first()?;
                let failed = Completion::failed(&request, seed, lost());
                return Some(Event::Done { sample, completion: Box::new(Completion { token_ids, text, ..failed }) });
            }
        }
        came
    }
}

/// The events of a request, each waited for.
#[derive(Debug)]
pub struct Events(EventStream);

impl IntoIterator for EventStream {
    type Item = Event;
    type IntoIter = Events;

    fn into_iter(self) -> Events {
        Events(self)
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let came = self.0.events.next();
        self.0.settle(came)
    }
}

impl futures_core::Stream for EventStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let came = std::task::ready!(self.events.poll_next(context));
        Poll::Ready(self.settle(came))
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unfinished: Vec<_> = self.unfinished.keys().collect();
        f.debug_struct("EventStream").field("unfinished", &unfinished).finish_non_exhaustive()
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if !self.unfinished.is_empty() {
            // Where the engine is gone nothing runs any more.
            let _ = self.cancel.send(Message::Cancel(self.ids.clone()));
        }
    }
}

/// What a channel of an engine that has ended comes to.
pub(crate) fn lost() -> Error {
    Error::device("engine", "the engine's thread has ended")
}

/// 64 bits that differ from call to call: the seed of a request that names none.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
