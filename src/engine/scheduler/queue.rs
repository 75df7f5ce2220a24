//! Who waits, and whose turn it is: the virtual token counter of arXiv 2401.00588.
//!
//! A tenant's counter is the number of rows computed for it. The tenant with the least is next, and its oldest request
//! is the one. Being away earns nothing: who comes back starts from the least counter of those that wait.

use super::running::Ticket;
use super::{RequestId, TenantId};
use std::collections::{BTreeSet, HashMap};

/// Tenants without a request whose counters are remembered. Those who owe least are forgotten first.
const MAX_IDLE_TENANTS: usize = 4096;

#[derive(Debug, Default)]
struct Tenant {
    counter: u64,
    /// Its requests that can be admitted.
    ready: BTreeSet<RequestId>,
    n_parked: usize,
    n_running: usize,
    /// Its entry in `Queue::order`: a lower bound, corrected when it comes first.
    key: Option<(u64, RequestId)>,
}

impl Tenant {
    fn is_backlogged(&self) -> bool {
        !self.ready.is_empty() || self.n_parked > 0
    }

    fn is_idle(&self) -> bool {
        !self.is_backlogged() && self.n_running == 0
    }

    fn true_key(&self) -> Option<(u64, RequestId)> {
        self.ready.first().map(|&front| (self.counter, front))
    }
}

/// Requests that wait: ready ones by tenant, and followers parked behind their leader.
#[derive(Debug, Default)]
pub(super) struct Queue {
    tickets: HashMap<RequestId, Ticket>,
    tenants: HashMap<TenantId, Tenant>,
    /// Tenants with ready requests. Of equal counters the older request goes first.
    order: BTreeSet<(u64, RequestId, TenantId)>,
    /// Followers by their leader.
    parked: HashMap<RequestId, Vec<RequestId>>,
    /// Tenants without requests, which owe something.
    idle: BTreeSet<(u64, TenantId)>,
    /// Virtual time: what a new tenant's counter starts with. It only grows.
    floor: u64,
    /// Whose request was admitted last.
    last_served: Option<TenantId>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.tickets.len()
    }

    /// Requests of a tenant that can be admitted.
    #[cfg(test)]
    pub(super) fn n_ready(&self, tenant: TenantId) -> usize {
        self.tenants.get(&tenant).map_or(0, |tenant| tenant.ready.len())
    }

    pub(super) fn ticket(&self, id: RequestId) -> Option<&Ticket> {
        self.tickets.get(&id)
    }

    /// A new request; `leader` is known and its prompt is not computed yet.
    pub(super) fn arrive(&mut self, ticket: Ticket, leader: Option<RequestId>) {
        let (id, tenant) = (ticket.arrival.id, ticket.arrival.tenant);
        self.lift(tenant);
        self.tickets.insert(id, ticket);
        match leader {
            Some(leader) => {
                self.parked.entry(leader).or_default().push(id);
                self.tenant(tenant).n_parked += 1;
            }
            None => self.make_ready(tenant, id),
        }
    }

    /// A request that ran and has to run again. Numbers are ages, so it stands before what came after it.
    pub(super) fn come_back(&mut self, ticket: Ticket) {
        let (id, tenant) = (ticket.arrival.id, ticket.arrival.tenant);
        self.tenant(tenant).n_running -= 1;
        self.tickets.insert(id, ticket);
        self.make_ready(tenant, id);
    }

    /// Followers of `leader` wait no longer for it: its prompt is computed, or it is gone.
    pub(super) fn unpark(&mut self, leader: RequestId) {
        for id in self.parked.remove(&leader).unwrap_or_default() {
            let tenant = self.tickets[&id].arrival.tenant;
            self.tenant(tenant).n_parked -= 1;
            self.make_ready(tenant, id);
        }
    }

    /// The request whose turn it is.
    pub(super) fn next(&mut self) -> Option<RequestId> {
        loop {
            let &(counter, front, tenant) = self.order.first()?;
            let key = self.tenants[&tenant].true_key();
            if key == Some((counter, front)) {
                return Some(front);
            }
            self.reorder(tenant, key);
        }
    }

    /// Takes the request out to run.
    pub(super) fn admit(&mut self, id: RequestId) -> Ticket {
        let ticket = self.tickets.remove(&id).expect("an admitted request waits");
        let tenant = ticket.arrival.tenant;
        self.tenant(tenant).n_running += 1;
        self.leave(tenant, id);
        self.last_served = Some(tenant);
        ticket
    }

    /// Takes a request out for good; `None` where it does not wait.
    pub(super) fn cancel(&mut self, id: RequestId) -> Option<Ticket> {
        let ticket = self.tickets.remove(&id)?;
        let tenant = ticket.arrival.tenant;
        let behind = ticket.arrival.leader.and_then(|leader| self.parked.get_mut(&leader));
        match behind.and_then(|behind| Some((behind.iter().position(|&other| other == id)?, behind))) {
            Some((at, behind)) => {
                behind.remove(at);
                self.tenant(tenant).n_parked -= 1;
            }
            None => self.leave(tenant, id),
        }
        self.settle(tenant);
        Some(ticket)
    }

    /// A running request is gone for good.
    pub(super) fn end(&mut self, tenant: TenantId) {
        self.tenant(tenant).n_running -= 1;
        self.settle(tenant);
    }

    /// Rows were computed for a tenant that has a request.
    pub(super) fn charge(&mut self, tenant: TenantId, n_rows: usize) {
        self.tenant(tenant).counter += n_rows as u64;
    }

    fn tenant(&mut self, tenant: TenantId) -> &mut Tenant {
        self.tenants.get_mut(&tenant).expect("a tenant with requests is known")
    }

    /// A tenant that did not wait starts from the least counter of those that do; where nobody waits, from that of who
    /// was served last.
    fn lift(&mut self, id: TenantId) {
        if self.tenants.get(&id).is_some_and(Tenant::is_backlogged) {
            return;
        }
        let base = match self.next() {
            Some(next) => Some(self.tickets[&next].arrival.tenant),
            None => self.last_served,
        };
        let base = base.and_then(|base| self.tenants.get(&base));
        self.floor = self.floor.max(base.map_or(0, |base| base.counter));
        let floor = self.floor;
        let tenant = self.tenants.entry(id).or_default();
        self.idle.remove(&(tenant.counter, id));
        tenant.counter = tenant.counter.max(floor);
        self.forget_idle();
    }

    /// Who owes nothing any more need not be remembered.
    fn forget_idle(&mut self) {
        while let Some(&(counter, tenant)) = self.idle.first() {
            if counter > self.floor && self.idle.len() <= MAX_IDLE_TENANTS {
                break;
            }
            self.idle.pop_first();
            self.tenants.remove(&tenant);
        }
    }

    fn settle(&mut self, id: TenantId) {
        let tenant = &self.tenants[&id];
        if tenant.is_idle() {
            self.idle.insert((tenant.counter, id));
        }
    }

    fn make_ready(&mut self, id: TenantId, request: RequestId) {
        let tenant = self.tenant(id);
        tenant.ready.insert(request);
        let key = tenant.true_key();
        if tenant.key.is_none_or(|(_, front)| request < front) {
            self.reorder(id, key);
        }
    }

    fn leave(&mut self, id: TenantId, request: RequestId) {
        let tenant = self.tenant(id);
        tenant.ready.remove(&request);
        let key = tenant.true_key();
        if key.is_none() {
            self.reorder(id, key);
        }
    }

    /// Gives a tenant its place in the order.
    fn reorder(&mut self, id: TenantId, key: Option<(u64, RequestId)>) {
        let before = std::mem::replace(&mut self.tenant(id).key, key);
        if let Some((counter, front)) = before {
            self.order.remove(&(counter, front, id));
        }
        if let Some((counter, front)) = key {
            self.order.insert((counter, front, id));
        }
    }
}
