//! Who runs in the next step: a pure state machine. Events go in ([`Scheduler::arrive`], [`Scheduler::cancel`],
//! [`Scheduler::drawn`], ..), the work of one step comes out ([`Scheduler::plan`]). No clock, no thread, no device inside: the
//! same calls give the same work.

mod admission;
mod batching;
mod queue;
mod running;
#[cfg(test)]
mod tests;

use super::batch::{Batch, Seat};
pub use crate::backend::params::PageCopy;
use crate::kv::Store;
use admission::Room;
use queue::Queue;
use running::{Running, Table, Ticket};
use std::sync::Arc;

/// A request, by the number that the engine gave it. Numbers only grow: a smaller one is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Whose request it is: fairness is between tenants, and prefixes are shared within one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u64);

/// What the scheduler knows of the device.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Sequences at a time.
    pub n_slots: usize,
    /// Pages of the pool.
    pub n_pages: usize,
    /// Tokens in a page, per stack.
    pub page_tokens: Vec<usize>,
    /// Prompt rows per member and step beside all decode rows, per stack.
    pub prefill_rows: Vec<usize>,
    /// Steps under way at most before the oldest is read.
    pub lag: usize,
    /// Requests that may wait for their first slot; one more is refused.
    pub max_waiting: usize,
}

/// A prompt that one member computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneSpec {
    /// Weights that run it.
    pub seat: Seat,
    /// The prompt; at least one token.
    pub prompt: Arc<[u32]>,
}

/// A request as the scheduler sees it.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its number.
    pub id: RequestId,
    /// Whose it is.
    pub tenant: TenantId,
    /// One to three lanes; roles of equal weights and prompts share one.
    pub lanes: Vec<LaneSpec>,
    /// The lane each role reads: base, expert, anti-expert.
    pub lane_of_role: [usize; 3],
    /// Draws at most.
    pub max_tokens: usize,
    /// The next draw needs what the host makes of the last id: its steps are read before the next is submitted.
    pub needs_host: bool,
    /// An earlier request of the same prompts (sample 0 of `n`), whose prompt pages this one takes by reference. If it goes
    /// before they are computed, the oldest of those that wait for them takes its place.
    pub leader: Option<RequestId>,
}

/// Why a request does not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `max_waiting` requests wait.
    QueueFull,
    /// It needs more pages than there are.
    NeverFits {
        /// Pages it may need.
        needed: usize,
        /// Pages of the pool.
        limit: usize,
    },
}

/// A request that gets a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// Which.
    pub id: RequestId,
    /// The slot.
    pub slot: usize,
    /// Pages per lane, in the order of positions: the prompt's (and a recomputed response's).
    pub pages: Vec<Vec<u32>>,
    /// Ids drawn before it was preempted: the slot goes on after them.
    pub n_drawn: usize,
    /// Tokens per lane whose keys and values are there already.
    pub n_cached: Vec<usize>,
}

/// Pages that a lane gets while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The slot.
    pub slot: usize,
    /// Its lane.
    pub lane: usize,
    /// Index of the first new page in the lane's list.
    pub first: usize,
    /// The new pages.
    pub pages: Vec<u32>,
}

/// The work of one step, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// Slots whose holder was cancelled, preempted or ended by the host: no row of a later step may run for it.
    pub vacated: Vec<usize>,
    /// Slots that are filled. A slot may be vacated and filled in one step.
    pub admitted: Vec<Admission>,
    /// Page-table entries to write.
    pub grown: Vec<Growth>,
    /// Pages to copy before the rows. None is copied from and to, and none twice to.
    pub copies: Vec<PageCopy>,
    /// Rows and draws.
    pub batch: Batch,
    /// Who draws: one for each of `batch.samples`, in their order.
    pub draws: Vec<RequestId>,
    /// Steps that may be under way after this one: 0 where a request of it needs the host.
    pub lag: usize,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Submit this step; it counts as under way until [`Scheduler::collected`].
    Step(Box<Work>),
    /// Nothing can be submitted before the oldest step under way is read.
    Collect,
    /// Nothing runs and nothing waits.
    Idle,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that wait for a slot or pages.
    pub waiting: usize,
    /// Those of them that ran before.
    pub preempted: usize,
    /// Requests in slots.
    pub running: usize,
    /// Pages that nobody holds and that hold nothing.
    pub free: usize,
    /// Pages that requests hold.
    pub held: usize,
    /// Pages that nobody holds, kept for their prefix.
    pub cached: usize,
    /// Prompt tokens found computed, all lanes, since the start.
    pub hit_tokens: u64,
    /// Prompt tokens looked for and not found.
    pub missed_tokens: u64,
    /// Requests put back into the queue because the pool was full.
    pub preemptions: u64,
}

/// The state.
#[derive(Debug)]
pub struct Scheduler {
    sizes: Sizes,
    store: Store,
    queue: Queue,
    running: Table,
    /// Slots that lost their holders since the last step.
    vacated: Vec<usize>,
    n_under_way: usize,
    /// The request that did not fit, and how many pages were available then: before there are more, it is not tried.
    blocked: Option<(RequestId, usize)>,
    hit_tokens: u64,
    missed_tokens: u64,
    n_preemptions: u64,
}

impl Scheduler {
    /// Nothing waits, nothing runs, all pages are free.
    pub fn new(sizes: Sizes) -> Self {
        assert_eq!(sizes.page_tokens.len(), sizes.prefill_rows.len(), "one of each per stack");
        assert!(sizes.n_slots > 0 && sizes.page_tokens.iter().all(|&tokens| tokens > 0));
        Self {
            store: Store::new(sizes.n_pages),
            queue: Queue::default(),
            running: Table::new(sizes.n_slots),
            vacated: Vec::new(),
            n_under_way: 0,
            blocked: None,
            hit_tokens: 0,
            missed_tokens: 0,
            n_preemptions: 0,
            sizes,
        }
    }

    /// Queues a request, or refuses it at once.
    pub fn arrive(&mut self, arrival: Arrival) -> Result<(), Refusal> {
        self.assert_sound(&arrival);
        let ticket = Ticket { arrival, response: Vec::new(), n_preempted: 0 };
        let lanes = ticket.arrival.lanes.iter().enumerate();
        let needed =
            lanes.map(|(lane, spec)| ticket.n_worst(lane).div_ceil(self.sizes.page_tokens[spec.seat.stack])).sum();
        if needed > self.sizes.n_pages {
            return Err(Refusal::NeverFits { needed, limit: self.sizes.n_pages });
        }
        if self.queue.len() - self.queue.n_back() >= self.sizes.max_waiting {
            return Err(Refusal::QueueFull);
        }
        let computes = |leader: &RequestId| match self.running.get(*leader) {
            Some(running) => !running.is_prefilled,
            None => self.queue.ticket(*leader).is_some(),
        };
        if ticket.arrival.leader.as_ref().is_some_and(computes) {
            self.queue.park(ticket);
        } else {
            self.queue.arrive(ticket);
        }
        Ok(())
    }

    fn assert_sound(&self, arrival: &Arrival) {
        let Arrival { id, lanes, lane_of_role, max_tokens, .. } = arrival;
        assert!(!self.is_waiting(*id) && self.running.get(*id).is_none(), "{id:?} is taken");
        assert!((1..=3).contains(&lanes.len()) && lane_of_role.iter().all(|&lane| lane < lanes.len()));
        assert!(*max_tokens > 0, "a request draws");
        for lane in lanes {
            let n_sharing = lanes.iter().filter(|other| other.seat == lane.seat).count();
            assert!(n_sharing <= self.sizes.prefill_rows[lane.seat.stack], "each lane of a seat needs a row in a step");
            assert!(!lane.prompt.is_empty(), "the last token of a prompt gives the first draw");
        }
        let leader = arrival.leader.and_then(|leader| self.ticket(leader));
        let same =
            leader.is_none_or(|leader| leader.arrival.tenant == arrival.tenant && leader.arrival.lanes == *lanes);
        assert!(same, "a leader has its followers' prompts");
    }

    fn ticket(&self, id: RequestId) -> Option<&Ticket> {
        self.queue.ticket(id).or_else(|| self.running.get(id).map(|running| &running.ticket))
    }

    /// Takes a request out, wherever it is: cancelled, out of time, or ended by the host. Its pages can be used by the
    /// next step. False where it is not known (any more).
    pub fn cancel(&mut self, id: RequestId) -> bool {
        if self.queue.cancel(id).is_some() {
            self.queue.succeed(id);
            return true;
        }
        let slot = self.remove(id);
        self.vacated.extend(slot);
        slot.is_some()
    }

    /// A draw of `id` was read, in the order of the draws. Draws of requests that are gone are not told.
    pub fn drawn(&mut self, id: RequestId, token: u32) {
        let running = self.running.get_mut(id).expect("who draws runs");
        running.ticket.response.push(token);
        assert!(running.ticket.response.len() <= running.n_submitted, "{id:?} draws what was submitted");
    }

    /// The device has ended it (a stop id, its length, a numeric error): told after its last draw.
    pub fn ended(&mut self, id: RequestId) {
        self.remove(id).expect("who ends runs");
    }

    /// Ends a running request; gives the slot it had.
    fn remove(&mut self, id: RequestId) -> Option<usize> {
        let running = self.running.remove(id)?;
        let slot = running.slot;
        let ticket = running.release(&mut self.store, &self.sizes.page_tokens);
        self.queue.end(ticket.arrival.tenant);
        self.queue.succeed(id);
        Some(slot)
    }

    /// The oldest step under way is read: all its draws and ends were told.
    pub fn collected(&mut self) {
        self.n_under_way = self.n_under_way.checked_sub(1).expect("a step is under way");
    }

    /// The next step.
    pub fn plan(&mut self) -> Plan {
        if self.n_under_way > self.sizes.lag || self.running.iter().any(Running::awaits_host) {
            return Plan::Collect;
        }
        let batch = Batch::new(self.sizes.page_tokens.len());
        let mut work = Work { batch, lag: self.sizes.lag, ..Work::default() };
        let room = self.make_room();
        if room == Room::None {
            return Plan::Collect;
        }
        self.grow(&mut work);
        // What was preempted for would be lost again to the next in turn.
        if room == Room::Enough {
            self.admit(&mut work);
        }
        self.batch(&mut work);
        self.check();
        if !work.batch.is_empty() {
            self.n_under_way += 1;
            work.vacated = std::mem::take(&mut self.vacated);
            return Plan::Step(Box::new(work));
        }
        if self.n_under_way > 0 {
            return Plan::Collect;
        }
        assert!(
            self.running.len() == 0 && self.queue.len() == 0,
            "who runs or waits, while nothing is under way, has a row"
        );
        Plan::Idle
    }

    /// Asserts that every page is free, held or cached; with debug assertions, that running requests hold what is held.
    fn check(&self) {
        self.store.pool().check();
        if cfg!(debug_assertions) {
            let mut n_holders = vec![0; self.sizes.n_pages];
            let lanes = self.running.iter().flat_map(|running| &running.lanes);
            lanes.flat_map(|lane| &lane.pages).for_each(|&page| n_holders[page as usize] += 1);
            let held = (0..self.sizes.n_pages as u32).map(|page| self.store.pool().n_holders(page));
            assert!(held.eq(n_holders), "lanes hold what is held");
        }
    }

    /// Whether the request is known and not in a slot.
    pub fn is_waiting(&self, id: RequestId) -> bool {
        self.queue.ticket(id).is_some()
    }

    /// What is counted.
    pub fn counts(&self) -> Counts {
        let pool = self.store.pool();
        Counts {
            waiting: self.queue.len(),
            preempted: self.queue.n_back(),
            running: self.running.len(),
            free: pool.n_free(),
            held: pool.n_held(),
            cached: pool.n_cached(),
            hit_tokens: self.hit_tokens,
            missed_tokens: self.missed_tokens,
            preemptions: self.n_preemptions,
        }
    }
}
