// q/k norm where gains are given, per head or over all heads; rotary positions on q (in place) and k where there is a
// table; q times its factor of position; then k and v into their page.
//
// qkv [members * cap][(n_heads + 2 n_kv_heads) * head_dim] f32, rotary [members][max_positions][head_dim / 2] (cos, sin).
// One workgroup: one head of one row, q heads first, then k, then v; with a wide norm all heads of q, or all of k, or
// one of v. Reads qkv once, what has a norm twice; writes q once, and one token's K and V. Rows that are not live write
// nothing.

@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
@group(0) @binding(1) var<storage, read_write> plane: array<u32>;
@group(0) @binding(2) var<storage, read> places: array<Place>;
@group(0) @binding(3) var<storage, read> page_table: array<u32>;
@group(0) @binding(4) var<storage, read> rotary: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read> q_gain: array<f32>;
@group(0) @binding(6) var<storage, read> k_gain: array<f32>;
@group(0) @binding(7) var<storage, read> extents: array<Extent>;
@group(0) @binding(8) var<uniform> params: RopeAppendParams;

struct RopeAppendParams {
    page: PageParams,
    cap: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
    max_positions: u32,
    wide_norm: u32,
    eps: vec2<f32>,
    q_beta: vec2<f32>,
    q_length: vec2<u32>,
}

const N_THREADS = 32u;
// The head, whole before any of it is overwritten.
var<workgroup> elements: array<f32, MAX_HEAD_DIM>;
var<workgroup> squares: array<f32, N_THREADS>;

// Of the `width` elements from `start` on; the whole workgroup comes here.
fn norm_factor(thread: u32, start: u32, width: u32, eps: f32) -> f32 {
    var own = 0.0;
    for (var i = thread; i < width; i += N_THREADS) {
        own = fma(qkv[start + i], qkv[start + i], own);
    }
    squares[thread] = own;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < N_THREADS; i++) {
        sum += squares[i];
    }
    // An explicit fma: no form of this shader may be contracted where another is not.
    return 1.0 / sqrt(fma(sum, 1.0 / f32(width), eps));
}

// Element i of the head, rotated.
fn rotated(i: u32, angles: u32) -> f32 {
    if !HAS_ROTARY {
        return elements[i];
    }
    let half = params.head_dim / 2u;
    if i < half {
        let turn = rotary[angles + i];
        return fma(elements[i], turn.x, -(elements[i + half] * turn.y));
    }
    let turn = rotary[angles + i - half];
    return fma(elements[i], turn.x, elements[i - half] * turn.y);
}

// Nearest, ties to even, as the host rounds; WGSL leaves the rounding of its own conversions open.
fn to_bf16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

fn to_f16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    if size > 0x7f800000u {
        return sign | 0x7e00u;
    }
    // 65520 and more round to infinity.
    if size >= 0x477ff000u {
        return sign | 0x7c00u;
    }
    var kept: u32;
    var rest: u32;
    var half: u32;
    if size >= 0x38800000u {
        kept = (size - 0x38000000u) >> 13u;
        rest = size & 0x1fffu;
        half = 0x1000u;
    } else {
        // Subnormal, in units of 2^-24.
        let shift = min(126u - (size >> 23u), 31u);
        let mantissa = (size & 0x7fffffu) | 0x800000u;
        kept = mantissa >> shift;
        rest = mantissa & ((1u << shift) - 1u);
        half = 1u << (shift - 1u);
    }
    return sign | (kept + u32(rest > half || (rest == half && (kept & 1u) == 1u)));
}

fn store_pair(word: u32, pair: vec2<f32>) {
    if KV_DTYPE == F32 {
        plane[word] = bitcast<u32>(pair.x);
        plane[word + 1u] = bitcast<u32>(pair.y);
    } else if KV_DTYPE == BF16 {
        plane[word] = to_bf16(pair.x) | (to_bf16(pair.y) << 16u);
    } else {
        plane[word] = to_f16(pair.x) | (to_f16(pair.y) << 16u);
    }
}

// Norm, rotation and store of one head.
fn take_head(thread: u32, head: u32, row: u32, r: f32, gain_start: u32) {
    let member = row / params.cap;
    let place = places[row];
    let n_heads = params.n_heads;
    let n_kv_heads = params.n_kv_heads;
    let head_dim = params.head_dim;
    let is_q = head < n_heads;
    let is_k = !is_q && head < n_heads + n_kv_heads;
    let start = (row * (n_heads + 2u * n_kv_heads) + head) * head_dim;

    for (var i = thread; i < head_dim; i += N_THREADS) {
        var element = qkv[start + i];
        if HAS_Q_GAIN && is_q {
            element = r * element * q_gain[gain_start + i];
        }
        if HAS_K_GAIN && is_k {
            element = r * element * k_gain[gain_start + i];
        }
        elements[i] = element;
    }
    workgroupBarrier();

    let angles = (member * params.max_positions + place.position) * (head_dim / 2u);
    let kv_head = (head - n_heads) % n_kv_heads;
    // 1 exactly where beta is 0.
    let steps = f32(place.position / params.q_length[member]);
    let q_factor = fma(params.q_beta[member], ln(1.0 + steps), 1.0);
    var word = 0u;
    if !is_q {
        word = key_word(place.table, place.position, kv_head) + select(value_words(), 0u, is_k);
    }
    for (var i = thread; i < head_dim / 2u; i += N_THREADS) {
        if is_q {
            qkv[start + 2u * i] = q_factor * rotated(2u * i, angles);
            qkv[start + 2u * i + 1u] = q_factor * rotated(2u * i + 1u, angles);
        } else if is_k {
            store_pair(word + i * PAIR_WORDS, vec2<f32>(rotated(2u * i, angles), rotated(2u * i + 1u, angles)));
        } else {
            store_pair(word + i * PAIR_WORDS, vec2<f32>(elements[2u * i], elements[2u * i + 1u]));
        }
    }
    // The next head takes the place of this one.
    workgroupBarrier();
}

// The heads of a workgroup, the first and how many: one, or all that a wide norm spans.
fn heads_of(tile: u32) -> vec2<u32> {
    if params.wide_norm == 0u {
        return vec2<u32>(tile, 1u);
    }
    if tile == 0u {
        return vec2<u32>(0u, params.n_heads);
    }
    if tile == 1u {
        return vec2<u32>(params.n_heads, params.n_kv_heads);
    }
    return vec2<u32>(params.n_heads + params.n_kv_heads + tile - 2u, 1u);
}

@compute @workgroup_size(N_THREADS)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let member = tile.z;
    if tile.y >= extents[member].n_rows {
        return;
    }
    let row = member * params.cap + tile.y;
    if places[row].live == 0u {
        return;
    }
    let heads = heads_of(tile.x);
    let width = heads.y * params.head_dim;
    let is_q = heads.x < params.n_heads;
    let is_k = !is_q && heads.x < params.n_heads + params.n_kv_heads;
    var r = 1.0;
    if (HAS_Q_GAIN && is_q) || (HAS_K_GAIN && is_k) {
        let start = (row * (params.n_heads + 2u * params.n_kv_heads) + heads.x) * params.head_dim;
        r = norm_factor(thread, start, width, params.eps[member]);
    }
    for (var i = 0u; i < heads.y; i++) {
        take_head(thread, heads.x + i, row, r, member * width + i * params.head_dim);
    }
}
