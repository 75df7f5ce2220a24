// What a step looked like under the base, the expert, the anti-expert and combined: StepRecord in params.rs. Runs after
// combine_sample in the same pass. Twin: src/backend/cpu/record.rs.
//
// records and slots [n_slots], scores [n_slots][2][32 * mask_words] bits of f32, base, expert and anti rows of a stride
// each, samples [n_samples]. One workgroup: one sample. Sums over ids: thread id % 256 in order of ids, then threads
// folded by halves. Reads the four rows about ten times, and the combined one once more per top entry.

@group(0) @binding(0) var<storage, read_write> records: array<StepRecord>;
@group(0) @binding(1) var<storage, read> slots: array<Slot>;
@group(0) @binding(2) var<storage, read> scores: array<u32>;
@group(0) @binding(3) var<storage, read> base: array<u32>;
@group(0) @binding(4) var<storage, read> expert: array<u32>;
@group(0) @binding(5) var<storage, read> anti: array<u32>;
@group(0) @binding(6) var<storage, read> samples: array<Sample>;
@group(0) @binding(7) var<storage, read> constraints: array<u32>;
@group(0) @binding(8) var<uniform> params: RecordParams;

struct RecordParams {
    n_ids: u32,
    stride_base: u32,
    stride_expert: u32,
    stride_anti: u32,
    mask_words: u32,
    n_top: u32,
    reserved_0: u32,
    reserved_1: u32,
}

struct TopEntry {
    id: u32,
    z_base: u32,
    z_expert: u32,
    z_anti: u32,
    score: u32,
}

// Figures that may be infinite are written as bits.
struct StepRecord {
    position: u32,
    chosen: u32,
    base_argmax: u32,
    combined_argmax: u32,
    logprob: array<u32, 4>,
    rank: array<u32, 4>,
    entropy: array<f32, 4>,
    kl_combined_base: u32,
    kl_expert_anti: u32,
    cross_entropy: u32,
    alpha: f32,
    n_top: u32,
    reserved: array<u32, 3>,
    top: array<TopEntry, MAX_RECORD_TOP>,
}

const BASE = 0u;
const EXPERT = 1u;
const ANTI = 2u;
const COMBINED = 3u;

// A distribution over the live ids.
struct Distribution {
    row: u32,
    highest: f32,
    argmax: u32,
    // Sum of e^(z - highest), and its logarithm.
    sum: f32,
    ln_sum: f32,
}

var<workgroup> lanes: array<f32, N_THREADS>;
var<workgroup> tally: atomic<u32>;
var<workgroup> tallied: u32;
var<workgroup> drew: u32;

var<private> sample: Sample;
// The pair's rows are read; else the base stands for them, or the expert for all.
var<private> has_pair: bool;
var<private> is_expert_only: bool;

fn column(row: u32, id: u32) -> u32 {
    if row == COMBINED {
        return scores[2u * sample.slot * 32u * params.mask_words + id];
    }
    if is_expert_only || (row == EXPERT && has_pair) {
        return expert[sample.row_expert * params.stride_expert + id];
    }
    if row == ANTI && has_pair {
        return anti[sample.row_anti * params.stride_anti + id];
    }
    return base[sample.row_base * params.stride_base + id];
}

fn is_live(id: u32) -> bool {
    return in_mask(0u, id);
}

// The sum of all threads' values, in a fixed order.
fn sum_of_all(own: f32) -> f32 {
    lanes[thread] = own;
    for (var half = N_THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            lanes[thread] += lanes[thread + half];
        }
    }
    return workgroupUniformLoad(&lanes[0]);
}

fn count_of_all(own: u32) -> u32 {
    if thread == 0u {
        atomicStore(&tally, 0u);
    }
    workgroupBarrier();
    atomicAdd(&tally, own);
    workgroupBarrier();
    if thread == 0u {
        tallied = atomicLoad(&tally);
    }
    return workgroupUniformLoad(&tallied);
}

fn distribution(row: u32) -> Distribution {
    var found = vec2(0u, 0u);
    for (var id = thread; id < params.n_ids; id += N_THREADS) {
        if is_live(id) {
            found = better(found, vec2(ordered_bits(column(row, id)), id));
        }
    }
    found = best_of_all(found);
    let highest = from_ordered(found.x);
    var own = 0.0;
    for (var id = thread; id < params.n_ids; id += N_THREADS) {
        let bits = column(row, id);
        if is_live(id) && bits != NEG_INF {
            own += exp_nonpositive(bitcast<f32>(bits) - highest);
        }
    }
    let sum = sum_of_all(own);
    return Distribution(row, highest, found.y, sum, ln(sum));
}

// The sum over p's ids of e^(z_p - highest) times (z_p - highest_p) where `with_p`, less (z_q - highest_q) where
// `with_q`; over p's sum. As bits: +inf where q excludes what p does not. 0 * inf = 0.
fn mean(p: Distribution, q: Distribution, with_p: bool, with_q: bool) -> u32 {
    var own = 0.0;
    var is_infinite = 0u;
    for (var id = thread; id < params.n_ids; id += N_THREADS) {
        let bits = column(p.row, id);
        if is_live(id) && bits != NEG_INF {
            let t = bitcast<f32>(bits) - p.highest;
            let weight = exp_nonpositive(t);
            let other = column(q.row, id);
            if weight > 0.0 {
                if with_q && other == NEG_INF {
                    is_infinite = 1u;
                } else if with_p && with_q {
                    own += weight * (t - (bitcast<f32>(other) - q.highest));
                } else if with_p {
                    own += weight * t;
                } else {
                    own -= weight * (bitcast<f32>(other) - q.highest);
                }
            }
        }
    }
    let sum = sum_of_all(own);
    if count_of_all(is_infinite) > 0u {
        return POS_INF;
    }
    return bitcast<u32>(sum / p.sum);
}

// A figure with a finite part added.
fn plus(bits: u32, x: f32) -> u32 {
    if bits == POS_INF || bits == NEG_INF {
        return bits;
    }
    return bitcast<u32>(bitcast<f32>(bits) + x);
}

// Live ids before `chosen`.
fn rank(row: u32, chosen: u32) -> u32 {
    let own = vec2(ordered_bits(column(row, chosen)), chosen);
    var before = 0u;
    for (var id = thread; id < params.n_ids; id += N_THREADS) {
        let other = vec2(ordered_bits(column(row, id)), id);
        if is_live(id) && id != chosen && all(better(other, own) == other) {
            before++;
        }
    }
    return count_of_all(before);
}

// The best id of the combined row after `last`, as (ordered bits, id).
fn best_after(last: vec2<u32>) -> vec2<u32> {
    var found = vec2(0u, 0u);
    for (var id = thread; id < params.n_ids; id += N_THREADS) {
        let bits = column(COMBINED, id);
        let candidate = vec2(ordered_bits(bits), id);
        let is_after = candidate.x < last.x || (candidate.x == last.x && id > last.y);
        if bits != NEG_INF && is_after {
            found = better(found, candidate);
        }
    }
    return best_of_all(found);
}

fn write_top(slot: u32) {
    var last = vec2(0xffffffffu, 0u);
    var n = 0u;
    for (var i = 0u; i < MAX_RECORD_TOP; i++) {
        if i < params.n_top && last.x != 0u {
            last = best_after(last);
        } else {
            last = vec2(0u, 0u);
        }
        var entry = TopEntry(0u, 0u, 0u, 0u, 0u);
        if last.x != 0u {
            entry = TopEntry(last.y, column(BASE, last.y), column(EXPERT, last.y), column(ANTI, last.y),
                column(COMBINED, last.y));
            n++;
        }
        if thread == 0u {
            records[slot].top[i] = entry;
        }
    }
    if thread == 0u {
        records[slot].n_top = n;
    }
}

@compute @workgroup_size(N_THREADS)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    thread = index;
    sample = samples[tile.x];
    let slot = sample.slot;
    has_pair = slots[slot].alpha != 0.0;
    is_expert_only = slots[slot].expert_only == 1u;
    if thread == 0u {
        drew = slots[slot].drew;
    }
    if workgroupUniformLoad(&drew) == 0u {
        return;
    }
    let chosen = slots[slot].last_id;
    var rows: array<Distribution, 4>;
    for (var row = 0u; row < 4u; row++) {
        let p = distribution(row);
        rows[row] = p;
        let entropy = p.ln_sum - bitcast<f32>(mean(p, p, true, false));
        let before = rank(row, chosen);
        if thread == 0u {
            let z = column(row, chosen);
            var logprob = NEG_INF;
            if z != NEG_INF {
                logprob = bitcast<u32>(bitcast<f32>(z) - p.highest - p.ln_sum);
            }
            records[slot].logprob[row] = logprob;
            records[slot].rank[row] = before;
            records[slot].entropy[row] = entropy;
        }
    }
    let combined_base = mean(rows[COMBINED], rows[BASE], true, true);
    let expert_anti = mean(rows[EXPERT], rows[ANTI], true, true);
    let cross = mean(rows[EXPERT], rows[ANTI], false, true);
    if thread == 0u {
        records[slot].position = slots[slot].produced - 1u;
        records[slot].chosen = chosen;
        records[slot].base_argmax = rows[BASE].argmax;
        records[slot].combined_argmax = rows[COMBINED].argmax;
        records[slot].kl_combined_base = plus(plus(combined_base, -rows[COMBINED].ln_sum), rows[BASE].ln_sum);
        records[slot].kl_expert_anti = plus(plus(expert_anti, -rows[EXPERT].ln_sum), rows[ANTI].ln_sum);
        records[slot].cross_entropy = plus(cross, rows[ANTI].ln_sum);
        records[slot].alpha = slots[slot].alpha;
        records[slot].reserved = array(0u, 0u, 0u);
    }
    write_top(slot);
}
