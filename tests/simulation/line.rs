//! Who waits, as the order of service says: per tenant first come, first served, and followers behind their leader.

use proxytune::engine::scheduler::{RequestId, TenantId};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) struct Line {
    /// Per tenant, requests that wait for nothing but their turn.
    ready: Vec<BTreeSet<RequestId>>,
    /// By leader, requests that wait for its prompt.
    parked: BTreeMap<RequestId, Vec<(RequestId, TenantId)>>,
}

impl Line {
    pub(crate) fn new(n_tenants: usize) -> Self {
        Self { ready: vec![BTreeSet::new(); n_tenants], parked: BTreeMap::new() }
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
        if !self.ready[tenant.0 as usize].remove(&id) {
            self.parked.values_mut().for_each(|parked| parked.retain(|&(other, _)| other != id));
        }
    }

    /// The leader's prompt is computed, or it is gone.
    pub(crate) fn let_go(&mut self, leader: RequestId) {
        for (id, tenant) in self.parked.remove(&leader).unwrap_or_default() {
            self.ready[tenant.0 as usize].insert(id);
        }
    }

    pub(crate) fn first(&self, tenant: TenantId) -> Option<RequestId> {
        self.ready[tenant.0 as usize].first().copied()
    }

    /// Tenants with a request that could come in.
    pub(crate) fn backlogged(&self) -> Vec<bool> {
        self.ready.iter().map(|ready| !ready.is_empty()).collect()
    }
}
