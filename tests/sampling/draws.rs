//! Draws as draws: chi-square against the filtered softmax, power against near misses, and one id on every backend.

use crate::cases::{self, filters};
use crate::harness::{Case, Launch, Random, Shape, run};
use crate::reference::distribution;
use crate::truths::margin;
use proxytune::backend::Backend;
use proxytune::backend::params::{MAX_SLOTS, Slot};

const N: usize = 100;
/// Deviations that a statistic may stand above its mean: one false alarm in 30,000 settings.
const DEVIATIONS: f64 = 4.0;

/// Temperature, top-k, top-p, min-p: each alone, and together.
const SETTINGS: [(f32, u32, f64, f32); 6] = [
    (1.0, 0, 1.0, 0.0),
    (1.6, 0, 1.0, 0.0),
    (1.0, 12, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.0, 0, 1.0, 0.03),
    (1.4, 40, 0.95, 0.01),
];

/// One case, its combined scores not the base's.
fn case((temperature, top_k, top_p, min_p): (f32, u32, f64, f32)) -> Case {
    let mut random = Random::new(77);
    let mut case = Case::plain(std::array::from_fn(|_| random.normals(N, 1.5)), N, 0.8);
    filters(&mut case, top_k, top_p, min_p);
    case.slot.inverse_temperature = 1.0 / temperature;
    case
}

/// Probabilities of the ids as the contract has them.
fn expected((temperature, top_k, top_p, min_p): (f32, u32, f64, f32)) -> Vec<f64> {
    let case = case((temperature, top_k, top_p, min_p));
    let [base, expert, anti] = case.rows.each_ref().map(|row| row.iter().map(|&z| f64::from(z)));
    let scores: Vec<f64> =
        base.zip(expert.zip(anti)).map(|(z, (e, a))| z + f64::from(case.slot.alpha) * (e - a)).collect();
    distribution(&scores, f64::from(temperature), top_k, case.slot.top_p, min_p)
}

/// How often each id was drawn in at least `n` draws: slots are samples of one request, steps are positions.
fn count<B: Backend>(backend: &B, case: &Case, n: usize) -> Vec<usize> {
    let sample = |index| Case { slot: Slot { sample_index: index, ..case.slot }, ..case.clone() };
    let samples: Vec<Case> = (0..MAX_SLOTS as u32).map(sample).collect();
    let launch = Launch::new(backend, &Shape::plain(N), &samples);
    let mut counts = vec![0; N];
    for _ in 0..n.div_ceil(MAX_SLOTS) {
        launch.draw().iter().for_each(|slot| counts[slot.last_id as usize] += 1);
    }
    counts
}

/// Whether counts fit probabilities, by chi-square over bins of at least 10 expected draws; what is rarer is one bin.
fn fits(counts: &[usize], probabilities: &[f64]) -> bool {
    let n = counts.iter().sum::<usize>() as f64;
    let mut bins: Vec<(f64, f64)> = Vec::new();
    let mut rare = (0.0, 0.0);
    for (&count, &p) in counts.iter().zip(probabilities) {
        if p == 0.0 && count > 0 {
            return false;
        }
        if p * n >= 10.0 {
            bins.push((count as f64, p * n));
        } else {
            rare = (rare.0 + count as f64, rare.1 + p * n);
        }
    }
    if rare.1 >= 1.0 {
        bins.push(rare);
    }
    let statistic: f64 = bins.iter().map(|(count, expected)| (count - expected).powi(2) / expected).sum();
    // Wilson and Hilferty: the cube root of chi-square over its degrees of freedom is nearly normal.
    let spread = 2.0 / (9.0 * (bins.len() - 1) as f64);
    ((statistic / (bins.len() - 1) as f64).cbrt() - (1.0 - spread)) / spread.sqrt() < DEVIATIONS
}

/// The same draws fit what was asked for, and nothing near it.
#[test]
fn hundred_thousand_draws_fit_and_reject_near_misses() {
    let cpu = crate::cpu();
    for setting in SETTINGS {
        let counts = count(&cpu, &case(setting), 100_000);
        assert!(fits(&counts, &expected(setting)), "{setting:?}: {counts:?}");
        let (temperature, top_k, top_p, min_p) = setting;
        for factor in [0.95, 1.05] {
            let miss = (temperature * factor, top_k, top_p, min_p);
            assert!(!fits(&counts, &expected(miss)), "{setting:?} fits {miss:?}");
        }
        for delta in [-0.02, 0.02] {
            let miss = (temperature, top_k, top_p + delta, min_p);
            assert!(top_p == 1.0 || !fits(&counts, &expected(miss)), "{setting:?} fits {miss:?}");
        }
    }
}

#[test]
fn ten_thousand_draws_fit_on_wgpu() {
    let wgpu = crate::wgpu();
    for setting in SETTINGS {
        let counts = count(&wgpu, &case(setting), 10_000);
        assert!(fits(&counts, &expected(setting)), "{setting:?}: {counts:?}");
    }
}

/// Every operation of a draw is one that all devices round alike.
#[test]
fn cuda_draws_what_the_cpu_draws_bit_for_bit() {
    let (cpu, cuda) = (crate::cpu(), crate::cuda());
    let mut random = Random::new(10);
    let bits = |row: &[f32]| row.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
    for n_ids in [500, 3001] {
        let shape = cases::ragged(&mut random, n_ids);
        for (name, set) in cases::SETTINGS {
            let rows = std::array::from_fn(|_| random.normals(shape.n_ids, 2.0));
            let mut case = Case::plain(cases::fit(&mut random, &shape, rows), shape.n_ids, -0.8);
            set(&mut case, &mut random);
            let sample = |index| Case { slot: Slot { sample_index: index, ..case.slot }, ..case.clone() };
            let samples: Vec<Case> = (0..5).map(sample).collect();
            for (on_cpu, on_cuda) in run(&cpu, &shape, &samples, 0).iter().zip(&run(&cuda, &shape, &samples, 0)) {
                assert_eq!(on_cpu.slot, on_cuda.slot, "{name}");
                assert_eq!(bits(&on_cpu.combined), bits(&on_cuda.combined), "{name}");
                assert_eq!(bits(&on_cpu.processed), bits(&on_cuda.processed), "{name}");
                assert_eq!(on_cpu.counts, on_cuda.counts, "{name}");
            }
        }
    }
}

#[test]
fn wgpu_draws_what_the_cpu_draws() {
    let (cpu, wgpu) = (crate::cpu(), crate::wgpu());
    let mut random = Random::new(9);
    let shape = cases::ragged(&mut random, 500);
    let (mut n_drawn, mut n_close) = (0, 0);
    while n_drawn < 10_000 {
        let set = cases::SETTINGS[random.below(cases::SETTINGS.len())].1;
        let rows = std::array::from_fn(|_| random.normals(shape.n_ids, 2.0));
        let mut case = Case::plain(cases::fit(&mut random, &shape, rows), shape.n_ids, 1.0);
        set(&mut case, &mut random);
        let sample = |index| Case { slot: Slot { sample_index: index, ..case.slot }, ..case.clone() };
        let samples: Vec<Case> = (0..MAX_SLOTS as u32).map(sample).collect();
        for (on_cpu, on_wgpu) in run(&cpu, &shape, &samples, 0).iter().zip(&run(&wgpu, &shape, &samples, 0)) {
            let kept = |row: &[f32]| row.iter().map(|&s| s > f32::NEG_INFINITY).collect::<Vec<_>>();
            assert_eq!(kept(&on_cpu.processed), kept(&on_wgpu.processed));
            if on_cpu.slot.last_id != on_wgpu.slot.last_id {
                assert!(margin(on_cpu) < 1e-5, "{} and {}", on_cpu.slot.last_id, on_wgpu.slot.last_id);
                n_close += 1;
            }
            n_drawn += 1;
        }
    }
    assert!(n_close < 10, "{n_close} draws were too close to call");
}
