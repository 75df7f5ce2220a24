//! The engine's thread and its channel: the outer seam. Handles are not generic; the one `match` on the device is here.

use super::event::Event;
use super::machine::{Machine, MachineOptions};
use super::plan::Room;
use super::request::Request;
use super::trio::Trio;
use super::{Engine, Job};
use crate::backend::cpu::Cpu;
use crate::backend::params::{MAX_RECORD_TOP, MAX_SLOTS};
use crate::backend::wgpu::{self, Wgpu};
use crate::backend::{Backend, Dtype};
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Prompt tokens per model and step, unless asked otherwise: enough to reuse every weight well.
pub const DEFAULT_PREFILL_ROWS: usize = 256;

/// Share of the free memory that may be used, unless asked otherwise: other programs go on living.
pub const DEFAULT_MEMORY_FRACTION: f32 = 0.95;

/// Which backend runs the models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// A real GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// Any adapter of wgpu, software ones included.
    Wgpu,
    /// NVIDIA cards through CUDA.
    Cuda,
}

impl BackendChoice {
    /// What `Auto` comes to: wgpu where there is a real GPU, else the CPU.
    pub fn on_this_machine(self) -> Self {
        match self {
            BackendChoice::Auto if may_have_gpu() && wgpu::adapters().iter().any(|adapter| !adapter.software) => {
                BackendChoice::Wgpu
            }
            BackendChoice::Auto => BackendChoice::Cpu,
            named => named,
        }
    }
}

/// Asking Vulkan takes some 50 ms and lets drivers print what they like. A GPU under Linux has one of these nodes; one
/// that has none can still be named by its backend.
fn may_have_gpu() -> bool {
    const NODES: [&str; 5] = ["/dev/dri", "/dev/nvidiactl", "/dev/dxg", "/dev/kgsl-3d0", "/dev/mali0"];
    !cfg!(target_os = "linux") || NODES.iter().any(|node| std::path::Path::new(node).exists())
}

/// Where and how large the engine is.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Backend.
    pub backend: BackendChoice,
    /// Adapter number within the backend.
    pub device: Option<usize>,
    /// CPU threads; absent: all.
    pub threads: Option<usize>,
    /// Sequences at a time, at most [`MAX_SLOTS`].
    pub n_slots: usize,
    /// Longest prompt and response together; at most what one of the models was made for.
    pub max_model_len: usize,
    /// Type of keys and values; absent: each checkpoint's own.
    pub kv_cache_dtype: Option<Dtype>,
    /// Prompt tokens per model and step.
    pub prefill_rows: usize,
    /// Room for penalties.
    pub penalties: bool,
    /// Top entries per record; absent: no step can be recorded.
    pub record_top: Option<usize>,
    /// Tokens of all sequences together that the KV cache has room for, at least one longest; absent: as many as all
    /// can have.
    pub kv_tokens: Option<usize>,
    /// Share of the device's free memory that may be used, in (0, 1].
    pub memory_fraction: f32,
}

impl EngineOptions {
    /// Just the room that `requests` need.
    pub fn sized_for(requests: &[Request]) -> Self {
        let mut options = Self {
            backend: BackendChoice::Auto,
            device: None,
            threads: None,
            n_slots: 0,
            max_model_len: 1,
            kv_cache_dtype: None,
            prefill_rows: DEFAULT_PREFILL_ROWS,
            penalties: false,
            record_top: None,
            kv_tokens: None,
            memory_fraction: DEFAULT_MEMORY_FRACTION,
        };
        requests.iter().for_each(|request| options.make_room_for(request));
        options.n_slots = options.n_slots.max(1);
        options
    }

    /// Makes room for one request more.
    pub fn make_room_for(&mut self, request: &Request) {
        let longest = request.prompts.iter().map(Vec::len).max().unwrap_or(0) + request.sampling.max_tokens as usize;
        self.n_slots = (self.n_slots + 1).min(MAX_SLOTS);
        self.max_model_len = self.max_model_len.max(longest);
        self.penalties |= request.sampling.is_penalised();
        self.record_top = self.record_top.max(request.record);
    }

    /// Checks every range, before anything is allocated by them.
    fn validate(&self, trio: &Trio) -> Result<()> {
        let within = |param: &str, value: usize, limit: usize| {
            if (1..=limit).contains(&value) {
                return Ok(());
            }
            Err(Error::argument(param, format!("{value} is not in [1, {limit}]")))
        };
        let positions = trio.checkpoints().into_iter().map(|checkpoint| checkpoint.config.max_positions);
        within("n_slots", self.n_slots, MAX_SLOTS)?;
        within("max_model_len", self.max_model_len, positions.max().unwrap_or(0))?;
        self.validate_memory_fraction()?;
        match self.record_top {
            Some(top) if top > MAX_RECORD_TOP => {
                Err(Error::argument("record", format!("{top} top entries; at most {MAX_RECORD_TOP}")))
            }
            _ => Ok(()),
        }
    }

    fn validate_memory_fraction(&self) -> Result<()> {
        if self.memory_fraction > 0.0 && self.memory_fraction <= 1.0 {
            return Ok(());
        }
        Err(Error::argument("memory_fraction", format!("{} is not in (0, 1]", self.memory_fraction)))
    }

    fn cpu(&self) -> Result<Cpu> {
        match self.device {
            None | Some(0) => Cpu::new(self.threads),
            Some(n) => Err(Error::device("cpu", format!("there is one device, number 0; {n} was asked for"))),
        }
    }

    /// Naming the backend accepts what runs it, software too.
    fn wgpu(&self) -> wgpu::Options {
        let software = self.backend == BackendChoice::Wgpu;
        wgpu::Options { device: self.device, software, ..wgpu::Options::default() }
    }

    pub(super) fn machine(&self) -> MachineOptions {
        MachineOptions {
            n_slots: self.n_slots,
            max_lane_tokens: self.max_model_len,
            kv_cache_dtype: self.kv_cache_dtype,
            prefill_rows: self.prefill_rows,
            penalties: self.penalties,
            record_top: self.record_top,
            kv_tokens: self.kv_tokens,
            memory_fraction: self.memory_fraction,
        }
    }

    /// What the device has room for. Opens it, and lets it go again.
    pub fn room(&self) -> Result<Room> {
        self.validate_memory_fraction()?;
        match self.backend.on_this_machine() {
            BackendChoice::Auto | BackendChoice::Cpu => Ok(Room::of(&self.cpu()?, self.memory_fraction)),
            BackendChoice::Wgpu => Ok(Room::of(&Wgpu::open(&self.wgpu())?, self.memory_fraction)),
            BackendChoice::Cuda => Err(no_cuda()),
        }
    }
}

/// Where a submission's events go, and whether its receiver is gone.
pub(crate) struct Channel {
    events: Sender<Vec<Event>>,
    /// Events of the step under way: a message for each would wake the receiver for each.
    held: Mutex<Vec<Event>>,
    cancelled: Arc<AtomicBool>,
}

impl Channel {
    fn new(events: Sender<Vec<Event>>, cancelled: Arc<AtomicBool>) -> Self {
        Self { events, held: Mutex::default(), cancelled }
    }

    /// Keeps an event until [`Self::flush`], or until nobody has the channel any more.
    pub(crate) fn send(&self, event: Event) {
        self.held().push(event);
    }

    /// Sends what is held. A receiver that is gone has set the flag, or will; there is nobody to tell.
    pub(crate) fn flush(&self) {
        let events = std::mem::take(&mut *self.held());
        if !events.is_empty() {
            let _ = self.events.send(events);
        }
    }

    fn held(&self) -> MutexGuard<'_, Vec<Event>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The events of one submission, until every request in it is done. Dropping it cancels what still runs.
pub struct EventStream {
    events: Receiver<Vec<Event>>,
    /// What has come and was not taken yet.
    ready: std::vec::IntoIter<Event>,
    cancelled: Arc<AtomicBool>,
}

impl Iterator for EventStream {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.next() {
                return Some(event);
            }
            self.ready = self.events.recv().ok()?.into_iter();
        }
    }
}

impl EventStream {
    /// The next event within `timeout`; `Disconnected` when all requests are done.
    pub fn next_timeout(&mut self, timeout: std::time::Duration) -> std::result::Result<Event, RecvTimeoutError> {
        loop {
            if let Some(event) = self.ready.next() {
                return Ok(event);
            }
            self.ready = self.events.recv_timeout(timeout)?.into_iter();
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// A running engine. Dropping it waits until what runs has ended; drop the streams first to cancel.
pub struct Handle {
    jobs: Option<Sender<Job>>,
    trio: Arc<Trio>,
    started: Started,
    thread: Option<JoinHandle<()>>,
}

/// What a thread says when its engine is ready.
struct Started {
    device: String,
    is_whole: bool,
}

impl Handle {
    /// Starts the thread and loads the weights; returns when the engine is ready or could not be.
    pub fn start(trio: Arc<Trio>, options: EngineOptions) -> Result<Self> {
        let chosen = options.clone();
        match options.backend.on_this_machine() {
            BackendChoice::Auto | BackendChoice::Cpu => Self::start_on(trio, options, move || chosen.cpu()),
            BackendChoice::Wgpu => Self::start_on(trio, options, move || Wgpu::open(&chosen.wgpu())),
            BackendChoice::Cuda => Self::start_on::<Cpu>(trio, options, || Err(no_cuda())),
        }
    }

    /// As [`Self::start`], on the backend that `open` gives instead of the one that the options name. It is opened on the
    /// engine's thread, where it stays.
    pub fn start_on<B: Backend>(
        trio: Arc<Trio>,
        options: EngineOptions,
        open: impl FnOnce() -> Result<B> + Send + 'static,
    ) -> Result<Self> {
        options.validate(&trio)?;
        let (jobs, inbox) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let shared = trio.clone();
        let run = move || run(open(), shared, &options, inbox, ready);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(run);
        let thread = thread.map_err(|error| Error::Io { message: format!("cannot start the engine: {error}") })?;
        let started = started.recv().map_err(|_| lost())??;
        Ok(Self { jobs: Some(jobs), trio, started, thread: Some(thread) })
    }

    /// The backend and the device that run it.
    pub fn device(&self) -> &str {
        &self.started.device
    }

    /// Whether there was room for as many texts and tokens at a time as the options asked for; else some will wait.
    pub fn is_whole(&self) -> bool {
        self.started.is_whole
    }

    /// Submits requests together; an invalid one is an error before any of them runs.
    pub fn submit(&self, requests: Vec<Request>) -> Result<EventStream> {
        let vocabulary = self.trio.vocabulary();
        for request in &requests {
            request.validate(vocabulary.n_ids, &vocabulary.stop_ids)?;
        }
        let (events, receiver) = mpsc::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let channel = Arc::new(Channel::new(events, cancelled.clone()));
        let jobs = self.jobs.as_ref().expect("the inbox is open while the handle lives");
        for (index, request) in requests.into_iter().enumerate() {
            let seed = request.sampling.seed.unwrap_or_else(random_seed);
            jobs.send(Job { request, index, seed, channel: channel.clone() }).map_err(|_| lost())?;
        }
        Ok(EventStream { events: receiver, ready: Vec::new().into_iter(), cancelled })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the engine has been reported by its own message; there is nothing to add while dropping.
            let _ = thread.join();
        }
    }
}

/// The answer to `--backend cuda`.
pub(crate) fn no_cuda() -> Error {
    Error::device("cuda", "this build has no CUDA backend; use --backend wgpu or cpu")
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

fn run<B: Backend>(
    backend: Result<B>,
    trio: Arc<Trio>,
    options: &EngineOptions,
    inbox: Receiver<Job>,
    ready: Sender<Result<Started>>,
) {
    let load = |backend: B| {
        let device = backend.describe();
        let machine =
            Machine::load(backend, &trio.checkpoints(), trio.member_of_role(), trio.vocabulary(), &options.machine())?;
        let started = Started { device, is_whole: machine.is_whole() };
        Ok((Engine::new(machine, trio.clone(), options.max_model_len), started))
    };
    let mut engine = match backend.and_then(load) {
        Ok((engine, started)) => {
            if ready.send(Ok(started)).is_err() {
                return;
            }
            engine
        }
        Err(error) => {
            // The starter waits for this answer; if it is gone there is nobody to tell.
            let _ = ready.send(Err(error));
            return;
        }
    };
    serve(&mut engine, &inbox);
}

/// Until the inbox closes and all is done; after a device error, refuses everything.
fn serve<B: Backend>(engine: &mut Engine<B>, inbox: &Receiver<Job>) {
    let mut dead: Option<Error> = None;
    loop {
        let job =
            if engine.is_idle() { inbox.recv().map_err(|_| TryRecvError::Disconnected) } else { inbox.try_recv() };
        match (job, &dead) {
            (Ok(job), Some(error)) => job.refuse(error.clone()),
            (Ok(job), None) => {
                engine.enqueue(job);
                continue;
            }
            (Err(TryRecvError::Disconnected), _) if engine.is_idle() => return,
            (Err(_), _) => {}
        }
        if dead.is_none()
            && let Err(error) = engine.step()
        {
            engine.fail_all(&error);
            dead = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::Sampling;
    use super::super::trio::TrioSources;
    use super::*;
    use crate::checkpoint::Source;

    fn demo_trio() -> Arc<Trio> {
        let [base, expert, anti] = ["base", "expert", "anti-expert"]
            .map(|role| Source::directory(format!("{}/demo/{role}", env!("CARGO_MANIFEST_DIR"))));
        let sources = TrioSources { base, expert: Some(expert), anti_expert: Some(anti) };
        Arc::new(Trio::open(&sources, &[]).expect("the demo trio opens"))
    }

    /// Only Linux tells how much memory is free.
    #[cfg(target_os = "linux")]
    #[test]
    fn an_engine_says_whether_it_has_the_room_it_was_asked_for() {
        let backend = BackendChoice::Cpu;
        let asked = EngineOptions { backend, max_model_len: 16, ..EngineOptions::sized_for(&[]) };
        // 2^40 tokens are more than any machine has memory for; a hundredth of it holds the demo.
        for (kv_tokens, memory_fraction, whole) in [(Some(64), 0.95, true), (Some(1 << 40), 0.01, false)] {
            let options = EngineOptions { kv_tokens, memory_fraction, ..asked.clone() };
            let engine = Handle::start(demo_trio(), options).expect("the engine starts");
            assert_eq!(engine.is_whole(), whole, "{kv_tokens:?}");
        }
    }

    #[test]
    fn a_cancelled_request_is_gone_after_the_next_step() {
        let trio = demo_trio();
        let sampling = Sampling { max_tokens: 100, ignore_eos: true, ..Sampling::default() };
        let request = Request { prompts: std::array::from_fn(|_| vec![7, 8, 9]), sampling, ..Request::default() };
        let options = EngineOptions::sized_for(std::slice::from_ref(&request));
        let backend = Cpu::new(Some(1)).expect("a CPU");
        let (checkpoints, vocabulary) = (trio.checkpoints(), trio.vocabulary());
        let machine = Machine::load(backend, &checkpoints, trio.member_of_role(), vocabulary, &options.machine());
        let machine = machine.expect("the demo trio loads");
        let mut engine = Engine::new(machine, trio.clone(), options.max_model_len);

        let (events, _receiver) = mpsc::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let channel = Arc::new(Channel::new(events, cancelled.clone()));
        engine.enqueue(Job { request, index: 0, seed: 0, channel });
        (0..3).for_each(|_| engine.step().expect("a step"));
        assert!(!engine.is_idle() && engine.pool.n_free() < engine.pool.n_pages());
        cancelled.store(true, Ordering::Relaxed);
        engine.step().expect("a step");
        assert!(engine.is_idle());
        assert_eq!(engine.pool.n_free(), engine.pool.n_pages());
    }
}
