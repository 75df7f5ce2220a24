//! The truths of the contract that hold exactly, bit for bit, and those that hold where margins allow.

use crate::cases::{self, SETTINGS, Setting, filters};
use crate::harness::{Case, Launch, Outcome, Random, Shape, run};
use proxytune::backend::Backend;
use proxytune::backend::math::{gumbel, philox};
use proxytune::backend::params::{MAX_SLOTS, Slot};

crate::on_each_backend!(
    alpha_zero_is_the_base_and_reads_no_pair,
    expert_alone_is_a_base_and_reads_no_other,
    equal_pair_is_the_base,
    exchanged_pair_with_negated_alpha_is_the_same,
    neutral_filters_change_no_bit,
    top_k_of_one_is_the_arg_max,
    company_changes_no_bit,
    same_seed_draws_the_same_ids_among_any_others,
    alpha_masks_bias_and_penalties_apply_in_this_order,
    constant_on_a_row_changes_no_draw,
    base_as_log_probabilities_draws_the_same,
);

const N: usize = 300;

/// Cases of every setting over random rows, one alpha each.
fn cases(seed: u32, alpha: f32) -> Vec<Case> {
    let mut random = Random::new(seed);
    let case = |(_, set): (_, Setting)| {
        let mut case = Case::plain(std::array::from_fn(|_| random.normals(N, 3.0)), N, alpha);
        // The sign of a zero is a bit too.
        case.rows[0][7] = -0.0;
        set(&mut case, &mut random);
        case
    };
    SETTINGS.into_iter().map(case).collect()
}

fn run_each<B: Backend>(backend: &B, cases: &[Case], change: impl Fn(&mut Case)) -> Vec<Outcome> {
    let mut cases = cases.to_vec();
    cases.iter_mut().for_each(change);
    run(backend, &Shape::plain(N), &cases, 0)
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// Equal in every bit that a request can see, but for the slot's own settings.
fn assert_same(left: &[Outcome], right: &[Outcome]) {
    assert_eq!(left.len(), right.len());
    for (index, (left, right)) in left.iter().zip(right).enumerate() {
        assert_eq!(left.slot.ring, right.slot.ring, "case {index}");
        assert_eq!((left.slot.finish, left.slot.produced), (right.slot.finish, right.slot.produced), "case {index}");
        assert_eq!(bits(&left.combined), bits(&right.combined), "case {index}");
        assert_eq!(bits(&left.processed), bits(&right.processed), "case {index}");
        assert_eq!(left.counts, right.counts, "case {index}");
    }
}

fn alpha_zero_is_the_base_and_reads_no_pair<B: Backend>(backend: &B) {
    let cases = cases(1, 0.0);
    let poisoned = run_each(backend, &cases, |case| case.rows[1..].iter_mut().for_each(|row| row.fill(f32::NAN)));
    for (case, outcome) in cases.iter().zip(&poisoned) {
        if case.slot.base_top_p == 0 && case.slot.base_min_p == 0.0 {
            assert_eq!(bits(&outcome.combined)[..N], bits(&case.rows[0]));
        }
    }
    assert_same(&poisoned, &run_each(backend, &cases, |_| ()));
    assert_same(&poisoned, &run_each(backend, &cases, |case| case.slot.alpha = -0.0));
}

fn expert_alone_is_a_base_and_reads_no_other<B: Backend>(backend: &B) {
    let cases = cases(7, 0.0);
    let alone: Vec<Case> = cases
        .iter()
        .map(|case| {
            let unread = || vec![f32::NAN; N];
            let slot = Slot { expert_only: 1, ..case.slot };
            Case { rows: [unread(), case.rows[0].clone(), unread()], slot, ..case.clone() }
        })
        .collect();
    let [as_base, alone] = [cases, alone].map(|cases| run(backend, &Shape::plain(N), &cases, 5));
    assert_same(&as_base, &alone);
    for (as_base, alone) in as_base.iter().zip(&alone) {
        assert_eq!(bytemuck::bytes_of(&as_base.record), bytemuck::bytes_of(&alone.record));
    }
}

fn equal_pair_is_the_base<B: Backend>(backend: &B) {
    for alpha in [1.0, -0.7, 1000.0] {
        let cases = cases(2, alpha);
        let equal = run_each(backend, &cases, |case| case.rows[2] = case.rows[1].clone());
        assert_same(&equal, &run_each(backend, &cases, |case| case.slot.alpha = 0.0));
    }
}

fn exchanged_pair_with_negated_alpha_is_the_same<B: Backend>(backend: &B) {
    for alpha in [1.0, -0.3, 2.5] {
        let cases = cases(3, alpha);
        let exchanged = run_each(backend, &cases, |case| {
            case.rows.swap(1, 2);
            case.slot.alpha = -alpha;
        });
        assert_same(&exchanged, &run_each(backend, &cases, |_| ()));
    }
}

fn neutral_filters_change_no_bit<B: Backend>(backend: &B) {
    let mut cases = cases(4, 1.0);
    cases.iter_mut().for_each(|case| filters(case, 0, 1.0, 0.0));
    let plain = run_each(backend, &cases, |_| ());
    for k in [N as u32, N as u32 + 1, u32::MAX] {
        assert_same(&plain, &run_each(backend, &cases, |case| case.slot.top_k = k));
    }
    assert_same(&plain, &run_each(backend, &cases, |case| case.slot.min_p = f32::MIN_POSITIVE));
}

fn top_k_of_one_is_the_arg_max<B: Backend>(backend: &B) {
    let cases = cases(5, 1.0);
    let greedy = run_each(backend, &cases, |case| case.slot.inverse_temperature = 0.0);
    let one = run_each(backend, &cases, |case| (case.slot.inverse_temperature, case.slot.top_k) = (0.1, 1));
    for (greedy, one) in greedy.iter().zip(&one) {
        assert_eq!(greedy.slot.last_id, one.slot.last_id);
    }
}

fn company_changes_no_bit<B: Backend>(backend: &B) {
    let mut cases: Vec<Case> = (0..3).flat_map(|seed| cases(10 + seed, 1.3)).collect();
    cases.truncate(MAX_SLOTS);
    assert_eq!(cases.len(), MAX_SLOTS);
    let together = run_each(backend, &cases, |_| ());
    let alone: Vec<Outcome> =
        cases.iter().flat_map(|case| run(backend, &Shape::plain(N), std::slice::from_ref(case), 0)).collect();
    assert_same(&together, &alone);
}

fn same_seed_draws_the_same_ids_among_any_others<B: Backend>(backend: &B) {
    let mut random = Random::new(21);
    let mut case = |seed: u32| {
        let mut case = Case::plain(std::array::from_fn(|_| random.normals(N, 2.0)), N, 0.7);
        filters(&mut case, 0, 0.95, 0.0);
        case.slot.seed = [seed, 1];
        case
    };
    let (ours, others): (Case, Vec<Case>) = (case(0), (1..20).map(case).collect());
    let draws = |launch: &Launch<B>, index: usize| (0..40).map(|_| launch.draw()[index].last_id).collect::<Vec<_>>();
    let among =
        |first: usize, last: usize| [&others[..first], std::slice::from_ref(&ours), &others[first..last]].concat();
    let alone = draws(&Launch::new(backend, &Shape::plain(N), &among(0, 0)), 0);
    for (first, last) in [(0, 0), (0, 3), (2, 2), (7, 19)] {
        let ids = draws(&Launch::new(backend, &Shape::plain(N), &among(first, last)), first);
        assert_eq!(ids, alone, "with {first} before and {} after", last - first);
    }
    let other_seed = Case { slot: Slot { seed: [1, 1], ..ours.slot }, ..ours.clone() };
    assert_ne!(draws(&Launch::new(backend, &Shape::plain(N), &[other_seed]), 0), alone);
}

/// By hand, in numbers that are exact: any two of these exchanged would give another score.
fn alpha_masks_bias_and_penalties_apply_in_this_order<B: Backend>(backend: &B) {
    const IN_PROMPT: u32 = 1 << 31;
    let mut case = Case::plain([vec![-100.0; N], vec![0.0; N], vec![0.0; N]], N, 0.5);
    case.slot.penalised = 1;
    (case.slot.repetition_penalty, case.slot.presence_penalty, case.slot.frequency_penalty) = (4.0, 1.0, 0.5);
    // Base, expert, anti-expert, bias, count; then: (base + 0.5 (expert - anti) + bias) by 4, less 1, less 0.5 each.
    let table = [
        ([2.0, 5.0, 1.0], -6.0, 0, -2.0),
        ([2.0, 5.0, 1.0], -6.0, IN_PROMPT, -8.0),
        ([2.0, 5.0, 1.0], -6.0, 2, -10.0),
        ([2.0, 5.0, 1.0], -6.0, IN_PROMPT + 2, -10.0),
        ([-2.0, 5.0, 1.0], 8.0, 1, 0.5),
        ([-2.0, 1.0, 5.0], 0.0, 3, -18.5),
    ];
    for (id, (rows, bias, count, _)) in table.into_iter().enumerate() {
        (0..3).for_each(|role| case.rows[role][id] = rows[role]);
        case.biases.push((id as u32, bias));
        case.counts[id] = count;
    }
    // What a mask has taken no bias brings back.
    let banned = table.len();
    case.biases.push((banned as u32, 1000.0));
    case.allowed.iter_mut().for_each(|allowed| allowed[banned] = false);
    let outcome = run(backend, &Shape::plain(N), &[case], 0).remove(0);
    assert_eq!(outcome.processed[..banned], table.map(|(.., score)| score));
    assert_eq!((outcome.processed[banned], outcome.slot.last_id), (f32::NEG_INFINITY, 4));
}

fn constant_on_a_row_changes_no_draw<B: Backend>(backend: &B) {
    // On a grid of 2^-10 below 2^6 every sum here is exact in f32, so that no margin is needed.
    let grid = |x: f32| (x * 1024.0).round() / 1024.0;
    let mut cases = cases(6, 1.0);
    for case in &mut cases {
        case.rows.iter_mut().flatten().for_each(|z| *z = grid(*z));
        case.biases.iter_mut().for_each(|(_, bias)| *bias = grid(*bias));
        case.slot.penalised = 0;
    }
    let plain = run_each(backend, &cases, |_| ());
    for (role, constant) in [(0, 5.5), (1, -7.25), (2, 16.0)] {
        let shifted = run_each(backend, &cases, |case| case.rows[role].iter_mut().for_each(|z| *z += constant));
        for (index, (plain, shifted)) in plain.iter().zip(&shifted).enumerate() {
            assert_eq!(plain.slot.ring, shifted.slot.ring, "case {index}, row {role}");
        }
    }
}

fn base_as_log_probabilities_draws_the_same<B: Backend>(backend: &B) {
    let as_log_probabilities = |row: &mut Vec<f32>| {
        let sum: f64 = row.iter().map(|&z| f64::from(z).exp()).sum();
        row.iter_mut().for_each(|z| *z = (f64::from(*z) - sum.ln()) as f32);
    };
    let (mut compared, mut skipped) = (0, 0);
    for seed in 20..40 {
        let mut cases = cases(seed, 1.0);
        cases.iter_mut().for_each(|case| case.slot.repetition_penalty = 1.0);
        let logits = run_each(backend, &cases, |_| ());
        let log_probabilities = run_each(backend, &cases, |case| as_log_probabilities(&mut case.rows[0]));
        for (logits, log_probabilities) in logits.iter().zip(&log_probabilities) {
            // Scores of at most 50 move by a few of their roundings, 50 * 2^-24 each; 1 / T is at most 2 but for the
            // coldest cases, whose margins are wide.
            if margin(logits) < 1e-4 {
                skipped += 1;
                continue;
            }
            assert_eq!(logits.slot.last_id, log_probabilities.slot.last_id);
            compared += 1;
        }
    }
    assert!(skipped * 100 < compared, "{skipped} of {compared} margins are within rounding");
}

/// How far the winner of a draw was ahead.
pub(crate) fn margin(outcome: &Outcome) -> f64 {
    let Slot { produced, sample_index, seed, inverse_temperature, .. } = outcome.slot;
    let noise = |id: usize| match inverse_temperature {
        0.0 => 0.0,
        _ => f64::from(gumbel(philox([id as u32 / 4, produced - 1, sample_index, 0], seed)[id % 4])),
    };
    let mut best = [f64::NEG_INFINITY; 2];
    for (id, &t) in outcome.processed.iter().enumerate() {
        let score = f64::from(t) + noise(id);
        if score > best[0] {
            best = [score, best[0]];
        } else if score > best[1] {
            best[1] = score;
        }
    }
    best[0] - best[1]
}

#[test]
fn products_cover_every_setting() {
    let shape = Shape::plain(3);
    assert_eq!(cases::products(&mut Random::new(0), &shape).len(), 8 * 9 * SETTINGS.len());
}
