// q/k norm per head where gains are given, rotary positions on q (in place) and k, then k and v into their page.
//
// qkv [members * cap][(n_heads + 2 n_kv_heads) * head_dim] f32, rotary [members][max_positions][head_dim / 2] (cos, sin).
// One workgroup: one head of one row, q heads first, then k, then v. Reads qkv once; writes q once, and one token's K
// and V. Rows that are not live write nothing.

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
    reserved: u32,
    eps: vec2<f32>,
}

const N_THREADS = 64u;
// The head, whole before any of it is overwritten.
var<workgroup> elements: array<f32, MAX_HEAD_DIM>;

fn norm_factor(eps: f32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < params.head_dim; i++) {
        sum = fma(elements[i], elements[i], sum);
    }
    // An explicit fma: no form of this shader may be contracted where another is not.
    return 1.0 / sqrt(fma(sum, 1.0 / f32(params.head_dim), eps));
}

// Element i of the head, rotated.
fn rotated(i: u32, angles: u32) -> f32 {
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

@compute @workgroup_size(N_THREADS)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = tile.x;
    let member = tile.z;
    if tile.y >= extents[member].n_rows {
        return;
    }
    let row = member * params.cap + tile.y;
    let place = places[row];
    if place.live == 0u {
        return;
    }
    let n_heads = params.n_heads;
    let n_kv_heads = params.n_kv_heads;
    let head_dim = params.head_dim;
    let is_q = head < n_heads;
    let is_k = !is_q && head < n_heads + n_kv_heads;
    let start = (row * (n_heads + 2u * n_kv_heads) + head) * head_dim;

    for (var i = thread; i < head_dim; i += N_THREADS) {
        elements[i] = qkv[start + i];
    }
    workgroupBarrier();
    if (HAS_Q_GAIN && is_q) || (HAS_K_GAIN && is_k) {
        let r = norm_factor(params.eps[member]);
        workgroupBarrier();
        for (var i = thread; i < head_dim; i += N_THREADS) {
            let at = member * head_dim + i;
            elements[i] = r * elements[i] * select(k_gain[at], q_gain[at], is_q);
        }
        workgroupBarrier();
    }

    let angles = (member * params.max_positions + place.position) * (head_dim / 2u);
    let kv_head = (head - n_heads) % n_kv_heads;
    var word = 0u;
    if !is_q {
        word = key_word(place.table, place.position, kv_head) + select(value_words(), 0u, is_k);
    }
    for (var i = thread; i < head_dim / 2u; i += N_THREADS) {
        if is_q {
            qkv[start + 2u * i] = rotated(2u * i, angles);
            qkv[start + 2u * i + 1u] = rotated(2u * i + 1u, angles);
        } else if is_k {
            store_pair(word + i * PAIR_WORDS, vec2<f32>(rotated(2u * i, angles), rotated(2u * i + 1u, angles)));
        } else {
            store_pair(word + i * PAIR_WORDS, vec2<f32>(elements[2u * i], elements[2u * i + 1u]));
        }
    }
}
