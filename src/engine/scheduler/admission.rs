//! Who gets a slot and pages, and who has to give them back.

use super::running::{Lane, Running, Ticket};
use super::{Admission, Growth, PageCopy, RequestId, Scheduler, Work};

/// After so many preemptions a request is admitted with all pages it can need, and keeps them.
const MAX_PREEMPTIONS: u32 = 3;

/// What is there for a lane already, and what it needs beside.
struct Share {
    /// Computed pages to hold with others.
    shared: Vec<u32>,
    /// A page whose beginning is computed, to copy into the first new page.
    copied: Option<u32>,
    /// Tokens computed.
    n_cached: usize,
    /// New pages.
    n_new: usize,
}

/// Whether running requests can have the pages of their next rows.
#[derive(PartialEq)]
pub(super) enum Room {
    /// All can.
    Enough,
    /// All that still run can.
    Made,
    /// Not before a step under way is read: one may end in it.
    None,
}

impl Scheduler {
    /// Sees to it that every decoding request can grow, by preempting the youngest where nothing else is left.
    pub(super) fn make_room(&mut self) -> Room {
        let mut room = Room::Enough;
        while self.n_lacking() > self.store.n_available() {
            if self.n_under_way > 0 {
                return Room::None;
            }
            self.preempt();
            room = Room::Made;
        }
        room
    }

    /// Pages that decoding requests need for their next rows.
    fn n_lacking(&self) -> usize {
        let growing = self.running.iter().filter(|running| running.grows());
        let lanes = growing.flat_map(|running| (0..running.lanes.len()).map(move |lane| (running, lane)));
        lanes.filter(|(running, lane)| running.lacks_page(*lane, &self.sizes.page_tokens)).count()
    }

    fn preempt(&mut self) {
        let victims = self.running.iter().filter(|running| running.ticket.n_preempted < MAX_PREEMPTIONS);
        let victim = victims.map(Running::id).max().expect("who holds all its pages needs none");
        let running = self.running.remove(victim).expect("the victim runs");
        self.vacated.push(running.slot);
        let mut ticket = running.release(&mut self.store, &self.sizes.page_tokens);
        ticket.n_preempted += 1;
        self.queue.come_back(ticket);
        self.n_preemptions += 1;
    }

    /// Gives every lane the pages of its next row.
    pub(super) fn grow(&mut self, work: &mut Work) {
        let (store, page_tokens) = (&mut self.store, &self.sizes.page_tokens);
        self.running.for_each(|running| {
            if !running.grows() {
                return;
            }
            for lane in 0..running.lanes.len() {
                if running.lacks_page(lane, page_tokens) {
                    let pages = store.take(&[1]).remove(0);
                    let held = &mut running.lanes[lane].pages;
                    let first = held.len();
                    held.extend(&pages);
                    work.grown.push(Growth { slot: running.slot, lane, first, pages });
                }
            }
            running.foresee_growth(page_tokens);
        });
    }

    /// Fills free slots, in turn, while all pages of the next request can be had.
    pub(super) fn admit(&mut self, work: &mut Work) {
        while let (Some(slot), Some(id)) = (self.running.free_slot(), self.queue.next()) {
            let n_available = self.store.n_available();
            if self.blocked.is_some_and(|(blocked, n_pages)| blocked == id && n_available <= n_pages) {
                break;
            }
            let shares = self.shares(self.queue.ticket(id).expect("the next request waits"));
            let revived =
                |share: &Share| share.shared.iter().filter(|&&page| self.store.pool().is_cached(page)).count();
            let n_needed: usize = shares.iter().map(|share| share.n_new + revived(share)).sum();
            if n_needed > n_available {
                self.blocked = Some((id, n_available));
                break;
            }
            self.fill(slot, id, shares, work);
        }
    }

    /// What every lane of a waiting request finds and needs.
    fn shares(&self, ticket: &Ticket) -> Vec<Share> {
        let leader = ticket.arrival.leader.and_then(|leader| self.running.get(leader));
        let leader = leader.filter(|leader| leader.is_prefilled && ticket.response.is_empty());
        (0..ticket.arrival.lanes.len()).map(|lane| self.share(ticket, lane, leader)).collect()
    }

    fn share(&self, ticket: &Ticket, lane: usize, leader: Option<&Running>) -> Share {
        let page_tokens = self.page_tokens(ticket, lane);
        // The last token is computed in any case: its logits are wanted.
        let n_useful = ticket.n_known(lane) - 1;
        let n_full = n_useful / page_tokens;
        let (shared, copied) = match leader {
            Some(leader) => {
                let pages = &leader.lanes[lane].pages;
                (pages[..n_full].to_vec(), (!n_useful.is_multiple_of(page_tokens)).then(|| pages[n_full]))
            }
            None => (self.find(ticket, lane, n_full), None),
        };
        let n_positions = if ticket.n_preempted < MAX_PREEMPTIONS {
            ticket.n_worst(lane).min(ticket.n_known(lane) + 1)
        } else {
            ticket.n_worst(lane)
        };
        Share {
            n_cached: if leader.is_some() { n_useful } else { shared.len() * page_tokens },
            n_new: n_positions.div_ceil(page_tokens) - shared.len(),
            shared,
            copied,
        }
    }

    /// The first pages of a lane, `n_pages` at most, as far as they are known.
    fn find(&self, ticket: &Ticket, lane: usize, n_pages: usize) -> Vec<u32> {
        let (space, page_tokens) = (ticket.space(lane), self.page_tokens(ticket, lane));
        let mut found: Vec<u32> = Vec::new();
        for at in 0..n_pages {
            let tokens = ticket.tokens(lane, at * page_tokens..(at + 1) * page_tokens);
            let Some(page) = self.store.find(space, found.last().copied(), &tokens) else { break };
            found.push(page);
        }
        found
    }

    fn fill(&mut self, slot: usize, id: RequestId, shares: Vec<Share>, work: &mut Work) {
        let ticket = self.queue.admit(id);
        // Before pages are taken, so that none of them is forgotten to make room.
        shares.iter().flat_map(|share| &share.shared).for_each(|&page| self.store.hold(page));
        let taken = self.store.take(&shares.iter().map(|share| share.n_new).collect::<Vec<_>>());
        let n_cached: Vec<usize> = shares.iter().map(|share| share.n_cached).collect();
        let mut lanes = Vec::new();
        for (index, (share, new)) in shares.into_iter().zip(taken).enumerate() {
            work.copies.extend(share.copied.map(|from| PageCopy { from, to: new[0] }));
            let n_registered = share.shared.len();
            let pages = share.shared.into_iter().chain(new).collect();
            lanes.push(Lane { pages, n_prompt: ticket.n_known(index), n_prefilled: share.n_cached, n_registered });
        }
        if ticket.n_preempted == 0 {
            let n_missed = lanes.iter().map(Lane::n_left).sum();
            self.queue.charge(ticket.arrival.tenant, n_missed);
            self.hit_tokens += n_cached.iter().sum::<usize>() as u64;
            self.missed_tokens += n_missed as u64;
        }
        let pages = lanes.iter().map(|lane| lane.pages.clone()).collect();
        work.admitted.push(Admission { id, slot, pages, n_drawn: ticket.response.len(), n_cached });
        let n_submitted = ticket.response.len();
        self.running.insert(Running { ticket, slot, lanes, n_submitted, is_prefilled: false, n_until_growth: 0 });
    }

    fn page_tokens(&self, ticket: &Ticket, lane: usize) -> usize {
        self.sizes.page_tokens[ticket.arrival.lanes[lane].seat.stack]
    }
}
