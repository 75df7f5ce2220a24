//! Small worlds with a known outcome: who is served when, and what is found computed.

use crate::clients::Order;
use crate::rng::Rng;
use crate::setup::Setup;
use crate::world::World;
use proxytune::engine::batch::Seat;
use proxytune::engine::scheduler::{Admission, LaneSpec, RequestId, Sizes};

fn world(sizes: Sizes, n_tenants: usize) -> World {
    World::new(Setup::quiet(sizes, n_tenants), Rng::new(1), None)
}

fn sizes(n_slots: usize, n_pages: usize) -> Sizes {
    Sizes { n_slots, n_pages, page_tokens: vec![4, 6], prefill_rows: vec![64, 64], lag: 8, max_waiting: 2000 }
}

/// Lanes of the three models; the prompt of each is so long, and begins with `first`.
fn lanes(lengths: [usize; 3], first: u32) -> Vec<LaneSpec> {
    let seats = [(0, 0), (1, 0), (1, 1)].map(|(stack, member)| Seat { stack, member });
    let lane = |(seat, length): (Seat, usize)| LaneSpec { seat, prompt: (first..first + length as u32).collect() };
    seats.into_iter().zip(lengths).map(lane).collect()
}

fn base_alone(length: usize, first: u32) -> Vec<LaneSpec> {
    lanes([length; 3], first)[..1].to_vec()
}

/// Runs until `id` comes in; who came in since, it being the last.
fn until_admitted(world: &mut World, id: u64) -> Vec<Admission> {
    let mut admitted = Vec::new();
    while admitted.last().is_none_or(|last: &Admission| last.id != RequestId(id)) {
        assert!(!world.is_idle(), "{id} never comes in");
        world.admitted.clear();
        world.turn();
        admitted.append(&mut world.admitted);
    }
    admitted
}

fn finish(mut world: World) {
    while !world.is_idle() {
        world.turn();
    }
    world.run();
}

/// Its counter is lifted to that of the flood, no further: of the two, the older request goes first once at most.
#[test]
fn one_request_does_not_wait_behind_a_thousand() {
    for n_slots in [1, 4] {
        let mut world = world(sizes(n_slots, 1000), 2);
        (0..1000).for_each(|id| world.arrive(Order::new(id, 0, lanes([9, 5, 7], 10 * id as u32), 6, None)));
        (0..200).for_each(|_| world.turn());
        world.arrive(Order::new(1000, 1, lanes([9, 5, 7], 0), 6, None));
        let n_before = until_admitted(&mut world, 1000).len() - 1;
        assert!(n_before <= 1, "{n_before} requests of the flood went before it");
        finish(world);
    }
}

/// Long prompts and short answers against short prompts and long answers, both always waiting: what they are served
/// differs by a factor of 2 at most over any interval in which the lesser is served twice what 2 U allows, and hardly at
/// all over many.
#[test]
fn tenants_that_stay_backlogged_are_served_alike() {
    let mut world = world(sizes(4, 200), 2);
    (0..600).for_each(|id| world.arrive(Order::new(2 * id, 0, lanes([40, 1, 2], 50 * id as u32), 2, None)));
    (0..600).for_each(|id| world.arrive(Order::new(2 * id + 1, 1, base_alone(1, id as u32), 43, None)));
    // 2 U, of the largest prompt and of four responses.
    let interval = 2 * (43 + 4 * 43);
    let mut since = [0, 0];
    let mut n_intervals = 0;
    while world.fairness.served.iter().sum::<u64>() < 40_000 {
        world.turn();
        let served: Vec<u64> = world.fairness.served.iter().zip(since).map(|(now, then)| now - then).collect();
        let (least, most) = (served[0].min(served[1]), served[0].max(served[1]));
        assert!(most < 2 * interval || most <= 2 * least, "{served:?} rows, beginning at {since:?}");
        if least >= interval {
            since = [world.fairness.served[0], world.fairness.served[1]];
            n_intervals += 1;
        }
    }
    let [first, second] = [world.fairness.served[0], world.fairness.served[1]];
    assert!(n_intervals > 20 && first.abs_diff(second) <= interval, "{first} and {second} in {n_intervals} intervals");
    finish(world);
}

/// One tenant works alone for long; when another comes, both are served alike from then on.
#[test]
fn being_away_earns_nothing() {
    let mut world = world(sizes(2, 100), 2);
    (0..400).for_each(|id| world.arrive(Order::new(id, 0, base_alone(10, 20 * id as u32), 10, None)));
    (0..500).for_each(|_| world.turn());
    (400..800).for_each(|id| world.arrive(Order::new(id, 1, base_alone(10, 20 * id as u32), 10, None)));
    finish(world);
}

/// While the samples of one prompt wait for it, others fill the slots. That is no debt to their tenant: were it paid back,
/// two tenants that wait would be served further apart than [`crate::fairness`] allows.
#[test]
fn waiting_for_the_own_prompt_earns_nothing() {
    let mut world = world(Sizes { prefill_rows: vec![1, 1], lag: 0, ..sizes(8, 1000) }, 2);
    (0..4).for_each(|id| world.arrive(Order::new(id, 1, base_alone(40, 0), 1, (id > 0).then_some(0))));
    (4..100).for_each(|id| world.arrive(Order::new(id, 0, base_alone(40, 100 * id as u32), 1, None)));
    (0..45).for_each(|_| world.turn());
    (100..200).for_each(|id| world.arrive(Order::new(id, 1, base_alone(40, 100 * id as u32), 1, None)));
    finish(world);
}

/// Full pages that lie before the last token are found, by the same tenant only, and a chat finds its response.
#[test]
fn a_repeated_prompt_is_found_computed() {
    let cases = [([9, 13, 6], [8, 12, 0]), ([8, 12, 7], [4, 6, 6]), ([1, 4, 25], [0, 0, 24])];
    for (lengths, found) in cases {
        let mut world = world(sizes(1, 100), 2);
        for (id, tenant, found) in [(0, 0, [0; 3]), (1, 0, found), (2, 1, [0; 3]), (3, 1, found)] {
            world.arrive(Order::new(id, tenant, lanes(lengths, 0), 3, None));
            let admitted = until_admitted(&mut world, id);
            assert_eq!(admitted[0].n_cached, found, "{lengths:?}, tenant {tenant}");
        }
        finish(world);
    }
}

#[test]
fn a_chat_finds_its_response_computed() {
    let mut world = world(sizes(1, 100), 1);
    let first = Order::new(0, 0, base_alone(6, 0), 10, None);
    let prompt = [&first.script.transcript(0)[..], &[1, 2, 3]].concat();
    world.arrive(first);
    let lane = LaneSpec { prompt: prompt.into(), ..base_alone(1, 0).remove(0) };
    world.arrive(Order::new(1, 0, vec![lane], 3, None));
    // 6 + 10 tokens, of which the last was drawn and not computed: three pages of four.
    assert_eq!(until_admitted(&mut world, 1)[1].n_cached, [12]);
    finish(world);
}

/// Runs one request after the other, each a tenant and the first token of its prompt of nine; what the last one found.
/// Each leaves two full pages behind, and a third free.
fn found_by_the_last(n_pages: usize, requests: &[(u64, u32)]) -> usize {
    let mut world = world(sizes(1, n_pages), 2);
    let mut n_cached = 0;
    for (id, &(tenant, first)) in (0..).zip(requests) {
        world.arrive(Order::new(id, tenant, base_alone(9, first), 3, None));
        n_cached = until_admitted(&mut world, id)[0].n_cached[0];
    }
    finish(world);
    n_cached
}

/// Where pages are wanted, the prompt that was used longest ago loses them, its later pages first.
#[test]
fn what_was_used_longest_ago_is_forgotten() {
    let (a, b, c, d, e) = ((0, 0), (0, 100), (0, 200), (0, 300), (0, 400));
    for (n_pages, asked, found) in [(9, a, 8), (9, b, 0), (9, c, 8), (10, b, 4), (11, b, 8)] {
        assert_eq!(found_by_the_last(n_pages, &[a, b, c, a, d, e, asked]), found, "{n_pages} pages, {asked:?}");
    }
}

#[test]
fn a_flood_drives_out_itself() {
    let flood = (1..50).map(|i| (0, 100 * i));
    let requests: Vec<(u64, u32)> = [(1, 0)].into_iter().chain(flood).chain([(1, 0)]).collect();
    assert_eq!(found_by_the_last(12, &requests), 8);
}

/// A follower computes one token per lane, beside its leader, whatever part of a page its prompt ends in.
#[test]
fn samples_of_one_prompt_share_it() {
    for lengths in [[9, 13, 6], [8, 12, 7], [1, 1, 1], [2, 4, 5]] {
        let mut world = world(sizes(3, 100), 1);
        world.arrive(Order::new(0, 0, lanes(lengths, 0), 8, None));
        (1..=2).for_each(|id| world.arrive(Order::new(id, 0, lanes(lengths, 0), 8, Some(0))));
        for follower in &until_admitted(&mut world, 2)[1..] {
            assert_eq!(follower.n_cached, lengths.map(|length| length - 1), "{lengths:?}");
        }
        let copied = lengths.iter().zip([4, 6, 6]).filter(|&(length, tokens)| (length - 1) % tokens > 0).count() as u64;
        assert_eq!(world.summary.n_copies, 2 * copied, "{lengths:?}");
        finish(world);
    }
}

/// A pool of one request's pages: the older goes on, the younger begins again, and both have their text.
#[test]
fn the_younger_gives_way() {
    // A prompt of 4 tokens and 16 draws take 5 pages in the end, 2 at first.
    let mut world = world(Sizes { lag: 0, ..sizes(2, 6) }, 1);
    (0..2).for_each(|id| world.arrive(Order::new(id, 0, base_alone(4, 100 * id as u32), 16, None)));
    assert_eq!(until_admitted(&mut world, 1).len(), 2);
    let again = until_admitted(&mut world, 1).remove(0);
    assert!(again.n_drawn > 0 && again.n_cached[0] >= 4, "{again:?}");
    finish(world);
}
