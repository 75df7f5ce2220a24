// What a step looked like under the base, the expert, the anti-expert and combined: StepRecord in params.rs. Runs after
// combine_sample in the same pass. Twin: src/backend/cpu/record.rs.
//
// records and slots [n_slots], scores [n_slots][2][32 * mask_words] bits of f32, base, expert and anti rows of a stride
// each, samples [n_samples]. One workgroup: one sample. Sums over ids: thread id % 256 in order of ids, then threads
// folded by halves. Reads the four rows twice: for their maxima, and for all sums at a time; for the top entries the
// combined one once, and a thread its own ids of it once more where it had the best.

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

var<workgroup> lanes: array<vec4<f32>, N_THREADS>;
var<workgroup> tallies: array<atomic<u32>, 4>;
var<workgroup> tallied: vec4<u32>;
var<workgroup> drew: u32;

var<private> sample: Sample;
// The pair's rows are read; else the base stands for them, or the expert for all.
var<private> has_pair: bool;
var<private> is_expert_only: bool;

// Bits of a column of the combined row.
fn score(id: u32) -> u32 {
    return scores[2u * sample.slot * 32u * params.mask_words + id];
}

// Bits of a column of the four rows; as in combine_sample, each row has one place where it is loaded.
fn column(id: u32) -> vec4<u32> {
    var z = NEG_INF;
    if !is_expert_only {
        z = base[sample.row_base * params.stride_base + id];
    }
    var e = z;
    if is_expert_only || has_pair {
        e = expert[sample.row_expert * params.stride_expert + id];
    }
    z = select(z, e, is_expert_only);
    var a = z;
    if has_pair {
        a = anti[sample.row_anti * params.stride_anti + id];
    }
    return vec4(z, e, a, score(id));
}

fn is_live(id: u32) -> bool {
    return in_mask(0u, id);
}

fn ordered_four(bits: vec4<u32>) -> vec4<u32> {
    return vec4(ordered_bits(bits.x), ordered_bits(bits.y), ordered_bits(bits.z), ordered_bits(bits.w));
}

// The sums of all threads' values, in a fixed order.
fn sums_of_all(own: vec4<f32>) -> vec4<f32> {
    lanes[thread] = own;
    for (var half = N_THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            lanes[thread] += lanes[thread + half];
        }
    }
    return workgroupUniformLoad(&lanes[0]);
}

fn counts_of_all(own: vec4<u32>) -> vec4<u32> {
    if thread < 4u {
        atomicStore(&tallies[thread], 0u);
    }
    workgroupBarrier();
    for (var i = 0u; i < 4u; i++) {
        atomicAdd(&tallies[i], own[i]);
    }
    workgroupBarrier();
    if thread == 0u {
        for (var i = 0u; i < 4u; i++) {
            tallied[i] = atomicLoad(&tallies[i]);
        }
    }
    return workgroupUniformLoad(&tallied);
}

// Highest score of each row over the live ids, and the lowest id that has it.
struct Peaks {
    highest: vec4<f32>,
    argmax: vec4<u32>,
}

fn peaks() -> Peaks {
    var highest = vec4(0u);
    var argmax = vec4(0u);
    for (var id = thread; id < params.n_ids; id += N_THREADS) {
        if is_live(id) {
            let ordered = ordered_four(column(id));
            argmax = select(argmax, vec4(id), ordered > highest);
            highest = max(highest, ordered);
        }
    }
    var found: Peaks;
    for (var row = 0u; row < 4u; row++) {
        let best_of_row = best_of_all(vec2(highest[row], argmax[row]));
        found.highest[row] = from_ordered(best_of_row.x);
        found.argmax[row] = best_of_row.y;
    }
    return found;
}

// Sums over the live ids, with t = z - highest of a row and e = e^t. 0 * inf = 0.
struct Sums {
    e: vec4<f32>,
    // e t.
    e_t: vec4<f32>,
    // e (t - t of the base) of the combined row, e (t - t of the anti-expert) of the expert's, - e (t of the anti-expert)
    // of the expert's.
    crossed: vec4<f32>,
    // Ids before the chosen one.
    before: vec4<u32>,
    // Ids that make crossed 0, and 1 and 2, infinite.
    n_infinite: vec4<u32>,
}

fn sums(highest: vec4<f32>, chosen: u32) -> Sums {
    let of_chosen = ordered_four(column(chosen));
    var own: Sums;
    for (var id = thread; id < params.n_ids; id += N_THREADS) {
        if !is_live(id) {
            continue;
        }
        let z = column(id);
        let ordered = ordered_four(z);
        own.before += vec4<u32>((ordered > of_chosen) | ((ordered == of_chosen) & vec4(id < chosen)));
        let is_out = z == vec4(NEG_INF);
        let t = select(bitcast<vec4<f32>>(z) - highest, vec4(0.0), is_out);
        let powers =
            vec4(exp_nonpositive(t.x), exp_nonpositive(t.y), exp_nonpositive(t.z), exp_nonpositive(t.w));
        let e = select(powers, vec4(0.0), is_out);
        own.e += e;
        // 0 * inf = 0, as the twin has it.
        own.e_t += select(e * t, vec4(0.0), e == vec4(0.0));
        if e[COMBINED] > 0.0 {
            if is_out[BASE] {
                own.n_infinite.x += 1u;
            } else {
                own.crossed.x += e[COMBINED] * (t[COMBINED] - t[BASE]);
            }
        }
        if e[EXPERT] > 0.0 {
            if is_out[ANTI] {
                own.n_infinite.y += 1u;
            } else {
                own.crossed.y += e[EXPERT] * (t[EXPERT] - t[ANTI]);
                own.crossed.z -= e[EXPERT] * t[ANTI];
            }
        }
    }
    return Sums(sums_of_all(own.e), sums_of_all(own.e_t), sums_of_all(own.crossed), counts_of_all(own.before),
        counts_of_all(own.n_infinite));
}

// As bits: a mean, or +inf.
fn mean(sum: f32, total: f32, n_infinite: u32) -> u32 {
    return select(bitcast<u32>(sum / total), POS_INF, n_infinite > 0u);
}

// A figure with a finite part added.
fn plus(bits: u32, x: f32) -> u32 {
    if bits == POS_INF || bits == NEG_INF {
        return bits;
    }
    return bitcast<u32>(bitcast<f32>(bits) + x);
}

// This thread's best id of the combined row after `last`, as (ordered bits, id).
fn best_after(last: vec2<u32>) -> vec2<u32> {
    var found = vec2(0u, 0u);
    for (var id = thread; id < params.n_ids; id += N_THREADS) {
        let bits = score(id);
        let candidate = vec2(ordered_bits(bits), id);
        let is_after = candidate.x < last.x || (candidate.x == last.x && id > last.y);
        if bits != NEG_INF && is_after {
            found = better(found, candidate);
        }
    }
    return found;
}

fn write_top(slot: u32) {
    var own = best_after(vec2(0xffffffffu, 0u));
    var n = 0u;
    for (var i = 0u; i < MAX_RECORD_TOP; i++) {
        var entry = TopEntry(0u, 0u, 0u, 0u, 0u);
        if i < params.n_top {
            let found = best_of_all(own);
            if found.x != 0u {
                let z = column(found.y);
                entry = TopEntry(found.y, z[BASE], z[EXPERT], z[ANTI], z[COMBINED]);
                n++;
                if all(found == own) {
                    own = best_after(found);
                }
            }
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
    let highest = peaks();
    let sum = sums(highest.highest, chosen);
    let ln_sum = vec4(ln(sum.e.x), ln(sum.e.y), ln(sum.e.z), ln(sum.e.w));
    let z = column(chosen);
    if thread == 0u {
        for (var row = 0u; row < 4u; row++) {
            let logprob = bitcast<u32>(bitcast<f32>(z[row]) - highest.highest[row] - ln_sum[row]);
            records[slot].logprob[row] = select(logprob, NEG_INF, z[row] == NEG_INF);
            records[slot].rank[row] = sum.before[row];
            records[slot].entropy[row] = ln_sum[row] - sum.e_t[row] / sum.e[row];
        }
        let combined_base = mean(sum.crossed.x, sum.e[COMBINED], sum.n_infinite.x);
        let expert_anti = mean(sum.crossed.y, sum.e[EXPERT], sum.n_infinite.y);
        let cross = mean(sum.crossed.z, sum.e[EXPERT], sum.n_infinite.y);
        records[slot].position = slots[slot].produced - 1u;
        records[slot].chosen = chosen;
        records[slot].base_argmax = highest.argmax[BASE];
        records[slot].combined_argmax = highest.argmax[COMBINED];
        records[slot].kl_combined_base = plus(plus(combined_base, -ln_sum[COMBINED]), ln_sum[BASE]);
        records[slot].kl_expert_anti = plus(plus(expert_anti, -ln_sum[EXPERT]), ln_sum[ANTI]);
        records[slot].cross_entropy = plus(cross, ln_sum[ANTI]);
        records[slot].alpha = slots[slot].alpha;
        records[slot].reserved = array(0u, 0u, 0u);
    }
    write_top(slot);
}
