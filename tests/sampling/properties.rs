//! Every kind of rows under every setting against the reference; and what is Numeric, pattern by pattern.

use crate::cases::{self, filters};
use crate::harness::{Case, Random, Shape, run};
use crate::reference::check;
use proxytune::backend::Backend;
use proxytune::backend::params::{Finish, MAX_VOCAB};

crate::on_each_backend!(
    widest_row_agrees_with_the_reference,
    infinite_patterns_follow_the_rules,
    nan_matters_only_where_it_is_read,
    overflow_is_numeric,
);

/// Numbers of ids; the kernels as C++ take their time, and have parts of 1,024.
const SIZES: &[usize] = &[1, 2, 31, 64, 257, 1000];
const SIZES_ON_CUDA: &[usize] = &[2, 1100];

#[test]
fn products_agree_with_the_reference_on_cpu() {
    products_agree_with_the_reference(&crate::cpu(), SIZES);
}

#[test]
fn products_agree_with_the_reference_on_wgpu() {
    products_agree_with_the_reference(&crate::wgpu(), SIZES);
}

#[test]
fn products_agree_with_the_reference_on_cuda() {
    products_agree_with_the_reference(&crate::cuda(), SIZES_ON_CUDA);
}

/// Runs named cases, and says how many decisions rounding may have turned.
fn check_all<B: Backend>(backend: &B, shape: &Shape, cases: &[(String, Case)]) -> usize {
    let plain: Vec<Case> = cases.iter().map(|(_, case)| case.clone()).collect();
    let outcomes = run(backend, shape, &plain, 0);
    let checked = cases
        .iter()
        .zip(&outcomes)
        .map(|((name, case), outcome)| check(shape, case, outcome).unwrap_or_else(|error| panic!("{name}: {error}")));
    checked.sum()
}

fn products_agree_with_the_reference<B: Backend>(backend: &B, sizes: &[usize]) {
    let mut random = Random::new(1);
    let (mut turned, mut n) = (0, 0);
    for &n_ids in sizes {
        for shape in [Shape::plain(n_ids), cases::ragged(&mut random, n_ids)] {
            let cases = cases::products(&mut random, &shape);
            n += cases.len();
            turned += check_all(backend, &shape, &cases);
        }
    }
    // Bounds that are too wide would pass anything.
    assert!(turned * 100 < n, "rounding may have turned {turned} decisions in {n} cases");
}

fn widest_row_agrees_with_the_reference<B: Backend>(backend: &B) {
    let mut random = Random::new(2);
    let shape = Shape::plain(MAX_VOCAB);
    let settings = [(0, 1.0, 0.0), (50, 1.0, 0.0), (200_000, 0.9, 0.0), (0, 0.999, 1e-4)];
    let cases: Vec<(String, Case)> = settings
        .into_iter()
        .map(|(top_k, top_p, min_p)| {
            let rows = std::array::from_fn(|_| random.normals(MAX_VOCAB, 2.0));
            let mut case = Case::plain(rows, MAX_VOCAB, 0.7);
            filters(&mut case, top_k, top_p, min_p);
            (format!("top-k {top_k}, top-p {top_p}, min-p {min_p}"), case)
        })
        .collect();
    // Among 262,208 normal scores many are neighbours within their rounding.
    assert!(check_all(backend, &shape, &cases) < 100);
}

fn infinite_patterns_follow_the_rules<B: Backend>(backend: &B) {
    let n = 40;
    let shape = Shape::plain(n);
    let mut random = Random::new(3);
    let mut cases = Vec::new();
    for pattern in 0..8 {
        for alpha in [0.0, 1.5, -1.5] {
            let mut case = Case::plain(std::array::from_fn(|_| random.normals(n, 1.0)), n, alpha);
            (0..3).filter(|role| pattern >> role & 1 == 1).for_each(|role| case.rows[role][17] = f32::NEG_INFINITY);
            cases.push((format!("-inf in {pattern:03b}, alpha {alpha}"), case));
        }
    }
    // A row without a finite column is a fault of its model, though the difference would be 0.
    for roles in [&[0][..], &[1], &[2], &[1, 2], &[0, 1, 2]] {
        for alpha in [0.0, 1.5, -1.5] {
            let mut case = Case::plain(std::array::from_fn(|_| random.normals(n, 1.0)), n, alpha);
            roles.iter().for_each(|&role| case.rows[role].fill(f32::NEG_INFINITY));
            cases.push((format!("rows {roles:?} all -inf, alpha {alpha}"), case));
        }
    }
    assert_eq!(check_all(backend, &shape, &cases), 0);
}

fn nan_matters_only_where_it_is_read<B: Backend>(backend: &B) {
    let mut random = Random::new(4);
    let n = 70;
    let mut shape = cases::ragged(&mut random, n);
    (shape.live[3], shape.live[40], shape.zero_delta[50], shape.live[50]) = (true, false, true, true);
    for (value, name) in
        [(f32::NAN, "NaN"), (-f32::NAN, "-NaN"), (f32::from_bits(0x7f80_0001), "sNaN"), (f32::INFINITY, "inf")]
    {
        for role in 0..3 {
            for (id, is_live) in [(3, true), (40, false), (50, true), (n - 1, true)] {
                for (alpha, expert_only) in [(0.0, 0), (1.0, 0), (-2.0, 0), (0.0, 1)] {
                    let rows = std::array::from_fn(|_| random.normals(n, 1.0));
                    let mut case = Case::plain(cases::fit(&mut random, &shape, rows), n, alpha);
                    case.slot.expert_only = expert_only;
                    case.rows[role][id] = value;
                    let outcome = &run(backend, &shape, &[case], 0)[0];
                    let is_read = is_live && (role == expert_only as usize || alpha != 0.0);
                    let expected = if is_read { Finish::Numeric } else { Finish::Running };
                    assert_eq!(
                        outcome.finish(),
                        expected,
                        "{name} in row {role}, id {id}, alpha {alpha}, {expert_only}"
                    );
                }
            }
        }
    }
}

fn overflow_is_numeric<B: Backend>(backend: &B) {
    let shape = Shape::plain(40);
    let case = |set: fn(&mut Case)| {
        let mut case = Case::plain([vec![1.0; 40], vec![2.0; 40], vec![1.5; 40]], 40, 1.0);
        set(&mut case);
        run(backend, &shape, &[case], 0)[0].finish()
    };
    let difference = case(|case| (case.rows[1][7], case.rows[2][7]) = (3e38, -3e38));
    let product = case(|case| (case.rows[1][7], case.slot.alpha) = (3e38, 1000.0));
    let penalty = case(|case| {
        (case.slot.penalised, case.slot.repetition_penalty, case.counts[7]) = (1, 1e-39, 1);
    });
    assert_eq!([difference, product, penalty], [Finish::Numeric; 3]);
    // Downwards it is only an id that cannot be drawn.
    assert_eq!(case(|case| (case.rows[1][7], case.rows[2][7]) = (-3e38, 3e38)), Finish::Running);
}
