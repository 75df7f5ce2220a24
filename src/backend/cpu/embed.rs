//! The twin of `shaders/embed.wgsl`.

use super::*;

/// See [`Embed`].
pub(super) fn run(op: Embed<'_, Cpu>) {
    let EmbedParams { cap, d_model, max_pages, scale, .. } = op.params;
    let (cap, d_model) = (cap as usize, d_model as usize);
    let (rows, slots) = (op.rows.view::<Row>(), op.slots.view::<Slot>());
    let (mut x, mut places) = (op.x.view_mut::<f32>(), op.places.view_mut::<Place>());
    for (member, n_rows) in rows::n_rows(op.extents).into_iter().enumerate() {
        for index in member * cap..member * cap + n_rows {
            let place = resolve(rows[index], &slots, max_pages);
            places[index] = place;
            let x = &mut x[index * d_model..][..d_model];
            if place.live == 1 && (place.token as usize) < op.table.n_out() {
                op.table.read_row(member, place.token as usize, x);
                x.iter_mut().for_each(|x| *x *= scale[member]);
            } else {
                x.fill(0.0);
            }
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
