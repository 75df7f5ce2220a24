//! What a step looked like under the base, the expert, the anti-expert and combined. Runs only where it was asked for.
//!
//! Sums over ids have one order: lane `id % 256` in order of ids, then lanes folded by halves, as a workgroup does it.

use super::combine_sample::{InputRow, Inputs, bit};
use super::simd::Kernel;
use super::*;
use crate::backend::math::{exp_nonpositive, ln};
use bytemuck::Zeroable;

const N_LANES_OF_SUM: usize = 256;
const NEG_INF: f32 = f32::NEG_INFINITY;

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
            let step = Step { row: inputs.row(sample, slot), combined, slot };
            drawn.push((step, record.expect("a slot is sampled once per step")));
        }
    }
    let (isa, n_top) = (cpu.isa, n_top as usize);
    let write = |(step, record): &mut (Step, &mut StepRecord)| **record = isa.run(TopOf(step, n_top));
    cpu.threads.share(&mut drawn, write);
}

/// The record of a step with so many top entries.
struct TopOf<'a>(&'a Step<'a>, usize);

impl Kernel for TopOf<'_> {
    type Output = StepRecord;

    #[inline(always)]
    fn run(self) -> StepRecord {
        self.0.record(self.1)
    }
}

/// A distribution over the live ids.
struct Distribution<'a> {
    z: &'a [f32],
    max: f32,
    argmax: usize,
    /// Sum of e^(z - max), and its logarithm.
    sum: f32,
    ln_sum: f32,
    entropy: f32,
}

struct Step<'a> {
    row: InputRow<'a>,
    /// Scores after step 3.
    combined: &'a [f32],
    slot: &'a Slot,
}

impl Step<'_> {
    #[inline(always)]
    fn record(&self, n_top: usize) -> StepRecord {
        let [base, expert, anti] = self.row.logits;
        // Not by `map`, whose closure would be compiled without the instruction set.
        let [b, e, a] = [self.distribution(base), self.distribution(expert), self.distribution(anti)];
        let rows = [b, e, a, self.distribution(self.combined)];
        let chosen = self.slot.last_id as usize;
        let mut record = StepRecord {
            position: self.slot.produced - 1,
            chosen: self.slot.last_id,
            base_argmax: rows[0].argmax as u32,
            combined_argmax: rows[3].argmax as u32,
            logprob: rows.each_ref().map(|row| row.z[chosen] - row.max - row.ln_sum),
            rank: rows.each_ref().map(|row| self.rank(row.z, chosen)),
            entropy: rows.each_ref().map(|row| row.entropy),
            kl_combined_base: self.divergence(&rows[3], &rows[0]),
            kl_expert_anti: self.divergence(&rows[1], &rows[2]),
            cross_entropy: self.cross_entropy(&rows[1], &rows[2]),
            alpha: self.slot.alpha,
            ..StepRecord::zeroed()
        };
        let mut last = None;
        for entry in &mut record.top[..n_top] {
            let Some(id) = self.best_after(last) else { break };
            let score = self.combined[id];
            *entry = TopEntry { id: id as u32, z_base: base[id], z_expert: expert[id], z_anti: anti[id], score };
            record.n_top += 1;
            last = Some((score, id));
        }
        record
    }

    fn live(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.combined.len()).filter(|&id| bit(self.row.live, id))
    }

    /// `sum of f(id)` over live ids in the fixed order.
    #[inline(always)]
    fn sum(&self, f: impl Fn(usize) -> f32) -> f32 {
        let mut lanes = [0.0f32; N_LANES_OF_SUM];
        for id in self.live() {
            lanes[id % N_LANES_OF_SUM] += f(id);
        }
        let mut half = N_LANES_OF_SUM / 2;
        while half > 0 {
            (0..half).for_each(|lane| lanes[lane] += lanes[lane + half]);
            half /= 2;
        }
        lanes[0]
    }

    #[inline(always)]
    fn distribution<'a>(&self, z: &'a [f32]) -> Distribution<'a> {
        let (mut max, mut argmax) = (NEG_INF, 0);
        for id in self.live() {
            if z[id] > max {
                (max, argmax) = (z[id], id);
            }
        }
        let sum = self.sum(|id| exp_nonpositive(z[id] - max));
        let ln_sum = ln(sum);
        let entropy = ln_sum - self.sum(|id| times(exp_nonpositive(z[id] - max), z[id] - max)) / sum;
        Distribution { z, max, argmax, sum, ln_sum, entropy }
    }

    /// KL(p || q) = E_p[ln p - ln q].
    #[inline(always)]
    fn divergence(&self, p: &Distribution, q: &Distribution) -> f32 {
        let term = |id: usize| times(exp_nonpositive(p.z[id] - p.max), (p.z[id] - p.max) - (q.z[id] - q.max));
        self.sum(term) / p.sum - p.ln_sum + q.ln_sum
    }

    /// -E_p[ln q].
    #[inline(always)]
    fn cross_entropy(&self, p: &Distribution, q: &Distribution) -> f32 {
        q.ln_sum - self.sum(|id| times(exp_nonpositive(p.z[id] - p.max), q.z[id] - q.max)) / p.sum
    }

    /// Live ids before `chosen`, by z downwards and id upwards.
    fn rank(&self, z: &[f32], chosen: usize) -> u32 {
        self.live().filter(|&id| z[id] > z[chosen] || (z[id] == z[chosen] && id < chosen)).count() as u32
    }

    /// The best id of the combined row after `last`, by score downwards and id upwards.
    fn best_after(&self, last: Option<(f32, usize)>) -> Option<usize> {
        let (mut best, mut found) = (NEG_INF, None);
        for id in self.live() {
            let score = self.combined[id];
            let is_after = last.is_none_or(|(s, last)| score < s || (score == s && id > last));
            if is_after && score > best {
                (best, found) = (score, Some(id));
            }
        }
        found
    }
}

/// `p * x` with 0 * inf = 0.
#[inline(always)]
fn times(p: f32, x: f32) -> f32 {
    if p == 0.0 { 0.0 } else { p * x }
}
