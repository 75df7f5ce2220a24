//! Step 9 of combine_sample: a Gumbel maximum over the ids that are left, [`DRAWN`] at a time. What an id can reach at most
//! is known from the exponent of its random number, so that logarithms are taken of the few that may win.

use super::combine_sample::larger;
use super::simd::Kernel;
use super::*;
use crate::backend::math::{gumbel, philox, philox_lanes};

const NEG_INF: f32 = f32::NEG_INFINITY;
/// Ids drawn at once: 16 of Philox's counters.
pub(super) const DRAWN: usize = 64;

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

    /// Draws among [`DRAWN`] ids, or as many as the row has left, from `first` on.
    #[inline(always)]
    fn draw(&self, t: &[f32], first: usize, best: &mut Best) {
        let mut padded = [NEG_INF; DRAWN];
        padded[..t.len()].copy_from_slice(t);
        let words = philox_lanes(first as u32 / 4, self.rest, self.seed);
        let mut random = [0; DRAWN];
        for group in 0..DRAWN / 4 {
            for word in 0..4 {
                random[4 * group + word] = words[word][group];
            }
        }
        let mut may_win = 0;
        for (t, &x) in padded.iter().zip(&random) {
            may_win |= u32::from(t + gumbel_bound(x) >= self.reached);
        }
        if may_win == 0 {
            return;
        }
        for (index, (t, x)) in padded.iter().zip(random).enumerate() {
            if t + gumbel_bound(x) >= larger(self.reached, best.score) && t + gumbel(x) > best.score {
                *best = Best { score: t + gumbel(x), id: first + index };
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
            self.dice.draw(row, self.first + chunk * DRAWN, &mut drawn);
        }
        drawn
    }
}

/// The draw among ids that begin at `firsts`, [`DRAWN`] each.
pub(super) struct DrawSome<'a> {
    pub(super) dice: Dice,
    pub(super) row: &'a [f32],
    pub(super) firsts: &'a [usize],
}

impl Kernel for DrawSome<'_> {
    type Output = Best;

    #[inline(always)]
    fn run(self) -> Best {
        let mut drawn = Best::default();
        for &first in self.firsts {
            self.dice.draw(&self.row[first..self.row.len().min(first + DRAWN)], first, &mut drawn);
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
