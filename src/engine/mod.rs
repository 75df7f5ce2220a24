//! Requests to tokens. `step()` is: admit, schedule, submit, collect.
//!
//! The engine lives on a thread of its own ([`worker`]) and talks through a channel; nothing outside is generic over
//! the backend. Steps are submitted up to [`Backend::LAG`] ahead of the host's reading, because tokens, positions and
//! sampling state stay on the device; a slot that needs the host for its next mask makes that 0.

pub mod batch;
pub mod event;
pub mod machine;
pub mod plan;
pub mod request;
pub mod sequence;
pub mod trio;
pub mod worker;

use crate::backend::Backend;
use crate::kv::pool::Pool;
use crate::{Error, Result};
use batch::{Batch, Seat};
use event::{Completion, Event};
use machine::{Draw, Machine, Records, Step};
use request::{PROMPT_FIELDS, Request};
use sequence::{Lane, Sequence, lanes};
use std::collections::VecDeque;
use std::sync::Arc;
use trio::Trio;
use worker::Channel;

/// A request and where its events go.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) index: usize,
    pub(crate) seed: u64,
    pub(crate) channel: Arc<Channel>,
}

impl Job {
    /// Ends a request that never ran.
    pub(crate) fn refuse(self, error: Error) {
        let completion = Box::new(Completion::failed(&self.request, self.seed, error));
        self.channel.send(Event::Done { request: self.index, completion });
        self.channel.flush();
    }
}

struct Running {
    sequence: Sequence,
    index: usize,
    channel: Arc<Channel>,
    /// Ids the slot may draw.
    allowed: Vec<u32>,
    /// Ids taken out of `allowed` for the next draw alone.
    banned_now: Vec<u32>,
}

struct Flight<R> {
    step: Step<R>,
    /// Slots that drew in it, and whose they were.
    drew: Vec<(usize, u64)>,
}

pub(crate) struct Engine<B: Backend> {
    machine: Machine<B>,
    trio: Arc<Trio>,
    pool: Pool,
    waiting: VecDeque<Job>,
    running: Vec<Option<Running>>,
    flights: VecDeque<Flight<B::Receipt>>,
    next_serial: u64,
    max_lane_tokens: usize,
}

impl<B: Backend> Engine<B> {
    pub(crate) fn new(machine: Machine<B>, trio: Arc<Trio>, max_lane_tokens: usize) -> Self {
        Self {
            pool: Pool::new(machine.n_pages()),
            running: (0..machine.n_slots()).map(|_| None).collect(),
            machine,
            trio,
            waiting: VecDeque::new(),
            flights: VecDeque::new(),
            next_serial: 0,
            max_lane_tokens,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.flights.is_empty() && self.running.iter().all(Option::is_none)
    }

    /// Queues a request, or refuses it at once where it can never run.
    pub(crate) fn enqueue(&mut self, job: Job) {
        match self.check(&job.request) {
            Ok(()) => self.waiting.push_back(job),
            Err(error) => job.refuse(error),
        }
    }

    /// Holds a request against the models and the machine's size. The kernels trust what passes here.
    fn check(&self, request: &Request) -> Result<()> {
        let models = self.trio.models().checkpoint_of_role().map(|checkpoint| &checkpoint.config);
        for ((name, prompt), model) in PROMPT_FIELDS.into_iter().zip(&request.prompts).zip(models) {
            if let Some(at) = prompt.iter().position(|&id| id as usize >= model.n_vocab) {
                let message = format!("id {} at {at} is past the model's {} rows", prompt[at], model.n_vocab);
                return Err(Error::argument(name, message));
            }
            let tokens = prompt.len() + request.sampling.max_tokens as usize;
            let limit = model.max_positions.min(self.max_lane_tokens);
            if tokens > limit {
                let message = format!("{name} and max_tokens make {tokens} tokens, the limit is {limit}");
                return Err(Error::argument("max_tokens", message));
            }
        }
        if request.record.is_some() && !self.machine.records() {
            return Err(Error::argument("record", "the engine was started without room for records"));
        }
        if request.sampling.is_penalised() && !self.machine.penalises() {
            return Err(Error::argument("repetition_penalty", "the engine was started without room for penalties"));
        }
        let (lanes, _) = lanes(request, self.machine.seats());
        let pages: usize = self.page_counts(request, &lanes).iter().sum();
        if pages > self.pool.n_pages() {
            let (needed, limit) = (pages as u64, self.pool.n_pages() as u64);
            return Err(Error::Memory { what: "KV cache, in pages,".into(), needed, limit });
        }
        Ok(())
    }

    /// Ends every request with `error`: the device is gone.
    pub(crate) fn fail_all(&mut self, error: &Error) {
        for running in self.running.iter_mut().filter_map(Option::take) {
            finish(running, Err(error.clone()));
        }
        self.waiting.drain(..).for_each(|job| job.refuse(error.clone()));
        self.flights.clear();
    }

    pub(crate) fn step(&mut self) -> Result<()> {
        self.drop_cancelled()?;
        self.admit()?;
        let batch = self.schedule();
        if batch.is_empty() {
            return self.collect();
        }
        self.submit(batch)?;
        let needs_host = self.running.iter().flatten().any(|running| running.sequence.needs_host());
        let lag = if needs_host { 0 } else { B::LAG };
        while self.flights.len() > lag {
            self.collect()?;
        }
        Ok(())
    }

    fn drop_cancelled(&mut self) -> Result<()> {
        self.waiting.retain(|job| !job.channel.is_cancelled());
        for slot in 0..self.running.len() {
            if self.running[slot].as_ref().is_some_and(|running| running.channel.is_cancelled()) {
                self.machine.cancel(slot)?;
                self.release(slot);
            }
        }
        Ok(())
    }

    /// Moves waiting requests into free slots, in order, while all their pages can be had.
    fn admit(&mut self) -> Result<()> {
        while let (Some(slot), Some(job)) = (self.running.iter().position(Option::is_none), self.waiting.front()) {
            let lanes = lanes(&job.request, self.machine.seats());
            let Some(pages) = self.pool.take(&self.page_counts(&job.request, &lanes.0)) else { break };
            let job = self.waiting.pop_front().expect("a job stands at the front");
            let sequence = Sequence::new(self.next_serial, job.request, job.seed, lanes, pages);
            self.next_serial += 1;
            let mut allowed = vec![u32::MAX; self.trio.vocabulary().live.len()];
            let single = sequence.request.bad_words.iter().filter(|word| word.len() == 1);
            single.for_each(|word| clear(&mut allowed, word[0]));
            // First, so that a device that fails now fails this request like all others.
            self.running[slot] =
                Some(Running { sequence, index: job.index, channel: job.channel, allowed, banned_now: Vec::new() });
            self.upload_slot(slot)?;
        }
        Ok(())
    }

    fn upload_slot(&self, slot: usize) -> Result<()> {
        let Running { sequence, allowed, .. } = self.running[slot].as_ref().expect("a slot just filled");
        let device_slot = sequence.device_slot(&self.trio.vocabulary().stop_ids);
        self.machine.admit(slot, &device_slot, &sequence.request, &sequence.pages)?;
        let mut first = allowed.clone();
        sequence.request.bad_first_ids.iter().for_each(|&id| clear(&mut first, id));
        self.machine.allow(slot, &first, Draw::First)?;
        self.machine.allow(slot, allowed, Draw::Later)
    }

    fn page_counts(&self, request: &Request, lanes: &[Lane]) -> Vec<usize> {
        let n_new = request.sampling.max_tokens as usize;
        lanes.iter().map(|lane| self.machine.pages_for(lane.seat, lane.tokens.len() + n_new)).collect()
    }

    /// Decode rows first, then prompts up to `prefill_rows` per member.
    fn schedule(&mut self) -> Batch {
        let mut batch = Batch::new(self.machine.n_stacks());
        let (decoding, prefilling): (Vec<_>, Vec<_>) = self
            .running
            .iter_mut()
            .enumerate()
            .filter_map(|(slot, running)| Some((slot as u32, &mut running.as_mut()?.sequence)))
            .partition(|(_, sequence)| sequence.is_decoding());
        for (slot, sequence) in decoding {
            sequence.decode(slot, &mut batch);
        }
        let n_decode: Vec<_> = batch.stacks.iter().map(|stack| stack.rows.each_ref().map(Vec::len)).collect();
        let limit = |seat: Seat| n_decode[seat.stack][seat.member] + self.machine.prefill_rows(seat);
        for (slot, sequence) in prefilling {
            sequence.prefill(slot, &mut batch, limit);
        }
        batch
    }

    fn submit(&mut self, batch: Batch) -> Result<()> {
        let sequence = |slot: u32| &self.running[slot as usize].as_ref().expect("a sampled slot runs").sequence;
        let drew = batch.samples.iter().map(|sample| (sample.slot as usize, sequence(sample.slot).serial)).collect();
        let recorded = batch.samples.iter().any(|sample| sequence(sample.slot).request.record.is_some());
        let records = if recorded { Records::Kept } else { Records::None };
        let step = self.machine.submit(batch, records)?;
        self.flights.push_back(Flight { step, drew });
        Ok(())
    }

    /// Reads the oldest step under way and passes on what it drew.
    fn collect(&mut self) -> Result<()> {
        let Some(Flight { step, drew }) = self.flights.pop_front() else { return Ok(()) };
        let view = self.machine.collect(step)?;
        for (slot, serial) in drew {
            let Some(running) = self.running[slot].as_mut().filter(|r| r.sequence.serial == serial) else { continue };
            let record = running.sequence.request.record.and_then(|_| view.records.get(slot));
            let trio = &self.trio;
            let (drawn, ended) = running.sequence.advance(&view.slots[slot], record, |id| trio.bytes_of(id));
            if let Some((id, text)) = drawn {
                running.channel.send(Event::Token { request: running.index, id, text });
            }
            match ended {
                Some(reason) => {
                    // A stop string ends it here; the device does not know yet.
                    self.machine.cancel(slot)?;
                    if let Some(running) = self.release(slot) {
                        finish(running, reason);
                    }
                }
                None => self.ban_now(slot)?,
            }
        }
        self.running.iter().flatten().for_each(|running| running.channel.flush());
        Ok(())
    }

    /// Takes ids that would complete a banned word of several ids out of the slot's next draw.
    fn ban_now(&mut self, slot: usize) -> Result<()> {
        let Some(running) = self.running[slot].as_mut() else { return Ok(()) };
        let banned: Vec<u32> = running.sequence.banned_now().collect();
        if banned != running.banned_now {
            let mut mask = running.allowed.clone();
            banned.iter().for_each(|&id| clear(&mut mask, id));
            self.machine.allow(slot, &mask, Draw::Later)?;
            running.banned_now = banned;
        }
        Ok(())
    }

    /// Frees a slot and its pages: steps submitted from now on do not touch them, and those under way are in order.
    fn release(&mut self, slot: usize) -> Option<Running> {
        let mut running = self.running[slot].take()?;
        self.pool.give_back(std::mem::take(&mut running.sequence.pages));
        Some(running)
    }
}

fn finish(running: Running, reason: Result<event::FinishReason>) {
    let Running { sequence, index, channel, .. } = running;
    let completion = Box::new(sequence.complete(reason));
    channel.send(Event::Done { request: index, completion });
    channel.flush();
}

fn clear(mask: &mut [u32], id: u32) {
    if let Some(word) = mask.get_mut(id as usize / 32) {
        *word &= !(1 << (id % 32));
    }
}
