//! Who waits, as the order of service says: per tenant first come, first served, and followers behind their leader.

use proxytune::engine::scheduler::{RequestId, TenantId};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) struct Line {
    /// Per tenant, requests that wait for nothing but their turn.
    ready: Vec<BTreeSet<RequestId>>,
    /// By leader, requests that wait for its prompt.
    parked: BTreeMap<RequestId, Vec<(RequestId, TenantId)>>,
    /// Per tenant, whether nobody of it was ready for a moment since [`Line::backlogged`] was asked.
    was_away: Vec<bool>,
}

impl Line {
    pub(crate) fn new(n_tenants: usize) -> Self {
        let ready = vec![BTreeSet::new(); n_tenants];
        Self { ready, parked: BTreeMap::new(), was_away: vec![true; n_tenants] }
    }

    /// Joins, behind a leader whose prompt is not computed, or at its own place.
    pub(crate) fn join(&mut self, id: RequestId, tenant: TenantId, behind: Option<RequestId>) {
        match behind {
            Some(leader) => self.parked.entry(leader).or_default().push((id, tenant)),
            None => {
                self.ready[tenant.0 as usize].insert(id);
            }
        }
    }

    pub(crate) fn leave(&mut self, id: RequestId, tenant: TenantId) {
        let ready = &mut self.ready[tenant.0 as usize];
        if ready.remove(&id) {
            self.was_away[tenant.0 as usize] |= ready.is_empty();
        } else {
            self.parked.values_mut().for_each(|parked| parked.retain(|&(other, _)| other != id));
        }
    }

    /// The leader is gone: the oldest of its followers leads the others.
    pub(crate) fn succeed(&mut self, leader: RequestId) {
        let Some((&(heir, tenant), rest)) = self.parked.get(&leader).and_then(|parked| parked.split_first()) else {
            return;
        };
        let rest = rest.to_vec();
        self.parked.remove(&leader);
        self.ready[tenant.0 as usize].insert(heir);
        self.parked.insert(heir, rest);
    }

    /// The leader's prompt is computed.
    pub(crate) fn let_go(&mut self, leader: RequestId) {
        for (id, tenant) in self.parked.remove(&leader).unwrap_or_default() {
            self.ready[tenant.0 as usize].insert(id);
        }
    }

    pub(crate) fn first(&self, tenant: TenantId) -> Option<RequestId> {
        self.ready[tenant.0 as usize].first().copied()
    }

    /// Tenants that had a request that could come in all the time since this was asked.
    pub(crate) fn backlogged(&mut self) -> Vec<bool> {
        let waits = |(ready, was_away): (&BTreeSet<_>, &mut bool)| {
            let is_away = ready.is_empty();
            !std::mem::replace(was_away, is_away) && !is_away
        };
        self.ready.iter().zip(&mut self.was_away).map(waits).collect()
    }
}
