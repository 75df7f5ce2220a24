//! A running request: its lanes, its progress, its text.

use super::batch::{Batch, Seat};
use super::event::{Completion, FinishReason, Timings};
use super::request::Request;
use crate::backend::params::{FROM_SLOT, Finish, MAX_VOCAB, RING, Row, Sample, Slot, StepRecord};
use crate::text::stream::TextStream;
use crate::{Error, Result};
use bytemuck::Zeroable;
use std::time::Instant;

/// Tokens of one or more roles whose weights and prompts are the same, computed once.
#[derive(Debug)]
pub struct Lane {
    /// Weights that run it.
    pub seat: Seat,
    /// The prompt.
    pub tokens: Vec<u32>,
    /// Prompt tokens already given to a step.
    pub n_prefilled: usize,
}

impl Lane {
    fn n_left(&self) -> usize {
        self.tokens.len() - self.n_prefilled
    }
}

/// The lanes of a request, and which lane each role reads. With alpha 0 only the base has one: the pair's rows are not
/// read, so they are not computed.
pub fn lanes(request: &Request, seats: [Seat; 3]) -> (Vec<Lane>, [usize; 3]) {
    let mut lanes: Vec<Lane> = Vec::new();
    let n_roles = if request.sampling.alpha == 0.0 { 1 } else { 3 };
    let mut lane_of_role = [0; 3];
    for role in 0..n_roles {
        let (seat, tokens) = (seats[role], &request.prompts[role]);
        let shared = lanes.iter().position(|lane| lane.seat == seat && lane.tokens == *tokens);
        lane_of_role[role] = shared.unwrap_or_else(|| {
            lanes.push(Lane { seat, tokens: tokens.clone(), n_prefilled: 0 });
            lanes.len() - 1
        });
    }
    (lanes, lane_of_role)
}

/// A request in a slot.
pub struct Sequence {
    /// Told apart from earlier holders of the slot when a step is collected late.
    pub serial: u64,
    /// What was asked for.
    pub request: Request,
    /// Its lanes.
    pub lanes: Vec<Lane>,
    /// Pages held, per lane.
    pub pages: Vec<Vec<u32>>,
    /// Ids drawn, as far as the host has read them.
    pub token_ids: Vec<u32>,
    /// Draws submitted.
    pub n_submitted: u32,
    lane_of_role: [usize; 3],
    seed: u64,
    stream: TextStream,
    text: String,
    record: Vec<StepRecord>,
    admitted: Instant,
    first_token: Option<Instant>,
}

impl Sequence {
    /// A request that got its pages.
    pub fn new(
        serial: u64,
        request: Request,
        seed: u64,
        (lanes, lane_of_role): (Vec<Lane>, [usize; 3]),
        pages: Vec<Vec<u32>>,
    ) -> Self {
        let stream = TextStream::new(request.stop.clone());
        Self {
            serial,
            request,
            lanes,
            pages,
            token_ids: Vec::new(),
            n_submitted: 0,
            lane_of_role,
            seed,
            stream,
            text: String::new(),
            record: Vec::new(),
            admitted: Instant::now(),
            first_token: None,
        }
    }

    /// True where the next draw needs what the host makes of the last id.
    pub fn needs_host(&self) -> bool {
        self.request.bad_words.iter().any(|word| word.len() > 1)
    }

    /// True once the prompts are in.
    pub fn is_decoding(&self) -> bool {
        self.n_submitted > 0
    }

    /// Adds one row per lane, and a draw, unless max_tokens draws are under way.
    pub fn decode(&mut self, slot: u32, batch: &mut Batch) {
        if self.n_submitted < self.request.sampling.max_tokens {
            for (index, lane) in self.lanes.iter().enumerate() {
                batch.push(lane.seat, Row { slot, lane: index as u32, token: FROM_SLOT, position: FROM_SLOT });
            }
            self.sample(slot, batch);
        }
    }

    /// Adds the next chunk of each prompt, in a step of at most `limit` rows per seat. All lanes end their prompts in
    /// the same step, so that their logits meet.
    pub fn prefill(&mut self, slot: u32, batch: &mut Batch, limit: impl Fn(Seat) -> usize) {
        let takes = self.prefill_takes(|seat| limit(seat) - batch.n_rows(seat));
        for (index, (lane, take)) in self.lanes.iter_mut().zip(takes).enumerate() {
            for position in lane.n_prefilled..lane.n_prefilled + take {
                let (token, position) = (lane.tokens[position], position as u32);
                batch.push(lane.seat, Row { slot, lane: index as u32, token, position });
            }
            lane.n_prefilled += take;
        }
        if self.lanes.iter().all(|lane| lane.n_left() == 0) {
            self.sample(slot, batch);
        }
    }

    /// Prompt tokens to take per lane: all that is left where every lane's fits, else no lane's last.
    fn prefill_takes(&self, room: impl Fn(Seat) -> usize) -> Vec<usize> {
        let n_sharing = |seat| self.lanes.iter().filter(|lane| lane.seat == seat).count();
        let share = |lane: &Lane| room(lane.seat) / n_sharing(lane.seat);
        let complete = self.lanes.iter().all(|lane| lane.n_left() <= share(lane));
        let limit = |lane: &Lane| if complete { lane.n_left() } else { lane.n_left() - 1 };
        self.lanes.iter().map(|lane| share(lane).min(limit(lane))).collect()
    }

    /// Draws from the row that each lane pushed last.
    fn sample(&mut self, slot: u32, batch: &mut Batch) {
        let rows: Vec<u32> =
            self.lanes.iter().enumerate().map(|(i, l)| batch.gather_last(l.seat, slot, i as u32)).collect();
        let [row_base, row_expert, row_anti] = self.lane_of_role.map(|lane| rows[lane]);
        batch.samples.push(Sample { slot, row_base, row_expert, row_anti });
        self.n_submitted += 1;
    }

    /// The slot record at admission.
    pub fn device_slot(&self, trio_stop_ids: &[u32]) -> Slot {
        let sampling = &self.request.sampling;
        let mut slot = Slot { max_tokens: sampling.max_tokens, min_tokens: sampling.min_tokens, ..Slot::zeroed() };
        let stops: Vec<u32> = self.request.stop_ids(trio_stop_ids);
        slot.stop_ids[..stops.len()].copy_from_slice(&stops);
        slot.n_stop_ids = stops.len() as u32;
        for (length, lane) in slot.lengths.iter_mut().zip(&self.lanes) {
            *length = lane.tokens.len() as u32 - 1;
        }
        slot.n_biases = sampling.logit_bias.len() as u32;
        slot.penalised = sampling.is_penalised().into();
        slot.alpha = sampling.alpha;
        slot.inverse_temperature = inverse_temperature(sampling.temperature);
        slot.top_k = sampling.top_k.clamp(0, MAX_VOCAB as i64) as u32;
        slot.top_p = fixed_point(sampling.top_p);
        slot.min_p = sampling.min_p;
        slot.repetition_penalty = sampling.repetition_penalty;
        slot.presence_penalty = sampling.presence_penalty;
        slot.frequency_penalty = sampling.frequency_penalty;
        slot.base_top_p = fixed_point(sampling.base_top_p);
        slot.base_min_p = sampling.base_min_p;
        slot.seed = [self.seed as u32, (self.seed >> 32) as u32];
        slot.sample_index = self.request.sample_index;
        slot
    }

    /// Takes in what a step left in the slot: the id drawn with the text it sets free, if one was drawn, and why the
    /// sequence ended, if it did. `bytes` gives an id's bytes.
    pub fn advance<'a>(
        &mut self,
        slot: &Slot,
        record: Option<&StepRecord>,
        bytes: impl Fn(u32) -> &'a [u8],
    ) -> (Option<(u32, String)>, Option<Result<FinishReason>>) {
        let Some(finish) = Finish::from_word(slot.finish) else {
            let message = format!("a slot came back from the device with {} as its end", slot.finish);
            return (None, Some(Err(Error::device("slots", message))));
        };
        let mut drawn = None;
        if slot.produced as usize > self.token_ids.len() {
            let id = slot.ring[self.token_ids.len() % RING];
            self.token_ids.push(id);
            // The machine records as many top entries as the request that wants most.
            let n_top = self.request.record.unwrap_or(0) as u32;
            self.record.extend(record.map(|step| StepRecord { n_top: step.n_top.min(n_top), ..*step }));
            self.first_token.get_or_insert_with(Instant::now);
            let text = if finish == Finish::Stop { String::new() } else { self.stream.push(bytes(id)) };
            self.text.push_str(&text);
            drawn = Some((id, text));
        }
        let ended = match finish {
            _ if self.stream.stopped_by().is_some() => Some(Ok(FinishReason::Stop)),
            Finish::Running | Finish::Cancelled => None,
            Finish::Stop => Some(Ok(FinishReason::Stop)),
            Finish::Length => Some(Ok(FinishReason::Length)),
            Finish::Numeric => Some(Err(numeric("the logits of a model hold NaN or +inf, or no finite value"))),
            Finish::Empty => Some(Err(numeric("no token is allowed: bans, masks and policies exclude all"))),
        };
        (drawn, ended)
    }

    /// The result.
    pub fn complete(mut self, reason: Result<FinishReason>) -> Completion {
        self.text.push_str(&self.stream.finish());
        let since = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
        let now = Instant::now();
        let first = self.first_token.unwrap_or(now);
        let timings = Timings {
            prompt_n: self.request.prompts[0].len(),
            prompt_ms: since(self.admitted, first),
            predicted_n: self.token_ids.len(),
            predicted_ms: since(first, now),
        };
        Completion {
            text: self.text,
            token_ids: self.token_ids,
            finish_reason: *reason.as_ref().unwrap_or(&FinishReason::Error),
            error: reason.err(),
            seed: self.seed,
            prompt_tokens: self.request.prompts.each_ref().map(Vec::len),
            timings,
            record: self.record,
        }
    }

    /// Ids that would complete a banned word of several ids now.
    pub fn banned_now(&self) -> impl Iterator<Item = u32> + '_ {
        let completes = |word: &&Vec<u32>| word.len() > 1 && self.token_ids.ends_with(&word[..word.len() - 1]);
        self.request.bad_words.iter().filter(completes).map(|word| word[word.len() - 1])
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
