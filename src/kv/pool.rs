//! One free list of pages for base, expert and anti-expert.
//!
//! A page has the same size in bytes for every member; how many tokens it holds differs ([`PageShape`]). A page id is
//! valid in every layer's plane. Admission is all or nothing, so three models never wait for each other's pages.

use crate::backend::Dtype;

/// Tokens per page of the member with the largest tokens; the others hold more.
const TOKENS_OF_LARGEST: usize = 16;

/// How one member's keys and values fill a page of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    /// KV heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Stored type.
    pub dtype: Dtype,
}

impl PageShape {
    /// Bytes of one token in one layer.
    pub fn token_bytes(&self) -> usize {
        2 * self.n_kv_heads * self.head_dim * self.dtype.bytes()
    }

    /// Tokens in a page of `page_bytes`.
    pub fn page_tokens(&self, page_bytes: usize) -> usize {
        page_bytes / self.token_bytes()
    }
}

/// Bytes of a page: `TOKENS_OF_LARGEST` tokens of the member whose tokens are largest.
pub fn page_bytes(shapes: &[PageShape]) -> usize {
    TOKENS_OF_LARGEST * shapes.iter().map(PageShape::token_bytes).max().expect("a pool serves at least one member")
}

/// The free list.
#[derive(Debug)]
pub struct Pool {
    free: Vec<u32>,
    n_pages: usize,
}

impl Pool {
    /// All `n_pages` pages free.
    pub fn new(n_pages: usize) -> Self {
        Self { free: (0..n_pages as u32).rev().collect(), n_pages }
    }

    /// Pages in all.
    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// Pages not held.
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    /// One list of pages per lane, or nothing where not all can be had.
    pub fn take(&mut self, counts: &[usize]) -> Option<Vec<Vec<u32>>> {
        let total: usize = counts.iter().sum();
        if total > self.free.len() {
            return None;
        }
        let mut taken = self.free.split_off(self.free.len() - total);
        Some(counts.iter().map(|&count| taken.split_off(taken.len() - count)).collect())
    }

    /// Gives pages back. A page that is not held is a programmer's error.
    pub fn give_back(&mut self, lanes: Vec<Vec<u32>>) {
        for page in lanes.into_iter().flatten() {
            assert!((page as usize) < self.n_pages, "page {page} is not of this pool");
            self.free.push(page);
        }
        assert!(self.free.len() <= self.n_pages, "a page was given back twice");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(n_kv_heads: usize, head_dim: usize) -> PageShape {
        PageShape { n_kv_heads, head_dim, dtype: Dtype::Bf16 }
    }

    #[test]
    fn page_sizes_of_known_trios() {
        // Qwen2.5 7B (4 KV heads of 128) + 0.5B (2 of 64): 32 KiB, 16 and 64 tokens.
        let (large, small) = (shape(4, 128), shape(2, 64));
        let bytes = page_bytes(&[large, small]);
        assert_eq!((bytes, large.page_tokens(bytes), small.page_tokens(bytes)), (32 << 10, 16, 64));
        // Llama-2 13B (40 of 128) + 7B (32 of 128): 320 KiB, 16 and 20 tokens.
        let (large, small) = (shape(40, 128), shape(32, 128));
        let bytes = page_bytes(&[large, small]);
        assert_eq!((bytes, large.page_tokens(bytes), small.page_tokens(bytes)), (320 << 10, 16, 20));
    }

    #[test]
    fn taking_is_all_or_nothing() {
        let mut pool = Pool::new(10);
        let first = pool.take(&[3, 2, 1]).expect("6 of 10");
        assert!(pool.take(&[3, 2]).is_none(), "5 of 4");
        assert_eq!(pool.n_free(), 4);
        let mut ids: Vec<u32> = first.iter().flatten().copied().collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 6);
        pool.give_back(first);
        assert_eq!(pool.n_free(), 10);
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn a_page_given_back_twice_is_seen() {
        let mut pool = Pool::new(2);
        let held = pool.take(&[2]).expect("2 of 2");
        pool.give_back(held.clone());
        pool.give_back(held);
    }
}
