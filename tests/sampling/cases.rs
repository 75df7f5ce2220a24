//! Tables of rows and of settings, and the cases that their products make.

use crate::harness::{Case, Random, Shape};

const NEG_INF: f32 = f32::NEG_INFINITY;

/// Base, expert and anti-expert of a given width.
pub(crate) type MakeRows = fn(&mut Random, usize) -> [Vec<f32>; 3];
/// Changes a plain case.
pub(crate) type Setting = fn(&mut Case, &mut Random);

/// How rows look.
pub(crate) const ROWS: [(&str, MakeRows); 8] = [
    ("normal", |random, n| std::array::from_fn(|_| random.normals(n, 4.0))),
    ("flat", |random, n| std::array::from_fn(|_| random.normals(n, 0.01))),
    ("wide", |random, n| std::array::from_fn(|_| random.normals(n, 3e3))),
    ("ties", |random, n| std::array::from_fn(|_| (0..n).map(|_| random.below(5) as f32 - 2.0).collect())),
    ("equal", |_, n| [vec![1.5; n], vec![-0.25; n], vec![0.5; n]]),
    ("expert = anti", |random, n| {
        let pair = random.normals(n, 5.0);
        [random.normals(n, 3.0), pair.clone(), pair]
    }),
    ("one finite column", |random, n| {
        let mut base = vec![NEG_INF; n];
        base[random.below(n)] = random.normal();
        [base, random.normals(n, 2.0), random.normals(n, 2.0)]
    }),
    ("holes", |random, n| {
        let mut rows: [Vec<f32>; 3] = std::array::from_fn(|_| random.normals(n, 3.0));
        for id in 0..n {
            // Base alone, expert and anti-expert, all.
            match random.below(6) {
                0 => rows[0][id] = NEG_INF,
                1 => [rows[1][id], rows[2][id]] = [NEG_INF; 2],
                2 => rows.iter_mut().for_each(|row| row[id] = NEG_INF),
                _ => (),
            }
        }
        rows
    }),
];

/// alpha, or the expert alone.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Blend {
    Alpha(f32),
    ExpertOnly,
}

use Blend::{Alpha, ExpertOnly};

pub(crate) const BLENDS: [Blend; 9] = [
    Alpha(0.0),
    Alpha(1.0),
    Alpha(-1.0),
    Alpha(0.5),
    Alpha(-0.3),
    Alpha(2.5),
    Alpha(1000.0),
    Alpha(-1000.0),
    ExpertOnly,
];

/// What a request may set. All but greedy ones draw.
pub(crate) const SETTINGS: [(&str, Setting); 23] = [
    ("greedy", |_, _| ()),
    ("greedy, all filters", |case, _| {
        filters(case, 3, 0.5, 0.1);
        case.slot.inverse_temperature = 0.0;
    }),
    ("temperature 1", |case, _| filters(case, 0, 1.0, 0.0)),
    ("temperature 0.5", |case, _| temperature(case, 0.5)),
    ("temperature 5", |case, _| temperature(case, 5.0)),
    ("temperature 1e-30", |case, _| temperature(case, 1e-30)),
    ("top-k 1", |case, _| filters(case, 1, 1.0, 0.0)),
    ("top-k 7", |case, _| filters(case, 7, 1.0, 0.0)),
    ("top-k of all", |case, _| filters(case, case.rows[0].len() as u32, 1.0, 0.0)),
    ("top-k beyond all", |case, _| filters(case, u32::MAX, 1.0, 0.0)),
    ("tiny top-p", |case, _| filters(case, 0, 1e-9, 0.0)),
    ("top-p 0.5", |case, _| filters(case, 0, 0.5, 0.0)),
    ("top-p 0.95", |case, _| filters(case, 0, 0.95, 0.0)),
    ("min-p 0.05", |case, _| filters(case, 0, 1.0, 0.05)),
    ("min-p 1", |case, _| filters(case, 0, 1.0, 1.0)),
    ("all filters", |case, _| filters(case, 20, 0.9, 0.02)),
    ("all filters, warm", |case, _| {
        filters(case, 50, 0.8, 0.01);
        case.slot.inverse_temperature = 1.0 / 1.7;
    }),
    ("penalties", |case, random| {
        filters(case, 0, 1.0, 0.0);
        penalties(case, random);
    }),
    ("greedy, penalties and biases", |case, random| {
        penalties(case, random);
        biases(case, random);
    }),
    ("restricted", |case, random| {
        filters(case, 0, 0.9, 0.0);
        restrictions(case, random);
    }),
    ("base nucleus", |case, _| {
        filters(case, 0, 1.0, 0.0);
        case.slot.base_top_p = fixed_point(0.8);
    }),
    ("base min-p", |case, _| {
        filters(case, 0, 1.0, 0.0);
        case.slot.base_min_p = 0.1;
    }),
    ("everything", |case, random| {
        filters(case, 30, 0.95, 0.01);
        (case.slot.base_top_p, case.slot.base_min_p) = (fixed_point(0.99), 1e-3);
        penalties(case, random);
        biases(case, random);
        restrictions(case, random);
    }),
];

/// p as slots hold it.
pub(crate) fn fixed_point(p: f64) -> u32 {
    if p == 1.0 { 0 } else { (p * 2f64.powi(32)) as u32 }
}

fn temperature(case: &mut Case, temperature: f32) {
    case.slot.inverse_temperature = 1.0 / temperature;
}

/// Temperature 1 and filters.
pub(crate) fn filters(case: &mut Case, top_k: u32, top_p: f64, min_p: f32) {
    temperature(case, 1.0);
    (case.slot.top_k, case.slot.top_p, case.slot.min_p) = (top_k, fixed_point(top_p), min_p);
}

fn penalties(case: &mut Case, random: &mut Random) {
    let slot = &mut case.slot;
    slot.penalised = 1;
    (slot.repetition_penalty, slot.presence_penalty, slot.frequency_penalty) = (1.3, 0.7, -0.2);
    for count in &mut case.counts {
        *count = [0, 0, 1 << 31, 1, 3, 1 << 31 | 2][random.below(6)];
    }
}

fn biases(case: &mut Case, random: &mut Random) {
    let n = case.counts.len();
    case.biases = (0..n.min(40)).map(|_| (random.below(n) as u32, 10.0 * random.normal())).collect();
    case.biases.sort_by_key(|&(id, _)| id);
    case.biases.dedup_by_key(|&mut (id, _)| id);
}

fn restrictions(case: &mut Case, random: &mut Random) {
    for allowed in &mut case.allowed {
        allowed.iter_mut().for_each(|allowed| *allowed = random.below(4) > 0);
    }
    let n = case.counts.len();
    let slot = &mut case.slot;
    (slot.produced, slot.min_tokens) = (random.below(3) as u32, 2);
    slot.n_stop_ids = 4;
    slot.stop_ids[..4].fill_with(|| random.below(n) as u32);
}

/// A vocabulary with dead ids, ids without difference, and rows of three widths.
pub(crate) fn ragged(random: &mut Random, n_ids: usize) -> Shape {
    let mut live: Vec<bool> = (0..n_ids).map(|_| random.below(10) > 0).collect();
    live[n_ids - 1] = true;
    let zero_delta = (0..n_ids).map(|_| random.below(20) == 0).collect();
    Shape { n_ids, strides: [n_ids + 64, n_ids, n_ids + 3], live, zero_delta }
}

/// Rows for a shape: what may not be read is as attractive, or as harmful, as can be.
pub(crate) fn fit(random: &mut Random, shape: &Shape, mut rows: [Vec<f32>; 3]) -> [Vec<f32>; 3] {
    for (row, stride) in rows.iter_mut().zip(shape.strides) {
        let mut poison = || [1e30, f32::NAN, f32::INFINITY][random.below(3)];
        row.resize_with(stride, &mut poison);
        (0..shape.n_ids).filter(|&id| !shape.live[id]).for_each(|id| row[id] = poison());
    }
    rows
}

fn blended(random: &mut Random, shape: &Shape, rows: MakeRows, blend: Blend) -> Case {
    let mut rows = rows(random, shape.n_ids);
    match blend {
        Alpha(alpha) => Case::plain(fit(random, shape, rows), shape.n_ids, alpha),
        ExpertOnly => {
            // The base's rows are the most varied.
            rows.swap(0, 1);
            let mut rows = fit(random, shape, rows);
            [0, 2].iter().for_each(|&role: &usize| rows[role].fill(f32::NAN));
            let mut case = Case::plain(rows, shape.n_ids, 0.0);
            case.slot.expert_only = 1;
            case
        }
    }
}

/// Every kind of rows with every blend and every setting, with their names.
pub(crate) fn products(random: &mut Random, shape: &Shape) -> Vec<(String, Case)> {
    let mut cases = Vec::new();
    for (rows_name, rows) in ROWS {
        for blend in BLENDS {
            for (name, set) in SETTINGS {
                let mut case = blended(random, shape, rows, blend);
                case.slot.seed = [random.bits(), random.bits()];
                case.slot.sample_index = random.below(3) as u32;
                set(&mut case, random);
                cases.push((format!("{} ids, {rows_name}, {blend:?}, {name}", shape.n_ids), case));
            }
        }
    }
    cases
}
