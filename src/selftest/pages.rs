//! Keys and values in pages, as rope_append writes and attention reads them.

use super::inputs::{Random, Rows};
use super::launch::{COMPANY, POISON};
use crate::backend::Dtype;
use crate::backend::params::{N_LANES, PageParams, Place};
use std::fmt;

/// Words of a plane and of the other buffers: they fit a binding limit of 256 KiB.
const MAX_WORDS: usize = 64 << 10;

/// A running sequence of one member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    pub(super) member: usize,
    slot: usize,
    lane: usize,
    /// Live tokens.
    pub(super) n_tokens: usize,
}

/// Sequences and how their pages are laid out.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    pub(super) dtype: Dtype,
    pub(super) group: usize,
    pub(super) n_kv_heads: usize,
    pub(super) head_dim: usize,
    page_tokens: usize,
    page_words: usize,
    max_pages: usize,
    pub(super) lanes: Vec<Lane>,
}

/// Tokens of a long sequence.
const LONG: usize = 4200;

/// Positions at the edges of key blocks.
const POSITIONS: [usize; 6] = [0, 1, 63, 64, 65, 200];

impl Pages {
    /// Cases in which each head width meets each group and each type.
    pub(super) const N_CASES: u32 = 54;

    /// Sequences of one or two members, as many as fit.
    pub(super) fn of_case(case: u32) -> Self {
        let (random, index) = (Random { case }, case as usize);
        let head_dim = [8, 20, 64, 80, 128, 256][index % 6];
        let n_kv_heads = if head_dim >= 80 { 1 } else { random.pick(0, &[1, 2]) };
        let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16][index / 18];
        let mut pages = Self::new(dtype, [1, 3, 7][index / 6 % 3], n_kv_heads, head_dim, random);
        let n_members = random.pick(1, &[1, 2]);
        for (index, n_tokens) in [201, 64, 2, 66, 130, 1].into_iter().enumerate() {
            pages.push(index % n_members, index / n_members, n_tokens);
        }
        assert!(!pages.lanes.is_empty(), "case {case}: some sequence fits");
        pages
    }

    /// Sequences of one member with a token for each row of the largest company.
    pub(super) fn in_company(dtype: Dtype, group: usize, head_dim: usize) -> Self {
        let mut pages = Self::new(dtype, group, 1, head_dim, Random { case: u32::MAX });
        pages.push(0, 0, 201);
        pages.push(0, 1, COMPANY - 201);
        assert_eq!(pages.lanes.len(), 2, "both sequences fit");
        pages
    }

    /// One sequence that is long for how narrow its heads are.
    pub(super) fn long(dtype: Dtype) -> Self {
        let mut pages = Self::new(dtype, 2, 1, 8, Random { case: u32::MAX });
        pages.max_pages = LONG.div_ceil(pages.page_tokens);
        pages.push(0, 0, LONG);
        assert_eq!(pages.lanes.len(), 1, "it fits");
        pages
    }

    fn new(dtype: Dtype, group: usize, n_kv_heads: usize, head_dim: usize, random: Random) -> Self {
        let page_tokens = random.pick(2, &[5, 16, 20, 64]);
        let used_words = 2 * n_kv_heads * page_tokens * head_dim * dtype.bytes() / 4;
        // A page is as large as the largest member's; the others leave some of it unused.
        let page_words = used_words + random.pick(3, &[0, 12]);
        let max_pages = 201usize.div_ceil(page_tokens) + 1;
        Self { dtype, group, n_kv_heads, head_dim, page_tokens, page_words, max_pages, lanes: Vec::new() }
    }

    fn push(&mut self, member: usize, slot: usize, n_tokens: usize) {
        let lane = Lane { member, slot, lane: 2 - member, n_tokens };
        self.lanes.push(lane);
        if self.plane_words() > MAX_WORDS {
            self.lanes.pop();
        }
    }

    pub(super) fn n_members(&self) -> usize {
        1 + self.lanes.iter().map(|lane| lane.member).max().unwrap_or(0)
    }

    fn n_pages(&self) -> usize {
        self.lanes.iter().map(|lane| lane.n_tokens.div_ceil(self.page_tokens)).sum()
    }

    /// Words of the plane: the pages of all lanes and one that nobody holds.
    pub(super) fn plane_words(&self) -> usize {
        (self.n_pages() + 1) * self.page_words
    }

    pub(super) fn params(&self) -> PageParams {
        let [page_words, page_tokens, max_pages] =
            [self.page_words, self.page_tokens, self.max_pages].map(|n| n as u32);
        PageParams { page_words, page_tokens, dtype: self.dtype as u32, max_pages }
    }

    /// The page of a lane's token: pages are handed out from the highest down; page 0 is nobody's.
    fn page_id(&self, lane: usize, position: usize) -> usize {
        let before: usize = self.lanes[..lane].iter().map(|lane| lane.n_tokens.div_ceil(self.page_tokens)).sum();
        self.n_pages() - before - position / self.page_tokens
    }

    /// The page table; what no live token needs is no page's id.
    pub(super) fn table(&self) -> Vec<u32> {
        let n_slots = 1 + self.lanes.iter().map(|lane| lane.slot).max().unwrap_or(0);
        let mut table = vec![u32::MAX; n_slots * N_LANES * self.max_pages];
        for (index, lane) in self.lanes.iter().enumerate() {
            for position in (0..lane.n_tokens).step_by(self.page_tokens) {
                let entry = self.first_entry(index) + position / self.page_tokens;
                table[entry] = self.page_id(index, position) as u32;
            }
        }
        table
    }

    fn first_entry(&self, lane: usize) -> usize {
        let Lane { slot, lane, .. } = self.lanes[lane];
        (slot * N_LANES + lane) * self.max_pages
    }

    /// First element in the plane of a head's key (`kv` 0) or value (1).
    pub(super) fn element(&self, lane: usize, position: usize, kv: usize, head: usize) -> usize {
        let cell = (kv * self.n_kv_heads + head) * self.page_tokens + position % self.page_tokens;
        self.page_id(lane, position) * self.page_words * 4 / self.dtype.bytes() + cell * self.head_dim
    }

    /// Rows at the edges of key blocks in every lane, one more in each member that is not live, and a spare one.
    pub(super) fn rows(&self) -> (Rows, Tokens) {
        let n_members = self.n_members();
        let tokens: Vec<Vec<Option<Token>>> = (0..n_members)
            .map(|member| {
                let lanes = (0..self.lanes.len()).filter(|&lane| self.lanes[lane].member == member);
                let tokens = lanes.flat_map(|lane| {
                    let live = POSITIONS.into_iter().filter(move |&p| p < self.lanes[lane].n_tokens);
                    live.map(move |position| Some(Token { lane, position }))
                });
                std::iter::once(None).chain(tokens).collect()
            })
            .collect();
        let counts: Vec<usize> = tokens.iter().map(Vec::len).collect();
        let rows = Rows::of(&counts, 1);
        let placed = rows.each().map(|place| place.and_then(|(member, row)| tokens[member][row])).collect();
        (rows, Tokens(placed))
    }

    /// Rows of a [`Pages::long`], far apart.
    pub(super) fn long_rows(&self) -> (Rows, Tokens) {
        let token = |position| Some(Token { lane: 0, position });
        (Rows::alone(0, 4), Tokens([2047, 2048, 3333, LONG - 1].map(token).into()))
    }

    /// Rows `first..first + n_rows` of a [`Pages::long`]: a prompt's first ones, but rows 60 to 63 are at `position` and the
    /// three after it.
    pub(super) fn edge_rows(&self, first: usize, n_rows: usize, position: usize) -> (Rows, Tokens) {
        let position = |row: usize| if (60..64).contains(&row) { position + row - 60 } else { row };
        let token = |row| Some(Token { lane: 0, position: position(row) });
        (Rows::alone(first, n_rows), Tokens((first..first + n_rows).map(token).collect()))
    }

    /// Rows `first..first + n_rows` of a company: each token of the two lanes once, out of order.
    pub(super) fn company_rows(&self, first: usize, n_rows: usize) -> (Rows, Tokens) {
        let token = |row: usize| {
            let (token, split) = (row * 7 % COMPANY, self.lanes[0].n_tokens);
            let lane = usize::from(token >= split);
            Some(Token { lane, position: token - lane * split })
        };
        (Rows::alone(first, n_rows), Tokens((first..first + n_rows).map(token).collect()))
    }

    /// The places buffer; rows without a token, and rows not of this step, hold what must not be used.
    pub(super) fn places(&self, tokens: &Tokens) -> Vec<Place> {
        let place = |token: &Option<Token>| match *token {
            Some(Token { lane, position }) => {
                Place { table: self.first_entry(lane) as u32, position: position as u32, live: 1, token: 7 }
            }
            None => Place { table: u32::MAX, position: u32::MAX, live: 0, token: u32::MAX },
        };
        tokens.0.iter().map(place).collect()
    }

    /// Width of a row of q, k and v.
    pub(super) fn qkv_width(&self) -> usize {
        (self.n_heads() + 2 * self.n_kv_heads) * self.head_dim
    }

    pub(super) fn n_heads(&self) -> usize {
        self.group * self.n_kv_heads
    }

    /// A plane full of poison.
    pub(super) fn poison(&self) -> Vec<u32> {
        vec![POISON; self.plane_words()]
    }
}

/// The token of each row of the buffers; `None` where it is not live. Its `Debug` text is short.
pub(super) struct Tokens(pub(super) Vec<Option<Token>>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows", self.0.len())
    }
}

/// A live row's token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub(super) lane: usize,
    pub(super) position: usize,
}
