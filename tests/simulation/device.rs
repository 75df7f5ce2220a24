//! A device whose keys and values are hashes: each cell of a page says of which tokens, in which model, for which tenant
//! it is. It works off its queue late and in order, as devices do, and checks every cell that a row reads.

use crate::rng::Rng;
use crate::script::{Draw, Ending, Script, extend, start};
use proxytune::backend::params::{FROM_SLOT, MAX_MEMBERS, Row, Sample};
use proxytune::engine::batch::Batch;
use proxytune::engine::scheduler::{Admission, RequestId, Work};
use std::collections::VecDeque;
use std::rc::Rc;

/// What one token left in a page.
#[derive(Clone, Copy)]
struct Cell {
    /// Of the prefix that ends with the token.
    hash: u64,
    /// The step that wrote it, and the lane that did: rows of one step do not see each other's, but for their own lane's.
    step: u64,
    writer: (u32, u32),
}

const POISON: Cell = Cell { hash: 0xdead_dead_dead_dead, step: 0, writer: (u32::MAX, u32::MAX) };

/// Of so many rows one has all cells before it compared; the others the last, and the last of every page. As each cell
/// is made of the one before, that finds the same errors, a little later.
const FULL_CHECK_ONE_IN: usize = 32;

struct Slot {
    script: Rc<Script>,
    pages: Vec<Vec<u32>>,
    /// Per lane, where the last id is embedded next.
    lengths: Vec<usize>,
    n_drawn: usize,
    is_running: bool,
}

/// What a step says of one of its draws.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drawn {
    pub(crate) id: RequestId,
    /// Absent where the slot had ended before, or fails now.
    pub(crate) token: Option<u32>,
    /// How it ended, from the step on in which it did.
    pub(crate) ended: Option<Ending>,
}

struct Submitted {
    work: Work,
    scripts: Vec<Rc<Script>>,
}

pub(crate) struct Device {
    page_tokens: Vec<usize>,
    /// Cells of a page, at the most tokens that one holds.
    stride: usize,
    cells: Vec<Cell>,
    slots: Vec<Option<Slot>>,
    queue: VecDeque<Submitted>,
    done: VecDeque<Vec<Drawn>>,
    step: u64,
    rng: Rng,
}

impl Device {
    pub(crate) fn new(n_slots: usize, n_pages: usize, page_tokens: &[usize], rng: Rng) -> Self {
        let stride = *page_tokens.iter().max().expect("a stack");
        Self {
            page_tokens: page_tokens.to_vec(),
            stride,
            cells: vec![POISON; n_pages * stride],
            slots: (0..n_slots).map(|_| None).collect(),
            queue: VecDeque::new(),
            done: VecDeque::new(),
            step: 0,
            rng,
        }
    }

    /// `scripts` are those of the admitted.
    pub(crate) fn submit(&mut self, work: Work, scripts: Vec<Rc<Script>>) {
        self.queue.push_back(Submitted { work, scripts });
        // It may have caught up, or not yet have begun.
        for _ in 0..self.rng.below(4) {
            self.run_oldest();
        }
    }

    /// What the oldest step drew.
    pub(crate) fn collect(&mut self) -> Vec<Drawn> {
        if self.done.is_empty() {
            self.run_oldest();
        }
        self.done.pop_front().expect("a step is under way")
    }

    fn run_oldest(&mut self) {
        let Some(Submitted { work, scripts }) = self.queue.pop_front() else { return };
        self.step += 1;
        for &slot in &work.vacated {
            self.slots[slot] = None;
        }
        for (admission, script) in work.admitted.iter().zip(scripts) {
            self.admit(admission, script);
        }
        for growth in &work.grown {
            growth.pages.iter().for_each(|&page| self.poison(page));
            // A slot that ended by itself may be another's at the host's; not before it says so here.
            let slot = self.slots[growth.slot].as_mut().expect("a growing slot is filled");
            slot.pages[growth.lane].extend(&growth.pages);
        }
        for copy in &work.copies {
            let from = copy.from as usize * self.stride;
            self.cells.copy_within(from..from + self.stride, copy.to as usize * self.stride);
        }
        let states = self.run_rows(&work.batch);
        let samples = work.batch.samples.iter().zip(&work.draws);
        let drawn = samples.map(|(sample, &id)| self.sample(&work.batch, &states, *sample, id)).collect();
        self.done.push_back(drawn);
    }

    /// New pages hold what their last holders left, which must not matter.
    fn admit(&mut self, admission: &Admission, script: Rc<Script>) {
        for (lane, (pages, n_cached)) in script.lanes.iter().zip(admission.pages.iter().zip(&admission.n_cached)) {
            let n_shared = n_cached / self.page_tokens[lane.seat.stack];
            pages[n_shared..].iter().for_each(|&page| self.poison(page));
        }
        let n_drawn = admission.n_drawn;
        let lengths = script.lanes.iter().map(|lane| lane.prompt.len() + n_drawn - 1).collect();
        let pages = admission.pages.clone();
        self.slots[admission.slot] = Some(Slot { script, pages, lengths, n_drawn, is_running: true });
    }

    fn poison(&mut self, page: u32) {
        self.cells[page as usize * self.stride..][..self.stride].fill(POISON);
    }

    /// The state after every row, as `[stack][member][row]`.
    fn run_rows(&mut self, batch: &Batch) -> Vec<[Vec<u64>; MAX_MEMBERS]> {
        let mut states = vec![<[Vec<u64>; MAX_MEMBERS]>::default(); batch.stacks.len()];
        for (stack, states) in batch.stacks.iter().zip(&mut states) {
            for (rows, states) in stack.rows.iter().zip(states) {
                states.extend(rows.iter().map(|row| self.run_row(row)));
            }
        }
        states
    }

    fn run_row(&mut self, row: &Row) -> u64 {
        let slot = self.slots[row.slot as usize].as_ref().expect("a row is of a filled slot");
        if !slot.is_running {
            return POISON.hash;
        }
        let lane = &slot.script.lanes[row.lane as usize];
        let is_decode = row.position == FROM_SLOT;
        let position = if is_decode { slot.lengths[row.lane as usize] } else { row.position as usize };
        let token = if row.token == FROM_SLOT { slot.script.response[slot.n_drawn - 1] } else { row.token };
        let pages = &slot.pages[row.lane as usize];
        let tokens = self.page_tokens[lane.seat.stack];
        let index = |position: usize| pages[position / tokens] as usize * self.stride + position % tokens;
        let own = (row.slot, row.lane);
        let check = |at: usize| {
            let Cell { hash, step, writer } = self.cells[index(at)];
            assert!(hash == lane.hashes[at], "page {} holds something else at {at}, {row:?}", pages[at / tokens]);
            assert!(step < self.step || writer == own, "{row:?} reads what another lane writes in the same step");
        };
        if self.rng.below(FULL_CHECK_ONE_IN) == 0 {
            (0..position).for_each(check);
        } else if position > 0 {
            (tokens - 1..position).step_by(tokens).chain([position - 1]).for_each(check);
        }
        let before =
            if position == 0 { start(slot.script.tenant, lane.seat) } else { self.cells[index(position - 1)].hash };
        let hash = extend(before, token);
        assert!(hash == lane.hashes[position], "{row:?} computes another token than position {position} has");
        let at = index(position);
        self.cells[at] = Cell { hash, step: self.step, writer: own };
        hash
    }

    fn sample(&mut self, batch: &Batch, states: &[[Vec<u64>; MAX_MEMBERS]], sample: Sample, id: RequestId) -> Drawn {
        let slot = self.slots[sample.slot as usize].as_mut().expect("a draw is of a filled slot");
        let script = &slot.script;
        if !slot.is_running {
            return Drawn { id, token: None, ended: Some(script.ending) };
        }
        let state = |role: usize, row: u32| {
            let seat = script.lanes[script.lane_of_role[role]].seat;
            states[seat.stack][seat.member][batch.stacks[seat.stack].gather[seat.member][row as usize] as usize]
        };
        let states = [state(0, sample.row_base), state(1, sample.row_expert), state(2, sample.row_anti)];
        let draw = script.sampling.draw(states);
        let expected = script.response.get(slot.n_drawn).copied();
        let token = match draw {
            Draw::Token(token) | Draw::StopToken(token) => Some(token),
            Draw::Fails => None,
        };
        assert_eq!(token, expected, "{id:?} draws another id at {}", slot.n_drawn);
        if token.is_some() {
            slot.n_drawn += 1;
            slot.lengths.iter_mut().for_each(|length| *length += 1);
        }
        let is_last = token.is_none() || matches!(draw, Draw::StopToken(_)) || slot.n_drawn == script.max_tokens;
        slot.is_running = !is_last;
        Drawn { id, token, ended: is_last.then_some(script.ending) }
    }
}
