//! Cases of [`crate::backend::CombineSample`]: a handful with every parameter. Distributions, ties and -inf are the
//! sampling tests' business; here a backend must make the twin's choices, and scores that f64 agrees with.

use super::compare::{Output, Want};
use super::inputs::{Random, UNIT};
use super::launch::{Check, Launch, POISON};
use super::samples::{Seat, Step};
use crate::Result;
use crate::backend::Backend;
use crate::backend::params::{Finish, Slot};

pub(super) fn check<B: Backend, T: Backend>(check: &mut Check<'_, B, T>) -> Result<()> {
    for (case, n_ids) in [5, 64, 997].into_iter().enumerate() {
        let step = Step { random: Random { case: case as u32 }, n_ids, seats: seats(n_ids), n_top: 0 };
        check.launch(&step)?;
        let sampled = (0..step.seats.len()).filter(|&seat| step.seats[seat].sampled);
        check.same_rows(&step, sampled.map(|seat| (step.alone(seat), vec![(seat, seat)])))?;
    }
    // Wide rows, one at a time, for the buffers fit a binding limit of 256 KiB.
    let n_ids = 30_011;
    for seat in seats(n_ids).into_iter().filter(|seat| ["greedy", "top-k and top-p", "base mask"].contains(&seat.name))
    {
        check.launch(&Step { random: Random { case: 9 }, n_ids, seats: vec![seat], n_top: 0 })?;
    }
    Ok(())
}

/// One slot for each parameter, and some that must be left alone.
fn seats(n_ids: usize) -> Vec<Seat> {
    let seat = |name, change: &dyn Fn(&mut Slot)| {
        let mut seat = Seat::new(name, n_ids);
        change(&mut seat.slot);
        seat
    };
    let drawn = |slot: &mut Slot| slot.inverse_temperature = 1.0;
    let percent = |p: u64| (p << 32).div_euclid(100) as u32;
    let unread = Seat { poisoned_row: Some(1), ..seat("alpha 0 reads only the base", &|slot| slot.alpha = 0.0) };
    let alone = |slot: &mut Slot| (slot.alpha, slot.expert_only) = (0.0, 1);
    let expert_alone = Seat { poisoned_row: Some(0), ..seat("the expert alone", &alone) };
    let expert_nan = Seat { poisoned_row: Some(1), finish: Finish::Numeric, ..seat("NaN of the expert", &drawn) };
    let base_nan = Seat { poisoned_row: Some(0), finish: Finish::Numeric, ..seat("NaN of the base", &|_| {}) };
    // No residue of 7 is 7.
    let empty = Seat { allowed: [Some(7), None], finish: Finish::Empty, ..seat("nothing allowed", &|_| {}) };
    let with_0 = |seat: Seat| Seat { biases: vec![(0, 1000.0)], ..seat };
    let stops = |slot: &mut Slot| (slot.stop_ids[1], slot.n_stop_ids) = (0, 2);
    let biases = vec![(0, 3.5), (1, -100.0), (n_ids as u32 - 1, -2.0)];
    vec![
        seat("greedy", &|_| {}),
        unread,
        expert_alone,
        seat("drawn", &drawn),
        seat("hot, alpha below 0", &|slot| (slot.alpha, slot.inverse_temperature, slot.seed) = (-1.5, 0.5, [1, 2])),
        seat("top-k", &|slot| (slot.inverse_temperature, slot.top_k) = (0.9, 3)),
        seat("top-p", &|slot| (slot.inverse_temperature, slot.top_p) = (0.9, percent(60))),
        seat("min-p", &|slot| (slot.inverse_temperature, slot.min_p) = (0.7, 0.1)),
        seat("top-k and top-p", &|slot| {
            (slot.inverse_temperature, slot.top_k, slot.top_p, slot.min_p) = (0.8, 40, percent(90), 0.01)
        }),
        seat("base mask", &|slot| {
            (slot.inverse_temperature, slot.base_top_p, slot.base_min_p) = (1.0, percent(95), 0.05)
        }),
        seat("penalties", &|slot| {
            (slot.penalised, slot.inverse_temperature, slot.repetition_penalty) = (1, 1.0, 1.3);
            (slot.presence_penalty, slot.frequency_penalty) = (0.5, 0.25);
        }),
        Seat { biases, ..seat("biases", &drawn) },
        seat("min-tokens", &|slot| (slot.min_tokens, slot.stop_ids[0], slot.n_stop_ids) = (3, 0, 2)),
        Seat { finish: Finish::Length, ..seat("the last token", &|slot| slot.max_tokens = slot.produced + 1) },
        Seat { allowed: [Some(0), Some(3)], ..seat("the first position", &|slot| slot.produced = 0) },
        with_0(Seat { finish: Finish::Stop, ..seat("a stop id", &stops) }),
        empty,
        expert_nan,
        base_nan,
        Seat { finish: Finish::Stop, ..seat("finished", &|slot| slot.finish = Finish::Stop as u32) },
        Seat { sampled: false, ..seat("not sampled", &drawn) },
    ]
}

impl Launch for Step {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>> {
        self.outputs(backend)
    }

    fn expected(&self) -> Vec<Vec<Want>> {
        let (width, all_counts) = (self.width(), self.counts());
        let (mut slots, mut scores, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (seat, slot)) in self.seats.iter().zip(self.slots()).enumerate() {
            let runs = seat.sampled && slot.finish == Finish::Running as u32;
            let words: &[u32] = bytemuck::cast_slice(std::slice::from_ref(&slot));
            let mut slot: Vec<Want> =
                words.iter().map(|&word| if runs { Want::Twin } else { Want::Bits(word) }).collect();
            slot[std::mem::offset_of!(Slot, finish) / 4] = Want::Bits(seat.finish as u32);
            if seat.is_plain() {
                slot[std::mem::offset_of!(Slot, last_id) / 4] = Want::Bits(self.best(index) as u32);
            }
            slots.extend(slot);
            scores.extend(self.expected_scores(index, runs));
            let counted = runs && seat.slot.penalised == 1;
            let row = &all_counts[index * width..][..width];
            counts.extend(row.iter().map(|&count| if counted { Want::Twin } else { Want::Bits(count) }));
        }
        // As many dispatches as the backend says.
        vec![slots, scores, counts, vec![Want::Bits(1)]]
    }

    fn row(&self, outputs: &[Output], index: usize) -> Vec<u32> {
        let part = |output: &Output, width: usize, n: usize| output.bits[index * width..][..n].to_vec();
        let (slot, width) = (size_of::<Slot>() / 4, self.width());
        [part(&outputs[0], slot, slot), part(&outputs[1], 2 * width, self.n_ids), part(&outputs[2], width, width)]
            .concat()
    }
}

impl Seat {
    /// Whether the highest score of a live id is all that decides.
    fn is_plain(&self) -> bool {
        let greedy = self.sampled && self.finish == Finish::Running && self.slot.inverse_temperature == 0.0;
        greedy && self.allowed == [None, None] && self.biases.is_empty() && self.slot.n_stop_ids == 0
    }
}

impl Step {
    /// The live id of the highest score in f64.
    fn best(&self, index: usize) -> usize {
        let logits = self.logits_read(index);
        let score = |&id: &usize| self.score(index, &logits, id).0;
        let live = (0..self.n_ids).filter(|&id| self.is_live(id));
        live.max_by(|a, b| score(a).total_cmp(&score(b))).expect("a live id")
    }

    /// Both rows of scores of a seat: what the contract speaks of is the first, where the step drew.
    fn expected_scores(&self, index: usize, runs: bool) -> Vec<Want> {
        let (seat, width) = (&self.seats[index], self.width());
        if !runs {
            return vec![Want::Bits(POISON); 2 * width];
        }
        let mut wants = vec![Want::Any; 2 * width];
        if seat.finish == Finish::Numeric {
            return wants;
        }
        let is_masked = seat.slot.base_top_p != 0 || seat.slot.base_min_p != 0.0;
        let logits = self.logits_read(index);
        for id in (0..self.n_ids).filter(|&id| self.is_live(id)) {
            // A difference, a product and a sum; a row of the base is taken as it is.
            let (value, size) = self.score(index, &logits, id);
            wants[id] = match size {
                _ if is_masked => Want::Twin,
                0.0 => Want::Bits((value as f32).to_bits()),
                _ => Want::Near { value, tolerance: 4.0 * UNIT * size },
            };
        }
        wants
    }
}
