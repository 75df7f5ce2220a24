// Causal attention of each row over its lane's pages, positions 0..=position (or the window's).
//
// y [members * cap][n_heads * head_dim] f32, qkv [members * cap][(n_heads + 2 n_kv_heads) * head_dim] f32.
// One block: up to 8 columns of one KV head, heads of one row (of some rows, where they share their keys), a warp
// (strand) for each quarter of a key block, and every n_parts-th span of keys from the block's part on; grid (blocks of
// rows times n_parts, KV heads times blocks of one's query heads, members). Reads K and V of its spans once, 16 bytes a
// lane; writes y once. Rows that are not live give zero.
//
// Canonical order. Key blocks of which the row sees keys are cut in at most ATTENTION_SPANS spans of equal length, the
// smallest power of two of blocks that does, from the first on: it depends on the row's position and window alone.
// In a span, strand w takes keys 16 w to 16 w + 15 of each block, block after block: a maximum, a sum of weights and
// weighted values, rescaled where the maximum grows. Strands are folded first to last into the span's partial, partials
// first to last into the row: in registers where one block has all spans, else through `partials`, by the last block.
#include "keys.cuh"

struct AttentionArgs {
    float* y;
    const float* qkv;
    const u32* plane;
    const Place* places;
    const u32* page_table;
    const Extent* extents;
    // [rows * heads of the grid][ATTENTION_SPANS] of Partial.
    float4* partials;
    // [rows * heads of the grid], all 0.
    u32* arrivals;
    AttentionParams params;
    // Blocks that share the spans of a row and head: 1 where blocks have many rows.
    u32 n_parts;
    // Rows of a block.
    u32 n_rows;
};

constexpr u32 STRANDS = KEY_BLOCK / KEY_TILE;
constexpr u32 THREADS = STRANDS * WARP;
// Chunks whose strands meet in shared memory at a time.
constexpr u32 MOST_CHUNKS_FOLDED = 2;
static_assert(ATTENTION_SPANS == WARP, "a lane has a span");
static_assert(STRANDS * COLUMNS == WARP, "a lane has a column of a strand");

// Softmax over the keys of a span. Lane l has max and sum of column l % 8; of chunk c, in warp w, the values of columns
// 2t and 2t + 1 (t = l % 4): x and y at dim 64 c + 8 (l / 4) + w, z and w four dims further.
template <u32 CHUNKS>
struct State {
    float max;
    float sum;
    float4 values[CHUNKS];
};

// A State of a block in memory.
template <u32 CHUNKS>
struct Partial {
    float4 values[CHUNKS][THREADS];
    float maxima[COLUMNS];
    float sums[COLUMNS];
};
static_assert(sizeof(Partial<1>) == ATTENTION_CHUNK_BYTES + ATTENTION_SUMS_BYTES, "as the plan counts it");

// By what a partial is folded into those before it: the factors of what was there and of what comes, and its sum.
struct Fold {
    float old_factor;
    float new_factor;
    float sum;
    float reserved;
};

template <u32 DTYPE, u32 CHUNKS>
struct AttentionShared {
    Queries<DTYPE, CHUNKS> q;
    float4 values[STRANDS][MOST_CHUNKS_FOLDED < CHUNKS ? MOST_CHUNKS_FOLDED : CHUNKS][4][WARP];
    float maxima[STRANDS * COLUMNS];
    float sums[STRANDS * COLUMNS];
    Fold folds[ATTENTION_SPANS][COLUMNS];
    u32 is_last;
};

DEVICE float4 scaled(float4 values, float first, float second) {
    return {values.x * first, values.y * second, values.z * first, values.w * second};
}
DEVICE float4 added(float4 sums, float4 values, float first, float second) {
    return {fmaf(values.x, first, sums.x), fmaf(values.y, second, sums.y), fmaf(values.z, first, sums.z),
            fmaf(values.w, second, sums.w)};
}

// Strands to a partial: first to last, relative to their common maximum. The whole block comes here.
template <u32 DTYPE, u32 CHUNKS>
DEVICE State<CHUNKS> folded_strands(AttentionShared<DTYPE, CHUNKS>& shared, const Strand<CHUNKS>& strand) {
    constexpr u32 AT_ONCE = MOST_CHUNKS_FOLDED < CHUNKS ? MOST_CHUNKS_FOLDED : CHUNKS;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, t = lane % 4;
    State<CHUNKS> state;
    float factor = 0.0f;
#pragma unroll
    for (u32 c_0 = 0; c_0 < CHUNKS; c_0 += AT_ONCE) {
        // What was there is read.
        sync_block();
        if (c_0 == 0 && t == 0) {
            shared.maxima[warp * COLUMNS + lane / 4] = strand.max;
            shared.sums[warp * COLUMNS + lane / 4] = strand.sum;
        }
#pragma unroll
        for (u32 c = 0; c < AT_ONCE; c++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const float(&own)[4] = strand.values[c_0 + c][j];
                shared.values[warp][c][j][lane] = {own[0], own[1], own[2], own[3]};
            }
        }
        sync_block();
        if (c_0 == 0) {
            // Lane l has column l % 8 of strand l / 8.
            const float own_max = shared.maxima[lane];
            state.max = fmaxf(own_max, lane_xor(own_max, COLUMNS));
            state.max = fmaxf(state.max, lane_xor(state.max, 2 * COLUMNS));
            factor = exp_nonpositive(own_max - state.max);
            const float sum = shared.sums[lane] * factor;
            state.sum = from_lane(sum, lane % COLUMNS);
            for (u32 i = 1; i < STRANDS; i++) {
                state.sum += from_lane(sum, i * COLUMNS + lane % COLUMNS);
            }
        }
#pragma unroll
        for (u32 i = 0; i < STRANDS; i++) {
            const float first = from_lane(factor, i * COLUMNS + 2 * t);
            const float second = from_lane(factor, i * COLUMNS + 2 * t + 1);
#pragma unroll
            for (u32 c = 0; c < AT_ONCE; c++) {
                const float4 values = shared.values[i][c][warp][lane];
                float4& sums = state.values[c_0 + c];
                sums = i == 0 ? scaled(values, first, second) : added(sums, values, first, second);
            }
        }
    }
    return state;
}

// No keys.
template <u32 CHUNKS>
DEVICE State<CHUNKS> nothing() {
    State<CHUNKS> state = {};
    state.max = LOWEST;
    return state;
}

// Folds a partial into those before it.
template <u32 CHUNKS>
DEVICE void fold(State<CHUNKS>& state, const State<CHUNKS>& partial) {
    const u32 t = threadIdx.x % 4;
    const float max = fmaxf(state.max, partial.max);
    const float old_factor = exp_nonpositive(state.max - max), new_factor = exp_nonpositive(partial.max - max);
    state.max = max;
    state.sum = fmaf(state.sum, old_factor, partial.sum * new_factor);
    const float old_first = from_lane(old_factor, 2 * t), old_second = from_lane(old_factor, 2 * t + 1);
    const float new_first = from_lane(new_factor, 2 * t), new_second = from_lane(new_factor, 2 * t + 1);
#pragma unroll
    for (u32 c = 0; c < CHUNKS; c++) {
        const float4 values = scaled(partial.values[c], new_first, new_second);
        state.values[c] = added(values, state.values[c], old_first, old_second);
    }
}

template <u32 CHUNKS>
DEVICE void store_partial(Partial<CHUNKS>& to, const State<CHUNKS>& state) {
#pragma unroll
    for (u32 c = 0; c < CHUNKS; c++) {
        to.values[c][threadIdx.x] = state.values[c];
    }
    if (threadIdx.x < COLUMNS) {
        to.maxima[threadIdx.x] = state.max;
        to.sums[threadIdx.x] = state.sum;
    }
}

// All partials, by the same operations as fold(): a lane has a span, so that the maxima on the way, and with them the
// factors, come at once. The whole block comes here.
template <u32 DTYPE, u32 CHUNKS>
DEVICE State<CHUNKS> folded(AttentionShared<DTYPE, CHUNKS>& shared, const Partial<CHUNKS>* partials, u32 n) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, t = lane % 4;
    for (u32 column = warp; column < COLUMNS; column += STRANDS) {
        const float own = lane < n ? partials[lane].maxima[column] : LOWEST;
        float max = own;
        for (u32 distance = 1; distance < WARP; distance *= 2) {
            const float earlier = from_lane(max, lane - min_of(lane, distance));
            max = fmaxf(max, earlier);
        }
        const float before = from_lane(max, lane - min_of(lane, 1));
        if (lane < n) {
            const float old_factor = exp_nonpositive((lane == 0 ? LOWEST : before) - max);
            shared.folds[lane][column] = {old_factor, exp_nonpositive(own - max), partials[lane].sums[column], 0.0f};
        }
    }
    sync_block();
    State<CHUNKS> state = nothing<CHUNKS>();
#pragma unroll 4
    for (u32 span = 0; span < n; span++) {
        const Fold own = shared.folds[span][lane % COLUMNS];
        const Fold first = shared.folds[span][2 * t], second = shared.folds[span][2 * t + 1];
        state.sum = fmaf(state.sum, own.old_factor, own.sum * own.new_factor);
#pragma unroll
        for (u32 c = 0; c < CHUNKS; c++) {
            const float4 values = scaled(partials[span].values[c][threadIdx.x], first.new_factor, second.new_factor);
            state.values[c] = added(values, state.values[c], first.old_factor, second.old_factor);
        }
    }
    return state;
}

// The mean values of the columns, from the first row's head on.
template <u32 CHUNKS>
DEVICE void finish(const State<CHUNKS>& state, float* y, u32 row_width, const Columns& columns, u32 head_dim) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const float sums[2] = {from_lane(state.sum, 2 * t), from_lane(state.sum, 2 * t + 1)};
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        const u32 column = 2 * t + i, row = column / columns.n_heads, head = column % columns.n_heads;
        float* to = y + (u64)row * row_width + head * head_dim;
#pragma unroll
        for (u32 c = 0; c < CHUNKS; c++) {
            const float4 v = state.values[c];
            const u32 dim = CHUNK * c + 8 * g + warp;
            // Whether a zero is negative depends on how many spans without keys were folded: + 0 ends that.
            if (column < columns.n() && dim < head_dim) {
                to[dim] = (i == 0 ? v.x : v.y) / sums[i] + 0.0f;
            }
            if (column < columns.n() && dim + 4 < head_dim) {
                to[dim + 4] = (i == 0 ? v.z : v.w) / sums[i] + 0.0f;
            }
        }
    }
}

// Spans of the key blocks of which a row sees keys.
struct Spans {
    u32 first_block;
    u32 end_block;
    // Blocks of a span; the last one may have fewer.
    u32 length;

    DEVICE u32 n() const { return ceil_div(end_block - first_block, length); }
};

DEVICE Spans spans_of(Seen seen) {
    Spans spans = {seen.first / KEY_BLOCK, seen.last / KEY_BLOCK + 1, 1};
    while (spans.end_block - spans.first_block > ATTENTION_SPANS * spans.length) {
        spans.length *= 2;
    }
    return spans;
}

// As many of `most` rows as can be columns side by side: of one lane, with spans that begin and end at the same keys.
DEVICE Columns columns_of(const Place* places, u32 most, u32 n_heads, u32 window) {
    const Seen seen = seen_from(places[0].position, window);
    const Spans spans = spans_of(seen);
    Columns columns = {1, n_heads, places, window, seen, seen, seen};
    for (; columns.n_rows < most; columns.n_rows++) {
        const Place place = places[columns.n_rows];
        if (place.live == 0 || place.table != places[0].table) {
            break;
        }
        const Seen other = seen_from(place.position, window);
        const Spans others = spans_of(other);
        if (others.first_block != spans.first_block || others.length != spans.length) {
            break;
        }
        columns.any = {min_of(columns.any.first, other.first), max_of(columns.any.last, other.last)};
        columns.all = {max_of(columns.all.first, other.first), min_of(columns.all.last, other.last)};
    }
    columns.own = columns.of_row(min_of(threadIdx.x % WARP / 4 / n_heads, columns.n_rows - 1));
    return columns;
}

template <u32 DTYPE, u32 CHUNKS, bool WIDE>
DEVICE Strand<CHUNKS> attend_span(const Queries<DTYPE, CHUNKS>& q, const Keys& keys, const Columns& columns,
                                  const Spans& spans, u32 span, const AttentionParams& params) {
    Strand<CHUNKS> strand = {};
    strand.max = LOWEST;
    const u32 first = spans.first_block + span * spans.length, end = min_of(first + spans.length, spans.end_block);
    for (u32 block = first; block < end; block++) {
        const u32 tile = block * KEY_BLOCK + threadIdx.x / WARP * KEY_TILE;
        if (columns.any.meets(tile)) {
            attend_tile<DTYPE, CHUNKS, WIDE>(strand, q, keys, columns, tile, params.scale, params.softcap);
        }
    }
    return strand;
}

// A block's heads, and where its part of what its rows have in common stands.
struct Heads {
    u32 kv_head;
    // The first query head, and how many.
    u32 first;
    u32 n;
    u32 part;
    // Of partials and arrivals.
    u32 meeting;
};

// The rows from `row` on that can be columns side by side; how many they were. The whole block comes here.
template <u32 DTYPE, u32 CHUNKS, bool WIDE>
DEVICE u32 attend_rows(const AttentionArgs& args, AttentionShared<DTYPE, CHUNKS>& shared, const Heads& heads, u32 row,
                       u32 most, u32 window) {
    const AttentionParams& params = args.params;
    const u32 head_dim = params.head_dim, y_width = params.n_heads * head_dim;
    const u32 q_width = (params.n_heads + 2 * params.n_kv_heads) * head_dim;
    float* y = args.y + (u64)row * y_width + heads.first * head_dim;
    const Place place = args.places[row];
    if (place.live == 0) {
        for (u32 i = threadIdx.x; heads.part == 0 && i < heads.n * head_dim; i += THREADS) {
            y[i] = 0.0f;
        }
        return 1;
    }
    const Columns columns = columns_of(args.places + row, HAS_ROWS<DTYPE, CHUNKS> ? most : 1, heads.n, window);
    const Spans spans = spans_of(columns.any);
    const u32 n_parts = min_of(args.n_parts, spans.n());
    if (heads.part >= n_parts) {
        return 1;
    }

    load_queries(shared.q, args.qkv + (u64)row * q_width + heads.first * head_dim, q_width, columns, head_dim);
    const u32 words = head_words(head_dim, DTYPE), value_words = params.n_kv_heads * params.page.page_tokens * words;
    const u32* pages = args.page_table + place.table;
    const Keys keys = {args.plane, pages, params.page, heads.kv_head, head_dim, words, value_words};
    auto* partials = reinterpret_cast<Partial<CHUNKS>*>(args.partials) + (u64)heads.meeting * ATTENTION_SPANS;
    sync_block();

    State<CHUNKS> state = nothing<CHUNKS>();
    for (u32 span = heads.part; span < spans.n(); span += n_parts) {
        const auto strand = attend_span<DTYPE, CHUNKS, WIDE>(shared.q, keys, columns, spans, span, params);
        const State<CHUNKS> partial = folded_strands(shared, strand);
        if (n_parts == 1) {
            fold(state, partial);
        } else {
            store_partial(partials[span], partial);
        }
    }
    if (n_parts > 1) {
        if (!arrives_last(&args.arrivals[heads.meeting], n_parts, &shared.is_last)) {
            return 1;
        }
        state = folded(shared, partials, spans.n());
    }
    finish(state, y, y_width, columns, head_dim);
    return columns.n_rows;
}

template <u32 DTYPE, u32 CHUNKS, bool WIDE>
DEVICE void attend(const AttentionArgs& args) {
    using Shared = AttentionShared<DTYPE, CHUNKS>;
    SHARED(Shared, shared);
    wait_for_earlier();
    let_next_start();
    const u32 member = blockIdx.z, tile = blockIdx.x / args.n_parts;
    const u32 end = min_of((tile + 1) * args.n_rows, args.extents[member].n_rows);
    const u32 group = args.params.n_heads / args.params.n_kv_heads, n_tiles = ceil_div(group, COLUMNS);
    const u32 kv_head = blockIdx.y / n_tiles, first = COLUMNS * (blockIdx.y % n_tiles);
    Heads heads;
    heads.kv_head = kv_head;
    heads.first = kv_head * group + first;
    heads.n = min_of(COLUMNS, group - first);
    heads.part = blockIdx.x % args.n_parts;
    heads.meeting = (member * (gridDim.x / args.n_parts) + tile) * gridDim.y + blockIdx.y;
    for (u32 row = tile * args.n_rows; row < end;) {
        row += attend_rows<DTYPE, CHUNKS, WIDE>(args, shared, heads, member * args.params.cap + row, end - row,
                                                of_member(args.params.window, member));
    }
}

// Blocks on a processor: as many as registers are enough for.
extern "C" __global__ void __launch_bounds__(THREADS, 4) attention_f32_64(const AttentionArgs args) {
    attend<F32, 1, true>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) attention_f32_128(const AttentionArgs args) {
    attend<F32, 2, true>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_f32_256(const AttentionArgs args) {
    attend<F32, 4, true>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_f32_any(const AttentionArgs args) {
    attend<F32, 4, false>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 4) attention_f16_64(const AttentionArgs args) {
    attend<F16, 1, true>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) attention_f16_128(const AttentionArgs args) {
    attend<F16, 2, true>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_f16_256(const AttentionArgs args) {
    attend<F16, 4, true>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_f16_any(const AttentionArgs args) {
    attend<F16, 4, false>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 4) attention_bf16_64(const AttentionArgs args) {
    attend<BF16, 1, true>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) attention_bf16_128(const AttentionArgs args) {
    attend<BF16, 2, true>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_bf16_256(const AttentionArgs args) {
    attend<BF16, 4, true>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_bf16_any(const AttentionArgs args) {
    attend<BF16, 4, false>(args);
}
