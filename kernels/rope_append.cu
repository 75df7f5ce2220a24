// q/k norm where gains are given, per head or over all heads; rotary positions on q (in place) and k where there is a
// table; q times its factor of position; then k and v into their page.
//
// qkv [members * cap][(n_heads + 2 n_kv_heads) * head_dim] f32, rotary [members][max_positions][head_dim / 2] of
// (cos, sin). One block: some heads of one row, q heads first, then k, then v, a warp for each; with a wide norm all
// heads of q, or all of k, or some of v; grid (rows, blocks of a row's heads, members). Lane l has the pairs
// (i, i + head_dim / 2) for i = l, l + 32, .. of a head. A sum of squares is in that order, first halves before second
// halves, head after head of a warp; then lanes by halves, then warps. Reads qkv once, what has a wide norm twice;
// writes q once, and one token's K and V. Rows that are not live write nothing.
#include "common.cuh"

struct RopeAppendArgs {
    float* qkv;
    void* plane;
    const Place* places;
    const u32* page_table;
    const float2* rotary;
    const float* q_gain;
    const float* k_gain;
    const Extent* extents;
    RopeAppendParams params;
};

constexpr u32 WARPS = 4;
constexpr u32 THREADS = WARPS * WARP;
constexpr u32 MOST_PAIRS = MAX_HEAD_DIM / 2 / WARP;

struct RopeAppendShared {
    float sums[WARPS];
};

// A lane's elements i and i + head_dim / 2 of a head, i = lane + 32 p; zero past the head's end.
struct Pairs {
    float a[MOST_PAIRS];
    float b[MOST_PAIRS];
};

DEVICE Pairs load_pairs(const float* head, u32 half) {
    Pairs pairs;
#pragma unroll
    for (u32 p = 0; p < MOST_PAIRS; p++) {
        const u32 i = threadIdx.x % WARP + WARP * p;
        pairs.a[p] = i < half ? head[i] : 0.0f;
        pairs.b[p] = i < half ? head[i + half] : 0.0f;
    }
    return pairs;
}

DEVICE float add_squares(const Pairs& pairs, float sum) {
#pragma unroll
    for (u32 p = 0; p < MOST_PAIRS; p++) {
        sum = fmaf(pairs.a[p], pairs.a[p], sum);
    }
#pragma unroll
    for (u32 p = 0; p < MOST_PAIRS; p++) {
        sum = fmaf(pairs.b[p], pairs.b[p], sum);
    }
    return sum;
}

DEVICE void store_element(void* plane, u64 element, float x, u32 dtype) {
    if (dtype == F32) {
        static_cast<float*>(plane)[element] = x;
    } else {
        static_cast<u16*>(plane)[element] = dtype == F16 ? f32_to_f16(x) : f32_to_bf16(x);
    }
}

// The heads of a block: one for each warp, or all that a wide norm spans.
struct HeadRange {
    u32 first;
    u32 end;
    bool is_wide;
};

DEVICE HeadRange heads_of(const RopeAppendParams& params, u32 tile) {
    const u32 first_v = params.n_heads + params.n_kv_heads, end_v = first_v + params.n_kv_heads;
    if (params.wide_norm == 0) {
        return {tile * WARPS, min_of((tile + 1) * WARPS, end_v), false};
    }
    if (tile < 2) {
        return {tile == 0 ? 0 : params.n_heads, tile == 0 ? params.n_heads : first_v, true};
    }
    return {first_v + (tile - 2) * WARPS, min_of(first_v + (tile - 1) * WARPS, end_v), false};
}

// Over all heads of a block, which comes here whole.
DEVICE float wide_factor(RopeAppendShared& shared, const HeadRange& heads, const float* qkv, u32 head_dim, float eps) {
    const u32 warp = threadIdx.x / WARP;
    float own = 0.0f;
    for (u32 head = heads.first + warp; head < heads.end; head += WARPS) {
        own = add_squares(load_pairs(qkv + head * head_dim, head_dim / 2), own);
    }
    own = sum_of_lanes(own);
    if (threadIdx.x % WARP == 0) {
        shared.sums[warp] = own;
    }
    sync_block();
    float sum = 0.0f;
    for (u32 i = 0; i < WARPS; i++) {
        sum += shared.sums[i];
    }
    return inverse_rms(sum, (heads.end - heads.first) * head_dim, eps);
}

DEVICE void norm(Pairs& pairs, float r, const float* gain, u32 half) {
#pragma unroll
    for (u32 p = 0; p < MOST_PAIRS; p++) {
        const u32 i = threadIdx.x % WARP + WARP * p;
        if (i < half) {
            pairs.a[p] = r * pairs.a[p] * gain[i];
            pairs.b[p] = r * pairs.b[p] * gain[i + half];
        }
    }
}

DEVICE void rotate(Pairs& pairs, const float2* angles, u32 half) {
#pragma unroll
    for (u32 p = 0; p < MOST_PAIRS; p++) {
        const u32 i = threadIdx.x % WARP + WARP * p;
        if (i < half) {
            const float2 turn = angles[i];
            const float a = pairs.a[p], b = pairs.b[p];
            pairs.a[p] = fmaf(a, turn.x, -(b * turn.y));
            pairs.b[p] = fmaf(b, turn.x, a * turn.y);
        }
    }
}

// To element(i) and element(i + half) of each pair.
template <class Store>
DEVICE void store_pairs(const Pairs& pairs, u32 half, Store store) {
#pragma unroll
    for (u32 p = 0; p < MOST_PAIRS; p++) {
        const u32 i = threadIdx.x % WARP + WARP * p;
        if (i < half) {
            store(i, pairs.a[p]);
            store(i + half, pairs.b[p]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) rope_append(const RopeAppendArgs args) {
    SHARED(RopeAppendShared, shared);
    wait_for_earlier();
    let_next_start();
    const RopeAppendParams& params = args.params;
    const u32 member = blockIdx.z;
    if (blockIdx.x >= args.extents[member].n_rows) {
        return;
    }
    const u32 row = member * params.cap + blockIdx.x;
    const Place place = args.places[row];
    if (place.live == 0) {
        return;
    }
    const u32 n_heads = params.n_heads, first_v = n_heads + params.n_kv_heads, head_dim = params.head_dim;
    const u32 half = head_dim / 2, dtype = params.page.dtype;
    const HeadRange heads = heads_of(params, blockIdx.y);
    float* qkv = args.qkv + (u64)row * (first_v + params.n_kv_heads) * head_dim;
    const float eps = of_member(params.eps, member);
    float r = 1.0f;
    if (heads.is_wide && (heads.first == 0 ? args.q_gain : args.k_gain) != nullptr) {
        r = wide_factor(shared, heads, qkv, head_dim, eps);
    }
    // 1 exactly where beta is 0.
    const float steps = (float)(place.position / of_member(params.q_length, member));
    const float q_factor = fmaf(of_member(params.q_beta, member), ln(1.0f + steps), 1.0f);

    for (u32 head = heads.first + threadIdx.x / WARP; head < heads.end; head += WARPS) {
        const bool is_q = head < n_heads, is_v = head >= first_v;
        const float* gain = is_q ? args.q_gain : is_v ? nullptr : args.k_gain;
        Pairs pairs = load_pairs(qkv + head * head_dim, half);
        if (gain != nullptr && heads.is_wide) {
            norm(pairs, r, gain + (member * (heads.end - heads.first) + head - heads.first) * head_dim, half);
        } else if (gain != nullptr) {
            const float own_r = inverse_rms(sum_of_lanes(add_squares(pairs, 0.0f)), head_dim, eps);
            norm(pairs, own_r, gain + member * head_dim, half);
        }
        if (args.rotary != nullptr && !is_v) {
            rotate(pairs, args.rotary + ((u64)member * params.max_positions + place.position) * half, half);
        }
        if (is_q) {
            store_pairs(pairs, half, [&](u32 i, float x) { qkv[head * head_dim + i] = q_factor * x; });
        } else {
            // Cells are in the order of heads: keys', then values'.
            const u32* pages = args.page_table + place.table;
            const u32 word = cell_word(params.page, pages, place.position, head - n_heads, head_words(head_dim, dtype));
            const u64 element = (u64)word * (dtype == F32 ? 1 : 2);
            store_pairs(pairs, half, [&](u32 i, float x) { store_element(args.plane, element + i, x, dtype); });
        }
    }
}
