// Causal attention of one row over its lane's pages, positions 0..=position (or the window's).
//
// y [members * cap][n_heads * head_dim] f32, qkv [members * cap][(n_heads + 2 n_kv_heads) * head_dim] f32.
// One workgroup: one head of one row, eight groups of eight lanes. Keys come in blocks of KEY_BLOCK aligned to position
// 0; group g has keys 8 g to 8 g + 7 of each block, and takes its eights left to right: lanes have octets of the head, so
// that they load neighbouring words of a key; the lanes' parts of a dot product are added as in matmul.wgsl. A group
// keeps a maximum, a sum of weights and weighted values, rescaled where the maximum grows; at the end the groups are
// folded, from the first to the last. Keys that are not visible are never loaded.
// Reads the lane's K and V once per head (from the cache for heads that share them); writes y once.

@group(0) @binding(0) var<storage, read_write> y: array<Elements>;
@group(0) @binding(1) var<storage, read> qkv: array<Elements>;
@group(0) @binding(2) var<storage, read> plane: array<Words>;
@group(0) @binding(3) var<storage, read> places: array<Place>;
@group(0) @binding(4) var<storage, read> page_table: array<u32>;
@group(0) @binding(5) var<storage, read> extents: array<Extent>;
@group(0) @binding(6) var<uniform> params: AttentionParams;

struct AttentionParams {
    page: PageParams,
    cap: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
    scale: f32,
    softcap: f32,
    window: vec2<u32>,
}

const N_THREADS = KEY_BLOCK;
const N_GROUPS = N_THREADS / 8u;
// Octets of the head that a lane has: lane, lane + 8, ...
const OWN_OCTETS = (HEAD_DIM + 63u) / 64u;
// Below every score; -inf has no literal.
const LOWEST = -3.4028235e38f;
// In place of the word of a key that is not visible.
const NOWHERE = 0xffffffffu;

var<workgroup> maxima: array<f32, N_THREADS>;
var<workgroup> sums: array<f32, N_THREADS>;
var<workgroup> parts: array<vec4<f32>, N_THREADS * OWN_OCTETS * 2u>;

var<private> thread: u32;
var<private> lane: u32;
var<private> q: array<Octet, OWN_OCTETS>;
var<private> values: array<Octet, OWN_OCTETS>;

// This lane's part of q times the key at `word`.
fn dot_part(word: u32) -> f32 {
    if word == NOWHERE {
        return 0.0;
    }
    var sum = vec4<f32>();
    for (var i = 0u; i < OWN_OCTETS; i++) {
        if lane + 8u * i < N_OCTETS {
            let k = plane_octet(word, lane + 8u * i);
            sum = fma(q[i].hi, k.hi, fma(q[i].lo, k.lo, sum));
        }
    }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

// Adds the value of the key at `word`.
fn add_value(word: u32, weight: f32) {
    if word == NOWHERE {
        return;
    }
    for (var i = 0u; i < OWN_OCTETS; i++) {
        if lane + 8u * i < N_OCTETS {
            let v = plane_octet(word + value_words(), lane + 8u * i);
            values[i].lo = fma(vec4<f32>(weight), v.lo, values[i].lo);
            values[i].hi = fma(vec4<f32>(weight), v.hi, values[i].hi);
        }
    }
}

fn rescale(factor: f32) {
    for (var i = 0u; i < OWN_OCTETS; i++) {
        values[i].lo *= factor;
        values[i].hi *= factor;
    }
}

// Folds the groups, in the first of them, and writes the head.
fn finish(y_start: u32) {
    for (var i = 0u; i < OWN_OCTETS; i++) {
        parts[2u * (thread * OWN_OCTETS + i)] = values[i].lo;
        parts[2u * (thread * OWN_OCTETS + i) + 1u] = values[i].hi;
    }
    workgroupBarrier();
    if thread != lane {
        return;
    }
    var maximum = LOWEST;
    for (var group = 0u; group < N_GROUPS; group++) {
        maximum = max(maximum, maxima[8u * group]);
    }
    var sum = 0.0;
    for (var i = 0u; i < OWN_OCTETS; i++) {
        values[i] = Octet();
    }
    for (var group = 0u; group < N_GROUPS; group++) {
        let factor = exp_nonpositive(maxima[8u * group] - maximum);
        sum = fma(sums[8u * group], factor, sum);
        for (var i = 0u; i < OWN_OCTETS; i++) {
            let at = 2u * ((8u * group + lane) * OWN_OCTETS + i);
            values[i].lo = fma(parts[at], vec4<f32>(factor), values[i].lo);
            values[i].hi = fma(parts[at + 1u], vec4<f32>(factor), values[i].hi);
        }
    }
    for (var i = 0u; i < OWN_OCTETS; i++) {
        if lane + 8u * i < N_OCTETS {
            store_octet(y_start, lane + 8u * i, Octet(values[i].lo / sum, values[i].hi / sum));
        }
    }
}

@compute @workgroup_size(N_THREADS)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    thread = index;
    lane = index % 8u;
    let head = tile.x;
    let member = tile.z;
    if tile.y >= extents[member].n_rows {
        return;
    }
    let row = member * params.cap + tile.y;
    let place = places[row];
    let y_start = (row * params.n_heads + head) * params.head_dim;
    if place.live == 0u {
        for (var octet = thread; octet < N_OCTETS; octet += N_THREADS) {
            store_octet(y_start, octet, Octet());
        }
        return;
    }
    let q_start = (row * (params.n_heads + 2u * params.n_kv_heads) + head) * params.head_dim;
    for (var i = 0u; i < OWN_OCTETS; i++) {
        if lane + 8u * i < N_OCTETS {
            q[i] = load_octet(q_start, lane + 8u * i);
        }
    }

    let kv_head = head / (params.n_heads / params.n_kv_heads);
    let window = params.window[member];
    let last = place.position;
    let first = select(0u, last + 1u - window, window != 0u && window <= last);
    var maximum = LOWEST;
    var sum = 0.0;
    for (var block = first / KEY_BLOCK; block <= last / KEY_BLOCK; block++) {
        let position = block * KEY_BLOCK + thread;
        var own_word = NOWHERE;
        if position >= first && position <= last {
            own_word = key_word(place.table, position, kv_head);
        }
        let words = gathered(own_word);
        let dot = sum_of_own(Eight(
            vec4<f32>(dot_part(words.lo.x), dot_part(words.lo.y), dot_part(words.lo.z), dot_part(words.lo.w)),
            vec4<f32>(dot_part(words.hi.x), dot_part(words.hi.y), dot_part(words.hi.z), dot_part(words.hi.w)),
        ));
        let score = select(softcap(dot * params.scale, params.softcap), LOWEST, own_word == NOWHERE);
        let new_maximum = max(maximum, highest(gathered(bitcast<u32>(score))));
        let old_factor = exp_nonpositive(maximum - new_maximum);
        let own_weight = select(exp_nonpositive(score - new_maximum), 0.0, own_word == NOWHERE);
        let weights = gathered(bitcast<u32>(own_weight));
        maximum = new_maximum;
        sum = fma(sum, old_factor, sum_of(weights));
        rescale(old_factor);
        add_value(words.lo.x, bitcast<f32>(weights.lo.x));
        add_value(words.lo.y, bitcast<f32>(weights.lo.y));
        add_value(words.lo.z, bitcast<f32>(weights.lo.z));
        add_value(words.lo.w, bitcast<f32>(weights.lo.w));
        add_value(words.hi.x, bitcast<f32>(weights.hi.x));
        add_value(words.hi.y, bitcast<f32>(weights.hi.y));
        add_value(words.hi.z, bitcast<f32>(weights.hi.z));
        add_value(words.hi.w, bitcast<f32>(weights.hi.w));
    }
    maxima[thread] = maximum;
    sums[thread] = sum;
    finish(y_start);
}
