//! What a step looked like under the base, the expert, the anti-expert and combined. Runs only where it was asked for.
//!
//! The four rows are gone through twice in parts of [`PART`] ids, which go to threads where there are fewer samples than
//! threads: once for their maxima, once for all sums at a time. Sums have one order: in a part id mod [`LANES`], in order
//! of ids, lanes folded by halves; then parts in order.

use super::combine_sample::{BITS, CHUNK, InputRow, Inputs, PART, bit, highest_of, larger};
use super::rows::{LANES, fold};
use super::simd::Kernel;
use super::*;
use crate::backend::math::{exp_nonpositive, ln, ordered_bits};
use bytemuck::Zeroable;
use std::cmp::Reverse;

const NEG_INF: f32 = f32::NEG_INFINITY;
/// Base, expert, anti-expert, combined.
const N_ROWS: usize = 4;
const BASE: usize = 0;
const EXPERT: usize = 1;
const ANTI: usize = 2;
const COMBINED: usize = 3;

pub(super) fn run(cpu: &Cpu, op: Record<'_, Cpu>) {
    let RecordParams { n_ids, strides, mask_words, n_top, .. } = op.params;
    let params = CombineSampleParams { n_ids, strides, mask_words, has_counts: 0, reserved: [0; 2] };
    let width = 32 * mask_words as usize;
    let mut records = op.records.view_mut::<StepRecord>();
    let (slots, scores) = (op.slots.view::<Slot>(), op.scores.view::<f32>());
    let (base, expert, anti) = (op.base.view::<f32>(), op.expert.view::<f32>(), op.anti.view::<f32>());
    let (samples, constraints) = (op.samples.view::<Sample>(), op.constraints.view::<u32>());
    let inputs = Inputs { params, logits: [&base, &expert, &anti], constraints: &constraints };

    let mut records: Vec<_> = records.iter_mut().map(Some).collect();
    let mut drawn = Vec::new();
    for sample in &samples[..op.n_samples as usize] {
        let (slot, record) = (&slots[sample.slot as usize], records[sample.slot as usize].take());
        if slot.drew == 1 {
            let combined = &scores[2 * width * sample.slot as usize..][..n_ids as usize];
            let InputRow { logits: [base, expert, anti], live, .. } = inputs.row(sample, slot);
            let step = Step { rows: [base, expert, anti, combined], live, slot };
            drawn.push((step, record.expect("a slot is sampled once per step")));
        }
    }
    let (isa, n_top) = (cpu.isa, n_top as usize);
    if drawn.len() >= cpu.crew().size() {
        cpu.share(&mut drawn, |(step, record)| **record = step.record(n_top, isa, Crew::One));
    } else {
        drawn.iter_mut().for_each(|(step, record)| **record = step.record(n_top, isa, cpu.crew()));
    }
}

struct Step<'a> {
    /// `[n_ids]` each; with alpha = 0 the one row that is read stands for all three.
    rows: [&'a [f32]; N_ROWS],
    live: &'a [u32],
    slot: &'a Slot,
}

impl Step<'_> {
    fn record(&self, n_top: usize, isa: Isa, crew: Crew) -> StepRecord {
        let n_parts = self.rows[BASE].len().div_ceil(PART);
        let mut peaks: Vec<_> = (0..n_parts).map(|part| (part, Peaks::default())).collect();
        crew.share(&mut peaks, |(part, peaks)| *peaks = isa.run(PeaksOf(self.part(*part))));
        let max: [f32; N_ROWS] =
            std::array::from_fn(|row| peaks.iter().fold(NEG_INF, |max, (_, peaks)| larger(max, peaks.max[row])));
        let first_of = |row: usize| {
            let (part, _) = peaks.iter().find(|(_, peaks)| peaks.max[row] == max[row]).expect("a part has the maximum");
            let mut ids = part * PART..;
            ids.find(|&id| bit(self.live, id) && self.rows[row][id] == max[row]).expect("an id of the part has it")
                as u32
        };
        let chosen = self.slot.last_id as usize;
        let of_chosen = self.rows.map(|row| row[chosen]);
        let mut sums: Vec<_> = (0..n_parts).map(|part| (part, Sums::default())).collect();
        crew.share(&mut sums, |(part, sums)| {
            *sums = isa.run(SumsOf { part: self.part(*part), max, chosen, of_chosen })
        });
        let sums = sums.into_iter().fold(Sums::default(), |sum, (_, part)| sum.plus(&part));

        let ln_sum = sums.e.map(ln);
        let mean = |sum: f32, row: usize| sum / sums.e[row];
        let mut record = StepRecord {
            position: self.slot.produced - 1,
            chosen: self.slot.last_id,
            base_argmax: first_of(BASE),
            combined_argmax: first_of(COMBINED),
            logprob: std::array::from_fn(|row| of_chosen[row] - max[row] - ln_sum[row]),
            rank: sums.before,
            entropy: std::array::from_fn(|row| ln_sum[row] - mean(sums.e_t[row], row)),
            kl_combined_base: mean(sums.combined_base, COMBINED) - ln_sum[COMBINED] + ln_sum[BASE],
            kl_expert_anti: mean(sums.expert_anti, EXPERT) - ln_sum[EXPERT] + ln_sum[ANTI],
            cross_entropy: ln_sum[ANTI] - mean(sums.cross, EXPERT),
            alpha: self.slot.alpha,
            ..StepRecord::zeroed()
        };
        let tops: Vec<f32> = peaks.iter().flat_map(|(_, peaks)| peaks.tops).collect();
        for (entry, id) in record.top[..n_top].iter_mut().zip(self.best_ids(n_top, tops)) {
            let [z_base, z_expert, z_anti, score] = self.rows.map(|row| row[id]);
            *entry = TopEntry { id: id as u32, z_base, z_expert, z_anti, score };
            record.n_top += 1;
        }
        record
    }

    fn part(&self, part: usize) -> Part<'_> {
        let (first, end) = (part * PART, self.rows[BASE].len().min((part + 1) * PART));
        Part { first, rows: self.rows.map(|row| &row[first..end]), live: &self.live[first / 32..end.div_ceil(32)] }
    }

    /// The best ids of the combined row that are there, best first, by score downwards and id upwards: at most `n_top`.
    fn best_ids(&self, n_top: usize, tops: Vec<f32>) -> Vec<usize> {
        if n_top == 0 {
            return Vec::new();
        }
        let row = self.rows[COMBINED];
        // So many chunks have a score of at least this, so many ids do.
        let mut ordered = tops.clone();
        let least = match n_top {
            n if n <= tops.len() => *ordered.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1,
            _ => NEG_INF,
        };
        let mut ids = Vec::new();
        for (chunk, _) in tops.iter().enumerate().filter(|(_, top)| **top >= least && **top > NEG_INF) {
            let chunk = chunk * CHUNK..row.len().min((chunk + 1) * CHUNK);
            ids.extend(chunk.filter(|&id| bit(self.live, id) && row[id] >= least && row[id] > NEG_INF));
        }
        ids.sort_unstable_by_key(|&id| (Reverse(ordered_bits(row[id])), id));
        ids.truncate(n_top);
        ids
    }
}

/// Ids `first..` of the rows, and their live bits.
#[derive(Clone, Copy)]
struct Part<'a> {
    first: usize,
    rows: [&'a [f32]; N_ROWS],
    live: &'a [u32],
}

impl Part<'_> {
    /// [`LANES`] ids of the rows, `at..`: -inf where an id is not live. And the bits of those that are.
    #[inline(always)]
    fn ids(&self, at: usize) -> ([[f32; LANES]; N_ROWS], u32) {
        let n = (self.rows[BASE].len() - at).min(LANES);
        let live = self.live[at / 32] >> (at % 32) & ((1 << n) - 1);
        let mut ids = [[NEG_INF; LANES]; N_ROWS];
        for (ids, row) in ids.iter_mut().zip(self.rows) {
            match row.get(at..at + LANES) {
                Some(whole) => ids.copy_from_slice(whole),
                None => ids[..n].copy_from_slice(&row[at..]),
            }
            for lane in 0..LANES {
                ids[lane] = if live & BITS[lane] != 0 { ids[lane] } else { NEG_INF };
            }
        }
        (ids, live)
    }
}

/// The maxima of a part, and of the combined row's chunks.
struct Peaks {
    max: [f32; N_ROWS],
    tops: [f32; PART / CHUNK],
}

impl Default for Peaks {
    fn default() -> Self {
        Peaks { max: [NEG_INF; N_ROWS], tops: [NEG_INF; PART / CHUNK] }
    }
}

struct PeaksOf<'a>(Part<'a>);

impl Kernel for PeaksOf<'_> {
    type Output = Peaks;

    #[inline(always)]
    fn run(self) -> Peaks {
        let part = self.0;
        let mut peaks = Peaks::default();
        let mut max = [[NEG_INF; LANES]; N_ROWS];
        for (chunk, top) in peaks.tops.iter_mut().enumerate() {
            let mut best = [NEG_INF; LANES];
            for at in (chunk * CHUNK..part.rows[BASE].len().min((chunk + 1) * CHUNK)).step_by(LANES) {
                let (ids, _) = part.ids(at);
                for lane in 0..LANES {
                    max[BASE][lane] = larger(max[BASE][lane], ids[BASE][lane]);
                    max[EXPERT][lane] = larger(max[EXPERT][lane], ids[EXPERT][lane]);
                    max[ANTI][lane] = larger(max[ANTI][lane], ids[ANTI][lane]);
                    best[lane] = larger(best[lane], ids[COMBINED][lane]);
                }
            }
            *top = highest_of(best);
        }
        for (peak, max) in peaks.max.iter_mut().zip(max) {
            *peak = highest_of(max);
        }
        for &top in &peaks.tops {
            peaks.max[COMBINED] = larger(peaks.max[COMBINED], top);
        }
        peaks
    }
}

/// Sums over ids, with `t = z - max` of a row and `e = e^t`.
#[derive(Clone, Copy, Default)]
struct Sums {
    /// e.
    e: [f32; N_ROWS],
    /// e t.
    e_t: [f32; N_ROWS],
    /// e (t - t of the base) of the combined row.
    combined_base: f32,
    /// e (t - t of the anti-expert) of the expert's.
    expert_anti: f32,
    /// e (t of the anti-expert) of the expert's.
    cross: f32,
    /// Ids before the chosen one, by z downwards and id upwards.
    before: [u32; N_ROWS],
}

impl Sums {
    fn plus(&self, other: &Sums) -> Sums {
        Sums {
            e: std::array::from_fn(|row| self.e[row] + other.e[row]),
            e_t: std::array::from_fn(|row| self.e_t[row] + other.e_t[row]),
            combined_base: self.combined_base + other.combined_base,
            expert_anti: self.expert_anti + other.expert_anti,
            cross: self.cross + other.cross,
            before: std::array::from_fn(|row| self.before[row] + other.before[row]),
        }
    }
}

struct SumsOf<'a> {
    part: Part<'a>,
    max: [f32; N_ROWS],
    chosen: usize,
    of_chosen: [f32; N_ROWS],
}

impl Kernel for SumsOf<'_> {
    type Output = Sums;

    #[inline(always)]
    fn run(self) -> Sums {
        let SumsOf { part, max, chosen, of_chosen } = self;
        let chosen = chosen as u32;
        let (mut e_sums, mut e_t_sums) = ([[0.0; LANES]; N_ROWS], [[0.0; LANES]; N_ROWS]);
        let (mut combined_base, mut expert_anti, mut cross) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        let mut before = [[0; LANES]; N_ROWS];
        for at in (0..part.rows[BASE].len()).step_by(LANES) {
            let (ids, live) = part.ids(at);
            let (mut t, mut e) = ([[0.0; LANES]; N_ROWS], [[0.0; LANES]; N_ROWS]);
            for row in 0..N_ROWS {
                for lane in 0..LANES {
                    let z = ids[row][lane];
                    t[row][lane] = z - max[row];
                    e[row][lane] = exp_nonpositive(t[row][lane]);
                    e_sums[row][lane] += e[row][lane];
                    e_t_sums[row][lane] += times(e[row][lane], t[row][lane]);
                    let is_earlier = ((part.first + at + lane) as u32) < chosen;
                    let is_before = (z > of_chosen[row]) | ((z == of_chosen[row]) & is_earlier);
                    before[row][lane] += u32::from(is_before & (live & BITS[lane] != 0));
                }
            }
            for lane in 0..LANES {
                combined_base[lane] += times(e[COMBINED][lane], t[COMBINED][lane] - t[BASE][lane]);
                expert_anti[lane] += times(e[EXPERT][lane], t[EXPERT][lane] - t[ANTI][lane]);
                cross[lane] += times(e[EXPERT][lane], t[ANTI][lane]);
            }
        }
        let mut sums = Sums {
            combined_base: fold(combined_base),
            expert_anti: fold(expert_anti),
            cross: fold(cross),
            ..Sums::default()
        };
        for row in 0..N_ROWS {
            sums.e[row] = fold(e_sums[row]);
            sums.e_t[row] = fold(e_t_sums[row]);
            sums.before[row] = before[row].iter().sum();
        }
        sums
    }
}

/// `p * x` with 0 * inf = 0.
#[inline(always)]
fn times(p: f32, x: f32) -> f32 {
    if p == 0.0 { 0.0 } else { p * x }
}
