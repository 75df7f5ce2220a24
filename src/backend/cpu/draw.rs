//! Step 9 of combine_sample: a Gumbel maximum over the ids that are left, [`DRAWN`] at a time. What an id can reach at most
//! is known from the exponent of its random number, so that logarithms are taken of the few that may win.

use super::combine_sample::larger;
use super::simd::Kernel;
use super::*;
use crate::backend::math::{gumbel, philox, philox_lanes};

const NEG_INF: f32 = f32::NEG_INFINITY;
/// Ids that share a counter of Philox.
pub(super) const FOUR: usize = 4;
/// Counters at once.
const COUNTERS: usize = 16;
/// Ids drawn at once.
const DRAWN: usize = FOUR * COUNTERS;

/// What step 9 needs, and a score that the winner reaches: the likeliest id's.
#[derive(Clone, Copy)]
pub(super) struct Dice {
    seed: [u32; 2],
    rest: [u32; 3],
    reached: f32,
}

/// The best of some scores of step 9; ties to the lowest id.
#[derive(Clone, Copy)]
pub(super) struct Best {
    score: f32,
    id: usize,
}

impl Default for Best {
    fn default() -> Self {
        Best { score: NEG_INF, id: 0 }
    }
}

impl Best {
    /// The id of the best of all, given in order of ids.
    pub(super) fn of(parts: impl Iterator<Item = Best>) -> usize {
        parts.fold(Best::default(), |best, part| if part.score > best.score { part } else { best }).id
    }
}

impl Dice {
    /// `likeliest` has t = 0.
    pub(super) fn new(slot: &Slot, likeliest: usize) -> Self {
        let (seed, rest) = (slot.seed, [slot.produced, slot.sample_index, 0]);
        let random = philox([likeliest as u32 / 4, rest[0], rest[1], rest[2]], seed);
        Dice { seed, rest, reached: gumbel(random[likeliest % 4]) }
    }

    /// Draws among the ids of some counters, in order; an id whose `t` is -inf is not there.
    #[inline(always)]
    fn draw(&self, t: &[f32; DRAWN], counters: [u32; COUNTERS], best: &mut Best) {
        let words = philox_lanes(counters, self.rest, self.seed);
        let mut random = [0; DRAWN];
        for counter in 0..COUNTERS {
            for word in 0..FOUR {
                random[FOUR * counter + word] = words[word][counter];
            }
        }
        let mut may_win = 0;
        for (t, &x) in t.iter().zip(&random) {
            may_win |= u32::from(t + gumbel_bound(x) >= self.reached);
        }
        if may_win == 0 {
            return;
        }
        for (index, (t, x)) in t.iter().zip(random).enumerate() {
            if t + gumbel_bound(x) >= larger(self.reached, best.score) && t + gumbel(x) > best.score {
                *best = Best { score: t + gumbel(x), id: counters[index / FOUR] as usize * FOUR + index % FOUR };
            }
        }
    }
}

/// A part of a row without filters: scores to t, and the draw among them.
pub(super) struct DrawAll<'a> {
    pub(super) dice: Dice,
    pub(super) first: usize,
    pub(super) row: &'a mut [f32],
    pub(super) best: f32,
    pub(super) scale: f32,
}

impl Kernel for DrawAll<'_> {
    type Output = Best;

    #[inline(always)]
    fn run(self) -> Best {
        let mut drawn = Best::default();
        for (chunk, row) in self.row.chunks_mut(DRAWN).enumerate() {
            for s in row.iter_mut() {
                *s = (*s - self.best) * self.scale;
            }
            let mut t = [NEG_INF; DRAWN];
            t[..row.len()].copy_from_slice(row);
            let mut counters = [((self.first + chunk * DRAWN) / FOUR) as u32; COUNTERS];
            for (index, counter) in counters.iter_mut().enumerate() {
                *counter += index as u32;
            }
            self.dice.draw(&t, counters, &mut drawn);
        }
        drawn
    }
}

/// The draw among the ids of some counters.
pub(super) struct DrawSome<'a> {
    pub(super) dice: Dice,
    pub(super) row: &'a [f32],
    pub(super) counters: &'a [u32],
}

impl Kernel for DrawSome<'_> {
    type Output = Best;

    #[inline(always)]
    fn run(self) -> Best {
        let mut drawn = Best::default();
        for some in self.counters.chunks(COUNTERS) {
            let (mut t, mut counters) = ([NEG_INF; DRAWN], [0; COUNTERS]);
            counters[..some.len()].copy_from_slice(some);
            for (t, &counter) in t.chunks_exact_mut(FOUR).zip(some) {
                t.copy_from_slice(&self.row[counter as usize * FOUR..][..FOUR]);
            }
            self.dice.draw(&t, counters, &mut drawn);
        }
        drawn
    }
}

/// No less than gumbel(x), at the cost of a few instructions: -ln(-log1p(-v)) <= -ln v, and v is at least x's upper 24
/// bits times 2^-24, of which the exponent counts.
#[inline(always)]
fn gumbel_bound(x: u32) -> f32 {
    let exponent = ((x >> 8) as i32 as f32).to_bits() >> 23;
    0.694 * (127 + 24 - exponent as i32) as f32
}
