//! A step as lists: the rows of each stack, the rows whose logits are wanted, the samples to draw.
//!
//! Between two decode steps nothing in it changes, because tokens and positions come from the slots' own cells: the
//! machine uploads it only when it does.

use crate::backend::params::{FROM_SLOT, MAX_MEMBERS, Row, Sample};

/// Where a role's weights are: which stack, which member of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seat {
    /// Index of the stack.
    pub stack: usize,
    /// Index of the member in the stack.
    pub member: usize,
}

/// Rows of one stack.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StackRows {
    /// Rows to compute, per member.
    pub rows: [Vec<Row>; MAX_MEMBERS],
    /// Indices into `rows` whose logits are wanted, per member.
    pub gather: [Vec<u32>; MAX_MEMBERS],
}

impl StackRows {
    /// The largest number of rows of a member.
    pub fn n_rows(&self) -> usize {
        self.rows.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// The largest number of gathered rows of a member.
    pub fn n_logits(&self) -> usize {
        self.gather.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// One entry per stack.
    pub stacks: Vec<StackRows>,
    /// Slots that draw a token at the end of the step.
    pub samples: Vec<Sample>,
}

impl Batch {
    /// Nothing to do, for `n_stacks` stacks.
    pub fn new(n_stacks: usize) -> Self {
        Self { stacks: vec![StackRows::default(); n_stacks], samples: Vec::new() }
    }

    /// True where no row is computed.
    pub fn is_empty(&self) -> bool {
        self.stacks.iter().all(|stack| stack.n_rows() == 0)
    }

    /// True where a prompt's rows are among those of the step: they come last.
    pub fn has_prompts(&self) -> bool {
        let last = self.stacks.iter().flat_map(|stack| &stack.rows).filter_map(|rows| rows.last());
        last.into_iter().any(|row| row.token != FROM_SLOT)
    }

    /// Rows that `seat` computes so far.
    pub fn n_rows(&self, seat: Seat) -> usize {
        self.stacks[seat.stack].rows[seat.member].len()
    }

    /// Adds a row.
    pub fn push(&mut self, seat: Seat, row: Row) {
        self.stacks[seat.stack].rows[seat.member].push(row);
    }

    /// Asks for the logits of the last row of a slot's lane at `seat`; gives its index among the member's logits rows.
    pub fn gather_last(&mut self, seat: Seat, slot: u32, lane: u32) -> u32 {
        let stack = &mut self.stacks[seat.stack];
        let rows = &stack.rows[seat.member];
        let last = rows.iter().rposition(|row| row.slot == slot && row.lane == lane).expect("the lane has a row");
        let gather = &mut stack.gather[seat.member];
        gather.push(last as u32);
        gather.len() as u32 - 1
    }
}
