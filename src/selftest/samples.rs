//! Steps of sampling: slots with their parameters, rows of logits, masks and counts.

use super::compare::Output;
use super::inputs::{Random, Stream, filled, finish, poisoned};
use super::launch::POISON;
use crate::Result;
use crate::backend::params::{
    Choice, CombineSampleParams, Finish, MAX_BIASES, MAX_STOP_IDS, RING, RecordParams, Sample, Slot, StepRecord,
    constraints_words, slot_constraints_offset,
};
use crate::backend::{Backend, CombineSample, Record};
use bytemuck::Zeroable;
use std::fmt;

/// Loudness of logits: their deviation is about 3.
const LOUDNESS: f32 = 5.0;

/// Where it says whether the dispatches were as many as they should be, and the records, are in [`Step::outputs`].
const DISPATCHES: usize = 3;
pub(super) const RECORDS: usize = 4;

/// A slot before the step, and what belongs to it.
#[derive(Clone)]
pub(super) struct Seat {
    pub(super) name: &'static str,
    pub(super) slot: Slot,
    /// Sampled in this step.
    pub(super) sampled: bool,
    /// How it must stand afterwards.
    pub(super) finish: Finish,
    /// Ids allowed, and allowed at the first position, as residues of an id by 7 (`None`: all).
    pub(super) allowed: [Option<u32>; 2],
    /// (id, bias), sorted.
    pub(super) biases: Vec<(u32, f32)>,
    /// A NaN in a live column of this row (0 base, 1 expert, 2 anti-expert).
    pub(super) poisoned_row: Option<usize>,
}

impl Seat {
    /// A greedy slot with alpha 1, third in its response.
    pub(super) fn new(name: &'static str, n_ids: usize) -> Self {
        let slot = Slot {
            last_id: 3,
            produced: 2,
            max_tokens: 100,
            lengths: [12, 15, 11],
            alpha: 1.0,
            repetition_penalty: 1.0,
            seed: [0xdead_beef, n_ids as u32],
            sample_index: 1,
            ring: [9; RING],
            stop_ids: [1; MAX_STOP_IDS],
            ..Slot::zeroed()
        };
        let (sampled, finish, biases) = (true, Finish::Running, Vec::new());
        Self { name, slot, sampled, finish, allowed: [None, None], biases, poisoned_row: None }
    }
}

/// One step of all seats. Its `Debug` text names those that are sampled.
#[derive(Clone)]
pub(super) struct Step {
    pub(super) random: Random,
    pub(super) n_ids: usize,
    pub(super) seats: Vec<Seat>,
    /// Top entries, where the step is recorded.
    pub(super) n_top: u32,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sampled: Vec<&str> = self.seats.iter().filter(|seat| seat.sampled).map(|seat| seat.name).collect();
        write!(f, "Step {{ n_ids: {}, {:?}, sampled: {sampled:?} }}", self.n_ids, self.random)
    }
}

impl Step {
    fn mask_words(&self) -> usize {
        self.n_ids.div_ceil(32)
    }

    /// Slots before the step.
    pub(super) fn slots(&self) -> Vec<Slot> {
        self.seats.iter().map(|seat| Slot { n_biases: seat.biases.len() as u32, ..seat.slot }).collect()
    }

    /// Ids of a row of scores.
    pub(super) fn width(&self) -> usize {
        32 * self.mask_words()
    }

    /// Elements from row to row of the three logits.
    fn strides(&self) -> [usize; 3] {
        [self.n_ids + 3, self.n_ids, self.n_ids.next_multiple_of(64)]
    }

    /// Not all ids are live.
    pub(super) fn is_live(&self, id: usize) -> bool {
        id < self.n_ids && id % 11 != 4
    }

    /// For these the difference is not used.
    pub(super) fn is_base_only(&self, id: usize) -> bool {
        id % 13 == 5
    }

    /// Row of role `role` that seat `seat` reads: every role has its own order.
    fn row_of(&self, role: usize, seat: usize) -> usize {
        let n = self.seats.len();
        [seat, n - 1 - seat, (seat + n / 2) % n][role]
    }

    /// Logits of a seat under a role, `[n_ids]`: NaN where an id is not live.
    pub(super) fn logits(&self, role: usize, seat: usize) -> Vec<f32> {
        let stream = [Stream::Base, Stream::Expert, Stream::Anti][role];
        let mut row = self.random.uniform(stream, seat, self.n_ids);
        let is_poisoned = self.seats[seat].poisoned_row == Some(role);
        for (id, z) in row.iter_mut().enumerate() {
            let is_bad = !self.is_live(id) || (is_poisoned && id == self.n_ids / 2 / 11 * 11);
            *z = if is_bad { f32::from_bits(POISON) } else { LOUDNESS * *z };
        }
        row
    }

    /// The rows that stand for base, expert and anti-expert: those that are read.
    pub(super) fn logits_read(&self, seat: usize) -> [Vec<f32>; 3] {
        let Slot { expert_only, alpha, .. } = self.seats[seat].slot;
        let roles = match (expert_only, alpha) {
            (1, _) => [1; 3],
            (_, 0.0) => [0; 3],
            _ => [0, 1, 2],
        };
        roles.map(|role| self.logits(role, seat))
    }

    /// All rows of a role at their places.
    fn rows(&self, role: usize) -> Vec<f32> {
        let stride = self.strides()[role];
        let mut rows = vec![f32::from_bits(POISON); stride * self.seats.len()];
        for seat in 0..self.seats.len() {
            let first = self.row_of(role, seat) * stride;
            rows[first..first + self.n_ids].copy_from_slice(&self.logits(role, seat));
        }
        rows
    }

    /// Seats of this step in an order of their own.
    fn samples(&self) -> Vec<Sample> {
        let sampled = (0..self.seats.len()).rev().filter(|&seat| self.seats[seat].sampled);
        let sample = |seat: usize| {
            let [row_base, row_expert, row_anti] = [0, 1, 2].map(|role| self.row_of(role, seat) as u32);
            Sample { slot: seat as u32, row_base, row_expert, row_anti }
        };
        sampled.map(sample).collect()
    }

    /// Counts before the step, `[n_seats][width]`, as many as are kept: some ids were in the prompt, some came before.
    pub(super) fn counts(&self) -> Vec<u32> {
        let count = |seat: usize, id: usize| match self.random.bits(Stream::Choice, 1000 + seat, id) % 8 {
            0 => 1 << 31,
            1 => (1 << 31) + 2,
            2 => 1,
            _ => 0,
        };
        (0..self.seats.len()).flat_map(|seat| (0..self.width()).map(move |id| count(seat, id))).collect()
    }

    fn constraints(&self) -> Vec<u32> {
        let (n_words, mut words) =
            (self.mask_words(), vec![POISON; constraints_words(self.seats.len(), self.mask_words())]);
        let mask = |keeps: &dyn Fn(usize) -> bool| -> Vec<u32> {
            let word = |word: usize| (0..32).fold(0, |bits, i| bits | u32::from(keeps(32 * word + i)) << i);
            (0..n_words).map(word).collect()
        };
        words[..n_words].copy_from_slice(&mask(&|id| self.is_live(id)));
        words[n_words..2 * n_words].copy_from_slice(&mask(&|id| self.is_base_only(id)));
        for (index, seat) in self.seats.iter().enumerate() {
            let own = &mut words[slot_constraints_offset(index, n_words)..][..2 * n_words + 2 * MAX_BIASES];
            for (allowed, own) in seat.allowed.iter().zip(own.chunks_mut(n_words)) {
                own.copy_from_slice(&mask(&|id| id < self.n_ids && allowed.is_none_or(|keep| id as u32 % 7 == keep)));
            }
            for (entry, (id, bias)) in own[2 * n_words..].chunks_mut(2).zip(&seat.biases) {
                entry.copy_from_slice(&[*id, bias.to_bits()]);
            }
        }
        words
    }

    /// Slots, scores and counts after the step, 1 where it took as many dispatches as its choice does, and the records where
    /// it is recorded.
    pub(super) fn outputs<B: Backend>(&self, backend: &B) -> Result<Vec<Output>> {
        let n = self.seats.len();
        let slots = filled(backend, "slots", &self.slots())?;
        let words = [size_of::<Slot>() / 4, 2 * self.width(), self.width(), size_of::<StepRecord>() / 4].map(|w| n * w);
        let scores = poisoned(backend, "scores", words[1])?;
        let counts = filled(backend, "counts", &self.counts())?;
        let records = poisoned(backend, "records", words[3])?;
        let base = filled(backend, "base logits", &self.rows(0))?;
        let expert = filled(backend, "expert logits", &self.rows(1))?;
        let anti = filled(backend, "anti-expert logits", &self.rows(2))?;
        let samples = filled(backend, "samples", &self.samples())?;
        let constraints = filled(backend, "constraints", &self.constraints())?;
        let (n_ids, strides) = (self.n_ids as u32, self.strides().map(|n| n as u32));
        let (n_samples, mask_words) = (self.samples().len() as u32, self.mask_words() as u32);
        let mut pass = backend.begin();
        backend.combine_sample(
            &mut pass,
            CombineSample {
                slots: &slots,
                scores: &scores,
                counts: &counts,
                base: &base,
                expert: &expert,
                anti: &anti,
                samples: &samples,
                constraints: &constraints,
                n_samples,
                choice: self.choice(),
                params: CombineSampleParams { n_ids, strides, mask_words, has_counts: 1, reserved: [0; 2] },
            },
        );
        let as_many = (backend.dispatches(&pass) == B::draw_dispatches(self.choice())) as u32;
        if self.n_top > 0 {
            backend.record(
                &mut pass,
                Record {
                    records: &records,
                    slots: &slots,
                    scores: &scores,
                    base: &base,
                    expert: &expert,
                    anti: &anti,
                    samples: &samples,
                    constraints: &constraints,
                    n_samples,
                    params: RecordParams { n_ids, strides, mask_words, n_top: self.n_top, reserved: [0; 2] },
                },
            );
        }
        let outputs = [("slots", &slots), ("scores", &scores), ("counts", &counts), ("records", &records)];
        let n_outputs = if self.n_top > 0 { 4 } else { 3 };
        let outputs: Vec<_> = outputs.iter().zip(words).map(|(&(name, buf), words)| (name, buf, words)).collect();
        let mut outputs = finish(backend, pass, &outputs[..n_outputs])?;
        outputs.insert(DISPATCHES, Output::words("whether combine_sample took its dispatches", vec![as_many]));
        Ok(outputs)
    }

    /// The most that a seat asks for that is sampled.
    pub(super) fn choice(&self) -> Choice {
        let sampled = self.seats.iter().filter(|seat| seat.sampled);
        sampled.map(|seat| seat.slot.choice()).max().unwrap_or(Choice::Greedy)
    }

    /// The step with only this seat sampled.
    pub(super) fn alone(&self, seat: usize) -> Self {
        let mut step = self.clone();
        step.seats.iter_mut().enumerate().for_each(|(index, other)| other.sampled &= index == seat);
        step
    }

    /// Score of an id in f64 and the sizes of what it is made of, after step 3 and without the base mask.
    pub(super) fn score(&self, seat: usize, logits: &[Vec<f32>; 3], id: usize) -> (f64, f64) {
        let [base, expert, anti] = [0, 1, 2].map(|role| f64::from(logits[role][id]));
        let alpha = f64::from(self.seats[seat].slot.alpha);
        if alpha == 0.0 || self.is_base_only(id) {
            return (base, 0.0);
        }
        (base + alpha * (expert - anti), base.abs() + alpha.abs() * (expert.abs() + anti.abs()))
    }
}
