//! record against the same figures in f64.

use crate::cases;
use crate::harness::{Case, Outcome, Random, Shape, run};
use proxytune::backend::Backend;
use proxytune::backend::params::{MAX_RECORD_TOP, StepRecord, TopEntry};

crate::on_each_backend!(
    rows_of_many_parts_agree_with_f64,
    only_the_top_asked_for_is_written,
    zero_times_infinity_is_zero
);

#[test]
fn figures_agree_with_f64_on_cpu() {
    figures_agree_with_f64(&crate::cpu(), &[3, 64, 777]);
}

#[test]
fn figures_agree_with_f64_on_wgpu() {
    figures_agree_with_f64(&crate::wgpu(), &[3, 64, 777]);
}

/// The kernels as C++ take their time, and have parts of 1,024 ids.
#[test]
fn figures_agree_with_f64_on_cuda() {
    figures_agree_with_f64(&crate::cuda(), &[1100]);
}

/// The live part of a row, in f64.
struct Distribution {
    z: Vec<Option<f64>>,
    lse: f64,
}

impl Distribution {
    fn new(row: &[f32], shape: &Shape) -> Self {
        let z: Vec<Option<f64>> = (0..shape.n_ids).map(|id| shape.live[id].then(|| f64::from(row[id]))).collect();
        let max = z.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + z.iter().flatten().map(|z| (z - max).exp()).sum::<f64>().ln();
        Self { z, lse }
    }

    fn logprob(&self, id: usize) -> f64 {
        self.z[id].expect("a live id") - self.lse
    }

    /// E of f(id), ids of probability 0 left out.
    fn mean(&self, f: impl Fn(usize) -> f64) -> f64 {
        let live = (0..self.z.len()).filter(|&id| self.z[id].is_some());
        live.map(|id| (id, self.logprob(id).exp())).filter(|(_, p)| *p > 0.0).map(|(id, p)| p * f(id)).sum()
    }

    /// Ids from best to worst.
    fn order(&self) -> Vec<usize> {
        let mut ids: Vec<usize> = (0..self.z.len()).filter(|&id| self.z[id].is_some()).collect();
        ids.sort_by(|&a, &b| self.logprob(b).total_cmp(&self.logprob(a)));
        ids
    }
}

fn close(what: &str, found: f32, expected: f64, scale: f64) {
    // Roundings of z - max at 2^-24 of the scale, of e^t, and of a sum in 256 lanes of few terms; all below 1e-6.
    let tolerance = 1e-5 * (1.0 + scale);
    let agrees = found == expected as f32 || (f64::from(found) - expected).abs() <= tolerance;
    assert!(agrees, "{what}: {found}, expected {expected}");
}

fn check(shape: &Shape, case: &Case, outcome: &Outcome, n_top: usize) {
    let read = case.rows_read();
    let [base, expert, anti, combined] =
        [read[0], read[1], read[2], &outcome.combined].map(|row| Distribution::new(row, shape));
    let rows = [&base, &expert, &anti, &combined];
    let StepRecord { position, chosen, base_argmax, combined_argmax, logprob, rank, entropy, .. } = outcome.record;
    let (id, orders) = (chosen as usize, rows.map(Distribution::order));
    assert_eq!((position, chosen), (outcome.slot.produced - 1, outcome.slot.last_id));
    assert_eq!([base_argmax, combined_argmax].map(|id| id as usize), [orders[0][0], orders[3][0]]);
    let scale =
        rows.iter().flat_map(|row| row.z.iter().flatten()).filter(|z| z.is_finite()).fold(0.0, |m, z| z.abs().max(m));
    for (i, distribution) in rows.iter().enumerate() {
        assert_eq!(Some(rank[i] as usize), orders[i].iter().position(|&other| other == id), "rank {i}");
        close("log-probability", logprob[i], distribution.logprob(id), scale);
        close("entropy", entropy[i], -distribution.mean(|id| distribution.logprob(id)), scale);
    }
    let kl = |p: &Distribution, q: &Distribution| p.mean(|id| p.logprob(id) - q.logprob(id));
    let record = &outcome.record;
    close("KL(combined || base)", record.kl_combined_base, kl(&combined, &base), scale);
    close("KL(expert || anti)", record.kl_expert_anti, kl(&expert, &anti), scale);
    close("cross-entropy", record.cross_entropy, -expert.mean(|id| anti.logprob(id)), scale);
    assert_eq!((record.alpha, record.reserved), (case.slot.alpha, [0; 3]));
    let top: Vec<TopEntry> = orders[3]
        .iter()
        .filter(|&&id| outcome.combined[id] > f32::NEG_INFINITY)
        .take(n_top)
        .map(|&id| {
            let [z_base, z_expert, z_anti] = read.map(|row| row[id]);
            TopEntry { id: id as u32, z_base, z_expert, z_anti, score: outcome.combined[id] }
        })
        .collect();
    assert_eq!(record.top[..record.n_top as usize], top);
}

fn figures_agree_with_f64<B: Backend>(backend: &B, sizes: &[usize]) {
    let mut random = Random::new(8);
    for &n_ids in sizes {
        let shape = cases::ragged(&mut random, n_ids);
        let (names, cases): (Vec<String>, Vec<Case>) = cases::products(&mut random, &shape)
            .into_iter()
            .filter(|(name, case)| case.slot.alpha.abs() < 10.0 && !name.contains("wide"))
            .unzip();
        let outcomes = run(backend, &shape, &cases, 6);
        let mut n_drawn = 0;
        for (name, (case, outcome)) in names.iter().zip(cases.iter().zip(&outcomes)) {
            if outcome.slot.drew == 1 {
                println!("{name}"); // shown where the check fails
                check(&shape, case, outcome, 6);
                n_drawn += 1;
            }
        }
        assert!(n_drawn * 2 > cases.len(), "{n_drawn} of {} drew", cases.len());
    }
}

/// More parts than a device has threads for one of their sums, and top entries from some of them.
fn rows_of_many_parts_agree_with_f64<B: Backend>(backend: &B) {
    let mut random = Random::new(13);
    let shape = cases::ragged(&mut random, 20_011);
    let case = |alpha| {
        let rows = std::array::from_fn(|_| random.normals(shape.n_ids, 3.0));
        Case::plain(cases::fit(&mut random, &shape, rows), shape.n_ids, alpha)
    };
    let cases: Vec<Case> = [0.0, 1.0, -1.5].map(case).into();
    for (case, outcome) in cases.iter().zip(&run(backend, &shape, &cases, 20)) {
        check(&shape, case, outcome, 20);
    }
}

fn only_the_top_asked_for_is_written<B: Backend>(backend: &B) {
    let case = Case::plain([vec![0.5; 7], vec![0.0; 7], vec![0.0; 7]], 7, 1.0);
    for (n_top, expected) in [(0, 0), (3, 3), (7, 7), (MAX_RECORD_TOP as u32, 7)] {
        let record = run(backend, &Shape::plain(7), std::slice::from_ref(&case), n_top)[0].record;
        assert_eq!(record.n_top, expected);
        let ids: Vec<u32> = record.top.iter().map(|entry| entry.id).collect();
        let expected: Vec<u32> = (0..MAX_RECORD_TOP as u32).map(|i| if i < expected { i } else { 0 }).collect();
        assert_eq!(ids, expected);
    }
}

fn zero_times_infinity_is_zero<B: Backend>(backend: &B) {
    let n = 50;
    // What expert and anti-expert hold for one id, at the sign of alpha that allows it, and whether the expert's mean
    // is infinite. e^-200 is 0 in f32.
    for (expert, anti, alpha, is_infinite) in [
        (0.5, f32::NEG_INFINITY, -1.0, true),
        (-200.0, f32::NEG_INFINITY, -1.0, false),
        (f32::NEG_INFINITY, 0.5, 1.0, false),
        (f32::NEG_INFINITY, f32::NEG_INFINITY, 1.0, false),
    ] {
        let mut case = Case::plain([vec![0.0; n], vec![1.0; n], vec![2.0; n]], n, alpha);
        (case.rows[1][9], case.rows[2][9]) = (expert, anti);
        let record = run(backend, &Shape::plain(n), &[case], 0)[0].record;
        let figures = [record.kl_expert_anti, record.cross_entropy];
        assert!(figures.iter().all(|&x| if is_infinite { x == f32::INFINITY } else { x.is_finite() }), "{figures:?}");
        assert!(record.kl_combined_base.is_finite() && record.entropy.iter().all(|h| h.is_finite()));
    }
}
