//! combine_sample once more, plainly: f64, a sort, no code of the crate but the random numbers. An outcome must agree
//! with it but where f32 cannot tell: each score carries a bound of its rounding errors, and what lies within the
//! bounds of a threshold may fall on either side.

use crate::harness::{Case, Outcome, Shape};
use proxytune::backend::math::{gumbel, philox};
use proxytune::backend::params::{Finish, RING, Slot};

/// Half an ulp of 1.
const ROUND: f64 = 1.0 / (1 << 24) as f64;
/// Relative error of e^t beside that of t: the polynomial's.
const EXP_ERROR: f64 = 3e-7;
/// How far apart two sums of score and Gumbel variate must be to be told apart on every backend.
const MARGIN: f64 = 1e-5;

/// A score and the bound of its error; absent: -inf.
pub(crate) type Scores = Vec<Option<(f64, f64)>>;

/// The number of decisions that rounding may have turned, or what is wrong.
pub(crate) fn check(shape: &Shape, case: &Case, outcome: &Outcome) -> Result<usize, String> {
    let mut turned = 0;
    let before = Slot { n_biases: case.biases.len() as u32, ..case.slot };
    let Some(combined) = combine(shape, case, outcome, &mut turned)? else {
        return ended(before, Finish::Numeric, outcome);
    };
    let scores = restrict_and_penalise(case, &combined);
    let best = scores.iter().flatten().copied().fold(None, |best: Option<(f64, f64)>, score| match best {
        Some(best) if best.0 >= score.0 => Some(best),
        _ => Some(score),
    });
    let Some(best) = best else { return ended(before, Finish::Empty, outcome) };
    if outcome.finish() == Finish::Numeric || outcome.finish() == Finish::Empty {
        return Err(format!("ended with {:?}", outcome.finish()));
    }
    let id = outcome.slot.last_id as usize;
    if case.slot.inverse_temperature == 0.0 {
        close("s after step 6", &outcome.processed, &scores)?;
        let (score, error) = scores.get(id).copied().flatten().ok_or(format!("drew {id}, which is not allowed"))?;
        let first = scores.iter().position(|s| s.is_some_and(|s| s.0 == best.0));
        if first != Some(id) {
            if score == best.0 || best.0 - score > error + best.1 {
                return Err(format!("greedy took {id} with {score}, not {first:?} with {}", best.0));
            }
            turned += 1;
        }
    } else {
        turned += check_draw(case, outcome, &scores, best)?;
    }
    advanced(case, before, outcome, id)?;
    Ok(turned)
}

fn ended(before: Slot, finish: Finish, outcome: &Outcome) -> Result<usize, String> {
    let expected = Slot { finish: finish as u32, drew: 0, ..before };
    if outcome.slot == expected { Ok(0) } else { Err(format!("{finish:?} expected, found {:?}", outcome.slot)) }
}

/// Steps 1 to 3. None: a numeric error.
fn combine(shape: &Shape, case: &Case, outcome: &Outcome, turned: &mut usize) -> Result<Option<Scores>, String> {
    let alpha = f64::from(case.slot.alpha);
    let live: Vec<usize> = (0..shape.n_ids).filter(|&id| shape.live[id]).collect();
    let rows = case.rows_read();
    for row in rows {
        let is_bad = |&id: &usize| row[id].is_nan() || row[id] == f32::INFINITY;
        if live.iter().any(is_bad) || live.iter().all(|&id| row[id] == f32::NEG_INFINITY) {
            return Ok(None);
        }
    }
    let base: Scores = (0..shape.n_ids)
        .map(|id| (shape.live[id] && rows[0][id].is_finite()).then(|| (f64::from(rows[0][id]), 0.0)))
        .collect();
    let Slot { base_top_p, base_min_p, .. } = case.slot;
    let best = base.iter().flatten().map(|s| s.0).fold(f64::NEG_INFINITY, f64::max);
    let Filtered { kept, near } = filter(&scaled(&base, (best, 0.0), 1.0), 0, base_top_p, base_min_p);

    let mut scores: Scores = vec![None; shape.n_ids];
    for &id in &live {
        let [z, expert, anti] = rows.map(|row| f64::from(row[id]));
        let (up, down) = if alpha < 0.0 { (anti, expert) } else { (expert, anti) };
        let plain = up == down || shape.zero_delta[id];
        let s = if z == f64::NEG_INFINITY || plain { z } else { z + alpha.abs() * (up - down) };
        if s == f64::INFINITY && kept[id] {
            return Ok(None);
        }
        if s.is_finite() {
            // One rounding for the difference, two for a product and a sum that are not fused.
            let error = if plain { 0.0 } else { ROUND * 2.0 * (alpha.abs() * (up - down).abs() + s.abs()) };
            scores[id] = Some((s, error));
        }
    }
    if !scores.iter().zip(&kept).any(|(score, &kept)| score.is_some() && kept) {
        return Ok(None);
    }
    for id in 0..shape.n_ids {
        let is_kept = outcome.combined[id] > f32::NEG_INFINITY;
        if scores[id].is_some() && is_kept != kept[id] {
            if !near[id] {
                return Err(format!("base mask: id {id} should be kept: {}", kept[id]));
            }
            *turned += 1;
        }
        scores[id] = scores[id].filter(|_| is_kept);
        let plain = rows[1][id] == rows[2][id] || shape.zero_delta[id];
        if scores[id].is_some() && plain && outcome.combined[id].to_bits() != rows[0][id].to_bits() {
            return Err(format!("id {id}: {} is not the base's bits, {}", outcome.combined[id], rows[0][id]));
        }
    }
    close("s after step 3", &outcome.combined, &scores)?;
    Ok(Some(scores))
}

/// Steps 4 to 6.
fn restrict_and_penalise(case: &Case, combined: &Scores) -> Scores {
    let slot = &case.slot;
    let allowed = &case.allowed[if slot.produced == 0 { 1 } else { 0 }];
    let stops = &slot.stop_ids[..slot.n_stop_ids as usize];
    let repetition = f64::from(slot.repetition_penalty);
    let each = |(id, score): (usize, &Option<(f64, f64)>)| {
        let (s, error) = score.filter(|_| allowed[id])?;
        if slot.produced < slot.min_tokens && stops.contains(&(id as u32)) {
            return None;
        }
        let bias: f64 = case.biases.iter().filter(|(b, _)| *b as usize == id).map(|(_, x)| f64::from(*x)).sum();
        let (mut x, mut error) =
            (s + bias, error + if bias == 0.0 { 0.0 } else { 2.0 * ROUND * (s.abs() + bias.abs()) });
        let count = case.counts[id];
        if slot.penalised == 1 && count != 0 {
            x = if x > 0.0 { x / repetition } else { x * repetition };
            error = error * repetition.max(1.0 / repetition) + 6.0 * ROUND * x.abs();
            let n = f64::from(count & 0x7fff_ffff);
            if n > 0.0 {
                let (presence, frequency) = (f64::from(slot.presence_penalty), n * f64::from(slot.frequency_penalty));
                error += 4.0 * ROUND * (x.abs() + presence.abs() + frequency.abs());
                x -= presence + frequency;
            }
        }
        Some((x, error))
    };
    combined.iter().enumerate().map(each).collect()
}

/// Step 7.
fn scaled(scores: &Scores, best: (f64, f64), inverse_temperature: f64) -> Scores {
    let each = |&(s, error): &(f64, f64)| {
        let t = (s - best.0) * inverse_temperature;
        // The best itself is exactly 0.
        (t, if t == 0.0 { 0.0 } else { (error + best.1) * inverse_temperature + 3.0 * ROUND * t.abs() })
    };
    scores.iter().map(|score| score.as_ref().map(each)).collect()
}

/// What filters keep, and which ids are too near a threshold to say.
struct Filtered {
    kept: Vec<bool>,
    near: Vec<bool>,
}

/// Step 8, by sorting. `top_p` is p * 2^32; 0 switches a filter off.
fn filter(t: &Scores, top_k: u32, top_p: u32, min_p: f32) -> Filtered {
    let of = |id: usize| t[id].expect("only ids with a score are ordered");
    let mut order: Vec<usize> = (0..t.len()).filter(|&id| t[id].is_some()).collect();
    order.sort_by(|&a, &b| of(b).0.total_cmp(&of(a).0).then(a.cmp(&b)));
    let mut near = vec![false; t.len()];
    // Equal scores are ordered by id on every backend; only different ones may be taken for one another.
    let alike = |a: usize, b: usize| of(a).0 != of(b).0 && (of(a).0 - of(b).0).abs() <= of(a).1 + of(b).1;
    if top_k > 0 && (top_k as usize) < order.len() {
        let last = order[top_k as usize - 1];
        order.iter().for_each(|&id| near[id] |= alike(id, last));
        order.truncate(top_k as usize);
    }
    if top_p > 0 {
        let mass = |&id: &usize| of(id).0.exp();
        let total: f64 = order.iter().map(mass).sum();
        let weighted: f64 = order.iter().map(|id| mass(id) * of(*id).1).sum::<f64>() / total;
        // Twice the mean error of a mass, and the truncation of each.
        let error = 2.0 * (weighted + EXP_ERROR) + order.len() as f64 * 2f64.powi(-36) / total;
        let p = f64::from(top_p) * 2f64.powi(-32);
        let mut before = 0.0;
        let mut n_kept = 0;
        for id in &order {
            near[*id] |= (before / total - p).abs() <= error;
            n_kept += usize::from(before < p * total);
            before += mass(id);
        }
        let last = order[n_kept - 1];
        order.iter().for_each(|&id| near[id] |= alike(id, last));
        order.truncate(n_kept);
    }
    if min_p > 0.0 {
        let ratio = |id: usize| of(id).0.exp() / f64::from(min_p);
        order.iter().for_each(|&id| near[id] |= (ratio(id) - 1.0).abs() <= of(id).1 + EXP_ERROR);
        order.retain(|&id| ratio(id) >= 1.0);
    }
    let mut kept = vec![false; t.len()];
    order.iter().for_each(|&id| kept[id] = true);
    Filtered { kept, near }
}

/// Probabilities after steps 7 and 8 of scores that are exact. `top_p` is p * 2^32.
pub(crate) fn distribution(scores: &[f64], temperature: f64, top_k: u32, top_p: u32, min_p: f32) -> Vec<f64> {
    let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exact: Scores = scores.iter().map(|&s| (s > f64::NEG_INFINITY).then_some((s, 0.0))).collect();
    let t = scaled(&exact, (best, 0.0), 1.0 / temperature);
    let Filtered { kept, .. } = filter(&t, top_k, top_p, min_p);
    let mass = |(t, kept): (&Option<(f64, f64)>, bool)| t.filter(|_| kept).map_or(0.0, |(t, _)| t.exp());
    let masses: Vec<f64> = t.iter().zip(kept).map(mass).collect();
    let total: f64 = masses.iter().sum();
    masses.into_iter().map(|mass| mass / total).collect()
}

/// Steps 7 to 9.
fn check_draw(case: &Case, outcome: &Outcome, scores: &Scores, best: (f64, f64)) -> Result<usize, String> {
    let Slot { inverse_temperature, top_k, top_p, min_p, produced, sample_index, seed, .. } = case.slot;
    let t = scaled(scores, best, f64::from(inverse_temperature));
    let Filtered { kept, near } = filter(&t, top_k, top_p, min_p);
    let mut turned = 0;
    let mut drawable = t.clone();
    for id in 0..t.len() {
        let is_kept = outcome.processed[id] > f32::NEG_INFINITY;
        if is_kept != kept[id] {
            if !near[id] {
                return Err(format!("id {id} with t = {:?} should be kept: {}", t[id], kept[id]));
            }
            turned += 1;
        }
        drawable[id] = drawable[id].filter(|_| is_kept);
    }
    close("t", &outcome.processed, &drawable)?;
    let with_noise = |id: usize| {
        let x = philox([id as u32 / 4, produced, sample_index, 0], seed)[id % 4];
        drawable[id].map(|(t, error)| (t + f64::from(gumbel(x)), error))
    };
    let id = outcome.slot.last_id as usize;
    let (score, error) = with_noise(id).ok_or(format!("drew {id}, which was filtered"))?;
    for other in 0..t.len() {
        if let Some((s, e)) = with_noise(other)
            && s > score
        {
            if s - score > error + e + MARGIN {
                return Err(format!("drew {id} with {score}, but {other} has {s}"));
            }
            turned += 1;
        }
    }
    Ok(turned)
}

/// Every score within its bound, -inf exactly where there is none.
fn close(what: &str, found: &[f32], scores: &Scores) -> Result<(), String> {
    for (id, &x) in found.iter().enumerate() {
        let agrees = match scores.get(id).copied().flatten() {
            Some((score, error)) => (f64::from(x) - score).abs() <= error,
            None => x == f32::NEG_INFINITY,
        };
        if !agrees {
            return Err(format!("{what}: id {id} has {x}, not {:?}", scores.get(id)));
        }
    }
    Ok(())
}

/// The slot and the counts after a draw of `id`.
fn advanced(case: &Case, before: Slot, outcome: &Outcome, id: usize) -> Result<(), String> {
    let mut slot = Slot { drew: 1, last_id: id as u32, produced: before.produced + 1, ..before };
    slot.ring[before.produced as usize % RING] = id as u32;
    slot.lengths = before.lengths.map(|length| length + 1);
    if slot.stop_ids[..slot.n_stop_ids as usize].contains(&slot.last_id) {
        slot.finish = Finish::Stop as u32;
    } else if slot.produced == slot.max_tokens {
        slot.finish = Finish::Length as u32;
    }
    if outcome.slot != slot {
        return Err(format!("slot {:?}, expected {slot:?}", outcome.slot));
    }
    let mut counts = case.counts.clone();
    counts[id] += slot.penalised;
    if outcome.counts[..counts.len()] != counts { Err("counts differ".into()) } else { Ok(()) }
}
