//! Which pages hold which beginnings of prompts, so that an equal beginning is computed once.
//!
//! A full page is known by its tokens and by the page before it, under a tenant and a seat: a chain of pages is a
//! prefix, and no prefix is shared between tenants or members. The hash is keyed, so that nobody can make two prefixes
//! meet, and tokens are compared, so that it would not matter. What nobody holds is kept, and forgotten in the order in
//! which it was let go; the tenant that has most kept loses first, so a flood drives out itself.

use crate::engine::batch::Seat;
use crate::engine::scheduler::TenantId;
use std::collections::hash_map::Entry as Place;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};

/// Who can find a page: one tenant's lanes at one seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Space {
    /// Whose prompts.
    pub tenant: TenantId,
    /// Which weights computed them.
    pub seat: Seat,
}

/// No page, in links.
const NONE: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct Known {
    space: Space,
    /// The page before it, [`NONE`] for the first of a prompt. Its id is not reused while this page is known.
    parent: u32,
    hash: u64,
    /// Known pages whose parent this one is.
    n_children: u32,
}

#[derive(Clone, Debug)]
struct Page {
    known: Option<Known>,
    /// Tokens of a known page; the memory is used again.
    tokens: Vec<u32>,
    /// Neighbours in its tenant's list of cached pages.
    older: u32,
    newer: u32,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    oldest: u32,
    newest: u32,
    n_pages: usize,
}

/// The index, and the order in which cached pages go.
#[derive(Debug)]
pub struct Prefix {
    hasher: RandomState,
    by_hash: HashMap<u64, u32>,
    pages: Vec<Page>,
    kept: HashMap<TenantId, Kept>,
    /// Tenants by the number of their cached pages.
    by_size: BTreeSet<(usize, TenantId)>,
}

impl Prefix {
    /// No page of `n_pages` is known.
    pub fn new(n_pages: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            by_hash: HashMap::new(),
            pages: vec![Page { known: None, tokens: Vec::new(), older: NONE, newer: NONE }; n_pages],
            kept: HashMap::new(),
            by_size: BTreeSet::new(),
        }
    }

    /// The page that holds `tokens` after `parent`.
    pub fn find(&self, space: Space, parent: Option<u32>, tokens: &[u32]) -> Option<u32> {
        let parent = parent.unwrap_or(NONE);
        let page = *self.by_hash.get(&self.hash(space, parent, tokens))?;
        let Page { known: Some(known), tokens: kept, .. } = &self.pages[page as usize] else { return None };
        (known.space == space && known.parent == parent && kept == tokens).then_some(page)
    }

    /// Whether `page` can be found.
    pub fn knows(&self, page: u32) -> bool {
        self.pages[page as usize].known.is_some()
    }

    /// Makes `page` known for `tokens` after `parent`, which is known. Nothing changes where another page is.
    pub fn register(&mut self, space: Space, parent: Option<u32>, tokens: &[u32], page: u32) {
        assert!(!self.knows(page), "page {page} is registered twice");
        let parent = parent.unwrap_or(NONE);
        let hash = self.hash(space, parent, tokens);
        let Place::Vacant(place) = self.by_hash.entry(hash) else { return };
        place.insert(page);
        if parent != NONE {
            let parent = self.pages[parent as usize].known.as_mut().expect("a prefix has no hole");
            parent.n_children += 1;
        }
        let entry = &mut self.pages[page as usize];
        entry.known = Some(Known { space, parent, hash, n_children: 0 });
        entry.tokens.clear();
        entry.tokens.extend_from_slice(tokens);
    }

    /// Nobody holds the known `page` any more: it is its tenant's newest.
    pub fn keep(&mut self, page: u32) {
        let tenant = self.tenant_of(page);
        let kept = self.kept.entry(tenant).or_insert(Kept { oldest: page, newest: NONE, n_pages: 0 });
        self.by_size.remove(&(kept.n_pages, tenant));
        let older = std::mem::replace(&mut kept.newest, page);
        kept.n_pages += 1;
        self.by_size.insert((kept.n_pages, tenant));
        self.link(older, page);
        self.pages[page as usize].newer = NONE;
    }

    /// Somebody holds the cached `page` again.
    pub fn unkeep(&mut self, page: u32) {
        let tenant = self.tenant_of(page);
        let Page { older, newer, .. } = self.pages[page as usize];
        let kept = self.kept.get_mut(&tenant).expect("a cached page is in its tenant's list");
        if kept.oldest == page {
            kept.oldest = newer;
        }
        if kept.newest == page {
            kept.newest = older;
        }
        self.by_size.remove(&(kept.n_pages, tenant));
        kept.n_pages -= 1;
        if kept.n_pages > 0 {
            self.by_size.insert((kept.n_pages, tenant));
        } else {
            self.kept.remove(&tenant);
        }
        self.link(older, newer);
    }

    /// Forgets the cached page that goes first, and gives its id.
    pub fn forget_one(&mut self) -> Option<u32> {
        let &(_, tenant) = self.by_size.last()?;
        let page = self.kept[&tenant].oldest;
        self.unkeep(page);
        let known = self.pages[page as usize].known.take().expect("a cached page is known");
        assert_eq!(known.n_children, 0, "page {page} goes before the pages after it");
        self.by_hash.remove(&known.hash);
        if known.parent != NONE {
            let parent = self.pages[known.parent as usize].known.as_mut().expect("a prefix has no hole");
            parent.n_children -= 1;
        }
        Some(page)
    }

    fn tenant_of(&self, page: u32) -> TenantId {
        self.pages[page as usize].known.as_ref().expect("a cached page is known").space.tenant
    }

    fn link(&mut self, older: u32, newer: u32) {
        if older != NONE {
            self.pages[older as usize].newer = newer;
        }
        if newer != NONE {
            self.pages[newer as usize].older = older;
        }
    }

    fn hash(&self, space: Space, parent: u32, tokens: &[u32]) -> u64 {
        self.hasher.hash_one((space, parent, tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn space(tenant: u64, member: usize) -> Space {
        Space { tenant: TenantId(tenant), seat: Seat { stack: 0, member } }
    }

    #[test]
    fn a_page_is_found_by_all_that_it_depends_on() {
        let mut prefix = Prefix::new(8);
        prefix.register(space(1, 0), None, &[1, 2], 3);
        prefix.register(space(1, 0), Some(3), &[1, 2], 5);
        assert_eq!(prefix.find(space(1, 0), None, &[1, 2]), Some(3));
        assert_eq!(prefix.find(space(1, 0), Some(3), &[1, 2]), Some(5));
        for (space, parent, tokens) in [
            (space(2, 0), None, [1, 2]),
            (space(1, 1), None, [1, 2]),
            (space(1, 0), Some(5), [1, 2]),
            (space(1, 0), None, [2, 1]),
        ] {
            assert_eq!(prefix.find(space, parent, &tokens), None);
        }
        // An equal page changes nothing.
        prefix.register(space(1, 0), None, &[1, 2], 6);
        assert_eq!((prefix.find(space(1, 0), None, &[1, 2]), prefix.knows(6)), (Some(3), false));
    }

    #[test]
    fn pages_of_one_hash_are_told_apart_by_their_tokens() {
        let mut prefix = Prefix::new(4);
        prefix.register(space(1, 0), None, &[1, 2], 0);
        let hash = prefix.hash(space(1, 0), NONE, &[3, 4]);
        prefix.by_hash.insert(hash, 0);
        assert_eq!(prefix.find(space(1, 0), None, &[3, 4]), None);
        prefix.register(space(1, 0), None, &[3, 4], 1);
        assert!(!prefix.knows(1), "the hash is taken");
    }

    #[test]
    fn the_oldest_of_the_largest_goes_first() {
        let mut prefix = Prefix::new(8);
        for page in 0..8 {
            prefix.register(space(u64::from(page >= 5), 0), None, &[page], page);
        }
        [5, 0, 1, 2, 6, 3, 4, 7].into_iter().for_each(|page| prefix.keep(page));
        // Out of the middle, the beginning and the end of a list.
        [2, 0, 4].into_iter().for_each(|page| prefix.unkeep(page));
        prefix.keep(0);
        // 0 has 1, 3 and 0, 1 has 5, 6 and 7: of equals the tenant of the higher number.
        let order: Vec<u32> = std::iter::from_fn(|| prefix.forget_one()).collect();
        assert_eq!(order, [5, 1, 6, 3, 7, 0]);
        assert!([2, 4].iter().all(|&page| prefix.knows(page)) && !prefix.knows(0));
        assert_eq!((prefix.kept.len(), prefix.by_size.len(), prefix.by_hash.len()), (0, 0, 2));
    }

    #[test]
    #[should_panic(expected = "before the pages after it")]
    fn a_page_does_not_go_before_its_children() {
        let mut prefix = Prefix::new(2);
        prefix.register(space(1, 0), None, &[1], 0);
        prefix.register(space(1, 0), Some(0), &[2], 1);
        prefix.keep(0);
        prefix.forget_one();
    }
}
