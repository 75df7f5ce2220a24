//! What comes in, what is refused, and what no caller may ask.

use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn what_never_fits_is_refused_and_what_just_fits_runs() {
    let sizes = Sizes { n_pages: 3, ..sizes() };
    let mut bench = Bench::new(sizes);
    // 9 + 4 - 1 = 12 positions.
    let refused = bench.scheduler.arrive(base_only(1, 9, 5));
    assert_eq!(refused, Err(Refusal::NeverFits { needed: 4, limit: 3 }));
    bench.arrive(base_only(2, 9, 4));
    bench.arrive(base_only(3, 12, 1));
    let n_draws: usize = bench.run().iter().map(|work| work.draws.len()).sum();
    assert_eq!(n_draws, 5);
}

#[test]
fn the_queue_is_bounded() {
    let mut bench = Bench::new(Sizes { max_waiting: 2, n_slots: 1, ..sizes() });
    bench.arrive(base_only(1, 4, 2));
    bench.arrive(base_only(2, 4, 2));
    assert_eq!(bench.scheduler.arrive(base_only(3, 4, 2)), Err(Refusal::QueueFull));
    bench.step();
    assert_eq!(bench.scheduler.counts().waiting, 1);
    bench.arrive(base_only(4, 4, 2));
    bench.run();
    assert_eq!(bench.drawn.len(), 3);
}

#[test]
fn what_was_let_in_once_takes_no_place_in_the_queue() {
    let mut bench = Bench::new(Sizes { n_pages: 5, max_waiting: 1, ..sizes() });
    bench.arrive(base_only(1, 7, 6));
    bench.submit();
    bench.arrive(base_only(2, 7, 6));
    while bench.scheduler.counts().preemptions == 0 {
        bench.step().expect("two texts want six pages");
    }
    assert!(bench.scheduler.is_waiting(RequestId(2)));
    bench.arrive(base_only(3, 7, 6));
    assert_eq!(bench.scheduler.arrive(base_only(4, 7, 6)), Err(Refusal::QueueFull));
    bench.run();
    assert_eq!(bench.drawn.len(), 3);
}

#[test]
fn what_no_caller_may_ask_stops_the_program() {
    type Change = fn(&mut Arrival);
    let changes: [(&str, Change); 12] = [
        ("nothing", |_| ()),
        ("a number that waits", |it| it.id = RequestId(2)),
        ("a number that runs", |it| it.id = RequestId(1)),
        ("no lane", |it| it.lanes.clear()),
        ("four lanes", |it| it.lanes.extend_from_within(..1)),
        ("a role without a lane", |it| it.lane_of_role[2] = 3),
        ("no draw", |it| it.max_tokens = 0),
        ("no prompt", |it| it.lanes[1].prompt = [].into()),
        ("more lanes of a seat than rows", |it| it.lanes[0].seat = EXPERT),
        ("a running leader of another prompt", |it| it.leader = Some(RequestId(1))),
        ("a waiting leader of another tenant", |it| {
            (it.leader, it.lanes) = (Some(RequestId(2)), trio(2, 4, 2).lanes);
            it.tenant = TenantId(1);
        }),
        ("its own leader's prompt", |it| (it.leader, it.lanes) = (Some(RequestId(2)), trio(2, 4, 2).lanes)),
    ];
    for (what, change) in changes {
        let mut bench = Bench::new(Sizes { n_slots: 1, prefill_rows: vec![16, 1], ..sizes() });
        bench.arrive(trio(1, 4, 2));
        bench.submit();
        bench.arrive(trio(2, 4, 2));
        let mut arrival = trio(3, 4, 2);
        change(&mut arrival);
        let is_fine = catch_unwind(AssertUnwindSafe(|| bench.arrive(arrival))).is_ok();
        assert_eq!(is_fine, ["nothing", "its own leader's prompt"].contains(&what), "{what}");
    }
}
