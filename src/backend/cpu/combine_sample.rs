//! Three rows of logits to one id per sample, and the slot moved on: the last op of every step.
//!
//! A few passes over the row, each a plain loop: combine and mask (base, expert, anti-expert read once), penalties,
//! maximum, scale, filters, draw. Samples go to threads; a sample's passes stay on one.

use super::select::Filters;
use super::simd::Kernel;
use super::*;
use crate::backend::math::{gumbel, philox};

const NEG_INF: f32 = f32::NEG_INFINITY;

pub(super) fn run(cpu: &Cpu, op: CombineSample<'_, Cpu>) {
    let width = 32 * op.params.mask_words as usize;
    let (mut slots, mut scores) = (op.slots.view_mut::<Slot>(), op.scores.view_mut::<f32>());
    let mut counts = (op.params.has_counts == 1).then(|| op.counts.view_mut::<u32>());
    let (base, expert, anti) = (op.base.view::<f32>(), op.expert.view::<f32>(), op.anti.view::<f32>());
    let (samples, constraints) = (op.samples.view::<Sample>(), op.constraints.view::<u32>());
    let inputs = Inputs { params: op.params, logits: [&base, &expert, &anti], constraints: &constraints };

    let mut counts = counts.iter_mut().flat_map(|counts| counts.chunks_mut(width));
    let seats = slots.iter_mut().zip(scores.chunks_mut(2 * width));
    let mut seats: Vec<_> = seats.map(|(slot, scores)| Some((slot, scores, counts.next()))).collect();
    let mut draws: Vec<Draw> = Vec::new();
    for sample in &samples[..op.n_samples as usize] {
        let seat = seats[sample.slot as usize].take();
        let (slot, scores, counts) = seat.expect("a slot is sampled once per step");
        slot.drew = 0;
        if slot.finish == Finish::Running as u32 {
            let (combined, processed) = scores.split_at_mut(width);
            draws.push(Draw { row: inputs.row(sample, slot), slot, combined, processed, counts });
        }
    }
    let isa = cpu.isa;
    cpu.threads.share(&mut draws, |draw| isa.run(draw));
}

/// What all samples read.
pub(super) struct Inputs<'a> {
    pub(super) params: CombineSampleParams,
    pub(super) logits: [&'a [f32]; 3],
    pub(super) constraints: &'a [u32],
}

/// What one sample reads.
pub(super) struct InputRow<'a> {
    /// `[n_ids]` each: base, expert, anti-expert. With alpha = 0 all three are the base's.
    pub(super) logits: [&'a [f32]; 3],
    /// Bit masks over ids.
    pub(super) live: &'a [u32],
    zero_delta: &'a [u32],
    allowed: &'a [u32],
    /// (id, bits of the bias), sorted by id.
    biases: &'a [[u32; 2]],
}

impl<'a> Inputs<'a> {
    pub(super) fn row(&self, sample: &Sample, slot: &Slot) -> InputRow<'a> {
        let CombineSampleParams { n_ids, strides, mask_words, .. } = self.params;
        let logits = |role: usize, row: u32| {
            let first = row as usize * strides[role] as usize;
            &self.logits[role][first..first + n_ids as usize]
        };
        let base = logits(0, sample.row_base);
        let pair = (slot.alpha != 0.0).then(|| [logits(1, sample.row_expert), logits(2, sample.row_anti)]);
        let [expert, anti] = pair.unwrap_or([base, base]);
        let n_words = mask_words as usize;
        let own = &self.constraints[slot_constraints_offset(sample.slot as usize, n_words)..];
        let (allowed, biases) = own[..2 * (n_words + MAX_BIASES)].split_at(2 * n_words);
        let first_position = if slot.produced == 0 { n_words } else { 0 };
        InputRow {
            logits: [base, expert, anti],
            live: &self.constraints[..n_words],
            zero_delta: &self.constraints[n_words..2 * n_words],
            allowed: &allowed[first_position..][..n_words],
            biases: &bytemuck::cast_slice(biases)[..slot.n_biases as usize],
        }
    }
}

/// One sample, and the parts of the buffers that it alone writes.
struct Draw<'a> {
    row: InputRow<'a>,
    slot: &'a mut Slot,
    /// Scores after step 3.
    combined: &'a mut [f32],
    /// Scores of later steps, -inf where an id cannot be drawn.
    processed: &'a mut [f32],
    counts: Option<&'a mut [u32]>,
}

impl Kernel for &mut Draw<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.choose() {
            Ok(id) => self.advance(id),
            Err(finish) => self.slot.finish = finish as u32,
        }
    }
}

impl Draw<'_> {
    #[inline(always)]
    fn choose(&mut self) -> std::result::Result<usize, Finish> {
        self.mask_base();
        self.combine()?;
        self.narrow();
        self.penalise();
        let best = maximum(self.processed);
        if best == f32::INFINITY {
            return Err(Finish::Numeric);
        }
        if best == NEG_INF {
            return Err(Finish::Empty);
        }
        let scale = self.slot.inverse_temperature;
        if scale == 0.0 {
            let first = self.processed.iter().position(|&s| s == best);
            return Ok(first.expect("a maximum is one of the scores"));
        }
        self.processed.iter_mut().for_each(|s| *s = (*s - best) * scale);
        let Slot { top_k, top_p, min_p, .. } = *self.slot;
        Filters { top_k, top_p, min_p }.apply(self.processed);
        Ok(self.draw())
    }

    /// Step 2: leaves -inf in `processed` where the base's own filters drop an id.
    #[inline(always)]
    fn mask_base(&mut self) {
        let Slot { base_top_p, base_min_p, .. } = *self.slot;
        if base_top_p == 0 && base_min_p == 0.0 {
            self.processed.fill(0.0);
            return;
        }
        self.processed.fill(NEG_INF);
        for (id, (t, &z)) in self.processed.iter_mut().zip(self.row.logits[0]).enumerate() {
            // What is bad ends the sequence in step 3.
            if bit(self.row.live, id) && !is_bad(z) {
                *t = z;
            }
        }
        let best = maximum(self.processed);
        if best > NEG_INF {
            self.processed.iter_mut().for_each(|z| *z -= best);
            Filters { top_k: 0, top_p: base_top_p, min_p: base_min_p }.apply(self.processed);
        }
    }

    /// Steps 1, 3 and 4: `combined`, and `processed` with the masks on it.
    #[inline(always)]
    fn combine(&mut self) -> std::result::Result<(), Finish> {
        let InputRow { logits: [base, expert, anti], live, zero_delta, allowed, .. } = self.row;
        // A negative alpha exchanges the two; the product's bits are the same.
        let (alpha, [up, down]) =
            if self.slot.alpha < 0.0 { (-self.slot.alpha, [anti, expert]) } else { (self.slot.alpha, [expert, anti]) };
        let mut bad = false;
        let mut finite = [false; 4];
        for (word, (combined, processed)) in self.combined.chunks_mut(32).zip(self.processed.chunks_mut(32)).enumerate()
        {
            let ids = 32 * word..base.len().min(32 * word + 32);
            let (live, zero_delta, allowed) = (live[word], zero_delta[word], allowed[word]);
            let rows = base[ids.clone()].iter().zip(&up[ids.clone()]).zip(&down[ids.clone()]);
            combined[ids.len()..].fill(NEG_INF);
            processed[ids.len()..].fill(NEG_INF);
            for (i, (((&z, &up), &down), (s_out, kept))) in rows.zip(combined.iter_mut().zip(processed)).enumerate() {
                let has = |mask: u32| mask >> i & 1 == 1;
                let [z, up, down] = [z, up, down].map(|x| if has(live) { x } else { NEG_INF });
                let in_mask = if *kept > NEG_INF { z } else { NEG_INF };
                // Where the pair agrees (on -inf too) the base's bits stay.
                let same = up == down || has(zero_delta) || in_mask == NEG_INF;
                let s = if same { in_mask } else { alpha.mul_add(up - down, in_mask) };
                bad |= is_bad(z) | is_bad(up) | is_bad(down) | is_bad(s);
                finite[0] |= z > NEG_INF;
                finite[1] |= up > NEG_INF;
                finite[2] |= down > NEG_INF;
                finite[3] |= s > NEG_INF;
                *s_out = s;
                *kept = if has(allowed) { s } else { NEG_INF };
            }
        }
        if bad || finite != [true; 4] { Err(Finish::Numeric) } else { Ok(()) }
    }

    /// The rest of step 4, and step 5: what only few ids have.
    fn narrow(&mut self) {
        let slot = &*self.slot;
        if slot.produced < slot.min_tokens {
            for &id in &slot.stop_ids[..slot.n_stop_ids as usize] {
                if let Some(s) = self.processed.get_mut(id as usize) {
                    *s = NEG_INF;
                }
            }
        }
        for &[id, bias] in self.row.biases {
            if let Some(s) = self.processed.get_mut(id as usize) {
                *s += f32::from_bits(bias);
            }
        }
    }

    /// Step 6.
    #[inline(always)]
    fn penalise(&mut self) {
        let Slot { repetition_penalty, presence_penalty, frequency_penalty, .. } = *self.slot;
        if self.slot.penalised == 0 {
            return;
        }
        let counts = self.counts.as_ref().expect("a penalised slot has a row of counts");
        for (s, &count) in self.processed.iter_mut().zip(counts.iter()).filter(|(_, count)| **count != 0) {
            *s = if *s > 0.0 { *s / repetition_penalty } else { *s * repetition_penalty };
            let n = count & 0x7fff_ffff;
            if n > 0 {
                *s = (-frequency_penalty).mul_add(n as f32, *s - presence_penalty);
            }
        }
    }

    /// Step 9.
    #[inline(always)]
    fn draw(&self) -> usize {
        let Slot { produced, sample_index, seed, .. } = *self.slot;
        let (mut best, mut chosen) = (NEG_INF, 0);
        for (group, t) in self.processed.chunks(4).enumerate() {
            // What cannot win needs no random numbers.
            if t.iter().all(|t| t + gumbel_bound(0) <= best) {
                continue;
            }
            let random = philox([group as u32, produced, sample_index, 0], seed);
            for (lane, (t, x)) in t.iter().zip(random).enumerate() {
                if t + gumbel_bound(x) > best && t + gumbel(x) > best {
                    (best, chosen) = (t + gumbel(x), 4 * group + lane);
                }
            }
        }
        chosen
    }

    fn advance(&mut self, id: usize) {
        let slot = &mut *self.slot;
        if let (1, Some(counts)) = (slot.penalised, &mut self.counts) {
            counts[id] += 1;
        }
        slot.drew = 1;
        slot.last_id = id as u32;
        slot.ring[slot.produced as usize % RING] = id as u32;
        slot.produced += 1;
        slot.lengths.iter_mut().for_each(|length| *length += 1);
        if slot.stop_ids[..slot.n_stop_ids as usize].contains(&slot.last_id) {
            slot.finish = Finish::Stop as u32;
        } else if slot.produced == slot.max_tokens {
            slot.finish = Finish::Length as u32;
        }
    }
}

/// No less than gumbel(x), at the cost of an instruction: -ln(-log1p(-v)) <= -ln v, and v >= 2^-(leading zeros + 1).
#[inline(always)]
fn gumbel_bound(x: u32) -> f32 {
    0.694 * (x.leading_zeros() + 1) as f32
}

/// NaN or +inf, by bits.
#[inline(always)]
fn is_bad(x: f32) -> bool {
    let bits = x.to_bits();
    bits & 0x7fff_ffff >= f32::INFINITY.to_bits() && bits != NEG_INF.to_bits()
}

/// Bit `id` of a mask.
#[inline(always)]
pub(super) fn bit(mask: &[u32], id: usize) -> bool {
    mask[id / 32] >> (id % 32) & 1 == 1
}

/// The largest of a row without NaN, in lanes that the compiler turns into vectors.
#[inline(always)]
fn maximum(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [NEG_INF; 32];
    for chunk in row.chunks_exact(32) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane = larger(*lane, x));
    }
    lanes.into_iter().fold(NEG_INF, larger)
}
