//! Cases of [`Embed`].

use super::compare::{Output, Want};
use super::inputs::{Stream, Weights, filled, finish, poisoned};
use super::launch::{Check, Launch, POISON};
use super::matrix::{N_CASES, Shape};
use crate::Result;
use crate::backend::params::{EmbedParams, FROM_SLOT, Finish, MAX_MEMBERS, N_LANES, Place, Row, Slot};
use crate::backend::{Backend, Embed};
use bytemuck::Zeroable;

const MAX_PAGES: u32 = 11;
const N_SLOTS: usize = 5;
const SCALE: [f32; 2] = [1.0, 22.627_417];

pub(super) fn check<B: Backend, T: Backend>(check: &mut Check<'_, B, T>) -> Result<()> {
    for case in 0..N_CASES {
        check.launch(&Case { shape: Shape::of_case(case) })?;
    }
    for dtype in Shape::DTYPES {
        check.in_company(|rows| Case { shape: Shape::in_company(dtype, rows.start, rows.len()) })?;
    }
    Ok(())
}

/// The matrix of the shape is the table.
#[derive(Debug)]
struct Case {
    shape: Shape,
}

impl Case {
    /// Running and finished slots; the last one's id is past the table.
    fn slots(&self) -> [Slot; N_SLOTS] {
        let n_vocab = self.shape.spec.n_rows as u32;
        std::array::from_fn(|index| {
            let n = index as u32;
            let finish = [Finish::Running, Finish::Stop, Finish::Running, Finish::Cancelled, Finish::Running][index];
            let last_id = if index + 1 == N_SLOTS { n_vocab } else { (n * 7 + 1) % n_vocab };
            Slot { last_id, finish: finish as u32, lengths: [3 + n, 100 + n, 1000 + n], ..Slot::zeroed() }
        })
    }

    /// Row `row` of a member: tokens from the host or the slot, some past the table.
    fn row_of(&self, member: usize, row: usize) -> Row {
        let Shape { random, rows, spec } = self.shape;
        let bits = |column| random.bits(Stream::Rows, (rows.first + row) * MAX_MEMBERS + member, column);
        let token = match bits(0) % 8 {
            0 | 1 => FROM_SLOT,
            2 => spec.n_rows as u32,
            3 => FROM_SLOT - 1,
            _ => bits(1) % spec.n_rows as u32,
        };
        let position = if bits(2) % 2 == 0 { FROM_SLOT } else { bits(3) % 5000 };
        Row { slot: bits(4) % N_SLOTS as u32, lane: bits(5) % N_LANES as u32, token, position }
    }

    fn place_of(&self, row: Row) -> Place {
        let slot = self.slots()[row.slot as usize];
        let length = slot.lengths[row.lane as usize];
        Place {
            table: (row.slot * N_LANES as u32 + row.lane) * MAX_PAGES,
            position: if row.position == FROM_SLOT { length } else { row.position },
            live: u32::from(slot.finish == Finish::Running as u32),
            token: if row.token == FROM_SLOT { slot.last_id } else { row.token },
        }
    }

    fn table(&self) -> Weights {
        let Shape { random, rows, spec } = self.shape;
        Weights::new(random, Stream::Weights, spec, rows.n_members)
    }
}

impl Launch for Case {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>> {
        let Shape { rows, spec, .. } = self.shape;
        let words = [rows.total() * spec.n_cols, rows.total() * size_of::<Place>() / 4];
        let (x, places) = (poisoned(backend, "x", words[0])?, poisoned(backend, "places", words[1])?);
        let nothing = Row { slot: u32::MAX, lane: u32::MAX, token: u32::MAX, position: u32::MAX };
        let of_step = |place: Option<(usize, usize)>| place.map_or(nothing, |(member, row)| self.row_of(member, row));
        let row_records = filled(backend, "rows", &rows.each().map(of_step).collect::<Vec<_>>())?;
        let slots = filled(backend, "slots", &self.slots())?;
        let extents = filled(backend, "extents", &rows.extents([0; 2]))?;
        let (cap, d_model) = (rows.cap as u32, spec.n_cols as u32);
        let op = Embed {
            x: &x,
            places: &places,
            table: &self.table().upload(backend)?,
            rows: &row_records,
            slots: &slots,
            extents: &extents,
            n_rows: rows.most(),
            params: EmbedParams { cap, d_model, max_pages: MAX_PAGES, reserved: 0, scale: SCALE },
        };
        let mut pass = backend.begin();
        backend.embed(&mut pass, op);
        finish(backend, pass, &[("x", &x, words[0]), ("places", &places, words[1])])
    }

    fn expected(&self) -> Vec<Vec<Want>> {
        let (Shape { rows, spec, .. }, table) = (self.shape, self.table());
        // One product per element, rounded once: exact.
        let x = Shape::wants(&rows, spec.n_cols, |member, row, column| {
            let place = self.place_of(self.row_of(member, row));
            if place.live == 0 || place.token as usize >= spec.n_rows {
                return Want::Bits(0);
            }
            Want::Bits((SCALE[member] * table.row(member, place.token as usize)[column]).to_bits())
        });
        let place = |place: Option<(usize, usize)>| match place {
            None => [POISON; 4],
            Some((member, row)) => bytemuck::cast(self.place_of(self.row_of(member, row))),
        };
        vec![x, rows.each().flat_map(place).map(Want::Bits).collect()]
    }

    fn row(&self, outputs: &[Output], index: usize) -> Vec<u32> {
        let part = |output: &Output, width: usize| output.bits[index * width..][..width].to_vec();
        [part(&outputs[0], self.shape.spec.n_cols), part(&outputs[1], size_of::<Place>() / 4)].concat()
    }
}
