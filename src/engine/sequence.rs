//! A sample of a request on its way: what the device has to know of it, its ids, its text, its record.

use super::batch::Seat;
use super::channel::Sender;
use super::event::{Completion, Event, FinishReason, Timings};
use super::request::{Draft, Mode, Request};
use super::scheduler::{LaneSpec, RequestId};
use crate::backend::params::{Finish, MAX_VOCAB, RING, Slot, StepRecord, TopEntry};
use crate::text::stream::TextStream;
use crate::{Error, Result};
use bytemuck::Zeroable;
use std::sync::Arc;
use std::time::Instant;

/// The lanes of a request, and which lane each role reads. Roles whose rows are not read have none of their own.
pub fn lanes(request: &Draft, seats: [Seat; 3]) -> (Vec<LaneSpec>, [usize; 3]) {
    let mut lanes: Vec<LaneSpec> = Vec::new();
    let mut lane_of_role = [0; 3];
    for &role in request.computed_roles() {
        let (seat, prompt) = (seats[role], &request.prompts[role]);
        let shared = lanes.iter().position(|lane| lane.seat == seat && *lane.prompt == **prompt);
        lane_of_role[role] = shared.unwrap_or_else(|| {
            lanes.push(LaneSpec { seat, prompt: prompt.as_slice().into() });
            lanes.len() - 1
        });
    }
    (lanes, lane_of_role)
}

/// What the draws of a sample depend on, beside its request.
#[derive(Clone, Copy, Debug)]
pub struct Dice {
    /// Philox key.
    pub seed: u64,
    /// Which of the request's `n` samples it is: Philox counter.
    pub sample_index: u32,
}

/// The slot record of a sample that goes on after the ids `drawn`, none where it begins.
pub fn slot_record(request: &Draft, dice: Dice, lanes: &[LaneSpec], drawn: &[u32], trio_stop_ids: &[u32]) -> Slot {
    let sampling = &request.sampling;
    let mut slot = Slot { max_tokens: sampling.max_tokens, min_tokens: sampling.min_tokens, ..Slot::zeroed() };
    slot.produced = drawn.len() as u32;
    slot.last_id = drawn.last().copied().unwrap_or(0);
    let stops: Vec<u32> = request.stop_ids(trio_stop_ids);
    slot.stop_ids[..stops.len()].copy_from_slice(&stops);
    slot.n_stop_ids = stops.len() as u32;
    for (length, lane) in slot.lengths.iter_mut().zip(lanes) {
        *length = (lane.prompt.len() + drawn.len()) as u32 - 1;
    }
    slot.n_biases = sampling.logit_bias.len() as u32;
    slot.penalised = sampling.is_penalised().into();
    slot.alpha = request.alpha();
    slot.expert_only = (request.mode == Mode::ExpertOnly).into();
    slot.inverse_temperature = inverse_temperature(sampling.temperature);
    slot.top_k = sampling.top_k.clamp(0, MAX_VOCAB as i64) as u32;
    slot.top_p = fixed_point(sampling.top_p);
    slot.min_p = sampling.min_p;
    slot.repetition_penalty = sampling.repetition_penalty;
    slot.presence_penalty = sampling.presence_penalty;
    slot.frequency_penalty = sampling.frequency_penalty;
    slot.base_top_p = fixed_point(sampling.base_top_p);
    slot.base_min_p = sampling.base_min_p;
    slot.seed = [dice.seed as u32, (dice.seed >> 32) as u32];
    slot.sample_index = dice.sample_index;
    slot
}

/// A sample that waits or runs.
pub(crate) struct Sequence {
    pub(crate) id: RequestId,
    pub(crate) request: Arc<Request>,
    pub(crate) lanes: Vec<LaneSpec>,
    /// Ids drawn, as far as the host has read them.
    pub(crate) token_ids: Vec<u32>,
    /// Ids that may not be drawn next alone.
    pub(crate) banned_now: Vec<u32>,
    /// When it must have got a slot, if it must.
    pub(crate) queue_deadline: Option<Instant>,
    /// When it must have ended, if it must.
    pub(crate) deadline: Option<Instant>,
    dice: Dice,
    /// Its number in events.
    index: usize,
    events: Arc<Sender<Event>>,
    stream: TextStream,
    text: String,
    record: Vec<StepRecord>,
    admitted: Option<Instant>,
    /// When the first token came, and the last.
    tokens_came: Option<(Instant, Instant)>,
}

/// What a sample is out of time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TimeLimit {
    /// To get its first slot.
    Queue,
    /// To end.
    Whole,
}

/// Who found that a sample has ended, and how.
pub(crate) enum Ended {
    /// The device: its slot does nothing more.
    ByDevice(Result<FinishReason>),
    /// The host, of which the device knows nothing yet.
    ByHost(Result<FinishReason>),
}

/// What a new sample is made of.
pub(crate) struct Origin {
    pub(crate) id: RequestId,
    pub(crate) request: Arc<Request>,
    pub(crate) dice: Dice,
    pub(crate) index: usize,
    pub(crate) events: Arc<Sender<Event>>,
    pub(crate) arrived: Instant,
}

impl Sequence {
    /// A sample that has just come in.
    pub(crate) fn new(origin: Origin, lanes: Vec<LaneSpec>) -> Self {
        let Origin { id, request, dice, index, events, arrived } = origin;
        // A time that no clock can tell never comes.
        let after = |time: std::time::Duration| arrived.checked_add(time);
        Self {
            id,
            lanes,
            token_ids: Vec::new(),
            banned_now: Vec::new(),
            queue_deadline: request.queue_timeout.and_then(after),
            deadline: request.timeout.and_then(after),
            dice,
            index,
            events,
            stream: TextStream::new(request.stop.clone()),
            text: String::new(),
            record: Vec::new(),
            admitted: None,
            tokens_came: None,
            request,
        }
    }

    /// When it is out of time, for what.
    pub(crate) fn deadlines(&self) -> impl Iterator<Item = (Instant, RequestId, TimeLimit)> + use<> {
        let (id, limits) = (self.id, [(self.queue_deadline, TimeLimit::Queue), (self.deadline, TimeLimit::Whole)]);
        limits.into_iter().filter_map(move |(deadline, limit)| Some((deadline?, id, limit)))
    }

    /// True where the next draw needs what the host makes of the last id.
    pub(crate) fn needs_host(&self) -> bool {
        self.request.bad_words.iter().any(|word| word.len() > 1)
    }

    /// Whether it never had a slot.
    pub(crate) fn is_new(&self) -> bool {
        self.admitted.is_none()
    }

    /// It has got a slot, for the first time or again.
    pub(crate) fn admit(&mut self) {
        self.admitted.get_or_insert_with(Instant::now);
        self.banned_now = self.bans();
    }

    /// Its slot record, to go on after the ids drawn.
    pub(crate) fn slot_record(&self, trio_stop_ids: &[u32]) -> Slot {
        slot_record(&self.request, self.dice, &self.lanes, &self.token_ids, trio_stop_ids)
    }

    /// Its allowed ids as `n_words` words of bits, without `banned` and without banned words of one id.
    pub(crate) fn mask(&self, n_words: usize, banned: &[u32]) -> Vec<u32> {
        let mut mask = vec![u32::MAX; n_words];
        let single = self.request.bad_words.iter().filter(|word| word.len() == 1);
        for id in single.flatten().chain(banned) {
            if let Some(word) = mask.get_mut(*id as usize / 32) {
                *word &= !(1 << (id % 32));
            }
        }
        mask
    }

    /// Ids that would complete a banned word of several ids now.
    pub(crate) fn bans(&self) -> Vec<u32> {
        let completes = |word: &&Vec<u32>| word.len() > 1 && self.token_ids.ends_with(&word[..word.len() - 1]);
        self.request.bad_words.iter().filter(completes).map(|word| word[word.len() - 1]).collect()
    }

    /// Takes in what a step that drew for it left in its slot. `bytes` gives an id's bytes.
    ///
    /// Gives the id drawn, if one was, and how it ended, if it did.
    pub(crate) fn advance<'a>(
        &mut self,
        slot: &Slot,
        record: Option<&StepRecord>,
        bytes: impl Fn(u32) -> &'a [u8],
    ) -> (Option<u32>, Option<Ended>) {
        let n_read = self.token_ids.len();
        let finish = Finish::from_word(slot.finish);
        let n_new = match finish {
            Some(Finish::Running | Finish::Stop | Finish::Length) => Some(1),
            Some(Finish::Numeric | Finish::Empty) => Some(0),
            Some(Finish::Cancelled) | None => None,
        };
        let (Some(finish), Some(n_new)) = (finish, n_new.filter(|n| slot.produced as usize == n_read + n)) else {
            let Slot { finish, produced, .. } = slot;
            let message = format!("one came back with {finish} as its end and {produced} ids; {n_read} were read");
            return (None, Some(Ended::ByHost(Err(Error::device("slots", message)))));
        };
        let drawn = (n_new == 1).then(|| slot.ring[n_read % RING]);
        if let Some(id) = drawn {
            self.push(id, record, if finish == Finish::Stop { &[] } else { bytes(id) });
        }
        let is_cut = self.stream.stopped_by().is_some();
        let ended = match finish {
            Finish::Running if is_cut => Ended::ByHost(Ok(FinishReason::Stop)),
            Finish::Running | Finish::Cancelled => return (drawn, None),
            Finish::Length if !is_cut => Ended::ByDevice(Ok(FinishReason::Length)),
            Finish::Stop | Finish::Length => Ended::ByDevice(Ok(FinishReason::Stop)),
            Finish::Numeric => {
                Ended::ByDevice(Err(numeric("the logits of a model hold NaN or +inf, or no finite value")))
            }
            Finish::Empty => Ended::ByDevice(Err(numeric("no token is allowed: bans, masks and policies exclude all"))),
        };
        (drawn, Some(ended))
    }

    /// Adds an id and the text that it sets free, and tells of both.
    fn push(&mut self, id: u32, record: Option<&StepRecord>, bytes: &[u8]) {
        self.token_ids.push(id);
        if let Some(mut step) = record.copied() {
            // The machine records as many top entries as the request that wants most.
            step.n_top = step.n_top.min(self.request.record.unwrap_or(0) as u32);
            step.top[step.n_top as usize..].fill(TopEntry::default());
            self.record.push(step);
        }
        let now = Instant::now();
        self.tokens_came.get_or_insert((now, now)).1 = now;
        let text = self.stream.push(bytes);
        self.text.push_str(&text);
        self.events.send(Event::Token { sample: self.index, id, text });
    }

    /// Wakes the reader, if there is something to read.
    pub(crate) fn flush(&self) {
        self.events.flush();
    }

    /// Tells the result: the last that is heard of it.
    pub(crate) fn finish(mut self, reason: Result<FinishReason>) {
        self.text.push_str(&self.stream.finish());
        let since = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
        let now = Instant::now();
        let (first, last) = self.tokens_came.unwrap_or((now, now));
        let timings = Timings {
            prompt_n: self.request.prompts[self.request.mode.main_role()].len(),
            prompt_ms: self.admitted.map_or(0.0, |admitted| since(admitted, first)),
            predicted_n: self.token_ids.len(),
            predicted_ms: since(first, last),
        };
        let completion = Completion {
            text: self.text,
            token_ids: self.token_ids,
            finish_reason: *reason.as_ref().unwrap_or(&FinishReason::Error),
            error: reason.err(),
            seed: self.dice.seed,
            prompt_tokens: self.request.prompts.each_ref().map(Vec::len),
            timings,
            record: self.record,
        };
        self.events.send(Event::Done { sample: self.index, completion: Box::new(completion) });
        self.events.flush();
    }
}

fn numeric(message: &str) -> Error {
    Error::Numeric { message: message.into() }
}

/// p * 2^32, at least 1; 0 where p = 1 switches the filter off.
fn fixed_point(p: f32) -> u32 {
    if p >= 1.0 { 0 } else { ((p as f64 * 2f64.powi(32)) as u32).max(1) }
}

/// 1 / T. Temperatures too small for a finite 1 / T are greedy, their limit; 0 stands for greedy, so the 1 / T of a
/// huge one stays a normal number.
fn inverse_temperature(temperature: f32) -> f32 {
    let inverse = 1.0 / temperature;
    if inverse.is_finite() { inverse.max(f32::MIN_POSITIVE) } else { 0.0 }
}
