//! Keys and values of running sequences: one pool of pages for the three models.
//!
//! Between scheduler and device memory: the scheduler takes pages for lanes here and lets them go; what is full and
//! known by its tokens stays findable until the pool needs the page.

pub mod page;
pub mod pool;
pub mod prefix;

use pool::{Afterwards, Pool};
use prefix::{Prefix, Space};

/// The pool with its prefixes.
#[derive(Debug)]
pub struct Store {
    pool: Pool,
    prefix: Prefix,
}

impl Store {
    /// All `n_pages` pages free.
    pub fn new(n_pages: usize) -> Self {
        Self { pool: Pool::new(n_pages), prefix: Prefix::new(n_pages) }
    }

    /// The states of the pages.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Pages that can be taken: free ones, and cached ones that are forgotten then.
    pub fn n_available(&self) -> usize {
        self.pool.n_free() + self.pool.n_cached()
    }

    /// One list of pages per lane; as many as are asked for must be available.
    pub fn take(&mut self, counts: &[usize]) -> Vec<Vec<u32>> {
        let total: usize = counts.iter().sum();
        while self.pool.n_free() < total {
            let page = self.prefix.forget_one().expect("as many pages are available as are taken");
            self.pool.evict(page);
        }
        self.pool.take(counts).expect("pages were made free")
    }

    /// One more lane holds `page`.
    pub fn hold(&mut self, page: u32) {
        if self.pool.is_cached(page) {
            self.prefix.unkeep(page);
        }
        self.pool.hold(page);
    }

    /// A lane lets `page` go. Of a prompt, later pages go first.
    pub fn release(&mut self, page: u32) {
        let known = self.prefix.knows(page);
        let afterwards = if known { Afterwards::Cached } else { Afterwards::Free };
        if self.pool.release(page, afterwards) && known {
            self.prefix.keep(page);
        }
    }

    /// The page that holds `tokens` after `parent`, held or cached.
    pub fn find(&self, space: Space, parent: Option<u32>, tokens: &[u32]) -> Option<u32> {
        self.prefix.find(space, parent, tokens)
    }

    /// Whether a page can be found.
    pub fn knows(&self, page: u32) -> bool {
        self.prefix.knows(page)
    }

    /// Makes a held, full page known for its tokens and its known parent, unless another is known for them.
    pub fn register(&mut self, space: Space, parent: Option<u32>, tokens: &[u32], page: u32) {
        self.prefix.register(space, parent, tokens, page);
    }
}
