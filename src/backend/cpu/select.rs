//! top-k, top-p and min-p without a sort of the row. What surely falls out is passed over by the best score of each
//! chunk of ids; among the candidates left, the end of a prefix of the order (score, lowest id) is found by radix
//! selection.

use super::combine_sample::{CHUNK, PART};
use super::simd::Kernel;
use super::*;
use crate::backend::math::{exp_nonpositive, mass, ordered_bits};

/// Bits of an id.
const ID_BITS: u32 = 19;
const _: () = assert!(MAX_VOCAB <= 1 << ID_BITS);
/// Bits of a place: 31 of the score, and the id.
const PLACE_BITS: u32 = 31 + ID_BITS;
/// Bits told apart in one pass.
const DIGIT_BITS: u32 = 11;
const N_BINS: usize = 1 << DIGIT_BITS;
/// Ids taken at once.
const LANES: usize = 16;
/// Masses are summed over the ids with a `t` of at least each of these, so that it is known how deep a nucleus goes.
/// The last is the sum of all.
const LEVELS: [f32; 8] = [-1.0, -2.0, -4.0, -6.0, -8.0, -10.0, -13.0, f32::NEG_INFINITY];
/// Below this `t` a mass is 0: e^-25 < 2^-36.
const MASSLESS: f32 = -25.0;
/// What a threshold on e^t is lowered by in t: more than e^t, the logarithm and t are off by.
const SLACK: f64 = 1e-4;

/// A row of scores, of which `t = (score - best) * scale` counts; -inf is not there at all.
#[derive(Clone, Copy)]
pub(super) struct Scores<'a> {
    pub(super) row: &'a [f32],
    /// The best of each [`CHUNK`] of the row.
    pub(super) tops: &'a [f32],
    /// The best of the row, finite.
    pub(super) best: f32,
    /// Positive.
    pub(super) scale: f32,
}

impl Scores<'_> {
    #[inline(always)]
    fn t(&self, score: f32) -> f32 {
        (score - self.best) * self.scale
    }
}

/// An id that may be kept, with `t <= 0`.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) t: f32,
}

impl Candidate {
    /// Place from best to worst: higher t first, ties by lowest id.
    fn place(self) -> u64 {
        u64::from(ordered_bits(0.0) - ordered_bits(self.t)) << ID_BITS | u64::from(self.id)
    }
}

/// Which ids a distribution keeps. 0 switches a filter off.
#[derive(Clone, Copy)]
pub(super) struct Filters {
    pub(super) top_k: u32,
    /// p * 2^32.
    pub(super) top_p: u32,
    pub(super) min_p: f32,
}

impl Filters {
    /// Whether all ids are kept, of a row that has `n` at most.
    pub(super) fn are_off(&self, n: usize) -> bool {
        !self.cuts_at_k(n) && self.top_p == 0 && self.min_p == 0.0
    }

    fn cuts_at_k(&self, n: usize) -> bool {
        self.top_k > 0 && (self.top_k as usize) < n
    }

    /// What is kept, in order of ids.
    pub(super) fn keep(&self, scores: Scores, isa: Isa, crew: Crew) -> Vec<Candidate> {
        let n = scores.row.len();
        let masses = (!self.cuts_at_k(n) && self.top_p > 0).then(|| level_masses(scores, isa, crew));
        let total = masses.map(|masses| masses[LEVELS.len() - 1]);
        let least = match masses {
            _ if self.cuts_at_k(n) => self.least_of_k(scores),
            Some(masses) => self.least_of_nucleus(masses, n),
            None => (f64::from(self.min_p).ln() - SLACK) as f32,
        };
        let mut kept = candidates(scores, least, isa, crew);
        if self.cuts_at_k(n) {
            let ones = vec![1; kept.len()];
            keep_prefix(&mut kept, ones, |total| total.min(self.top_k.into()));
        }
        if self.top_p > 0 {
            let masses = isa.run(Masses(&kept));
            keep_prefix(&mut kept, masses, |sum| nucleus(total.unwrap_or(sum), self.top_p));
        }
        if self.min_p > 0.0 {
            isa.run(KeepLikely(&mut kept, self.min_p));
        }
        kept
    }

    /// A `t` that k ids reach at least: so many chunks have one.
    fn least_of_k(&self, scores: Scores) -> f32 {
        let mut tops = scores.tops.to_vec();
        match self.top_k as usize {
            k if k <= tops.len() => scores.t(*tops.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1),
            _ => f32::NEG_INFINITY,
        }
    }

    /// A `t` that all ids of the nucleus reach, of a row of `n` with such masses down to [`LEVELS`].
    fn least_of_nucleus(&self, masses: [u64; LEVELS.len()], n: usize) -> f32 {
        let total = masses[LEVELS.len() - 1];
        let nucleus = nucleus(total, self.top_p);
        let level = masses.iter().position(|&mass| mass >= nucleus).expect("the last is the sum of all");
        // If every id lost as much, what is left would still hold the nucleus.
        let loss = (total - nucleus) / n as u64;
        let least = ((loss.max(1) as f64 * 2f64.powi(-36)).ln() - SLACK) as f32;
        least.max(LEVELS[level])
    }
}

/// The least mass with `mass * 2^32 >= total * top_p`.
fn nucleus(total: u64, top_p: u32) -> u64 {
    (u128::from(total) * u128::from(top_p)).div_ceil(1 << 32) as u64
}

/// The exact sums of the masses down to each of [`LEVELS`].
fn level_masses(scores: Scores, isa: Isa, crew: Crew) -> [u64; LEVELS.len()] {
    let parts = scores.row.chunks(PART).zip(scores.tops.chunks(PART / CHUNK));
    let mut parts: Vec<_> = parts.map(|(row, tops)| (Scores { row, tops, ..scores }, [0; LEVELS.len()])).collect();
    crew.share(&mut parts, |(scores, sums)| *sums = isa.run(LevelMasses(*scores)));
    std::array::from_fn(|level| parts.iter().map(|(_, sums)| sums[level]).sum())
}

struct LevelMasses<'a>(Scores<'a>);

impl Kernel for LevelMasses<'_> {
    type Output = [u64; LEVELS.len()];

    #[inline(always)]
    fn run(self) -> [u64; LEVELS.len()] {
        let scores = self.0;
        let mut sums = [0; LEVELS.len()];
        for (row, &top) in scores.row.chunks(CHUNK).zip(scores.tops) {
            let top = scores.t(top);
            if top < MASSLESS {
                continue;
            }
            let (mut t, mut masses) = ([f32::NEG_INFINITY; CHUNK], [0; CHUNK]);
            for ((t, kept), &score) in t.iter_mut().zip(&mut masses).zip(row) {
                *t = scores.t(score);
                *kept = mass(*t);
            }
            for (sum, level) in sums.iter_mut().zip(LEVELS).filter(|(_, level)| top >= *level) {
                for (&t, &mass) in t.iter().zip(&masses) {
                    *sum += if t >= level { mass } else { 0 };
                }
            }
        }
        sums
    }
}

/// All ids with a `t` of at least `least`, in order.
fn candidates(scores: Scores, least: f32, isa: Isa, crew: Crew) -> Vec<Candidate> {
    let parts = scores.row.chunks(PART).zip(scores.tops.chunks(PART / CHUNK)).enumerate();
    let part = |(part, (row, tops))| Candidates { first: part * PART, scores: Scores { row, tops, ..scores }, least };
    let mut parts: Vec<_> = parts.map(|parts| (part(parts), Vec::new())).collect();
    crew.share(&mut parts, |(part, found)| *found = isa.run(*part));
    parts.into_iter().flat_map(|(_, found)| found).collect()
}

/// The candidates of a part of a row, which begins at id `first`.
#[derive(Clone, Copy)]
struct Candidates<'a> {
    first: usize,
    scores: Scores<'a>,
    least: f32,
}

impl Kernel for Candidates<'_> {
    type Output = Vec<Candidate>;

    #[inline(always)]
    fn run(self) -> Vec<Candidate> {
        let Candidates { first, scores, least } = self;
        let mut found = Vec::new();
        for (chunk, (row, &top)) in scores.row.chunks(CHUNK).zip(scores.tops).enumerate() {
            if top == f32::NEG_INFINITY || scores.t(top) < least {
                continue;
            }
            for (lanes, row) in row.chunks_exact(LANES).enumerate() {
                let mut n = 0;
                for &score in row {
                    n += u32::from((scores.t(score) >= least) & (score > f32::NEG_INFINITY));
                }
                if n == 0 {
                    continue;
                }
                for (lane, &score) in row.iter().enumerate() {
                    let (id, t) = ((first + chunk * CHUNK + lanes * LANES + lane) as u32, scores.t(score));
                    if t >= least && score > f32::NEG_INFINITY {
                        found.push(Candidate { id, t });
                    }
                }
            }
        }
        found
    }
}

/// The mass of each candidate.
struct Masses<'a>(&'a [Candidate]);

impl Kernel for Masses<'_> {
    type Output = Vec<u64>;

    #[inline(always)]
    fn run(self) -> Vec<u64> {
        // Side by side, for vectors.
        let t: Vec<f32> = self.0.iter().map(|candidate| candidate.t).collect();
        let mut masses = vec![0; t.len()];
        for (kept, &t) in masses.iter_mut().zip(&t) {
            *kept = mass(t);
        }
        masses
    }
}

/// min-p.
struct KeepLikely<'a>(&'a mut Vec<Candidate>, f32);

impl Kernel for KeepLikely<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let KeepLikely(kept, min_p) = self;
        let mut n = 0;
        for index in 0..kept.len() {
            if exp_nonpositive(kept[index].t) >= min_p {
                kept[n] = kept[index];
                n += 1;
            }
        }
        kept.truncate(n);
    }
}

/// Keeps the shortest prefix whose weights reach `target(sum of all weights)`, which is at least 1.
fn keep_prefix(kept: &mut Vec<Candidate>, weights: Vec<u64>, target: impl FnOnce(u64) -> u64) {
    let mut left: Vec<(u64, u64)> = kept.iter().map(|candidate| candidate.place()).zip(weights).collect();
    let mut target = target(left.iter().map(|(_, weight)| weight).sum());
    let mut shift = PLACE_BITS;
    // Places differ, so that the last digit leaves one.
    while left.len() > 1 {
        shift = shift.saturating_sub(DIGIT_BITS);
        let digit = |place: u64| (place >> shift) as usize % N_BINS;
        let mut bins = [0; N_BINS];
        for &(place, weight) in &left {
            bins[digit(place)] += weight;
        }
        let bin = reach(&bins, &mut target);
        left.retain(|&(place, _)| digit(place) == bin);
    }
    let last = left[0].0;
    kept.retain(|candidate| candidate.place() <= last);
}

/// The bin in which the running sum reaches `target`, from which what stands before the bin is taken off.
fn reach(bins: &[u64; N_BINS], target: &mut u64) -> usize {
    for (bin, &weight) in bins.iter().enumerate() {
        if weight >= *target {
            return bin;
        }
        *target -= weight;
    }
    unreachable!("a target is at most the sum of all weights")
}
