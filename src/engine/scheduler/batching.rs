//! Which rows the next step computes: one per lane of every decoding request, then prompts as far as there is room.

use super::running::{Lane, Running};
use super::{Scheduler, Work};
use crate::backend::params::{FROM_SLOT, Row, Sample};
use crate::engine::batch::{Batch, Seat};

impl Scheduler {
    /// Fills the step's rows and draws.
    pub(super) fn batch(&mut self, work: &mut Work) {
        let queue = &mut self.queue;
        self.running.for_each(|running| {
            if running.decodes() {
                running.decode(work);
                queue.charge(running.ticket.arrival.tenant, running.lanes.len());
            }
        });
        self.prefill(work);
    }

    /// Decode rows never wait for prompts: those come on top of them.
    fn prefill(&mut self, work: &mut Work) {
        let n_decode: Vec<_> = work.batch.stacks.iter().map(|stack| stack.rows.each_ref().map(Vec::len)).collect();
        let sizes = &self.sizes;
        let limit = |seat: Seat| n_decode[seat.stack][seat.member] + sizes.prefill_rows[seat.stack];
        let (store, queue) = (&mut self.store, &mut self.queue);
        self.running.for_each(|running| {
            if running.is_prefilled {
                return;
            }
            running.prefill(work, limit);
            running.register(store, &sizes.page_tokens);
            if running.is_prefilled {
                running.foresee_growth(&sizes.page_tokens);
                queue.unpark(running.id());
            }
        });
    }
}

impl Running {
    fn decode(&mut self, work: &mut Work) {
        let slot = self.slot as u32;
        for (index, lane) in self.ticket.arrival.lanes.iter().enumerate() {
            let row = Row { slot, lane: index as u32, token: FROM_SLOT, position: FROM_SLOT };
            work.batch.push(lane.seat, row);
        }
        self.n_until_growth -= 1;
        self.draw(work);
    }

    /// Adds the next chunk of each prompt, in a step of at most `limit` rows per seat. All lanes end their prompts in
    /// the same step, so that their logits meet.
    fn prefill(&mut self, work: &mut Work, limit: impl Fn(Seat) -> usize) {
        let takes = self.prefill_takes(|seat| limit(seat) - work.batch.n_rows(seat));
        for (index, take) in takes.into_iter().enumerate() {
            let (lane, seat) = (&mut self.lanes[index], self.ticket.arrival.lanes[index].seat);
            for position in lane.n_prefilled..lane.n_prefilled + take {
                let token = self.ticket.token(index, position);
                let row = Row { slot: self.slot as u32, lane: index as u32, token, position: position as u32 };
                work.batch.push(seat, row);
            }
            lane.n_prefilled += take;
        }
        self.is_prefilled = self.lanes.iter().all(|lane| lane.n_left() == 0);
        if self.is_prefilled {
            self.draw(work);
        }
    }

    /// Prompt tokens to take per lane: all that is left where every lane's fits, else no lane's last.
    fn prefill_takes(&self, room: impl Fn(Seat) -> usize) -> Vec<usize> {
        let seats = || self.ticket.arrival.lanes.iter().map(|lane| lane.seat);
        let share = |seat| room(seat) / seats().filter(|&other| other == seat).count();
        let complete = self.lanes.iter().zip(seats()).all(|(lane, seat)| lane.n_left() <= share(seat));
        let take =
            |(lane, seat): (&Lane, Seat)| share(seat).min(if complete { lane.n_left() } else { lane.n_left() - 1 });
        self.lanes.iter().zip(seats()).map(take).collect()
    }

    /// Draws from the row that each lane pushed last.
    fn draw(&mut self, work: &mut Work) {
        let slot = self.slot as u32;
        let gather = |batch: &mut Batch, (lane, seat)| batch.gather_last(seat, slot, lane as u32);
        let seats = self.ticket.arrival.lanes.iter().map(|lane| lane.seat).enumerate();
        let rows: Vec<u32> = seats.map(|lane| gather(&mut work.batch, lane)).collect();
        let [row_base, row_expert, row_anti] = self.ticket.arrival.lane_of_role.map(|lane| rows[lane]);
        work.batch.samples.push(Sample { slot, row_base, row_expert, row_anti });
        work.draws.push(self.id());
        // What the host has to see is read before anything else is submitted.
        if self.ticket.arrival.needs_host {
            work.lag = 0;
        }
        self.n_submitted += 1;
    }
}
