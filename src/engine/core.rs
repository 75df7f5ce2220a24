//! The loop between the scheduler, which knows no device, and the machine, which knows no requests.
//!
//! A step is: plan, vacate, admit, grow, copy, submit; and, as late as the lag allows, collect: read what was drawn, make
//! text of it, tell the scheduler. Nothing here takes time for each request that waits.

use super::event::{Completion, Event, FinishReason};
use super::handle::{Board, Submission};
use super::machine::{Draw, Machine, Records, Step, StepView};
use super::scheduler::{Admission, Arrival, Growth, Plan, Refusal, RequestId, Scheduler, Work};
use super::sequence::{Dice, Ended, Origin, Sequence, TimeLimit, lanes};
use super::trio::Trio;
use crate::backend::Backend;
use crate::{Error, Result};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often running requests wake their readers at most. A wake-up costs as much as a step of a small model, and nobody
/// sees a token come a millisecond late.
const FLUSH_INTERVAL: Duration = Duration::from_millis(1);

/// A step under way, and who draws in which slot.
struct Flight<R> {
    step: Step<R>,
    draws: Vec<(RequestId, usize)>,
}

pub(super) struct Core<B: Backend> {
    machine: Machine<B>,
    scheduler: Scheduler,
    trio: Arc<Trio>,
    board: Arc<Board>,
    waiting: HashMap<RequestId, Sequence>,
    /// By slot.
    running: Vec<Option<Sequence>>,
    flights: VecDeque<Flight<B::Receipt>>,
    /// What is out of time first stands first.
    deadlines: BTreeSet<(Instant, RequestId, TimeLimit)>,
    flushed: Instant,
    max_waiting: usize,
    /// Whether pages are full of NaN when they are given: what no live token wrote must not matter.
    poisons: bool,
}

impl<B: Backend> Core<B> {
    pub(super) fn new(machine: Machine<B>, trio: Arc<Trio>, board: Arc<Board>, max_waiting: usize) -> Self {
        Self {
            scheduler: Scheduler::new(machine.sizes(max_waiting)),
            running: (0..machine.n_slots()).map(|_| None).collect(),
            machine,
            trio,
            board,
            waiting: HashMap::new(),
            flights: VecDeque::new(),
            deadlines: BTreeSet::new(),
            flushed: Instant::now(),
            max_waiting,
            poisons: cfg!(debug_assertions),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.flights.is_empty() && self.running.iter().all(Option::is_none)
    }

    /// Takes in a request, or ends those of its samples that cannot come in.
    pub(super) fn arrive(&mut self, submission: Submission) {
        let Submission { first, request, seed, first_index, events, arrived } = submission;
        let (lanes, lane_of_role) = lanes(&request, self.machine.seats());
        for sample_index in 0..request.n {
            let id = RequestId(first.0 + u64::from(sample_index));
            let origin = Origin {
                id,
                request: request.clone(),
                dice: Dice { seed, sample_index },
                index: first_index + sample_index as usize,
                events: events.clone(),
                arrived,
            };
            let sequence = Sequence::new(origin, lanes.clone());
            let arrival = Arrival {
                id,
                tenant: request.tenant,
                lanes: lanes.clone(),
                lane_of_role,
                max_tokens: request.sampling.max_tokens as usize,
                needs_host: sequence.needs_host(),
                leader: (sample_index > 0).then_some(first),
            };
            match self.scheduler.arrive(arrival) {
                Ok(()) => {
                    self.deadlines.extend(sequence.deadlines());
                    self.waiting.insert(id, sequence);
                }
                Err(refusal) => self.finish(sequence, Err(self.refused(refusal))),
            }
        }
    }

    /// Ends a request that comes after the device is gone.
    pub(super) fn refuse(&self, submission: &Submission, error: &Error) {
        let Submission { request, seed, first_index, events, .. } = submission;
        self.board.leave_queue(request.n as usize);
        for sample in 0..request.n as usize {
            let completion = Box::new(Completion::failed(request, *seed, error.clone()));
            events.send(Event::Done { sample: first_index + sample, completion });
        }
        events.flush();
    }

    fn refused(&self, refusal: Refusal) -> Error {
        match refusal {
            Refusal::QueueFull => Error::Overloaded { limit: self.max_waiting },
            Refusal::NeverFits { needed, limit } => Error::NeverFits { needed, limit },
        }
    }

    /// Forgets requests that nobody reads any more.
    pub(super) fn cancel(&mut self, ids: Range<u64>) {
        for id in ids.map(RequestId) {
            if let Some(sequence) = self.take(id) {
                self.scheduler.cancel(id);
                self.forget(&sequence);
            }
        }
        self.publish();
    }

    /// Ends what is out of time.
    pub(super) fn expire(&mut self) {
        if self.deadlines.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(&(_, id, which)) = self.deadlines.first().filter(|(deadline, ..)| *deadline <= now) {
            let sequence = self.take(id).expect("a deadline goes with its sequence");
            let (param, limit) = match which {
                TimeLimit::Queue => ("queue_timeout", sequence.request.queue_timeout),
                TimeLimit::Whole => ("timeout", sequence.request.timeout),
            };
            let limit = limit.expect("the deadline comes of it");
            self.scheduler.cancel(id);
            self.finish(sequence, Err(Error::Timeout { param, limit }));
        }
    }

    /// Ends every request with `error`: the device is gone.
    pub(super) fn fail_all(&mut self, error: &Error) {
        let ids = self.running.iter().flatten().map(|sequence| sequence.id);
        let ids: BTreeSet<RequestId> = ids.chain(self.waiting.keys().copied()).collect();
        for id in ids {
            let sequence = self.take(id).expect("it is there");
            self.scheduler.cancel(id);
            self.finish(sequence, Err(error.clone()));
        }
        self.flights.clear();
    }

    /// Does the next thing there is to do.
    pub(super) fn step(&mut self) -> Result<()> {
        match self.scheduler.plan() {
            Plan::Step(work) => self.submit(*work)?,
            Plan::Collect => self.collect()?,
            Plan::Idle => assert!(self.is_idle(), "the scheduler has forgotten a request"),
        }
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        self.board.publish(self.scheduler.counts());
    }

    fn submit(&mut self, work: Work) -> Result<()> {
        for slot in work.vacated {
            self.machine.cancel(slot)?;
            // Who still stands here was preempted, and comes again.
            if let Some(sequence) = self.running[slot].take() {
                sequence.flush();
                self.waiting.insert(sequence.id, sequence);
            }
        }
        for admission in work.admitted {
            self.admit(admission)?;
        }
        for growth in &work.grown {
            self.give(growth, 0)?;
        }
        let slots = work.batch.samples.iter().map(|sample| sample.slot as usize);
        let draws: Vec<_> = work.draws.into_iter().zip(slots).collect();
        let wants_record = |&(_, slot): &(RequestId, usize)| {
            self.running[slot].as_ref().is_some_and(|sequence| sequence.request.record.is_some())
        };
        let records = if draws.iter().any(wants_record) { Records::Kept } else { Records::None };
        // A step with prompts takes its time: what was read goes out before it.
        if work.batch.has_prompts() {
            self.flush();
        }
        let step = self.machine.submit(work.batch, &work.copies, records)?;
        self.flights.push_back(Flight { step, draws });
        while self.flights.len() > work.lag {
            self.collect()?;
        }
        Ok(())
    }

    /// Fills a slot: all that the device has to know of a sample, for the first time or again.
    fn admit(&mut self, Admission { id, slot, pages, n_drawn, n_cached }: Admission) -> Result<()> {
        let mut sequence = self.waiting.remove(&id).expect("who is admitted waited");
        assert_eq!(sequence.token_ids.len(), n_drawn, "all draws of a preempted request were read");
        if sequence.is_new() {
            self.board.leave_queue(1);
            let deadline = sequence.queue_deadline.take();
            deadline.map(|deadline| self.deadlines.remove(&(deadline, id, TimeLimit::Queue)));
        }
        sequence.admit();
        let vocabulary = self.trio.vocabulary();
        let record = sequence.slot_record(&vocabulary.stop_ids);
        let n_words = vocabulary.live.len();
        let first = sequence.mask(n_words, &sequence.request.bad_first_ids);
        let later = sequence.mask(n_words, &sequence.banned_now);
        // Before the device hears of it, so that one that fails now fails this request like all others.
        self.running[slot] = Some(sequence);
        let sequence = self.running[slot].as_ref().expect("just put there");
        self.machine.admit(slot, &record, &sequence.request, &sequence.token_ids)?;
        for (lane, pages) in pages.into_iter().enumerate() {
            let n_known = n_cached[lane] / self.machine.page_tokens(sequence.lanes[lane].seat);
            self.give(&Growth { slot, lane, first: 0, pages }, n_known)?;
        }
        self.machine.allow(slot, &first, Draw::First)?;
        self.machine.allow(slot, &later, Draw::Later)
    }

    /// Gives a lane pages, of which the first `n_known` hold what they should.
    fn give(&self, growth: &Growth, n_known: usize) -> Result<()> {
        if self.poisons {
            self.machine.poison(&growth.pages[n_known..])?;
        }
        self.machine.grow(growth)
    }

    /// Reads the oldest step under way and passes on what it drew.
    fn collect(&mut self) -> Result<()> {
        let Flight { step, draws } = self.flights.pop_front().expect("the scheduler counts the steps under way");
        let view = self.machine.collect(step)?;
        for (id, slot) in draws {
            self.read_draw(id, slot, &view)?;
        }
        self.scheduler.collected();
        if self.flushed.elapsed() >= FLUSH_INTERVAL {
            self.flush();
        }
        Ok(())
    }

    fn flush(&mut self) {
        self.running.iter().flatten().for_each(Sequence::flush);
        self.flushed = Instant::now();
    }

    fn read_draw(&mut self, id: RequestId, slot: usize, view: &StepView) -> Result<()> {
        let Some(sequence) = self.running[slot].as_mut().filter(|sequence| sequence.id == id) else { return Ok(()) };
        let record = sequence.request.record.and_then(|_| view.records.get(slot));
        let (drawn, ended) = sequence.advance(&view.slots[slot], record, |id| self.trio.bytes_of(id));
        if let Some(token) = drawn {
            self.scheduler.drawn(id, token);
        }
        let reason = match ended {
            None => return self.ban_now(slot),
            Some(Ended::ByDevice(reason)) => {
                self.scheduler.ended(id);
                reason
            }
            Some(Ended::ByHost(reason)) => {
                self.scheduler.cancel(id);
                reason
            }
        };
        let sequence = self.running[slot].take().expect("it was just read");
        self.finish(sequence, reason);
        Ok(())
    }

    /// Takes ids that would complete a banned word of several ids out of the slot's next draw.
    fn ban_now(&mut self, slot: usize) -> Result<()> {
        let sequence = self.running[slot].as_mut().expect("it was just read");
        let bans = sequence.bans();
        if bans == sequence.banned_now {
            return Ok(());
        }
        sequence.banned_now = bans;
        let mask = sequence.mask(self.trio.vocabulary().live.len(), &sequence.banned_now);
        self.machine.allow(slot, &mask, Draw::Later)
    }

    /// Takes a sample out, wherever it is.
    fn take(&mut self, id: RequestId) -> Option<Sequence> {
        let in_slot = |sequence: &Option<Sequence>| sequence.as_ref().is_some_and(|sequence| sequence.id == id);
        match self.running.iter().position(in_slot) {
            Some(slot) => self.running[slot].take(),
            None => self.waiting.remove(&id),
        }
    }

    /// Ends a sample that was taken out, and tells its reader.
    fn finish(&mut self, sequence: Sequence, reason: Result<FinishReason>) {
        self.forget(&sequence);
        // First, so that who has read an end finds it counted.
        self.publish();
        sequence.finish(reason);
    }

    /// Drops what is kept about a sample that was taken out.
    fn forget(&mut self, sequence: &Sequence) {
        for deadline in sequence.deadlines() {
            self.deadlines.remove(&deadline);
        }
        if sequence.is_new() {
            self.board.leave_queue(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::channel::{Receiver, channel};
    use super::super::event::{Completion, Event};
    use super::super::options::EngineOptions;
    use super::super::request::{Draft, Request, Sampling};
    use super::super::trio::TrioSources;
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::checkpoint::Source;

    fn demo_trio() -> Arc<Trio> {
        let [base, expert, anti] = ["base", "expert", "anti-expert"]
            .map(|role| Source::directory(format!("{}/demo/{role}", env!("CARGO_MANIFEST_DIR"))));
        let sources = TrioSources { base, expert: Some(expert), anti_expert: Some(anti) };
        Arc::new(Trio::open(&sources, &[]).expect("the demo trio opens"))
    }

    fn draft(n_prompt: u32, max_tokens: u32) -> Draft {
        let sampling = Sampling { max_tokens, ignore_eos: true, ..Sampling::default() };
        let prompts = std::array::from_fn(|role| (0..n_prompt).map(|i| 5 * i + role as u32 + n_prompt).collect());
        Draft { prompts, sampling, ..Draft::default() }
    }

    /// A core with the least pool that the longest of `drafts` fits into.
    fn core(trio: &Arc<Trio>, drafts: &[Draft], n_slots: usize) -> Core<Cpu> {
        let options = EngineOptions { n_slots, kv_tokens: Some(1), ..EngineOptions::sized_for(drafts) };
        let backend = Cpu::new(Some(1)).expect("a CPU");
        let (checkpoints, vocabulary) = (trio.checkpoints(), trio.vocabulary());
        let machine = Machine::load(backend, &checkpoints, trio.member_of_role(), vocabulary, &options.machine());
        let board = Arc::new(Board::default());
        Core::new(machine.expect("the demo trio loads"), trio.clone(), board, options.max_waiting)
    }

    fn arrive(core: &mut Core<Cpu>, id: u64, draft: &Draft) -> Receiver<Event> {
        let request = Request::new(draft.clone(), &core.trio.limits()).expect("it is within the limits");
        let (sender, events) = channel();
        core.board.enter_queue(1, usize::MAX).expect("there is room");
        core.arrive(Submission {
            first: RequestId(id),
            request: Arc::new(request),
            seed: 0,
            first_index: 0,
            events: Arc::new(sender),
            arrived: Instant::now(),
        });
        events
    }

    fn completion(mut events: Receiver<Event>) -> Completion {
        loop {
            match events.next() {
                Some(Event::Done { completion, .. }) => return *completion,
                Some(Event::Token { .. }) => {}
                None => panic!("a request ends with an end"),
            }
        }
    }

    #[test]
    fn a_cancelled_request_holds_nothing_in_the_next_step() {
        let (trio, draft) = (demo_trio(), draft(3, 100));
        let mut core = core(&trio, std::slice::from_ref(&draft), 1);
        let _running = arrive(&mut core, 0, &draft);
        let _waiting = arrive(&mut core, 1, &draft);
        (0..3).for_each(|_| core.step().expect("a step"));
        let counts = core.scheduler.counts();
        assert!(counts.running == 1 && counts.waiting == 1 && counts.held > 0, "{counts:?}");
        core.cancel(0..2);
        assert!(core.is_idle());
        let counts = core.scheduler.counts();
        assert_eq!((counts.running, counts.waiting, counts.held), (0, 0, 0));
        core.step().expect("nothing to do");
    }

    /// Pages come fresh and from others, whose keys and values still stand there: equal texts mean that neither those nor
    /// NaN in their place are read.
    #[test]
    fn what_no_live_token_wrote_does_not_matter() {
        let trio = demo_trio();
        let drafts: Vec<Draft> = (0..12).map(|i| draft(1 + 7 * i % 50, 1 + 11 * i % 40)).collect();
        let run = |poisons: bool| {
            let mut core = core(&trio, &drafts, 3);
            core.poisons = poisons;
            let events: Vec<_> = (0..).zip(&drafts).map(|(id, draft)| arrive(&mut core, id, draft)).collect();
            while !core.is_idle() {
                core.step().expect("a step");
            }
            let ids = events.into_iter().map(completion).map(|done| (done.token_ids, done.error));
            (ids.collect::<Vec<_>>(), core.scheduler.counts().preemptions)
        };
        let (clean, poisoned) = (run(false), run(true));
        assert_eq!(clean, poisoned);
        assert!(clean.0.iter().all(|(_, error)| error.is_none()) && clean.1 > 0, "{clean:?}");
    }
}
