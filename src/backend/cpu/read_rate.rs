//! The yardstick of every figure of speed: how fast this machine reads memory.

use super::simd::memory::{Arena, Region};
use crate::{Error, Result};
use std::time::Instant;

/// More than any cache holds.
const BYTES: usize = 512 << 20;

/// A buffer that no cache holds, in memory as weights are, and the threads that read it.
pub struct ReadRate {
    words: Region<u64>,
    n_threads: usize,
}

impl ReadRate {
    /// For `threads` threads, or all. Takes half a gibibyte of memory.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        let what = "the buffer whose reading is timed".to_owned();
        let refused = |_| Error::Memory { what, needed: BYTES as u64, limit: isize::MAX as u64 };
        let mut words: Region<u64> = Arena::default().zeroed(BYTES / size_of::<u64>()).map_err(refused)?;
        words.fill(1);
        Ok(Self { words, n_threads: threads.unwrap_or_else(all) })
    }

    /// Bytes that the buffer takes.
    pub const fn bytes() -> usize {
        BYTES
    }

    /// Bytes per second that all threads read together: the best of `times` passes over the buffer.
    pub fn measure(&self, times: usize) -> f64 {
        let seconds = |_| {
            let start = Instant::now();
            assert_eq!(self.sum(), self.words.len() as u64, "every word is read once");
            start.elapsed().as_secs_f64()
        };
        BYTES as f64 / (0..times).map(seconds).fold(f64::INFINITY, f64::min)
    }

    fn sum(&self) -> u64 {
        let sum = |part: &[u64]| part.iter().copied().fold(0, u64::wrapping_add);
        std::thread::scope(|scope| {
            let parts = self.words.chunks(self.words.len().div_ceil(self.n_threads));
            let threads: Vec<_> = parts.map(|part| scope.spawn(move || sum(part))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a sum does not fail")).sum()
        })
    }
}
