// Three rows of logits to one id per sample, and the slot moved on: difference, masks, penalties, filters, draw. Order
// of operations: CombineSample in src/backend/mod.rs. Twin: src/backend/cpu/combine_sample.rs.
//
// slots [n_slots], scores [n_slots][2][32 * mask_words] bits of f32, counts [n_slots][32 * mask_words], base, expert and
// anti rows of a stride each, samples [n_samples]. One workgroup: one sample, all of it, since WGSL has no barrier
// between workgroups. Reads each row once, the processed scores once per pass; writes both scores.

@group(0) @binding(0) var<storage, read_write> slots: array<Slot>;
@group(0) @binding(1) var<storage, read_write> scores: array<u32>;
@group(0) @binding(2) var<storage, read_write> counts: array<u32>;
@group(0) @binding(3) var<storage, read> base: array<u32>;
@group(0) @binding(4) var<storage, read> expert: array<u32>;
@group(0) @binding(5) var<storage, read> anti: array<u32>;
@group(0) @binding(6) var<storage, read> samples: array<Sample>;
@group(0) @binding(7) var<storage, read> constraints: array<u32>;
@group(0) @binding(8) var<uniform> params: CombineSampleParams;

struct CombineSampleParams {
    n_ids: u32,
    stride_base: u32,
    stride_expert: u32,
    stride_anti: u32,
    mask_words: u32,
    has_counts: u32,
    reserved_0: u32,
    reserved_1: u32,
}

// What decides where barriers stand, the same for all threads.
struct Settings {
    finish: u32,
    inverse_temperature: f32,
    top_k: u32,
    top_p: u32,
    min_p: f32,
    base_top_p: u32,
    base_min_p: f32,
}

// Bits of `findings`.
const BAD = 1u;
const FINITE_BASE = 2u;
const FINITE_EXPERT = 4u;
const FINITE_ANTI = 8u;
const FINITE_SCORE = 16u;
const ALL_FINITE = 30u;

var<workgroup> settings: Settings;
var<workgroup> findings: atomic<u32>;
var<workgroup> verdict: u32;

var<private> sample: Sample;
// First word of the slot's constraints, and first column of its scores after step 3.
var<private> own: u32;
var<private> combined: u32;

// NaN or +inf.
fn is_bad(bits: u32) -> bool {
    return (bits & 0x7fffffffu) >= POS_INF && bits != NEG_INF;
}

// Step 2: leaves -inf in the processed scores where the base's own filters drop an id.
fn mask_base(top_p: u32, min_p: f32) {
    var highest = vec2(0u, 0u);
    for (var id = thread; id < params.n_ids; id += N_THREADS) {
        var z = NEG_INF;
        if in_mask(0u, id) {
            z = base[sample.row_base * params.stride_base + id];
        }
        // What is bad ends the sequence in step 3.
        z = select(z, NEG_INF, is_bad(z));
        scores[processed + id] = z;
        highest = better(highest, vec2(ordered_bits(z), id));
    }
    let best_base = best_of_all(highest);
    if best_base.x <= ordered_bits(NEG_INF) {
        return;
    }
    subtract_and_scale(best_base.x, 1.0);
    apply_filters(0u, top_p, min_p);
}

// t = (s - best) * scale in place of the processed scores.
fn subtract_and_scale(best_bits: u32, scale: f32) {
    let highest = from_ordered(best_bits);
    for (var id = thread; id < params.n_ids; id += N_THREADS) {
        let bits = scores[processed + id];
        if bits != NEG_INF {
            scores[processed + id] = bitcast<u32>((bitcast<f32>(bits) - highest) * scale);
        }
    }
}

// Step 3 for one id that is live and has a base score: z + alpha (up - down), alpha > 0.
fn difference(z: u32, up: u32, down: u32, alpha: f32) -> u32 {
    // Where the pair agrees (on -inf too) the base's bits stay.
    if up == down {
        return z;
    }
    if down == NEG_INF {
        return POS_INF;
    }
    if up == NEG_INF {
        return NEG_INF;
    }
    let d = bitcast<f32>(up) - bitcast<f32>(down);
    return select(bitcast<u32>(fma(alpha, d, bitcast<f32>(z))), z, d == 0.0);
}

// Steps 1, 3 and the masks of 4; true where the sequence can go on.
fn combine(has_base_mask: bool) -> bool {
    let alpha = slots[sample.slot].alpha;
    var allowed = own;
    if slots[sample.slot].produced == 0u {
        allowed += params.mask_words;
    }
    var found = 0u;
    for (var id = thread; id < 32u * params.mask_words; id += N_THREADS) {
        var s = NEG_INF;
        if id < params.n_ids && in_mask(0u, id) {
            let z = base[sample.row_base * params.stride_base + id];
            var e = z;
            var a = z;
            if alpha != 0.0 {
                e = expert[sample.row_expert * params.stride_expert + id];
                a = anti[sample.row_anti * params.stride_anti + id];
            }
            found |= select(0u, BAD, is_bad(z) || is_bad(e) || is_bad(a));
            found |= select(FINITE_BASE, 0u, z == NEG_INF) | select(FINITE_EXPERT, 0u, e == NEG_INF);
            found |= select(FINITE_ANTI, 0u, a == NEG_INF);
            let is_kept = !has_base_mask || scores[processed + id] != NEG_INF;
            if is_kept && z != NEG_INF {
                s = z;
                if !in_mask(params.mask_words, id) {
                    // A negative alpha exchanges the two; the product's bits are the same.
                    s = difference(z, select(e, a, alpha < 0.0), select(a, e, alpha < 0.0), abs(alpha));
                }
                found |= select(0u, BAD, is_bad(s)) | select(FINITE_SCORE, 0u, s == NEG_INF);
            }
        }
        scores[combined + id] = s;
        let is_allowed = s != NEG_INF && in_mask(allowed, id);
        scores[processed + id] = select(NEG_INF, s, is_allowed);
    }
    atomicOr(&findings, found);
    workgroupBarrier();
    if thread == 0u {
        verdict = atomicLoad(&findings);
    }
    return workgroupUniformLoad(&verdict) == ALL_FINITE;
}

// The rest of step 4, and step 5: what only few ids have.
fn narrow() {
    storageBarrier();
    if slots[sample.slot].produced < slots[sample.slot].min_tokens && thread < slots[sample.slot].n_stop_ids {
        let id = slots[sample.slot].stop_ids[thread];
        if id < params.n_ids {
            scores[processed + id] = NEG_INF;
        }
    }
    storageBarrier();
    let n_biases = slots[sample.slot].n_biases;
    let biases = own + 2u * params.mask_words;
    for (var i = thread; i < n_biases; i += N_THREADS) {
        let id = constraints[biases + 2u * i];
        if id < params.n_ids && scores[processed + id] != NEG_INF {
            let s = bitcast<f32>(scores[processed + id]) + bitcast<f32>(constraints[biases + 2u * i + 1u]);
            scores[processed + id] = bitcast<u32>(s);
        }
    }
    storageBarrier();
}

// Step 6, and the best of what it leaves: (ordered bits, id).
fn penalise() -> vec2<u32> {
    let is_penalised = slots[sample.slot].penalised == 1u;
    let repetition = slots[sample.slot].repetition_penalty;
    let presence = slots[sample.slot].presence_penalty;
    let frequency = slots[sample.slot].frequency_penalty;
    var highest = vec2(0u, 0u);
    for (var id = thread; id < params.n_ids; id += N_THREADS) {
        var bits = scores[processed + id];
        if is_penalised && bits != NEG_INF {
            let count = counts[sample.slot * 32u * params.mask_words + id];
            if count != 0u {
                var s = bitcast<f32>(bits);
                if s > 0.0 {
                    s /= repetition;
                } else {
                    s *= repetition;
                }
                let n = count & 0x7fffffffu;
                if n > 0u {
                    s = fma(-frequency, f32(n), s - presence);
                }
                bits = bitcast<u32>(s);
                scores[processed + id] = bits;
            }
        }
        highest = better(highest, vec2(ordered_bits(bits), id));
    }
    return best_of_all(highest);
}

// Step 9.
fn draw() -> u32 {
    storageBarrier();
    let seed = vec2(slots[sample.slot].seed[0], slots[sample.slot].seed[1]);
    let produced = slots[sample.slot].produced;
    let sample_index = slots[sample.slot].sample_index;
    var highest = vec2(0u, 0u);
    for (var group = thread; 4u * group < params.n_ids; group += N_THREADS) {
        var is_drawn = false;
        var random = vec4(0u);
        for (var lane = 0u; lane < 4u; lane++) {
            let id = 4u * group + lane;
            if id < params.n_ids && scores[processed + id] != NEG_INF {
                if !is_drawn {
                    random = philox(vec4(group, produced, sample_index, 0u), seed);
                    is_drawn = true;
                }
                let score = bitcast<f32>(scores[processed + id]) + gumbel(random[lane]);
                highest = better(highest, vec2(ordered_bits(bitcast<u32>(score)), id));
            }
        }
    }
    return best_of_all(highest).y;
}

fn advance(id: u32) {
    let slot = sample.slot;
    if slots[slot].penalised == 1u {
        counts[slot * 32u * params.mask_words + id] += 1u;
    }
    let produced = slots[slot].produced;
    slots[slot].drew = 1u;
    slots[slot].last_id = id;
    slots[slot].ring[produced % RING] = id;
    slots[slot].produced = produced + 1u;
    for (var lane = 0u; lane < N_LANES; lane++) {
        slots[slot].lengths[lane] += 1u;
    }
    if produced + 1u == slots[slot].max_tokens {
        slots[slot].finish = LENGTH;
    }
    for (var i = 0u; i < slots[slot].n_stop_ids; i++) {
        if slots[slot].stop_ids[i] == id {
            slots[slot].finish = STOP;
        }
    }
}

fn end(finish: u32) {
    if thread == 0u {
        slots[sample.slot].finish = finish;
    }
}

@compute @workgroup_size(N_THREADS)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    thread = index;
    sample = samples[tile.x];
    let width = 32u * params.mask_words;
    own = 2u * params.mask_words + sample.slot * (2u * params.mask_words + 2u * MAX_BIASES);
    combined = 2u * sample.slot * width;
    processed = combined + width;
    if thread == 0u {
        atomicStore(&findings, 0u);
        slots[sample.slot].drew = 0u;
        let slot = &slots[sample.slot];
        settings = Settings((*slot).finish, (*slot).inverse_temperature, (*slot).top_k, (*slot).top_p, (*slot).min_p,
            (*slot).base_top_p, (*slot).base_min_p);
    }
    let chosen = workgroupUniformLoad(&settings);
    if chosen.finish != RUNNING {
        return;
    }
    let has_base_mask = chosen.base_top_p != 0u || chosen.base_min_p != 0.0;
    if has_base_mask {
        mask_base(chosen.base_top_p, chosen.base_min_p);
    }
    if !combine(has_base_mask) {
        end(NUMERIC);
        return;
    }
    narrow();
    let highest = penalise();
    if highest.x >= ordered_bits(POS_INF) {
        end(NUMERIC);
        return;
    }
    if highest.x <= ordered_bits(NEG_INF) {
        end(EMPTY);
        return;
    }
    var id = highest.y;
    if chosen.inverse_temperature != 0.0 {
        subtract_and_scale(highest.x, chosen.inverse_temperature);
        apply_filters(chosen.top_k, chosen.top_p, chosen.min_p);
        id = draw();
    }
    if thread == 0u {
        advance(id);
    }
}
