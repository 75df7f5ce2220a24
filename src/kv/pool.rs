//! The pages that base, expert and anti-expert share: which are free, which are held and how often, which are cached.
//!
//! A page id is valid in every layer's plane. Lanes with an equal beginning hold the same pages; the last of them to let
//! go decides what becomes of one.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody holds it, and what it holds counts for nothing.
    Free,
    /// So many lanes hold it.
    Held(u32),
    /// Nobody holds it, but what it holds is kept.
    Cached,
}

/// What becomes of a page when the last lane lets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// It holds nothing of use.
    Free,
    /// It is kept for its prefix.
    Cached,
}

/// All pages. A page is in one state, and `n_free + n_held + n_cached == n_pages`.
#[derive(Debug)]
pub struct Pool {
    states: Vec<State>,
    free: Vec<u32>,
    n_held: usize,
    n_cached: usize,
}

impl Pool {
    /// All `n_pages` pages free.
    pub fn new(n_pages: usize) -> Self {
        let n_ids = u32::try_from(n_pages).expect("page ids are 32 bits");
        Self { states: vec![State::Free; n_pages], free: (0..n_ids).rev().collect(), n_held: 0, n_cached: 0 }
    }

    /// Pages in all.
    pub fn n_pages(&self) -> usize {
        self.states.len()
    }

    /// Pages that can be taken.
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    /// Pages that lanes hold; one that several hold counts once.
    pub fn n_held(&self) -> usize {
        self.n_held
    }

    /// Pages that nobody holds and that are kept.
    pub fn n_cached(&self) -> usize {
        self.n_cached
    }

    /// Lanes that hold `page`.
    pub fn n_holders(&self, page: u32) -> u32 {
        if let State::Held(n_lanes) = self.states[page as usize] { n_lanes } else { 0 }
    }

    /// Whether nobody holds `page` and it is kept.
    pub fn is_cached(&self, page: u32) -> bool {
        self.states[page as usize] == State::Cached
    }

    /// One list of pages per lane, or nothing where not all are free.
    pub fn take(&mut self, counts: &[usize]) -> Option<Vec<Vec<u32>>> {
        let total: usize = counts.iter().sum();
        let n_left = self.free.len().checked_sub(total)?;
        let mut taken = self.free.split_off(n_left);
        for &page in &taken {
            assert_eq!(self.states[page as usize], State::Free, "page {page} was on the free list");
            self.states[page as usize] = State::Held(1);
        }
        self.n_held += total;
        Some(counts.iter().map(|&count| taken.split_off(taken.len() - count)).collect())
    }

    /// One more lane holds `page`, which is held or cached.
    pub fn hold(&mut self, page: u32) {
        let state = &mut self.states[page as usize];
        *state = match *state {
            State::Free => panic!("page {page} holds nothing"),
            State::Held(n_lanes) => State::Held(n_lanes + 1),
            State::Cached => {
                self.n_cached -= 1;
                self.n_held += 1;
                State::Held(1)
            }
        };
    }

    /// A lane lets `page` go; true where it was the last.
    pub fn release(&mut self, page: u32, afterwards: Afterwards) -> bool {
        let state = &mut self.states[page as usize];
        let State::Held(n_lanes) = *state else { panic!("page {page} was given back twice") };
        *state = match (n_lanes, afterwards) {
            (1, Afterwards::Free) => State::Free,
            (1, Afterwards::Cached) => State::Cached,
            _ => State::Held(n_lanes - 1),
        };
        match *state {
            State::Held(_) => return false,
            State::Free => self.free.push(page),
            State::Cached => self.n_cached += 1,
        }
        self.n_held -= 1;
        true
    }

    /// Frees a cached page.
    pub fn evict(&mut self, page: u32) {
        let state = &mut self.states[page as usize];
        assert_eq!(*state, State::Cached, "page {page} is evicted");
        *state = State::Free;
        self.n_cached -= 1;
        self.free.push(page);
    }

    /// Asserts that no page is lost or counted twice; with debug assertions by counting them all.
    pub fn check(&self) {
        let counted = [self.n_free(), self.n_held, self.n_cached];
        assert_eq!(counted.iter().sum::<usize>(), self.n_pages(), "free, held and cached pages are all pages");
        if cfg!(debug_assertions) {
            let count = |is: fn(&State) -> bool| self.states.iter().filter(|state| is(state)).count();
            let free = count(|state| matches!(state, State::Free));
            assert_eq!(counted, [free, count(|s| matches!(s, State::Held(_))), count(|s| matches!(s, State::Cached))]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_is_all_or_nothing() {
        let mut pool = Pool::new(10);
        let first = pool.take(&[3, 2, 1]).expect("6 of 10");
        assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2, 1]);
        assert!(pool.take(&[3, 2]).is_none(), "5 of 4");
        assert_eq!((pool.n_free(), pool.n_held(), pool.n_cached()), (4, 6, 0));
        let mut ids: Vec<u32> = first.into_iter().flatten().collect();
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5]);
        assert!(pool.take(&[4]).is_some(), "4 of 4");
        pool.check();
    }

    #[test]
    fn the_last_lane_to_let_go_decides() {
        let mut pool = Pool::new(3);
        let pages = pool.take(&[2]).expect("2 of 3").remove(0);
        pool.hold(pages[0]);
        assert!(!pool.release(pages[0], Afterwards::Cached), "another lane holds it");
        assert_eq!((pool.n_free(), pool.n_held(), pool.n_cached()), (1, 2, 0));
        assert!(pool.release(pages[0], Afterwards::Cached));
        assert!(pool.release(pages[1], Afterwards::Free));
        assert!(pool.is_cached(pages[0]) && !pool.is_cached(pages[1]));
        assert_eq!((pool.n_free(), pool.n_held(), pool.n_cached()), (2, 0, 1));
        pool.hold(pages[0]);
        assert_eq!((pool.n_free(), pool.n_held(), pool.n_cached()), (2, 1, 0));
        pool.release(pages[0], Afterwards::Cached);
        pool.evict(pages[0]);
        assert_eq!((pool.n_free(), pool.n_held(), pool.n_cached()), (3, 0, 0));
        pool.check();
    }

    #[test]
    fn misuse_is_seen() {
        let panics = |misuse: fn(&mut Pool, u32)| {
            let mut pool = Pool::new(2);
            let page = pool.take(&[1]).expect("1 of 2")[0][0];
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| misuse(&mut pool, page))).is_err()
        };
        assert!(panics(|pool, page| {
            pool.release(page, Afterwards::Free);
            pool.release(page, Afterwards::Free);
        }));
        assert!(panics(|pool, page| {
            pool.release(page, Afterwards::Cached);
            pool.release(page, Afterwards::Cached);
        }));
        assert!(panics(|pool, page| {
            pool.release(page, Afterwards::Free);
            pool.hold(page);
        }));
        assert!(panics(|pool, page| pool.evict(page)), "a held page");
        assert!(panics(|pool, _| pool.hold(2)), "no page of this pool");
    }

    #[test]
    fn a_lost_page_is_seen() {
        for lose in [
            |pool: &mut Pool| pool.n_held += 1,
            |pool: &mut Pool| pool.n_cached += 1,
            |pool: &mut Pool| {
                pool.free.pop();
            },
        ] {
            let mut pool = Pool::new(4);
            pool.take(&[1]).expect("1 of 4");
            lose(&mut pool);
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.check())).is_err());
        }
    }
}
