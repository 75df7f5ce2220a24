//! The twin of `shaders/embed.wgsl`.

use super::rows::RowKernel;
use super::*;

/// See [`Embed`].
pub(super) fn run(cpu: &Cpu, op: Embed<'_, Cpu>) {
    let EmbedParams { cap, d_model, max_pages, scale, .. } = op.params;
    let (cap, d_model, n_rows) = (cap as usize, d_model as usize, rows::n_rows(op.extents));
    let (rows, slots) = (op.rows.view::<Row>(), op.slots.view::<Slot>());
    let mut places = op.places.view_mut::<Place>();
    for (member, n) in n_rows.into_iter().enumerate() {
        for index in member * cap..member * cap + n {
            places[index] = resolve(rows[index], &slots, max_pages);
        }
    }
    let table = Table { table: op.table, places: &places, cap, scale };
    rows::for_each_row(cpu, &mut op.x.view_mut(), [cap, d_model], n_rows, &table);
}

/// `x = scale * table[token]`.
struct Table<'a> {
    table: &'a Matrix,
    places: &'a [Place],
    cap: usize,
    scale: [f32; MAX_MEMBERS],
}

impl RowKernel for Table<'_> {
    #[inline(always)]
    fn run(&self, member: usize, row: usize, x: &mut [f32]) {
        let Place { live, token, .. } = self.places[member * self.cap + row];
        if live == 1 && (token as usize) < self.table.n_out() {
            self.table.read_row(member, token as usize, x);
            for x in x {
                *x *= self.scale[member];
            }
        } else {
            x.fill(0.0);
        }
    }
}

fn resolve(row: Row, slots: &[Slot], max_pages: u32) -> Place {
    let slot = &slots[row.slot as usize];
    let or = |given: u32, of_slot: u32| if given == FROM_SLOT { of_slot } else { given };
    Place {
        table: (row.slot * N_LANES as u32 + row.lane) * max_pages,
        position: or(row.position, slot.lengths[row.lane as usize]),
        live: (slot.finish == Finish::Running as u32).into(),
        token: or(row.token, slot.last_id),
    }
}
