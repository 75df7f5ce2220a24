//! top-k, top-p and min-p without a sort: a prefix of the order (score, lowest id) is found by radix selection.
//!
//! Loops around e^t are plain loops: `for_each` and `collect` may stay functions of their own, which are not compiled
//! for the instruction set of the caller.

use crate::backend::math::{exp_nonpositive, mass, ordered_bits};
use crate::backend::params::MAX_VOCAB;

/// Bits of an id.
const ID_BITS: u32 = 19;
const _: () = assert!(MAX_VOCAB <= 1 << ID_BITS);
/// Bits of a place: 31 of the score, and the id.
const PLACE_BITS: u32 = 31 + ID_BITS;
/// Bits told apart in one pass.
const DIGIT_BITS: u32 = 11;
const N_BINS: usize = 1 << DIGIT_BITS;

/// Which ids a distribution keeps. 0 switches a filter off.
pub(super) struct Filters {
    pub(super) top_k: u32,
    /// p * 2^32.
    pub(super) top_p: u32,
    pub(super) min_p: f32,
}

impl Filters {
    /// Puts -inf in place of every `t` that a filter drops. `t[id] <= 0`, the best is 0, -inf is not there at all.
    #[inline(always)]
    pub(super) fn apply(&self, t: &mut [f32]) {
        if self.top_k > 0 && (self.top_k as usize) < t.len() {
            keep_prefix(t, |_| 1, |total| total.min(self.top_k.into()));
        }
        if self.top_p > 0 {
            keep_prefix(t, mass, |total| nucleus(total, self.top_p));
        }
        if self.min_p > 0.0 {
            for t in t.iter_mut() {
                *t = if exp_nonpositive(*t) < self.min_p { f32::NEG_INFINITY } else { *t };
            }
        }
    }
}

/// The least mass with `mass * 2^32 >= total * top_p`.
fn nucleus(total: u64, top_p: u32) -> u64 {
    (u128::from(total) * u128::from(top_p)).div_ceil(1 << 32) as u64
}

/// Place of (t, id) from best to worst: higher `t <= 0` first, ties by lowest id.
#[inline(always)]
fn place(t: f32, id: usize) -> u64 {
    u64::from(ordered_bits(0.0) - ordered_bits(t)) << ID_BITS | id as u64
}

/// Keeps the shortest prefix whose weights reach `target(sum of all weights)`, which is at least 1.
#[inline(always)]
fn keep_prefix(t: &mut [f32], weight: impl Fn(f32) -> u64, target: impl FnOnce(u64) -> u64) {
    let mut shift = PLACE_BITS - DIGIT_BITS;
    let mut bins = [0; N_BINS];
    for (id, &t) in present(t) {
        bins[(place(t, id) >> shift) as usize] += weight(t);
    }
    let mut target = target(bins.iter().sum());
    let bin = reach(&bins, &mut target);
    let mut candidates: Vec<(u64, u64)> = Vec::new();
    for (id, &t) in present(t) {
        if (place(t, id) >> shift) as usize == bin {
            candidates.push((place(t, id), weight(t)));
        }
    }
    // Places differ, so that the last digit leaves one.
    while candidates.len() > 1 {
        shift = shift.saturating_sub(DIGIT_BITS);
        let digit = |place: u64| (place >> shift) as usize % N_BINS;
        bins.fill(0);
        for &(place, weight) in &candidates {
            bins[digit(place)] += weight;
        }
        let bin = reach(&bins, &mut target);
        candidates.retain(|&(place, _)| digit(place) == bin);
    }
    let last = candidates[0].0;
    for (id, t) in t.iter_mut().enumerate() {
        if *t > f32::NEG_INFINITY && place(*t, id) > last {
            *t = f32::NEG_INFINITY;
        }
    }
}

fn present(t: &[f32]) -> impl Iterator<Item = (usize, &f32)> {
    t.iter().enumerate().filter(|(_, t)| **t > f32::NEG_INFINITY)
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
