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
    /// Who waits for its own leader only could not be served, and earns nothing meanwhile.
    fn is_backlogged(&self) -> bool {
        !self.ready.is_empty()
    }

    fn is_idle(&self) -> bool {
        !self.is_backlogged() && self.n_parked == 0 && self.n_running == 0
    }

    fn true_key(&self) -> Option<(u64, RequestId)> {
        self.ready.first().map(|&front| (self.counter, front))
    }
}

/// Requests that wait: ready ones by tenant, and followers parked behind their leader.
#[derive(Debug, Default)]
pub(super) struct Queue {
    tickets: HashMap<RequestId, Ticket>,
    /// Tickets that came back: they were let in once, and take nobody's place in the queue.
    n_back: usize,
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

    /// Requests that ran and wait again.
    pub(super) fn n_back(&self) -> usize {
        self.n_back
    }

    /// Requests of a tenant that can be admitted.
    #[cfg(test)]
    pub(super) fn n_ready(&self, tenant: TenantId) -> usize {
        self.tenants.get(&tenant).map_or(0, |tenant| tenant.ready.len())
    }

    pub(super) fn ticket(&self, id: RequestId) -> Option<&Ticket> {
        self.tickets.get(&id)
    }

    /// A new request.
    pub(super) fn arrive(&mut self, ticket: Ticket) {
        let (id, tenant) = (ticket.arrival.id, ticket.arrival.tenant);
        self.lift(tenant);
        self.tickets.insert(id, ticket);
        self.make_ready(tenant, id);
    }

    /// A new request whose leader is known and has its prompt still to compute.
    pub(super) fn park(&mut self, ticket: Ticket) {
        let (id, tenant) = (ticket.arrival.id, ticket.arrival.tenant);
        self.lift(tenant);
        let leader = ticket.arrival.leader.expect("a parked request has a leader");
        self.parked.entry(leader).or_default().push(id);
        self.tickets.insert(id, ticket);
        self.tenant(tenant).n_parked += 1;
    }

    /// A request that ran and has to run again. Numbers are ages, so it stands before what came after it.
    pub(super) fn come_back(&mut self, ticket: Ticket) {
        let (id, tenant) = (ticket.arrival.id, ticket.arrival.tenant);
        self.tenant(tenant).n_running -= 1;
        self.n_back += 1;
        self.tickets.insert(id, ticket);
        self.make_ready(tenant, id);
    }

    /// `leader` is gone: the first of those that wait for its prompt computes it for the others.
    pub(super) fn succeed(&mut self, leader: RequestId) {
        let Some(mut followers) = self.parked.remove(&leader).filter(|followers| !followers.is_empty()) else { return };
        let heir = followers.remove(0);
        let tenant = self.tickets[&heir].arrival.tenant;
        self.tenant(tenant).n_parked -= 1;
        self.lift(tenant);
        self.make_ready(tenant, heir);
        for follower in &followers {
            let ticket = self.tickets.get_mut(follower).expect("who is parked waits");
            ticket.arrival.leader = Some(heir);
        }
        if !followers.is_empty() {
            self.parked.insert(heir, followers);
        }
    }

    /// Followers of `leader` wait no longer for it: its prompt is computed.
    pub(super) fn unpark(&mut self, leader: RequestId) {
        for id in self.parked.remove(&leader).unwrap_or_default() {
            let tenant = self.tickets[&id].arrival.tenant;
            self.tenant(tenant).n_parked -= 1;
            self.lift(tenant);
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
        let ticket = self.take(id).expect("an admitted request waits");
        let tenant = ticket.arrival.tenant;
        self.tenant(tenant).n_running += 1;
        self.leave(tenant, id);
        self.last_served = Some(tenant);
        ticket
    }

    /// Takes a request out for good; `None` where it does not wait.
    pub(super) fn cancel(&mut self, id: RequestId) -> Option<Ticket> {
        let ticket = self.take(id)?;
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

    fn take(&mut self, id: RequestId) -> Option<Ticket> {
        let ticket = self.tickets.remove(&id)?;
        self.n_back -= usize::from(ticket.n_preempted > 0);
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

#[cfg(test)]
mod tests {
    use super::super::{Arrival, LaneSpec};
    use super::*;
    use crate::engine::batch::Seat;

    fn ticket(id: u64, tenant: u64) -> Ticket {
        let arrival = Arrival {
            id: RequestId(id),
            tenant: TenantId(tenant),
            lanes: vec![LaneSpec { seat: Seat { stack: 0, member: 0 }, prompt: [1].into() }],
            lane_of_role: [0; 3],
            max_tokens: 1,
            needs_host: false,
            leader: None,
        };
        Ticket { arrival, response: Vec::new(), n_preempted: 0 }
    }

    fn arrive(queue: &mut Queue, id: u64, tenant: u64) {
        queue.arrive(ticket(id, tenant));
    }

    /// Admits who is next and charges its tenant.
    fn serve(queue: &mut Queue, n_rows: usize) -> u64 {
        let id = queue.next().expect("somebody waits");
        let tenant = queue.admit(id).arrival.tenant;
        queue.charge(tenant, n_rows);
        id.0
    }

    #[test]
    fn the_least_served_is_next_and_of_equals_the_older() {
        let mut queue = Queue::default();
        for (id, tenant) in [(1, 9), (2, 9), (3, 9), (4, 5), (5, 5), (6, 7)] {
            arrive(&mut queue, id, tenant);
        }
        // 9 is charged 10 at a time, 5 twenty, 7 one.
        let order: Vec<u64> = [10, 20, 1, 10, 10, 20].map(|n_rows| serve(&mut queue, n_rows)).to_vec();
        assert_eq!(order, [1, 4, 6, 2, 3, 5]);
        assert_eq!((queue.next(), queue.len()), (None, 0));
    }

    #[test]
    fn what_comes_back_is_first_of_its_tenant_and_keeps_its_counter() {
        let mut queue = Queue::default();
        for (id, tenant) in [(1, 1), (2, 1), (4, 2), (5, 2), (6, 2)] {
            arrive(&mut queue, id, tenant);
        }
        let admit = |queue: &mut Queue| queue.next().map(|id| queue.admit(id)).expect("somebody waits");
        let first = admit(&mut queue);
        queue.charge(TenantId(1), 1);
        assert_eq!(serve(&mut queue, 50), 4);
        let second = admit(&mut queue);
        assert_eq!(serve(&mut queue, 50), 5);
        queue.come_back(second);
        queue.come_back(first);
        // 1 against 100, then 61 against 100.
        assert_eq!([60, 0, 0].map(|n_rows| serve(&mut queue, n_rows)), [1, 2, 6]);
        // Of equal counters it is the older again.
        let mut queue = Queue::default();
        for (id, tenant) in [(1, 1), (3, 2), (5, 1)] {
            arrive(&mut queue, id, tenant);
        }
        let first = admit(&mut queue);
        assert_eq!(queue.next(), Some(RequestId(3)));
        queue.come_back(first);
        assert_eq!([0; 3].map(|n_rows| serve(&mut queue, n_rows)), [1, 3, 5]);
    }

    #[test]
    fn being_away_earns_nothing_and_clears_no_debt() {
        let mut queue = Queue::default();
        (1..=9).for_each(|id| arrive(&mut queue, id, 1));
        arrive(&mut queue, 10, 2);
        assert_eq!([serve(&mut queue, 100), serve(&mut queue, 500), serve(&mut queue, 100)], [1, 10, 2]);
        queue.end(TenantId(2));
        // 1 stands at 200, 2 at 500; a new one starts at 200, after 1's older request.
        arrive(&mut queue, 11, 2);
        arrive(&mut queue, 12, 3);
        arrive(&mut queue, 13, 3);
        assert_eq!([1; 6].map(|_| serve(&mut queue, 100)), [3, 12, 4, 13, 5, 6]);
        // The counters stand at 600, 500 and 400, and 1 and 2 have requests left.
        assert_eq!([1; 3].map(|_| serve(&mut queue, 100)), [11, 7, 8]);
    }

    #[test]
    fn cancelled_requests_are_nowhere() {
        let mut queue = Queue::default();
        (1..=4).for_each(|id| arrive(&mut queue, id, id % 2));
        let mut follower = ticket(5, 1);
        follower.arrival.leader = Some(RequestId(1));
        queue.park(follower);
        for id in [1, 4, 5] {
            assert!(queue.cancel(RequestId(id)).is_some() && queue.cancel(RequestId(id)).is_none());
        }
        queue.unpark(RequestId(1));
        assert_eq!([serve(&mut queue, 1), serve(&mut queue, 1)], [2, 3]);
        assert_eq!((queue.next(), queue.len(), queue.order.len(), queue.parked.len()), (None, 0, 0, 0));
    }

    #[test]
    fn however_a_follower_goes_its_tenant_is_idle_without_it() {
        type Way = fn(&mut Queue);
        let ways: [Way; 3] = [
            |queue| drop(queue.cancel(RequestId(2))),
            |queue| {
                queue.succeed(RequestId(1));
                serve(queue, 1);
                queue.end(TenantId(1));
            },
            |queue| {
                queue.unpark(RequestId(1));
                serve(queue, 1);
                queue.end(TenantId(1));
            },
        ];
        for (way, go) in ways.iter().enumerate() {
            let mut queue = Queue::default();
            arrive(&mut queue, 1, 1);
            let mut follower = ticket(2, 1);
            follower.arrival.leader = Some(RequestId(1));
            queue.park(follower);
            serve(&mut queue, 1);
            assert_eq!((queue.next(), queue.idle.len()), (None, 0), "it waits for its leader");
            go(&mut queue);
            assert_eq!(queue.idle.len(), 0, "{way}: the leader runs");
            queue.end(TenantId(1));
            assert_eq!(queue.idle.len(), 1, "{way}");
        }
    }

    #[test]
    fn a_tenant_whose_request_came_back_is_idle_after_it() {
        let mut queue = Queue::default();
        arrive(&mut queue, 1, 1);
        let ran = queue.next().map(|id| queue.admit(id)).expect("it waits");
        queue.come_back(ran);
        serve(&mut queue, 1);
        queue.end(TenantId(1));
        assert_eq!(queue.idle.len(), 1);
    }

    #[test]
    fn tenants_are_forgotten_once_they_owe_nothing() {
        // One after the other: each starts where the one before stands, so nobody owes more than one request.
        let mut queue = Queue::default();
        for id in 0..1000 {
            arrive(&mut queue, id, id);
            serve(&mut queue, 10);
            queue.end(TenantId(id));
            assert!(queue.tenants.len() <= 2 && queue.idle.len() <= 2, "{}", queue.tenants.len());
        }
        // While others wait, who went owes something: so many are remembered.
        let mut queue = Queue::default();
        let n_tenants = MAX_IDLE_TENANTS as u64 + 100;
        (0..n_tenants).for_each(|id| arrive(&mut queue, id, id));
        for id in 0..n_tenants - 1 {
            assert_eq!(serve(&mut queue, 10 + id as usize), id);
            queue.end(TenantId(id));
        }
        arrive(&mut queue, n_tenants, n_tenants);
        assert_eq!(queue.idle.len(), MAX_IDLE_TENANTS);
        // Who owes most is remembered.
        arrive(&mut queue, n_tenants + 1, n_tenants - 2);
        arrive(&mut queue, n_tenants + 2, 0);
        let order = [1; 4].map(|_| serve(&mut queue, 0));
        assert_eq!(order, [n_tenants - 1, n_tenants, n_tenants + 2, n_tenants + 1]);
    }
}
