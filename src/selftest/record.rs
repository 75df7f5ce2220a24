//! Cases of [`crate::backend::Record`], after greedy steps, so that f64 knows the chosen id too.

use super::compare::{Output, Want};
use super::inputs::{Random, UNIT};
use super::launch::{Check, Launch, POISON};
use super::matrix::sum_tolerance;
use super::samples::{RECORDS, Seat, Step};
use crate::Result;
use crate::backend::Backend;
use crate::backend::params::{Finish, MAX_RECORD_TOP, StepRecord};

const RECORD_WORDS: usize = size_of::<StepRecord>() / 4;

pub(super) fn check<B: Backend, T: Backend>(check: &mut Check<'_, B, T>) -> Result<()> {
    for (case, (n_ids, n_top)) in [(5, 20), (64, 1), (997, 20), (3001, 7)].into_iter().enumerate() {
        let step = Step { random: Random { case: 100 + case as u32 }, n_ids, seats: seats(n_ids), n_top };
        let recorded = |seat: usize| Recorded(step.alone(seat));
        check.launch(&Recorded(step.clone()))?;
        check.same_rows(
            &Recorded(step.clone()),
            (0..step.seats.len() - 1).map(|seat| (recorded(seat), vec![(seat, seat)])),
        )?;
    }
    Ok(())
}

fn seats(n_ids: usize) -> Vec<Seat> {
    let seat = |name, alpha| {
        let mut seat = Seat::new(name, n_ids);
        seat.slot.alpha = alpha;
        seat
    };
    let mut masked = seat("base mask", 1.0);
    masked.slot.base_min_p = 0.05;
    let mut alone = seat("the expert alone", 0.0);
    alone.slot.expert_only = 1;
    vec![
        seat("alpha 1", 1.0),
        seat("alpha -1.5", -1.5),
        Seat { poisoned_row: Some(2), ..seat("alpha 0", 0.0) },
        Seat { poisoned_row: Some(0), ..alone },
        Seat { allowed: [Some(2), None], ..seat("chosen below the top", 2.5) },
        masked,
        Seat { poisoned_row: Some(1), finish: Finish::Numeric, ..seat("nothing drawn", 1.0) },
        Seat { sampled: false, ..seat("not sampled", 1.0) },
    ]
}

/// A step of which only the records are looked at.
#[derive(Debug)]
struct Recorded(Step);

/// A distribution over ids in f64.
struct Distribution {
    /// (id, logit), best first.
    z: Vec<(usize, f64)>,
    lse: f64,
}

impl Distribution {
    fn new(z: impl Iterator<Item = (usize, f64)>) -> Self {
        let mut z: Vec<_> = z.collect();
        z.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let max = z[0].1;
        let lse = max + z.iter().map(|(_, z)| (z - max).exp()).sum::<f64>().ln();
        Self { z, lse }
    }

    fn of_id(&self, id: usize) -> f64 {
        self.z.iter().find(|(other, _)| *other == id).expect("an id of the distribution").1
    }

    fn rank(&self, id: usize) -> u32 {
        self.z.iter().position(|(other, _)| *other == id).expect("an id of the distribution") as u32
    }

    /// `E[f(id, ln p)]` and `E[|f|]`.
    fn mean(&self, f: impl Fn(usize, f64) -> f64) -> (f64, f64) {
        let terms = self.z.iter().map(|&(id, z)| ((z - self.lse).exp(), f(id, z - self.lse)));
        terms.fold((0.0, 0.0), |(sum, size), (p, x)| (sum + p * x, size + p * x.abs()))
    }
}

impl Recorded {
    fn record(&self, index: usize) -> Vec<Want> {
        let Self(step) = self;
        let seat = &step.seats[index];
        let logits = step.logits_read(index);
        let live = || (0..step.n_ids).filter(|&id| step.is_live(id));
        let [base, expert, anti] =
            [0, 1, 2].map(|role: usize| Distribution::new(live().map(|id| (id, logits[role][id].into()))));
        let floor = match seat.slot.base_min_p {
            0.0 => f64::NEG_INFINITY,
            p => base.z[0].1 + f64::from(p).ln(),
        };
        let kept = live().filter(|&id| f64::from(logits[0][id]) >= floor);
        let combined = Distribution::new(kept.map(|id| (id, step.score(index, &logits, id).0)));
        let allowed = |id: usize| seat.allowed[0].is_none_or(|keep| id as u32 % 7 == keep);
        let chosen = combined.z.iter().find(|(id, _)| allowed(*id)).expect("an allowed id").0;

        // A log-probability is off by some roundings of the largest difference of logits, and by its sum; a mean by
        // that for each of its factors, and by its own sum.
        let alpha = f64::from(seat.slot.alpha.abs());
        let largest = 2.0 * 5.0 * (1.0 + 2.0 * alpha);
        let error = sum_tolerance(step.n_ids) + 8.0 * UNIT * largest;
        let near = |value: f64| Want::Near { value, tolerance: error };
        let mean = |(value, size): (f64, f64)| Want::Near { value, tolerance: 2.0 * error * (size + 3.0) };
        let rows = [&base, &expert, &anti, &combined];
        let ln_p = |row: &Distribution, id| row.of_id(id) - row.lse;

        let mut words =
            vec![step.seats[index].slot.produced, chosen as u32, base.z[0].0 as u32, combined.z[0].0 as u32]
                .into_iter()
                .map(Want::Bits)
                .collect::<Vec<_>>();
        words.extend(rows.map(|row| near(ln_p(row, chosen))));
        words.extend(rows.map(|row| Want::Bits(row.rank(chosen))));
        words.extend(rows.map(|row| mean(row.mean(|_, ln_p| -ln_p))));
        words.push(mean(combined.mean(|id, ln_c| ln_c - ln_p(&base, id))));
        words.push(mean(expert.mean(|id, ln_e| ln_e - ln_p(&anti, id))));
        words.push(mean(expert.mean(|id, _| -ln_p(&anti, id))));
        words.push(Want::Bits(seat.slot.alpha.to_bits()));
        let top = &combined.z[..combined.z.len().min(step.n_top as usize)];
        words.extend([Want::Bits(top.len() as u32), Want::Any, Want::Any, Want::Any]);
        for &(id, score) in top {
            words.push(Want::Bits(id as u32));
            words.extend([0, 1, 2].map(|role: usize| Want::Bits(logits[role][id].to_bits())));
            words.push(near(score));
        }
        words.resize(RECORD_WORDS, Want::Any);
        words
    }
}

impl Launch for Recorded {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>> {
        Ok(self.0.outputs(backend)?.split_off(RECORDS))
    }

    fn expected(&self) -> Vec<Vec<Want>> {
        let record = |(index, seat): (usize, &Seat)| match seat.sampled && seat.finish == Finish::Running {
            true => self.record(index),
            false => vec![Want::Bits(POISON); RECORD_WORDS],
        };
        vec![self.0.seats.iter().enumerate().flat_map(record).collect()]
    }

    fn row(&self, outputs: &[Output], index: usize) -> Vec<u32> {
        const TOP: usize = std::mem::offset_of!(StepRecord, top) / 4;
        let entries = (self.0.n_top as usize).min(MAX_RECORD_TOP).min(self.0.n_ids);
        outputs[0].bits[index * RECORD_WORDS..][..TOP + entries * 5].to_vec()
    }
}
