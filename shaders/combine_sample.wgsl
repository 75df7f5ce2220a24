// Three rows of logits to one id per sample, and the slot moved on: difference, masks, penalties, filters, draw. Order
// of operations: CombineSample in src/backend/mod.rs. Twin: src/backend/cpu/combine_sample.rs.
//
// slots [n_slots], scores [n_slots][2][32 * mask_words] bits of f32, counts [n_slots][32 * mask_words], base, expert
// and anti rows of a stride each, samples [n_samples]. One workgroup: one sample, all of it, since WGSL has no barrier
// between workgroups; thread t has the fours t, t + N_THREADS, ... of the ids in every pass. Reads each row once, the
// processed scores once per pass; writes both scores.

@group(0) @binding(0) var<storage, read_write> slots: array<Slot>;
@group(0) @binding(1) var<storage, read_write> scores: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> counts: array<u32>;
@group(0) @binding(3) var<storage, read> base: array<Logits>;
@group(0) @binding(4) var<storage, read> expert: array<Logits>;
@group(0) @binding(5) var<storage, read> anti: array<Logits>;
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
    penalised: u32,
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
// The expert's row is read in place of the base's.
var<private> is_expert_only: bool;
// First word of the slot's constraints, and first four of its scores after step 3.
var<private> own: u32;
var<private> combined: u32;

// NaN or +inf.
fn is_bad(bits: vec4<u32>) -> vec4<bool> {
    return ((bits & vec4(0x7fffffffu)) >= vec4(POS_INF)) & (bits != vec4(NEG_INF));
}

fn ids_of(four: u32) -> vec4<u32> {
    return vec4(4u * four) + vec4(0u, 1u, 2u, 3u);
}

// Bits of a four in the mask that starts at `word` of the constraints.
fn four_in_mask(word: u32, four: u32) -> vec4<bool> {
    let bits = constraints[word + (four >> 3u)] >> (4u * (four & 7u));
    return ((vec4(bits) >> vec4(0u, 1u, 2u, 3u)) & vec4(1u)) == vec4(1u);
}

fn live(four: u32) -> vec4<bool> {
    return (ids_of(four) < vec4(params.n_ids)) & four_in_mask(0u, four);
}

fn ordered_four(bits: vec4<u32>) -> vec4<u32> {
    return vec4(ordered_bits(bits.x), ordered_bits(bits.y), ordered_bits(bits.z), ordered_bits(bits.w));
}

fn best_of_four(best_yet: vec2<u32>, ordered: vec4<u32>, four: u32) -> vec2<u32> {
    let first = better(vec2(ordered.x, 4u * four), vec2(ordered.y, 4u * four + 1u));
    let second = better(vec2(ordered.z, 4u * four + 2u), vec2(ordered.w, 4u * four + 3u));
    return better(best_yet, better(first, second));
}

// Fours of base, expert and anti-expert; rows that are not read have what stands for the base. Each row has one place
// where it is loaded: a software driver goes through all of them, under a mask.
struct Fours {
    z: vec4<u32>,
    e: vec4<u32>,
    a: vec4<u32>,
}

fn fours(four: u32, has_pair: bool) -> Fours {
    var z = vec4(NEG_INF);
    if !is_expert_only {
        z = base_four(sample.row_base * params.stride_base + 4u * four);
    }
    var e = z;
    if is_expert_only || has_pair {
        e = expert_four(sample.row_expert * params.stride_expert + 4u * four);
    }
    z = select(z, e, is_expert_only);
    var a = z;
    if has_pair {
        a = anti_four(sample.row_anti * params.stride_anti + 4u * four);
    }
    return Fours(z, e, a);
}

// Step 2: leaves -inf in the processed scores where the base's own filters drop an id.
fn mask_base(top_p: u32, min_p: f32) {
    var highest = vec2(0u, 0u);
    for (var four = thread; 4u * four < params.n_ids; four += N_THREADS) {
        let z = fours(four, false).z;
        // What is bad ends the sequence in step 3.
        let bits = select(vec4(NEG_INF), z, live(four) & !is_bad(z));
        scores[processed + four] = bits;
        highest = best_of_four(highest, ordered_four(bits), four);
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
    let highest = vec4(from_ordered(best_bits));
    for (var four = thread; 4u * four < params.n_ids; four += N_THREADS) {
        let bits = scores[processed + four];
        let t = bitcast<vec4<u32>>((bitcast<vec4<f32>>(bits) - highest) * scale);
        scores[processed + four] = select(t, bits, bits == vec4(NEG_INF));
    }
}

// Step 3 for ids that are live and have a base score: z + alpha (up - down), alpha > 0.
fn difference(z: vec4<u32>, up: vec4<u32>, down: vec4<u32>, alpha: f32) -> vec4<u32> {
    let d = bitcast<vec4<f32>>(up) - bitcast<vec4<f32>>(down);
    var s = bitcast<vec4<u32>>(fma(vec4(alpha), d, bitcast<vec4<f32>>(z)));
    s = select(s, z, d == vec4(0.0));
    s = select(s, vec4(NEG_INF), up == vec4(NEG_INF));
    s = select(s, vec4(POS_INF), down == vec4(NEG_INF));
    // Where the pair agrees (on -inf too) the base's bits stay.
    return select(s, z, up == down);
}

// Steps 1, 3 and the masks of 4; true where the sequence can go on.
fn combine(has_base_mask: bool) -> bool {
    let alpha = slots[sample.slot].alpha;
    var allowed = own;
    if slots[sample.slot].produced == 0u {
        allowed += params.mask_words;
    }
    let none = vec4(NEG_INF);
    var found = 0u;
    for (var four = thread; four < 8u * params.mask_words; four += N_THREADS) {
        let read = fours(four, alpha != 0.0);
        let z = read.z;
        let e = read.e;
        let a = read.a;
        let is_live = live(four);
        found |= select(0u, BAD, any(is_live & (is_bad(z) | is_bad(e) | is_bad(a))));
        found |= select(0u, FINITE_BASE, any(is_live & (z != none)));
        found |= select(0u, FINITE_EXPERT, any(is_live & (e != none)));
        found |= select(0u, FINITE_ANTI, any(is_live & (a != none)));
        var is_kept = is_live & (z != none);
        if has_base_mask {
            is_kept = is_kept & (scores[processed + four] != none);
        }
        // A negative alpha exchanges the two; the product's bits are the same.
        let steered = difference(z, select(e, a, alpha < 0.0), select(a, e, alpha < 0.0), abs(alpha));
        let s = select(none, select(steered, z, four_in_mask(params.mask_words, four)), is_kept);
        found |= select(0u, BAD, any(is_kept & is_bad(s))) | select(0u, FINITE_SCORE, any(is_kept & (s != none)));
        scores[combined + four] = s;
        scores[processed + four] = select(none, s, four_in_mask(allowed, four));
    }
    atomicOr(&findings, found);
    workgroupBarrier();
    if thread == 0u {
        verdict = atomicLoad(&findings);
    }
    return workgroupUniformLoad(&verdict) == ALL_FINITE;
}

// A thread changes only its own fours, and whole ones: a store of one component may touch the others.
fn is_own(id: u32) -> bool {
    return id < params.n_ids && (id / 4u) % N_THREADS == thread;
}

// The rest of step 4, and step 5: what only few ids have.
fn narrow() {
    let slot = &slots[sample.slot];
    if (*slot).produced < (*slot).min_tokens {
        for (var i = 0u; i < (*slot).n_stop_ids; i++) {
            let id = (*slot).stop_ids[i];
            if is_own(id) {
                let at = processed + id / 4u;
                scores[at] = select(scores[at], vec4(NEG_INF), ids_of(id / 4u) == vec4(id));
            }
        }
    }
    let biases = own + 2u * params.mask_words;
    for (var i = 0u; i < (*slot).n_biases; i++) {
        let id = constraints[biases + 2u * i];
        if is_own(id) {
            let at = processed + id / 4u;
            let bits = scores[at];
            let biased = bitcast<vec4<f32>>(bits) + bitcast<f32>(constraints[biases + 2u * i + 1u]);
            let is_biased = (ids_of(id / 4u) == vec4(id)) & (bits != vec4(NEG_INF));
            scores[at] = select(bits, bitcast<vec4<u32>>(biased), is_biased);
        }
    }
}

// Step 6 for one id that was counted.
fn penalised(bits: u32, count: u32) -> u32 {
    let slot = &slots[sample.slot];
    var s = bitcast<f32>(bits);
    if s > 0.0 {
        s /= (*slot).repetition_penalty;
    } else {
        s *= (*slot).repetition_penalty;
    }
    let n = count & 0x7fffffffu;
    if n > 0u {
        s = fma(-(*slot).frequency_penalty, f32(n), s - (*slot).presence_penalty);
    }
    return bitcast<u32>(s);
}

fn penalise() {
    let start = sample.slot * 32u * params.mask_words;
    for (var four = thread; 4u * four < params.n_ids; four += N_THREADS) {
        var bits = scores[processed + four];
        for (var i = 0u; i < 4u; i++) {
            let count = counts[start + 4u * four + i];
            if count != 0u && bits[i] != NEG_INF {
                bits[i] = penalised(bits[i], count);
            }
        }
        scores[processed + four] = bits;
    }
}

// The best of what is left: (ordered bits, id).
fn best_left() -> vec2<u32> {
    var highest = vec2(0u, 0u);
    for (var four = thread; 4u * four < params.n_ids; four += N_THREADS) {
        highest = best_of_four(highest, ordered_four(scores[processed + four]), four);
    }
    return best_of_all(highest);
}

// Step 9.
fn draw() -> u32 {
    let seed = vec2(slots[sample.slot].seed[0], slots[sample.slot].seed[1]);
    let produced = slots[sample.slot].produced;
    let sample_index = slots[sample.slot].sample_index;
    var highest = vec2(0u, 0u);
    for (var four = thread; 4u * four < params.n_ids; four += N_THREADS) {
        let bits = scores[processed + four];
        let random = philox(vec4(four, produced, sample_index, 0u), seed);
        let noise = vec4(gumbel(random.x), gumbel(random.y), gumbel(random.z), gumbel(random.w));
        let drawn = bitcast<vec4<u32>>(bitcast<vec4<f32>>(bits) + noise);
        highest = best_of_four(highest, select(vec4(0u), ordered_four(drawn), bits != vec4(NEG_INF)), four);
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
    combined = 2u * sample.slot * width / 4u;
    processed = combined + width / 4u;
    if thread == 0u {
        atomicStore(&findings, 0u);
        slots[sample.slot].drew = 0u;
        let slot = &slots[sample.slot];
        settings = Settings((*slot).finish, (*slot).penalised, (*slot).inverse_temperature, (*slot).top_k, (*slot).top_p, (*slot).min_p,
            (*slot).base_top_p, (*slot).base_min_p);
    }
    is_expert_only = slots[sample.slot].expert_only == 1u;
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
    if chosen.penalised == 1u {
        penalise();
    }
    let highest = best_left();
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
