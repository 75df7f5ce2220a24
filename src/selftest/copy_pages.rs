//! Cases of [`CopyPages`].

use super::compare::{Output, Want};
use super::inputs::{Random, Stream, filled, finish};
use super::launch::{COMPANY, Check, Launch};
use crate::Result;
use crate::backend::params::{CopyPagesParams, PageCopy};
use crate::backend::{Backend, CopyPages};
use std::ops::Range;

/// Small pages, pages that are no whole number of fours or of workgroups' shares, and one of many workgroups.
const PAGE_WORDS: [usize; 6] = [1, 30, 1024, 2049, 4100, 16 << 10];

pub(super) fn check<B: Backend, T: Backend>(check: &mut Check<'_, B, T>) -> Result<()> {
    for (case, page_words) in (0..).zip(PAGE_WORDS) {
        for n_copies in [0, 1, 2] {
            check.launch(&Case { random: Random { case }, page_words, n_pages: 4, copies: 0..n_copies })?;
        }
    }
    check.in_company(|copies| {
        let (random, n_pages) = (Random { case: u32::MAX }, 2 * COMPANY);
        Case { random, page_words: 100, n_pages, copies }
    })
}

/// Copies of a plane of random bits, NaN among them.
#[derive(Debug)]
struct Case {
    random: Random,
    page_words: usize,
    n_pages: usize,
    /// Copy `i` is from page `2 i + 1` to page `n_pages - 2 - 2 i`.
    copies: Range<usize>,
}

impl Case {
    fn pairs(&self) -> Vec<PageCopy> {
        let pair = |i: usize| PageCopy { from: 2 * i as u32 + 1, to: (self.n_pages - 2 - 2 * i) as u32 };
        self.copies.clone().map(pair).collect()
    }

    fn plane(&self) -> Vec<u32> {
        (0..self.n_pages * self.page_words).map(|word| self.random.bits(Stream::Keys, 0, word)).collect()
    }
}

impl Launch for Case {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>> {
        let (pairs, words) = (self.pairs(), self.plane());
        // A buffer has room for more than a step copies; what stands there is not to be used.
        let spare = PageCopy { from: 0, to: 1 };
        let plane = filled(backend, "plane", &words)?;
        let copies = filled(backend, "copies", &[&pairs[..], &[spare]].concat())?;
        let params = CopyPagesParams { page_words: self.page_words as u32, reserved: [0; 3] };
        let mut pass = backend.begin();
        let op = CopyPages { plane: &plane, copies: &copies, n_copies: pairs.len() as u32, params };
        backend.copy_pages(&mut pass, op);
        finish(backend, pass, &[("plane", &plane, words.len())])
    }

    fn expected(&self) -> Vec<Vec<Want>> {
        let mut plane = self.plane();
        for PageCopy { from, to } in self.pairs() {
            let [from, to] = [from, to].map(|page_id| page_id as usize * self.page_words);
            plane.copy_within(from..from + self.page_words, to);
        }
        vec![plane.into_iter().map(Want::Bits).collect()]
    }

    fn row(&self, outputs: &[Output], index: usize) -> Vec<u32> {
        let first = self.pairs()[index].to as usize * self.page_words;
        outputs[0].bits[first..first + self.page_words].to_vec()
    }
}
