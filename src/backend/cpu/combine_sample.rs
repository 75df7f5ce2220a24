//! Three rows of logits to one id per sample, and the slot moved on: the last op of every step.
//!
//! A row is gone through in parts, which go to threads where there are fewer samples than threads: combine and mask (base,
//! expert, anti-expert read once), which also leaves the best score of each chunk of ids. Most of the rest looks only at
//! chunks that matter. What parts give is put together in their order, so that nothing depends on who ran them.

use super::draw::{Best, Dice, DrawAll, DrawSome, FOUR};
use super::select::{Candidate, Filters, Scores};
use super::simd::Kernel;
use super::*;

const NEG_INF: f32 = f32::NEG_INFINITY;
/// Ids that share the best of their scores, so that searches pass over them at once.
pub(super) const CHUNK: usize = 128;
/// Ids of a part: a thread's task.
pub(super) const PART: usize = 32 * CHUNK;

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
    let (isa, crew) = (cpu.isa, if op.n_samples as usize >= cpu.crew().size() { Crew::One } else { cpu.crew() });
    let mut draws: Vec<Draw> = Vec::new();
    for sample in &samples[..op.n_samples as usize] {
        let seat = seats[sample.slot as usize].take();
        let (slot, scores, counts) = seat.expect("a slot is sampled once per step");
        slot.drew = 0;
        if slot.finish == Finish::Running as u32 {
            assert!(slot.choice() <= op.choice, "a slot asks for more than its step does");
            let (combined, processed) = scores.split_at_mut(width);
            let tops = vec![NEG_INF; width.div_ceil(CHUNK)];
            draws.push(Draw { row: inputs.row(sample, slot), slot, combined, processed, tops, counts });
        }
    }
    match crew {
        Crew::One => cpu.share(&mut draws, |draw| draw.run(isa, Crew::One)),
        all => draws.iter_mut().for_each(|draw| draw.run(isa, all)),
    }
}

/// What all samples read.
pub(super) struct Inputs<'a> {
    pub(super) params: CombineSampleParams,
    pub(super) logits: [&'a [f32]; 3],
    pub(super) constraints: &'a [u32],
}

/// What one sample reads.
pub(super) struct InputRow<'a> {
    /// `[n_ids]` each: base, expert, anti-expert. With alpha = 0 all three are the one row that is read.
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
        assert!(slot.expert_only == 0 || slot.alpha == 0.0, "an expert that runs alone is not steered");
        let base = if slot.expert_only == 1 { logits(1, sample.row_expert) } else { logits(0, sample.row_base) };
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
    /// The best processed score of each [`CHUNK`].
    tops: Vec<f32>,
    counts: Option<&'a mut [u32]>,
}

impl Draw<'_> {
    fn run(&mut self, isa: Isa, crew: Crew) {
        match self.choose(isa, crew) {
            Ok(id) => self.advance(id),
            Err(finish) => self.slot.finish = finish as u32,
        }
    }

    fn choose(&mut self, isa: Isa, crew: Crew) -> std::result::Result<usize, Finish> {
        let has_base_mask = self.mask_base(isa, crew);
        self.combine(has_base_mask, isa, crew)?;
        self.narrow();
        self.penalise();
        let best = self.best();
        if best == f32::INFINITY {
            return Err(Finish::Numeric);
        }
        if best == NEG_INF {
            return Err(Finish::Empty);
        }
        let chunk = self.tops.iter().position(|&top| top == best).expect("a chunk has the best");
        let in_chunk = self.processed[chunk * CHUNK..].iter().position(|&s| s == best);
        let first = chunk * CHUNK + in_chunk.expect("the best is one of its chunk");
        let Slot { inverse_temperature: scale, top_k, top_p, min_p, .. } = *self.slot;
        if scale == 0.0 {
            return Ok(first);
        }
        let dice = Dice::new(self.slot, first);
        let filters = Filters { top_k, top_p, min_p };
        if filters.are_off(self.processed.len()) {
            let parts = self.processed.chunks_mut(PART).enumerate();
            let mut parts: Vec<_> = parts.map(|(part, row)| (part * PART, row, Best::default())).collect();
            crew.share(&mut parts, |(first, row, drawn)| {
                *drawn = isa.run(DrawAll { dice, first: *first, row, best, scale });
            });
            return Ok(Best::of(parts.iter().map(|(.., drawn)| *drawn)));
        }
        let scores = Scores { row: self.processed, tops: &self.tops, best, scale };
        let kept = filters.keep(scores, isa, crew);
        self.leave(&kept);
        let mut counters: Vec<u32> = kept.iter().map(|kept| kept.id / FOUR as u32).collect();
        counters.dedup();
        let row = &*self.processed;
        let mut parts: Vec<_> = counters.chunks(PART / FOUR).map(|counters| (counters, Best::default())).collect();
        crew.share(&mut parts, |(counters, drawn)| *drawn = isa.run(DrawSome { dice, row, counters }));
        Ok(Best::of(parts.iter().map(|(_, drawn)| *drawn)))
    }

    fn best(&self) -> f32 {
        self.tops.iter().fold(NEG_INF, |best, &top| larger(best, top))
    }

    /// Puts -inf in place of every processed score but those of `kept`.
    fn leave(&mut self, kept: &[Candidate]) {
        self.processed.fill(NEG_INF);
        kept.iter().for_each(|kept| self.processed[kept.id as usize] = kept.t);
    }

    /// Step 2: leaves -inf in `processed` where the base's own filters drop an id. False: there are none.
    fn mask_base(&mut self, isa: Isa, crew: Crew) -> bool {
        let Slot { base_top_p, base_min_p, .. } = *self.slot;
        if base_top_p == 0 && base_min_p == 0.0 {
            return false;
        }
        self.processed.fill(NEG_INF);
        for (id, (kept, &z)) in self.processed.iter_mut().zip(self.row.logits[0]).enumerate() {
            // What is bad ends the sequence in step 3.
            if bit(self.row.live, id) && !is_bad(z) {
                *kept = z;
            }
        }
        (0..self.tops.len()).for_each(|chunk| self.find_top(chunk));
        let best = self.best();
        if best > NEG_INF {
            let scores = Scores { row: self.processed, tops: &self.tops, best, scale: 1.0 };
            let kept = Filters { top_k: 0, top_p: base_top_p, min_p: base_min_p }.keep(scores, isa, crew);
            self.leave(&kept);
        }
        true
    }

    /// Steps 1, 3 and 4: `combined`, and `processed` with the masks on it, and the best of its chunks.
    fn combine(&mut self, has_base_mask: bool, isa: Isa, crew: Crew) -> std::result::Result<(), Finish> {
        let (row, alpha) = (&self.row, self.slot.alpha);
        let outputs = self.combined.chunks_mut(PART).zip(self.processed.chunks_mut(PART));
        let outputs = outputs.zip(self.tops.chunks_mut(PART / CHUNK)).enumerate();
        let mut parts: Vec<_> = outputs
            .map(|(part, ((combined, processed), tops))| {
                (Combine { row, alpha, has_base_mask, first: part * PART, combined, processed, tops }, Found::default())
            })
            .collect();
        crew.share(&mut parts, |(part, found)| *found = isa.run(part));
        let is_bad = parts.iter().any(|(_, found)| found.is_bad);
        let is_finite = |row: usize| parts.iter().any(|(_, found)| found.highest[row] > NEG_INF);
        if !is_bad && (0..4).all(is_finite) { Ok(()) } else { Err(Finish::Numeric) }
    }

    /// Finds the best of a chunk anew.
    fn find_top(&mut self, chunk: usize) {
        let scores = self.processed.chunks(CHUNK).nth(chunk).expect("a chunk of the row");
        self.tops[chunk] = scores.iter().fold(NEG_INF, |best, &s| larger(best, s));
    }

    /// The rest of step 4, and step 5: what only few ids have.
    fn narrow(&mut self) {
        let slot = &*self.slot;
        let is_early = slot.produced < slot.min_tokens;
        let stop_ids = if is_early { &slot.stop_ids[..slot.n_stop_ids as usize] } else { &[] };
        let stops = stop_ids.iter().map(|&id| (id, NEG_INF));
        let biases = self.row.biases.iter().map(|&[id, bias]| (id, f32::from_bits(bias)));
        let mut touched = Vec::new();
        for (id, bias) in stops.chain(biases) {
            if let Some(s) = self.processed.get_mut(id as usize) {
                *s += bias;
                touched.push(id as usize / CHUNK);
            }
        }
        touched.dedup();
        touched.into_iter().for_each(|chunk| self.find_top(chunk));
    }

    /// Step 6.
    fn penalise(&mut self) {
        let Slot { repetition_penalty, presence_penalty, frequency_penalty, .. } = *self.slot;
        if self.slot.penalised == 0 {
            return;
        }
        let counts = self.counts.as_ref().expect("a penalised slot has a row of counts");
        let mut touched = Vec::new();
        for (chunk, (scores, counts)) in self.processed.chunks_mut(CHUNK).zip(counts.chunks(CHUNK)).enumerate() {
            if counts.iter().fold(0, |any, count| any | count) == 0 {
                continue;
            }
            touched.push(chunk);
            for (s, &count) in scores.iter_mut().zip(counts).filter(|(_, count)| **count != 0) {
                *s = if *s > 0.0 { *s / repetition_penalty } else { *s * repetition_penalty };
                let n = count & 0x7fff_ffff;
                if n > 0 {
                    *s = (-frequency_penalty).mul_add(n as f32, *s - presence_penalty);
                }
            }
        }
        touched.into_iter().for_each(|chunk| self.find_top(chunk));
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

/// Steps 1, 3 and 4 for a part of the row.
struct Combine<'a> {
    row: &'a InputRow<'a>,
    alpha: f32,
    /// `processed` holds -inf where the base's mask drops an id.
    has_base_mask: bool,
    /// First id.
    first: usize,
    combined: &'a mut [f32],
    processed: &'a mut [f32],
    tops: &'a mut [f32],
}

/// What a part of the row was found to be.
#[derive(Default)]
struct Found {
    /// A live column that is read, or a score, is NaN or +inf.
    is_bad: bool,
    /// Highest base, raised, lowered and combined score.
    highest: [f32; 4],
}

impl Kernel for &mut Combine<'_> {
    type Output = Found;

    #[inline(always)]
    fn run(self) -> Found {
        let (mut is_nan, mut highest) = ([0; 32], [[NEG_INF; 32]; 4]);
        let chunks = self.combined.chunks_mut(CHUNK).zip(self.processed.chunks_mut(CHUNK)).zip(self.tops.iter_mut());
        for (chunk, ((combined, processed), top)) in chunks.enumerate() {
            let mut best = [NEG_INF; 32];
            for (word, (combined, processed)) in combined.chunks_mut(32).zip(processed.chunks_mut(32)).enumerate() {
                let first = self.first + chunk * CHUNK + word * 32;
                let ids = Ids::new(self.row, first);
                let combined: &mut [f32; 32] = combined.try_into().expect("rows are whole words");
                let processed: &mut [f32; 32] = processed.try_into().expect("rows are whole words");
                if !self.has_base_mask {
                    *processed = [0.0; 32];
                }
                ids.combine(self.alpha, combined, processed, &mut is_nan, &mut highest);
                for (best, &s) in best.iter_mut().zip(processed.iter()) {
                    *best = larger(*best, s);
                }
            }
            *top = highest_of(best);
        }
        let mut found = Found { is_bad: is_nan != [0; 32], highest: [NEG_INF; 4] };
        for (found_highest, highest) in found.highest.iter_mut().zip(highest) {
            *found_highest = highest_of(highest);
            found.is_bad |= *found_highest == f32::INFINITY;
        }
        found
    }
}

/// What is read of 32 ids: base, expert, anti-expert, and words of masks.
struct Ids {
    logits: [[f32; 32]; 3],
    live: u32,
    zero_delta: u32,
    allowed: u32,
}

impl Ids {
    #[inline(always)]
    fn new(row: &InputRow, first: usize) -> Self {
        let word = first / 32;
        let mut logits = [[NEG_INF; 32]; 3];
        for (ids, logits) in logits.iter_mut().zip(row.logits) {
            match logits.get(first..first + 32) {
                Some(whole) => ids.copy_from_slice(whole),
                None => {
                    let rest = logits.get(first..).unwrap_or_default();
                    ids[..rest.len()].copy_from_slice(rest);
                }
            }
        }
        Ids { logits, live: row.live[word], zero_delta: row.zero_delta[word], allowed: row.allowed[word] }
    }

    /// `processed` comes with -inf where the base's mask drops an id.
    #[inline(always)]
    fn combine(
        &self,
        alpha: f32,
        combined: &mut [f32; 32],
        processed: &mut [f32; 32],
        is_nan: &mut [u32; 32],
        highest: &mut [[f32; 32]; 4],
    ) {
        let Ids { logits: [base, expert, anti], live, zero_delta, allowed } = self;
        // A negative alpha exchanges the two; the product's bits are the same.
        let (alpha, up, down) = if alpha < 0.0 { (-alpha, anti, expert) } else { (alpha, expert, anti) };
        for i in 0..32 {
            let is_live = live & BITS[i] != 0;
            let z = if is_live { base[i] } else { NEG_INF };
            let up = if is_live { up[i] } else { NEG_INF };
            let down = if is_live { down[i] } else { NEG_INF };
            let in_mask = if processed[i] > NEG_INF { z } else { NEG_INF };
            // Where the pair agrees (on -inf too) the base's bits stay.
            let same = (up == down) | (zero_delta & BITS[i] != 0) | (in_mask == NEG_INF);
            let s = if same { in_mask } else { alpha.mul_add(up - down, in_mask) };
            is_nan[i] |= u32::from(is_nan_by_bits(z) | is_nan_by_bits(up) | is_nan_by_bits(down) | is_nan_by_bits(s));
            highest[0][i] = larger(highest[0][i], z);
            highest[1][i] = larger(highest[1][i], up);
            highest[2][i] = larger(highest[2][i], down);
            highest[3][i] = larger(highest[3][i], s);
            combined[i] = s;
            processed[i] = if allowed & BITS[i] != 0 { s } else { NEG_INF };
        }
    }
}

/// The bits of a word.
pub(super) const BITS: [u32; 32] = {
    let mut bits = [0; 32];
    let mut i = 0;
    while i < 32 {
        bits[i] = 1 << i;
        i += 1;
    }
    bits
};

/// NaN, by bits: the contract does not lean on how floats compare.
#[inline(always)]
fn is_nan_by_bits(x: f32) -> bool {
    x.to_bits() & 0x7fff_ffff > f32::INFINITY.to_bits()
}

/// NaN or +inf, by bits.
#[inline(always)]
fn is_bad(x: f32) -> bool {
    let bits = x.to_bits();
    (bits & 0x7fff_ffff >= f32::INFINITY.to_bits()) & (bits != NEG_INF.to_bits())
}

/// Bit `id` of a mask.
#[inline(always)]
pub(super) fn bit(mask: &[u32], id: usize) -> bool {
    mask[id / 32] >> (id % 32) & 1 == 1
}

/// The larger of two numbers; `a` where `b` is NaN.
#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// The largest lane, by halves as vectors do it.
#[inline(always)]
pub(super) fn highest_of<const N: usize>(mut lanes: [f32; N]) -> f32 {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = larger(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}
