//! A card: memory, and steps that run on it without the host waiting for a token.
//!
//! A step of texts under way becomes a graph the first time it comes: whatever changes from one to the next stands in
//! memory, so equal launches are the same graph. Steps with prompts or copies are launched one by one. Copies from and to the host
//! go through pinned memory, in the order of the main stream.
//!
//! The first thing that goes wrong is kept, and every later call returns it: a context that met an error is dead.

#[allow(unsafe_code, reason = "the driver is a C library")]
mod api;
#[allow(unsafe_code, reason = "the compiler is a C library")]
pub(super) mod nvrtc;

pub use api::Allocation;

use super::compile::{Arch, Kernels, OLDEST, Sources, Version};
use super::device::{Device, N_BRANCHES, Step};
use super::graph::Recent;
use super::kernels::MODULES;
use super::order::{Action, actions};
use super::timeline::Timeline;
use crate::{Error, Result};
use api::{Context, Event, Failure, Functions, Graph, Pinned, Stream};
use cudarc::driver::sys::CUresult;
use serde::Serialize;
use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Range;
use std::sync::Arc;

/// Which card, and where its kernels come from.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Its number in [`look`]; absent: the first that has kernels.
    pub device: Option<usize>,
    /// Where the kernels come from.
    pub sources: Sources,
    /// Where the time of each kernel is noted, at the price of many of them.
    pub timeline: Option<Timeline>,
}

/// A card as `devices` and `doctor` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Card {
    /// The card's own name.
    pub name: String,
    /// `sm_90`.
    pub arch: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Where its kernels come from; absent where they cannot be had, or the card is too old.
    pub kernels: Option<String>,
}

impl Card {
    /// Whether its generation can run the kernels.
    pub fn is_new_enough(&self) -> bool {
        self.arch.parse::<Arch>().is_ok()
    }
}

/// What there is of CUDA here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// The version of CUDA that the driver has.
    pub driver: Option<String>,
    /// In the order that `--device` counts.
    pub cards: Vec<Card>,
    /// What is missing, a sentence each.
    pub missing: Vec<String>,
}

impl Inventory {
    /// Whether some card can run models.
    pub fn is_usable(&self) -> bool {
        self.cards.iter().any(|card| card.kernels.is_some())
    }
}

/// Looks for cards, and for what their kernels are made with.
pub fn look(sources: &Sources) -> Inventory {
    let mut inventory = look_for_cards(sources);
    if inventory.driver.is_none() {
        inventory.missing.extend(super::compile::missing(sources));
    }
    inventory
}

/// As [`look`]; but where the driver cannot be used, which shows at once, nothing else is looked for.
pub fn look_for_cards(sources: &Sources) -> Inventory {
    let mut inventory = Inventory::default();
    let driver = match api::init() {
        Ok(driver) => driver,
        Err(error) => return Inventory { missing: vec![error], ..inventory },
    };
    inventory.driver = Some(driver.to_string());
    let described = api::count().and_then(|n| (0..n).map(api::describe).collect::<Result<Vec<_>, _>>());
    let cards = described.unwrap_or_else(|failure| {
        inventory.missing.push(failure.to_string());
        Vec::new()
    });
    for api::Description { name, arch, memory_bytes, multiprocessors } in cards {
        let kernels = match new_enough(&name, arch).and_then(|()| Kernels::find(sources, arch, driver)) {
            Ok(kernels) => Some(kernels.describe()),
            Err(error) => {
                if !inventory.missing.contains(&error) {
                    inventory.missing.push(error);
                }
                None
            }
        };
        inventory.cards.push(Card { name, arch: arch.to_string(), memory_bytes, multiprocessors, kernels });
    }
    inventory
}

fn new_enough(name: &str, arch: Arch) -> Result<(), String> {
    if arch >= OLDEST {
        return Ok(());
    }
    Err(format!("{name} is {arch}; {OLDEST} is the oldest that is used"))
}

/// Graphs kept: seven sizes of the base, of the pair, and of what is drawn come in few mixtures at a time.
const MAX_GRAPHS: usize = 32;
/// Uploads fill one block after the other, the card empties them.
const STAGING_BLOCKS: usize = 4;
/// Bytes of a block.
const STAGING_BYTES: usize = 4 << 20;
/// Older drivers do not take launches that overlap into graphs.
const OVERLAP_DRIVER: Version = Version(12, 3);
/// Cards older than this do not start a kernel before the one before it has ended.
const OVERLAP_ARCH: Arch = Arch(90);

/// A card that is open. Lives on one thread.
pub struct Driver {
    name: String,
    context: Arc<Context>,
    /// The main one, and one for each further branch.
    streams: [Stream; N_BRANCHES],
    forked: Event,
    joined: [Event; N_BRANCHES],
    functions: Functions,
    overlaps: bool,
    staging: RefCell<Staging>,
    /// Memory that the bytes of steps have come through.
    idle: RefCell<Vec<Pinned>>,
    graphs: RefCell<Recent<Step, Graph>>,
    collected: Cell<u64>,
    timeline: Option<Timeline>,
    fault: OnceCell<Error>,
}

impl Driver {
    /// Opens a card and loads the kernels, compiling what is not there yet.
    pub fn open(options: &Options) -> Result<Self> {
        let refused = |message: String| Error::device("cuda", message);
        let Ok(driver) = api::init() else {
            return Err(refused(look(&options.sources).missing.join("; ")));
        };
        let failed = |failure: Failure| refused(failure.to_string());
        let n_cards = api::count().map_err(failed)?;
        let cards = (0..n_cards).map(api::describe).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let with_kernels = |ordinal: usize| {
            let no_such = || format!("there are {n_cards} cards, counted from 0; device {ordinal} was asked for");
            let card = cards.get(ordinal).ok_or_else(no_such)?;
            new_enough(&card.name, card.arch)?;
            Ok((ordinal, card, Kernels::find(&options.sources, card.arch, driver)?))
        };
        // Where none has kernels, it is said what the first lacks.
        let first = || (0..n_cards).map(with_kernels).find(Result::is_ok).unwrap_or_else(|| with_kernels(0));
        let (ordinal, card, kernels) = options.device.map_or_else(first, with_kernels).map_err(refused)?;
        let overlaps = card.arch >= OVERLAP_ARCH && driver >= OVERLAP_DRIVER;
        let name = format!("{}, {}", card.name, card.arch);
        let images = kernels.cubins()?;
        let open = || {
            let context = Context::open(ordinal)?;
            let mut functions = Functions::new(&context);
            for (module, cubin) in MODULES.iter().zip(&images) {
                functions.load(&cubin.image, module.kernels.iter().map(|kernel| kernel.name))?;
            }
            Ok(Self {
                streams: each(|| Stream::new(&context))?,
                forked: Event::new(&context)?,
                joined: each(|| Event::new(&context))?,
                functions,
                overlaps,
                staging: RefCell::new(Staging::new(&context)?),
                idle: RefCell::default(),
                graphs: RefCell::new(Recent::new(MAX_GRAPHS)),
                collected: Cell::new(0),
                timeline: options.timeline.clone(),
                fault: OnceCell::new(),
                name: name.clone(),
                context,
            })
        };
        open().map_err(|failure: Failure| refused(format!("{name}: {failure}")))
    }

    fn main(&self) -> &Stream {
        &self.streams[0]
    }

    /// What `work` gives, unless something went wrong before.
    fn run<T>(&self, work: impl FnOnce() -> Result<T, Failure>) -> Result<T> {
        match self.fault.get() {
            Some(fault) => Err(fault.clone()),
            None => self.context.bind().and_then(|()| work()).map_err(|failure| self.broken(failure)),
        }
    }

    /// The fault, from now on. What ran may have failed in any step that the host has not read yet: it is laid to the first.
    fn broken(&self, failure: Failure) -> Error {
        let step = self.collected.get() + 1;
        let fault = || Error::device("cuda", format!("{}: {failure}, in step {step} or later", self.name));
        self.fault.get_or_init(fault).clone()
    }

    /// Queues the launches of a step.
    fn launch(&self, step: &Step) -> Result<(), Failure> {
        actions(&step.launches).into_iter().try_for_each(|action| match action {
            Action::Launch { index, stream, overlaps } => {
                self.streams[stream].launch(&self.functions, &step.launches[index], overlaps && self.overlaps)
            }
            Action::Fork => self.forked.record(self.main()),
            Action::Follow(stream) => self.streams[stream].wait(&self.forked),
            Action::Join(stream) => {
                self.joined[stream].record(&self.streams[stream])?;
                self.main().wait(&self.joined[stream])
            }
        })
    }

    /// Runs the launches of a step one after the other, and notes how long each takes, where it is one that comes again.
    fn time(&self, step: &Step, timeline: &Timeline) -> Result<(), Failure> {
        let mut ends = vec![Event::timed(&self.context)?];
        ends[0].record(self.main())?;
        for launch in &step.launches {
            self.main().launch(&self.functions, launch, false)?;
            let end = Event::timed(&self.context)?;
            end.record(self.main())?;
            ends.push(end);
        }
        self.main().synchronize()?;
        let ms = ends.windows(2).map(|pair| pair[1].ms_since(&pair[0])).collect::<Result<Vec<_>, _>>()?;
        if !step.is_rare {
            timeline.add(step.launches.iter().map(|launch| (launch.kernel.name, launch.grid)).zip(ms));
        }
        Ok(())
    }

    /// Memory that takes `bytes` bytes from the card.
    fn pinned(&self, bytes: usize) -> Result<Pinned, Failure> {
        let mut idle = self.idle.borrow_mut();
        match idle.iter().position(|pinned| pinned.bytes() >= bytes) {
            Some(found) => Ok(idle.swap_remove(found)),
            None => Pinned::new(&self.context, bytes.max(1).next_power_of_two()),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Kernels and buffers of the host go with it: nothing may run any more. What is dead does not.
        let _ = self.context.bind().and_then(|()| self.main().synchronize());
    }
}

/// One for each branch.
fn each<T>(make: impl Fn() -> Result<T, Failure>) -> Result<[T; N_BRANCHES], Failure> {
    let all: Vec<T> = (0..N_BRANCHES).map(|_| make()).collect::<Result<_, _>>()?;
    Ok(all.try_into().unwrap_or_else(|_| unreachable!("as many as there are branches")))
}

/// A step on its way, and where its bytes come.
pub struct Receipt(Pinned);

impl Device for Driver {
    type Memory = Allocation;
    type Receipt = Receipt;

    /// One step runs, two are queued: the host may take as long as a step for anything and the card does not wait. Each
    /// further one would delay every token, and the place of a text that has ended, by a step.
    const LAG: usize = 3;

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn free_memory(&self) -> Option<u64> {
        self.run(|| self.context.free_memory()).ok()
    }

    fn alloc(&self, label: &'static str, bytes: usize) -> Result<Allocation> {
        let mut refused = None;
        let memory = self.run(|| match Allocation::zeroed(&self.context, self.main(), bytes.max(1)) {
            // The card is as good as before.
            Err(Failure { code: CUresult::CUDA_ERROR_OUT_OF_MEMORY, .. }) => {
                let limit = self.context.free_memory()?;
                refused = Some(Error::Memory { what: label.into(), needed: bytes as u64, limit });
                Ok(None)
            }
            made => made.map(Some),
        })?;
        memory.ok_or_else(|| refused.expect("there is memory or a reason"))
    }

    fn upload(&self, memory: &Allocation, offset: usize, data: &[u8]) -> Result<()> {
        self.run(|| self.staging.borrow_mut().upload(self.main(), memory, offset, data))
    }

    fn read(&self, memory: &Allocation, range: Range<usize>) -> Result<Vec<u8>> {
        self.run(|| {
            let mut read = Vec::with_capacity(range.len());
            for start in range.clone().step_by(STAGING_BYTES) {
                let mut pinned = self.pinned((range.end - start).min(STAGING_BYTES))?;
                pinned.download(self.main(), memory, start..range.end.min(start + STAGING_BYTES))?;
                pinned.mark(self.main())?;
                read.extend(pinned.take()?);
                self.idle.borrow_mut().push(pinned);
            }
            // Nothing was read, yet all has ended.
            if range.is_empty() {
                self.main().synchronize()?
            }
            Ok(read)
        })
    }

    fn submit(&self, step: &Step, reads: &[(&Allocation, Range<usize>)]) -> Result<Receipt> {
        self.run(|| {
            if let Some(timeline) = &self.timeline {
                self.time(step, timeline)?;
            } else if step.is_rare || step.launches.is_empty() {
                self.launch(step)?;
            } else {
                let capture = || self.main().capture(|| self.launch(step));
                let mut graphs = self.graphs.borrow_mut();
                self.main().replay(graphs.get_or_make(step, capture)?)?;
            }
            let mut pinned = self.pinned(reads.iter().map(|(_, range)| range.len()).sum())?;
            for (memory, range) in reads {
                pinned.download(self.main(), memory, range.clone())?;
            }
            pinned.mark(self.main())?;
            Ok(Receipt(pinned))
        })
    }

    fn collect(&self, Receipt(mut pinned): Receipt) -> Result<Vec<u8>> {
        let bytes = self.run(|| pinned.take())?;
        self.idle.borrow_mut().push(pinned);
        self.collected.set(self.collected.get() + 1);
        Ok(bytes)
    }
}

/// Where uploads wait for the card.
struct Staging {
    blocks: Vec<Pinned>,
    /// The one being filled.
    current: usize,
}

impl Staging {
    fn new(context: &Arc<Context>) -> Result<Self, Failure> {
        let blocks = (0..STAGING_BLOCKS).map(|_| Pinned::new(context, STAGING_BYTES)).collect::<Result<_, _>>()?;
        Ok(Self { blocks, current: 0 })
    }

    /// Queues a copy of `data`, in pieces, and waits only where the card is as many blocks behind as there are.
    fn upload(&mut self, stream: &Stream, memory: &Allocation, offset: usize, data: &[u8]) -> Result<(), Failure> {
        let mut done = 0;
        while done < data.len() {
            if self.blocks[self.current].room() == 0 {
                self.blocks[self.current].mark(stream)?;
                self.current = (self.current + 1) % self.blocks.len();
                self.blocks[self.current].wait()?;
            }
            let block = &mut self.blocks[self.current];
            let piece = &data[done..data.len().min(done + block.room())];
            block.upload(piece, stream, memory, offset + done)?;
            done += piece.len();
        }
        Ok(())
    }
}
