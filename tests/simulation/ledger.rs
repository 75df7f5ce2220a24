//! What must be true of a step when it is submitted: who holds which slot and page, and whose turn each row is.

use crate::line::Line;
use crate::script::Script;
use proxytune::backend::params::{FROM_SLOT, Row, Sample};
use proxytune::engine::scheduler::{Admission, Counts, Growth, PageCopy, RequestId, Sizes, Work};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// A request is preempted so often at most, and then admitted with all the pages that it can ever need.
const MAX_PREEMPTIONS: usize = 3;

/// A request that was accepted and has no answer yet.
pub(crate) struct Live {
    pub(crate) script: Rc<Script>,
    /// Draws that the host has read.
    pub(crate) n_read: usize,
    n_preemptions: usize,
    /// Rows that were computed for anybody when it began to wait, and how many more it waits at most.
    waits_since: u64,
    patience: u64,
}

/// A request in a slot.
struct Holder {
    id: RequestId,
    script: Rc<Script>,
    pages: Vec<Vec<u32>>,
    /// It keeps all the pages that it can ever need.
    has_all: bool,
    /// Per lane, the position of the next row.
    next: Vec<usize>,
    /// Draws before it came into the slot.
    n_before: usize,
    /// Draws in all.
    n_drawn: usize,
    /// The step by which it must have left.
    leaves_by: u64,
}

impl Holder {
    fn is_decoding(&self) -> bool {
        self.n_drawn > self.n_before
    }

    /// Tokens of a lane that are computed before the first draw.
    fn n_tokens(&self, lane: usize) -> usize {
        self.script.lanes[lane].prompt.len() + self.n_before
    }

    /// Positions of a lane that can ever be computed: the last draw's id is not.
    fn n_worst(&self, lane: usize) -> usize {
        self.script.lanes[lane].prompt.len() + self.script.max_tokens - 1
    }

    fn n_prompt_rows(&self) -> usize {
        (0..self.next.len()).map(|lane| self.n_tokens(lane).saturating_sub(self.next[lane])).sum()
    }
}

/// What a step did, beside what it had to do.
pub(crate) struct Done {
    /// Rows per tenant: a prompt's when it comes in, but for what is found computed, a response's as they run. What a
    /// preempted request computes again is nobody's.
    pub(crate) served: Vec<u64>,
}

pub(crate) struct Ledger {
    sizes: Sizes,
    n_tenants: usize,
    pub(crate) live: BTreeMap<RequestId, Live>,
    pub(crate) line: Line,
    holders: Vec<Option<Holder>>,
    /// Lanes that hold a page.
    n_holding: Vec<u32>,
    n_held: usize,
    /// Slots whose holder the host took out: the next step says so to the device.
    to_vacate: BTreeSet<usize>,
    n_steps: u64,
    pub(crate) n_rows: u64,
    n_preemptions: u64,
    n_hit: u64,
    n_missed: u64,
}

impl Ledger {
    pub(crate) fn new(sizes: &Sizes, n_tenants: usize) -> Self {
        Self {
            sizes: sizes.clone(),
            n_tenants,
            live: BTreeMap::new(),
            line: Line::new(n_tenants),
            holders: (0..sizes.n_slots).map(|_| None).collect(),
            n_holding: vec![0; sizes.n_pages],
            n_held: 0,
            to_vacate: BTreeSet::new(),
            n_steps: 0,
            n_rows: 0,
            n_preemptions: 0,
            n_hit: 0,
            n_missed: 0,
        }
    }

    /// It was accepted, and waits while at most `patience` rows are computed.
    pub(crate) fn arrive(&mut self, id: RequestId, script: Rc<Script>, leader: Option<RequestId>, patience: u64) {
        let is_missing = |leader: &RequestId| match self.holder(*leader) {
            Some(holder) => holder.n_prompt_rows() > 0,
            None => self.live.contains_key(leader),
        };
        let behind = leader.filter(is_missing);
        self.line.join(id, script.tenant, behind);
        let live = Live { script, n_read: 0, n_preemptions: 0, waits_since: self.n_rows, patience };
        self.live.insert(id, live);
    }

    fn slot_of(&self, id: RequestId) -> Option<usize> {
        self.holders.iter().position(|holder| holder.as_ref().is_some_and(|holder| holder.id == id))
    }

    fn holder(&self, id: RequestId) -> Option<&Holder> {
        self.holders.iter().flatten().find(|holder| holder.id == id)
    }

    pub(crate) fn is_waiting(&self, id: RequestId) -> bool {
        self.live.contains_key(&id) && self.slot_of(id).is_none()
    }

    fn n_running(&self) -> usize {
        self.holders.iter().flatten().count()
    }

    /// The host takes the request out, wherever it is. Who is answered is live, and is not after it: no second answer.
    pub(crate) fn cancel(&mut self, id: RequestId) -> Live {
        match self.slot_of(id) {
            Some(slot) => {
                self.release(slot);
                self.to_vacate.insert(slot);
            }
            None => self.line.leave(id, self.live[&id].script.tenant),
        }
        self.line.succeed(id);
        self.live.remove(&id).expect("a request is answered once")
    }

    /// The device has ended it.
    pub(crate) fn end(&mut self, id: RequestId) -> Live {
        let slot = self.slot_of(id).expect("what ends is in a slot");
        self.release(slot);
        self.line.succeed(id);
        self.live.remove(&id).expect("a request is answered once")
    }

    fn release(&mut self, slot: usize) -> Holder {
        let holder = self.holders[slot].take().expect("a filled slot");
        for &page in holder.pages.iter().flatten() {
            self.n_holding[page as usize] -= 1;
            self.n_held -= usize::from(self.n_holding[page as usize] == 0);
        }
        holder
    }

    /// Holds the scheduler's counts against what it said so far.
    pub(crate) fn check_counts(&self, counts: &Counts) {
        assert_eq!(
            counts.free + counts.held + counts.cached,
            self.sizes.n_pages,
            "every page is somewhere: {counts:?}"
        );
        assert_eq!(counts.held, self.n_held, "held pages: {counts:?}");
        assert_eq!(counts.running, self.n_running(), "running requests: {counts:?}");
        assert_eq!(counts.waiting, self.live.len() - self.n_running(), "waiting requests: {counts:?}");
        assert_eq!(counts.preemptions, self.n_preemptions, "{counts:?}");
        assert_eq!((counts.hit_tokens, counts.missed_tokens), (self.n_hit, self.n_missed), "{counts:?}");
    }

    /// Checks a step, and takes its effects in. `n_under_way` steps were submitted before and are not read.
    pub(crate) fn submit(&mut self, work: &Work, n_under_way: usize) -> Done {
        let mut done = Done { served: vec![0; self.n_tenants] };
        self.n_steps += 1;
        self.vacate(work, n_under_way);
        for admission in &work.admitted {
            self.admit(admission, &work.copies, &mut done);
        }
        work.grown.iter().for_each(|growth| self.grow(growth));
        work.copies.iter().for_each(|copy| self.check_copy(copy, work));
        self.rows(work, &mut done);
        self.draws(work);
        self.check_limits(work);
        for holder in self.holders.iter().flatten() {
            self.check_progress(holder);
            if holder.is_decoding() {
                self.line.let_go(holder.id);
            }
        }
        done
    }

    fn vacate(&mut self, work: &Work, n_under_way: usize) {
        for &slot in &work.vacated {
            if self.to_vacate.remove(&slot) {
                continue;
            }
            let youngest = self.holders.iter().flatten().filter(|holder| !holder.has_all).map(|holder| holder.id).max();
            assert!(self.holders[slot].is_some(), "slot {slot} is vacated and held nobody");
            let Holder { id, n_drawn, .. } = self.release(slot);
            assert_eq!(Some(id), youngest, "not the youngest is preempted");
            assert_eq!(n_under_way, 0, "{id:?} is preempted with steps under way");
            let live = self.live.get_mut(&id).expect("a holder is live");
            assert_eq!(live.n_read, n_drawn, "{id:?} is preempted with draws unread");
            live.n_preemptions += 1;
            assert!(live.n_preemptions <= MAX_PREEMPTIONS, "{id:?} is preempted once more");
            live.waits_since = self.n_rows;
            self.line.join(id, live.script.tenant, None);
            self.n_preemptions += 1;
        }
        assert!(self.to_vacate.is_empty(), "slots {:?} are not vacated", self.to_vacate);
    }

    fn admit(&mut self, admission: &Admission, copies: &[PageCopy], done: &mut Done) {
        let Admission { id, slot, ref pages, n_drawn, ref n_cached } = *admission;
        assert!(self.holders[slot].is_none(), "slot {slot} is filled twice");
        let request = self.live.get(&id).unwrap_or_else(|| panic!("{id:?} is gone and comes in"));
        let script = request.script.clone();
        assert_eq!(self.line.first(script.tenant), Some(id), "first come, first served within a tenant");
        self.line.leave(id, script.tenant);
        assert_eq!(n_drawn, request.n_read, "{id:?} goes on where it was");
        let waited = self.n_rows - request.waits_since;
        assert!(waited <= request.patience, "{id:?} waited for {waited} rows, {} are allowed", request.patience);
        let is_first = request.n_preemptions == 0;
        let holder = Holder {
            id,
            pages: pages.clone(),
            has_all: request.n_preemptions == MAX_PREEMPTIONS,
            next: n_cached.clone(),
            n_before: n_drawn,
            n_drawn,
            leaves_by: u64::MAX,
            script,
        };
        self.check_pages(&holder, copies);
        pages.iter().flatten().for_each(|&page| self.hold(page));
        if is_first {
            self.n_hit += n_cached.iter().sum::<usize>() as u64;
            self.n_missed += holder.n_prompt_rows() as u64;
            done.served[holder.script.tenant.0 as usize] += holder.n_prompt_rows() as u64;
        }
        self.holders[slot] = Some(holder);
        // While somebody's prompt is not in, a step computes a row of the one that is longest in its slot; from then on
        // every step draws.
        let n_prompt_rows: usize = self.holders.iter().flatten().map(Holder::n_prompt_rows).sum();
        let holder = self.holders[slot].as_mut().expect("just filled");
        let n_steps = n_prompt_rows + holder.script.max_tokens + self.sizes.lag;
        holder.leaves_by = self.n_steps + n_steps as u64;
    }

    /// Pages for the prompt and a token, of which only computed ones are shared, and what is shared in part is a copy.
    fn check_pages(&self, holder: &Holder, copies: &[PageCopy]) {
        let id = holder.id;
        assert_eq!((holder.pages.len(), holder.next.len()), (holder.script.lanes.len(), holder.script.lanes.len()));
        let mut fresh = BTreeSet::new();
        for (index, pages) in holder.pages.iter().enumerate() {
            let tokens = self.page_tokens(holder, index);
            let (n_cached, n_tokens) = (holder.next[index], holder.n_tokens(index));
            let n_positions = if holder.has_all { holder.n_worst(index) } else { n_tokens + 1 };
            let n_pages = n_positions.min(holder.n_worst(index)).div_ceil(tokens);
            assert_eq!(pages.len(), n_pages, "pages of lane {index} of {id:?}");
            assert!(n_cached < n_tokens, "the last token of {id:?} is computed");
            let (shared, new) = pages.split_at(n_cached / tokens);
            for &page in new {
                let is_free = self.n_holding[page as usize] == 0 && fresh.insert(page);
                assert!(is_free, "page {page} is new to {id:?} and held");
            }
            assert!(shared.iter().all(|page| !fresh.contains(page)), "{id:?} shares with itself what is not computed");
            let is_copied = copies.iter().any(|copy| copy.to == new[0]);
            assert_eq!(is_copied, !n_cached.is_multiple_of(tokens), "what of {id:?} is found in part is copied");
        }
    }

    fn page_tokens(&self, holder: &Holder, lane: usize) -> usize {
        self.sizes.page_tokens[holder.script.lanes[lane].seat.stack]
    }

    fn hold(&mut self, page: u32) {
        self.n_held += usize::from(self.n_holding[page as usize] == 0);
        self.n_holding[page as usize] += 1;
    }

    fn grow(&mut self, growth: &Growth) {
        for &page in &growth.pages {
            assert_eq!(self.n_holding[page as usize], 0, "page {page} is new and is held");
            self.hold(page);
        }
        let holder = self.holders[growth.slot].as_mut().expect("a filled slot grows");
        assert_eq!(growth.first, holder.pages[growth.lane].len(), "slot {} grows at its end", growth.slot);
        holder.pages[growth.lane].extend(&growth.pages);
    }

    /// A copy is for a request that comes in, into a page that it alone has, and no other copy's.
    fn check_copy(&self, copy: &PageCopy, work: &Work) {
        assert_eq!(self.n_holding[copy.to as usize], 1, "{copy:?} goes to a page of several");
        let others = work.copies.iter().filter(|other| other.to == copy.to || other.from == copy.to);
        assert_eq!(others.count(), 1, "{copy:?} meets another copy");
        let comes_in =
            work.admitted.iter().any(|admission| admission.pages.iter().flatten().any(|&page| page == copy.to));
        assert!(comes_in && copy.from != copy.to, "{copy:?} is for nobody");
    }

    fn rows(&mut self, work: &Work, done: &mut Done) {
        for (stack, rows) in work.batch.stacks.iter().enumerate() {
            for (member, rows) in rows.rows.iter().enumerate() {
                for row in rows {
                    let holder = self.holders[row.slot as usize].as_mut().expect("a row is of a slot that is filled");
                    let lane = row.lane as usize;
                    let seat = holder.script.lanes[lane].seat;
                    assert_eq!((seat.stack, seat.member), (stack, member), "{row:?} is at another's seat");
                    let position = advance(holder, row);
                    let page = holder.pages[lane].get(position / self.sizes.page_tokens[stack]);
                    let page = *page.unwrap_or_else(|| panic!("{row:?} has no page at {position}"));
                    assert_eq!(self.n_holding[page as usize], 1, "{row:?} writes into page {page}, which others hold");
                    let is_decode = position >= holder.n_tokens(lane);
                    done.served[holder.script.tenant.0 as usize] += u64::from(is_decode);
                    self.n_rows += 1;
                }
            }
        }
    }

    fn draws(&mut self, work: &Work) {
        assert_eq!(work.draws.len(), work.batch.samples.len(), "every draw is somebody's");
        let mut drew = vec![false; self.sizes.n_slots];
        for (sample, &id) in work.batch.samples.iter().zip(&work.draws) {
            let slot = sample.slot as usize;
            assert!(!std::mem::replace(&mut drew[slot], true), "slot {slot} draws twice in a step");
            let holder = self.holders[slot].as_mut().expect("a draw is of a slot that is filled");
            assert_eq!(holder.id, id, "slot {slot} draws for another");
            check_sample(holder, work, sample);
            holder.n_drawn += 1;
            assert!(holder.n_drawn <= holder.script.max_tokens, "{id:?} draws more than max_tokens");
            if holder.script.needs_host {
                assert_eq!(self.live[&id].n_read + 1, holder.n_drawn, "{id:?} draws before its last id was read");
                assert_eq!(work.lag, 0, "{id:?} needs the host");
            }
        }
        for (holder, drew) in self.holders.iter().zip(drew).filter_map(|(holder, drew)| Some((holder.as_ref()?, drew)))
        {
            let is_at_end = holder.n_drawn == holder.script.max_tokens;
            assert!(drew || !holder.is_decoding() || is_at_end, "{:?} decodes and does not draw", holder.id);
        }
    }

    /// After a step: rows are as far as draws are, and pages no further than rows.
    fn check_progress(&self, holder: &Holder) {
        let id = holder.id;
        for (lane, (&next, pages)) in holder.next.iter().zip(&holder.pages).enumerate() {
            if holder.is_decoding() {
                assert_eq!(next, holder.n_tokens(lane) + holder.n_drawn - holder.n_before - 1, "{id:?} is in step");
            }
            let n_positions = next.max(holder.n_tokens(lane) + 1).min(holder.n_worst(lane));
            let n_pages = n_positions.div_ceil(self.page_tokens(holder, lane));
            assert!(pages.len() == n_pages || holder.has_all, "{id:?} holds pages before it needs them");
        }
        assert!(holder.is_decoding() || holder.n_prompt_rows() > 0, "{id:?} has its prompt in and does not draw");
        assert!(self.n_steps <= holder.leaves_by, "{id:?} is in its slot too long");
    }

    fn check_limits(&self, work: &Work) {
        assert!(!work.batch.is_empty(), "a step without rows");
        assert!(work.lag <= self.sizes.lag, "a lag of {} is not allowed", work.lag);
        for (stack, rows) in work.batch.stacks.iter().enumerate() {
            for rows in &rows.rows {
                let n_prompt = rows.iter().filter(|row| row.position != FROM_SLOT).count();
                let limit = self.sizes.prefill_rows[stack];
                assert!(n_prompt <= limit, "{n_prompt} prompt rows of a member, {limit} are allowed");
            }
        }
    }
}

/// The position of a row, which must be the next of its lane.
fn advance(holder: &mut Holder, row: &Row) -> usize {
    let (id, lane) = (holder.id, row.lane as usize);
    let position = holder.next[lane];
    if position < holder.n_tokens(lane) {
        assert_eq!(row.position as usize, position, "prompt rows of {id:?} are in order");
        assert_eq!(row.token, holder.script.token(lane, position), "the token of {id:?} at {position}");
    } else {
        assert!(holder.is_decoding(), "{id:?} goes on before its first draw");
        assert_eq!((row.position, row.token), (FROM_SLOT, FROM_SLOT), "{id:?} takes its last id from its slot");
    }
    holder.next[lane] = position + 1;
    position
}

/// A draw is from the last rows of the three roles' lanes, which stand at the same response length.
fn check_sample(holder: &Holder, work: &Work, sample: &Sample) {
    let id = holder.id;
    let indices = [sample.row_base, sample.row_expert, sample.row_anti];
    for (&lane, index) in holder.script.lane_of_role.iter().zip(indices) {
        let seat = holder.script.lanes[lane].seat;
        let stack = &work.batch.stacks[seat.stack];
        let row = &stack.rows[seat.member][stack.gather[seat.member][index as usize] as usize];
        assert_eq!((row.slot, row.lane), (sample.slot, lane as u32), "{id:?} draws from another's row");
        let is_last = row.position == FROM_SLOT || row.position as usize + 1 == holder.next[lane];
        assert!(is_last, "{id:?} draws from {row:?}, which is not its last");
    }
    for (lane, &next) in holder.script.lanes.iter().zip(&holder.next) {
        assert_eq!(next, lane.prompt.len() + holder.n_drawn, "{id:?} draws before all its lanes are there");
    }
}
