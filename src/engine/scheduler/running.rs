//! Requests in slots: what each has computed, which pages it holds.

use super::{Arrival, RequestId};
use crate::kv::Store;
use crate::kv::prefix::Space;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

/// A request in any state: what it asks for and what is left of earlier runs.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) arrival: Arrival,
    /// Ids drawn, as far as they were read.
    pub(super) response: Vec<u32>,
    pub(super) n_preempted: u32,
}

impl Ticket {
    /// Tokens of a lane that are known: its prompt and the response so far.
    pub(super) fn n_known(&self, lane: usize) -> usize {
        self.arrival.lanes[lane].prompt.len() + self.response.len()
    }

    /// Positions of a lane that get keys and values at most: the last draw's id is not computed.
    pub(super) fn n_worst(&self, lane: usize) -> usize {
        self.arrival.lanes[lane].prompt.len() + self.arrival.max_tokens - 1
    }

    /// Known tokens of a lane.
    pub(super) fn tokens(&self, lane: usize, range: Range<usize>) -> Cow<'_, [u32]> {
        let prompt = &self.arrival.lanes[lane].prompt;
        match prompt.get(range.clone()) {
            Some(tokens) => Cow::Borrowed(tokens),
            None => range.map(|position| self.token(lane, position)).collect(),
        }
    }

    /// The known token at a position of a lane.
    pub(super) fn token(&self, lane: usize, position: usize) -> u32 {
        let prompt = &self.arrival.lanes[lane].prompt;
        prompt.get(position).copied().unwrap_or_else(|| self.response[position - prompt.len()])
    }

    /// Who can find the pages of a lane.
    pub(super) fn space(&self, lane: usize) -> Space {
        Space { tenant: self.arrival.tenant, seat: self.arrival.lanes[lane].seat }
    }
}

/// Progress of one lane.
#[derive(Debug)]
pub(super) struct Lane {
    /// Pages held, in the order of positions.
    pub(super) pages: Vec<u32>,
    /// Tokens to compute before the first draw of this run: the prompt, and a response to be recomputed.
    pub(super) n_prompt: usize,
    /// How many of them were given to a step, or found computed.
    pub(super) n_prefilled: usize,
    /// Pages that are known, or never will be.
    pub(super) n_registered: usize,
}

impl Lane {
    pub(super) fn n_left(&self) -> usize {
        self.n_prompt - self.n_prefilled
    }
}

/// A request in a slot.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) ticket: Ticket,
    pub(super) slot: usize,
    pub(super) lanes: Vec<Lane>,
    /// Draws submitted, those of earlier runs included.
    pub(super) n_submitted: usize,
    /// Every lane's prompt was given to a step.
    pub(super) is_prefilled: bool,
    /// Draws of a decoding request until a lane needs a page: what a step asks of most requests is this number alone.
    pub(super) n_until_growth: usize,
}

impl Running {
    pub(super) fn id(&self) -> RequestId {
        self.ticket.arrival.id
    }

    /// The next step draws for it.
    pub(super) fn decodes(&self) -> bool {
        self.is_prefilled && self.n_submitted < self.ticket.arrival.max_tokens
    }

    /// The next draw needs a page first.
    pub(super) fn grows(&self) -> bool {
        self.n_until_growth == 0 && self.decodes()
    }

    /// The host has to read a draw before the next can be made.
    pub(super) fn awaits_host(&self) -> bool {
        self.ticket.arrival.needs_host && self.n_submitted > self.ticket.response.len()
    }

    /// Whether a lane of a decoding request has no page for its next row. Then it lacks one: positions go up by one.
    pub(super) fn lacks_page(&self, lane: usize, page_tokens: &[usize]) -> bool {
        self.n_ahead(lane, page_tokens) == 0
    }

    /// Counts anew when the next page is needed.
    pub(super) fn foresee_growth(&mut self, page_tokens: &[usize]) {
        let lanes = 0..self.lanes.len();
        self.n_until_growth = lanes.map(|lane| self.n_ahead(lane, page_tokens)).min().expect("a request has lanes");
    }

    /// Positions from a decoding lane's next row to the end of its pages.
    fn n_ahead(&self, lane: usize, page_tokens: &[usize]) -> usize {
        let spec = &self.ticket.arrival.lanes[lane];
        let next = spec.prompt.len() + self.n_submitted - 1;
        self.lanes[lane].pages.len() * page_tokens[spec.seat.stack] - next
    }

    /// Makes the full pages known whose tokens are read and whose rows surely ran. A row that embeds a drawn id runs only
    /// if the sequence did not end with that id: the next draw tells.
    pub(super) fn register(&mut self, store: &mut Store, page_tokens: &[usize]) {
        let is_prefilled = self.is_prefilled;
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let page_tokens = page_tokens[self.ticket.arrival.lanes[index].seat.stack];
            let n_sure = lane.n_prefilled.max(if is_prefilled { self.ticket.n_known(index) - 1 } else { 0 });
            for at in lane.n_registered..n_sure / page_tokens {
                let parent = at.checked_sub(1).map(|before| lane.pages[before]);
                // Where an equal page of another request is known, this lane's later pages are not found through it.
                if parent.is_none_or(|parent| store.knows(parent)) {
                    let tokens = self.ticket.tokens(index, at * page_tokens..(at + 1) * page_tokens);
                    store.register(self.ticket.space(index), parent, &tokens, lane.pages[at]);
                }
                lane.n_registered = at + 1;
            }
        }
    }

    /// Lets all pages go, what is known being kept. The lanes go together, from their ends: what is forgotten first is
    /// of no use to the others either.
    pub(super) fn release(mut self, store: &mut Store, page_tokens: &[usize]) -> Ticket {
        self.register(store, page_tokens);
        let first_position = |(index, lane): (usize, &Lane)| {
            let page_tokens = page_tokens[self.ticket.arrival.lanes[index].seat.stack];
            lane.pages.len().checked_sub(1).map(|last| (last * page_tokens, index))
        };
        while let Some((_, lane)) = self.lanes.iter().enumerate().filter_map(first_position).max() {
            store.release(self.lanes[lane].pages.pop().expect("the lane has a page"));
        }
        self.ticket
    }
}

/// The slots.
#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Option<Running>>,
    /// Filled slots, longest running first.
    order: Vec<usize>,
    free: Vec<usize>,
    slot_of: HashMap<RequestId, usize>,
}

impl Table {
    pub(super) fn new(n_slots: usize) -> Self {
        Self {
            slots: (0..n_slots).map(|_| None).collect(),
            order: Vec::new(),
            free: (0..n_slots).rev().collect(),
            slot_of: HashMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// A slot that nobody has.
    pub(super) fn free_slot(&self) -> Option<usize> {
        self.free.last().copied()
    }

    pub(super) fn get(&self, id: RequestId) -> Option<&Running> {
        self.slots[*self.slot_of.get(&id)?].as_ref()
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Running> {
        self.slots[*self.slot_of.get(&id)?].as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Running> {
        self.order.iter().map(|&slot| self.slots[slot].as_ref().expect("a slot in order is filled"))
    }

    /// Calls `each` for every running request, longest running first.
    pub(super) fn for_each(&mut self, mut each: impl FnMut(&mut Running)) {
        for &slot in &self.order {
            each(self.slots[slot].as_mut().expect("a slot in order is filled"));
        }
    }

    /// Fills the free slot that `running` names.
    pub(super) fn insert(&mut self, running: Running) {
        assert_eq!(self.free.pop(), Some(running.slot), "the slot is the free one");
        self.order.push(running.slot);
        self.slot_of.insert(running.id(), running.slot);
        let slot = running.slot;
        self.slots[slot] = Some(running);
    }

    /// Empties the slot of `id`.
    pub(super) fn remove(&mut self, id: RequestId) -> Option<Running> {
        let slot = self.slot_of.remove(&id)?;
        self.order.retain(|&other| other != slot);
        self.free.push(slot);
        self.slots[slot].take()
    }
}
