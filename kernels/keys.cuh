// Keys and values of a lane against the query heads of a block, a tile of 16 keys of one warp at a time; attention.cu
// says in which order tiles are added.
//
// Query heads are columns: those of one KV head and one row, or of some rows of one lane. Products with a cache of 16
// bits are tensor cores': q and the weights enter as hi + lo, of bf16 where the cache is bf16, else of tf32. Scores:
// the rows of A are our columns by hi, then by lo, the columns of B are keys. Values: the rows of A are dims, the
// columns of B are ours, by hi, then by lo. Which dim stands where in the K of an mma is chosen so that a lane loads
// eight neighbours of a key at once; and a lane has a score where it needs the weight. With an f32 cache, products are
// fmaf.
#pragma once

#include "common.cuh"

constexpr u32 KEY_TILE = 16;
constexpr u32 COLUMNS = ATTENTION_COLUMNS;
// Dims whose values a warp holds as four times four numbers a lane.
constexpr u32 CHUNK = 64;
// Below every score; -inf has no literal.
constexpr float LOWEST = -3.4028235e38f;
// In place of the word of a key that no row sees.
constexpr u32 NOWHERE = ~0u;

// Where the keys of a lane stand, of one KV head.
struct Keys {
    const u32* plane;
    const u32* pages;
    PageParams page;
    u32 kv_head;
    u32 head_dim;
    // From one key to the next, and from a key to its value.
    u32 words;
    u32 value_words;
};

// Positions that a row sees, both ends included.
struct Seen {
    u32 first;
    u32 last;

    DEVICE bool has(u32 position) const { return position >= first && position <= last; }
    // Some key of a tile.
    DEVICE bool meets(u32 tile) const { return tile <= last && tile + KEY_TILE > first; }
    // All keys of a tile.
    DEVICE bool covers(u32 tile) const { return tile >= first && tile + KEY_TILE - 1 <= last; }
};

DEVICE Seen seen_from(u32 position, u32 window) {
    return {window != 0 && window <= position ? position + 1 - window : 0, position};
}

// Whether the columns of a block may be of more than one row: not where the registers that this takes are not there.
template <u32 DTYPE, u32 CHUNKS>
constexpr bool HAS_ROWS = DTYPE != F32 && CHUNKS <= 2;

// What the columns of a block are: column n is head n % n_heads of row n / n_heads.
struct Columns {
    u32 n_rows;
    u32 n_heads;
    // Of the first row.
    const Place* places;
    u32 window;
    // Of this lane's column, lane / 4.
    Seen own;
    // What some row sees, and what all see.
    Seen any;
    Seen all;

    DEVICE u32 n() const { return n_rows * n_heads; }
    DEVICE Seen of_row(u32 row) const { return seen_from(places[row].position, window); }
};

// What a warp has of its keys. Lane l has max and sum of column l / 4; of chunk c and for j in 0..4 the values of
// columns 2t and 2t + 1 (t = l % 4) at dim 64 c + 8 (l / 4) + j, then at the one four dims further.
template <u32 CHUNKS>
struct Strand {
    float max;
    float sum;
    float values[CHUNKS][4][4];
};

// The columns as a lane of the A operand takes them, for each mma of a key; f32 plain.
template <u32 DTYPE, u32 CHUNKS>
struct Queries {
    static constexpr u32 STEPS = (DTYPE == BF16 ? 4 : 8) * CHUNKS;
    uint4 fragments[STEPS][WARP];
};
template <u32 CHUNKS>
struct Queries<F32, CHUNKS> {
    float4 octets[CHUNK * CHUNKS / 8][2][COLUMNS];
};

DEVICE u32 word_of(uint4 words, u32 i) { return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w; }

// Element i of eight of 16 bits, of a and then of b.
DEVICE u32 both_of(uint4 a, uint4 b, u32 i) {
    const u32 from_a = word_of(a, i / 2), from_b = word_of(b, i / 2);
    return i % 2 == 0 ? (from_a & 0xffffu) | from_b << 16 : from_a >> 16 | (from_b & 0xffff0000u);
}

// Element i of eight f16, as tf32: exact.
DEVICE u32 tf32_of(uint4 octet, u32 i) {
    const u32 word = word_of(octet, i / 2);
    return bits_of(f16_to_f32((u16)(i % 2 == 0 ? word : word >> 16)));
}

// ---- Keys and values as they are stored: eight neighbours of a head from `dim` on, zero past its end and of a key
// that is not there. Where WIDE, head_dim is a multiple of 8 and octets are aligned.

template <bool WIDE>
DEVICE uint4 load_octet(const u32* plane, u32 word, u32 dim, u32 head_dim) {
    uint4 octet = {};
    if (word == NOWHERE || dim >= head_dim) {
        return octet;
    }
    const u32* from = plane + word + dim / 2;
    if constexpr (WIDE) {
        octet = *reinterpret_cast<const uint4*>(from);
    } else {
        octet.x = from[0];
        octet.y = dim + 2 < head_dim ? from[1] : 0;
        octet.z = dim + 4 < head_dim ? from[2] : 0;
        octet.w = dim + 6 < head_dim ? from[3] : 0;
    }
    return octet;
}

struct Floats {
    float x[8];
};

template <bool WIDE>
DEVICE Floats load_floats(const u32* plane, u32 word, u32 dim, u32 head_dim) {
    Floats floats = {};
    if (word == NOWHERE || dim >= head_dim) {
        return floats;
    }
    const float* from = reinterpret_cast<const float*>(plane) + word + dim;
    if constexpr (WIDE) {
        const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
        floats = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            floats.x[i] = dim + i < head_dim ? from[i] : 0.0f;
        }
    }
    return floats;
}

// ---- A tile. Lane l has of column l / 4 four of the keys.

// Where key number i of the four that lanes t = l % 4 have stands in the tile.
DEVICE u32 key_in_tile(u32 t, u32 i) { return 2 * t + i % 2 + 8 * (i / 2); }

// A number for each of a lane's four keys.
struct PerKey {
    float x[4];
};

template <u32 CHUNKS>
struct TileOctets {
    uint4 keys[2][2 * CHUNKS];
    uint4 values[CHUNKS][4];
};

template <u32 CHUNKS, bool WIDE>
DEVICE void load_keys(TileOctets<CHUNKS>& tile, const Keys& keys, u32 own_word) {
    const u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (u32 eight = 0; eight < 2; eight++) {
        const u32 word = from_lane(own_word, 8 * eight + g);
#pragma unroll
        for (u32 i = 0; i < 2 * CHUNKS; i++) {
            tile.keys[eight][i] = load_octet<WIDE>(keys.plane, word, 32 * i + 8 * t, keys.head_dim);
        }
    }
}

template <u32 CHUNKS, bool WIDE>
DEVICE void load_values(TileOctets<CHUNKS>& tile, const Keys& keys, u32 own_word) {
    const u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 key_word = from_lane(own_word, key_in_tile(t, i));
        const u32 word = key_word == NOWHERE ? NOWHERE : key_word + keys.value_words;
#pragma unroll
        for (u32 c = 0; c < CHUNKS; c++) {
            tile.values[c][i] = load_octet<WIDE>(keys.plane, word, CHUNK * c + 8 * g, keys.head_dim);
        }
    }
}

template <u32 DTYPE, u32 CHUNKS>
DEVICE PerKey scores(const Queries<DTYPE, CHUNKS>& q, const TileOctets<CHUNKS>& tile) {
    const u32 lane = threadIdx.x % WARP;
    PerKey scores;
#pragma unroll
    for (u32 eight = 0; eight < 2; eight++) {
        float d[4] = {};
#pragma unroll
        for (u32 i = 0; i < 2 * CHUNKS; i++) {
            const uint4 k = tile.keys[eight][i];
            if constexpr (DTYPE == BF16) {
                mma_bf16(d, q.fragments[2 * i][lane], {k.x, k.y});
                mma_bf16(d, q.fragments[2 * i + 1][lane], {k.z, k.w});
            } else {
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    mma_tf32(d, q.fragments[4 * i + j][lane], {tf32_of(k, 2 * j), tf32_of(k, 2 * j + 1)});
                }
            }
        }
        // Rows g are heads by hi, rows g + 8 by lo.
        scores.x[2 * eight] = d[0] + d[2];
        scores.x[2 * eight + 1] = d[1] + d[3];
    }
    return scores;
}

// Values times weights, in the columns 2t and 2t + 1 that are taken: the others keep what they have, bit for bit.
template <u32 DTYPE, u32 CHUNKS>
DEVICE void add_values(Strand<CHUNKS>& strand, const TileOctets<CHUNKS>& tile, const PerKey& weights, bool takes_first,
                       bool takes_second) {
    const float* w = weights.x;
#pragma unroll
    for (u32 c = 0; c < CHUNKS; c++) {
        const uint4* v = tile.values[c];
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            float(&sums)[4] = strand.values[c][j];
            const float before[4] = {sums[0], sums[1], sums[2], sums[3]};
            if constexpr (DTYPE == BF16) {
                const Split first = split_bf16(w[0], w[1]), second = split_bf16(w[2], w[3]);
                const uint4 a = {both_of(v[0], v[1], j), both_of(v[0], v[1], j + 4), both_of(v[2], v[3], j),
                                 both_of(v[2], v[3], j + 4)};
                mma_bf16(sums, a, {first.hi, second.hi});
                mma_bf16(sums, a, {first.lo, second.lo});
            } else {
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    const Split first = split_tf32(w[2 * half]), second = split_tf32(w[2 * half + 1]);
                    const uint4 v0 = v[2 * half], v1 = v[2 * half + 1];
                    const uint4 a = {tf32_of(v0, j), tf32_of(v0, j + 4), tf32_of(v1, j), tf32_of(v1, j + 4)};
                    mma_tf32(sums, a, {first.hi, second.hi});
                    mma_tf32(sums, a, {first.lo, second.lo});
                }
            }
            sums[0] = takes_first ? sums[0] : before[0];
            sums[1] = takes_second ? sums[1] : before[1];
            sums[2] = takes_first ? sums[2] : before[2];
            sums[3] = takes_second ? sums[3] : before[3];
        }
    }
}

// The same of an f32 cache: each lane has whole keys.
template <u32 CHUNKS, bool WIDE>
DEVICE PerKey scores_f32(const Queries<F32, CHUNKS>& q, const Keys& keys, u32 own_word) {
    const u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    u32 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        words[i] = from_lane(own_word, key_in_tile(t, i));
    }
    PerKey scores = {};
#pragma unroll 1
    for (u32 dim = 0; dim < keys.head_dim; dim += 8) {
        const float4 lo = q.octets[dim / 8][0][g], hi = q.octets[dim / 8][1][g];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const Floats k = load_floats<WIDE>(keys.plane, words[i], dim, keys.head_dim);
            float sum = scores.x[i];
            sum = fmaf(lo.w, k.x[3], fmaf(lo.z, k.x[2], fmaf(lo.y, k.x[1], fmaf(lo.x, k.x[0], sum))));
            scores.x[i] = fmaf(hi.w, k.x[7], fmaf(hi.z, k.x[6], fmaf(hi.y, k.x[5], fmaf(hi.x, k.x[4], sum))));
        }
    }
    return scores;
}

template <u32 CHUNKS, bool WIDE>
DEVICE void add_values_f32(Strand<CHUNKS>& strand, const Keys& keys, u32 own_word, const PerKey& weights) {
    const u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll 1
        for (u32 from = 0; from < 4; from++) {
            const float first = from_lane(weights.x[i], 8 * t + from);
            const float second = from_lane(weights.x[i], 8 * t + 4 + from);
            const u32 key_word = from_lane(own_word, key_in_tile(from, i));
            const u32 word = key_word == NOWHERE ? NOWHERE : key_word + keys.value_words;
#pragma unroll
            for (u32 c = 0; c < CHUNKS; c++) {
                const Floats v = load_floats<WIDE>(keys.plane, word, CHUNK * c + 8 * g, keys.head_dim);
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    float(&sums)[4] = strand.values[c][j];
                    sums[0] = fmaf(first, v.x[j], sums[0]);
                    sums[1] = fmaf(second, v.x[j], sums[1]);
                    sums[2] = fmaf(first, v.x[j + 4], sums[2]);
                    sums[3] = fmaf(second, v.x[j + 4], sums[3]);
                }
            }
        }
    }
}

// Scores to weights relative to the strand's maximum, which grows; what the strand has is rescaled.
template <u32 CHUNKS>
DEVICE void weigh(Strand<CHUNKS>& strand, PerKey& tile, Seen seen, u32 first_key, float scale, float softcap) {
    const u32 lane = threadIdx.x % WARP, t = lane % 4;
    bool is_seen[4];
    float max = strand.max;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        is_seen[i] = seen.has(first_key + key_in_tile(t, i));
        tile.x[i] = is_seen[i] ? softcapped(tile.x[i] * scale, softcap) : LOWEST;
        max = fmaxf(max, tile.x[i]);
    }
    max = fmaxf(max, lane_xor(max, 1));
    max = fmaxf(max, lane_xor(max, 2));
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        tile.x[i] = is_seen[i] ? exp_nonpositive(tile.x[i] - max) : 0.0f;
    }
    float sum = (tile.x[0] + tile.x[1]) + (tile.x[2] + tile.x[3]);
    sum += lane_xor(sum, 1);
    sum += lane_xor(sum, 2);
    const float factor = exp_nonpositive(strand.max - max);
    strand.sum = fmaf(strand.sum, factor, sum);
    strand.max = max;
    const float first = from_lane(factor, 8 * t), second = from_lane(factor, 8 * t + 4);
#pragma unroll
    for (u32 c = 0; c < CHUNKS; c++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            strand.values[c][j][0] *= first;
            strand.values[c][j][1] *= second;
            strand.values[c][j][2] *= first;
            strand.values[c][j][3] *= second;
        }
    }
}

// A value that only some rows see may be no number: each row takes those that it sees.
template <u32 DTYPE, u32 CHUNKS, bool WIDE>
DEVICE void add_values_by_row(Strand<CHUNKS>& strand, TileOctets<CHUNKS>& octets, const Keys& keys,
                              const Columns& columns, u32 tile, u32 own_word, const PerKey& weights) {
    const u32 lane = threadIdx.x % WARP, first = 2 * (lane % 4) / columns.n_heads;
    const u32 second = (2 * (lane % 4) + 1) / columns.n_heads;
#pragma unroll 1
    for (u32 row = 0; row < columns.n_rows; row++) {
        const Seen seen = columns.of_row(row);
        if (seen.meets(tile)) {
            load_values<CHUNKS, WIDE>(octets, keys, seen.has(tile + lane % KEY_TILE) ? own_word : NOWHERE);
            add_values<DTYPE>(strand, octets, weights, first == row, second == row);
        }
    }
}

template <u32 DTYPE, u32 CHUNKS, bool WIDE>
DEVICE void attend_tile(Strand<CHUNKS>& strand, const Queries<DTYPE, CHUNKS>& q, const Keys& keys,
                        const Columns& columns, u32 tile, float scale, float softcap) {
    const u32 lane = threadIdx.x % WARP, own_key = tile + lane % KEY_TILE;
    u32 own_word = NOWHERE;
    if (columns.any.has(own_key)) {
        own_word = cell_word(keys.page, keys.pages, own_key, keys.kv_head, keys.words);
    }
    if constexpr (DTYPE == F32) {
        PerKey weights = scores_f32<CHUNKS, WIDE>(q, keys, own_word);
        weigh(strand, weights, columns.own, tile, scale, softcap);
        add_values_f32<CHUNKS, WIDE>(strand, keys, own_word, weights);
    } else {
        TileOctets<CHUNKS> octets;
        load_keys<CHUNKS, WIDE>(octets, keys, own_word);
        load_values<CHUNKS, WIDE>(octets, keys, own_word);
        PerKey weights = scores(q, octets);
        weigh(strand, weights, columns.own, tile, scale, softcap);
        if (!HAS_ROWS<DTYPE, CHUNKS> || columns.n_rows == 1 || columns.all.covers(tile)) {
            add_values<DTYPE>(strand, octets, weights, true, true);
        } else {
            add_values_by_row<DTYPE, CHUNKS, WIDE>(strand, octets, keys, columns, tile, own_word, weights);
        }
    }
}

// The columns as products take them, from the first row's head on; zero past the last column and past a head's end.
template <u32 DTYPE, u32 CHUNKS>
DEVICE void load_queries(Queries<DTYPE, CHUNKS>& q, const float* heads, u32 row_width, const Columns& columns,
                         u32 head_dim) {
    const auto element = [&](u32 column, u32 dim) {
        const u32 row = column / columns.n_heads, head = column % columns.n_heads;
        return column < columns.n() && dim < head_dim ? heads[(u64)row * row_width + head * head_dim + dim] : 0.0f;
    };
    if constexpr (DTYPE == F32) {
        for (u32 i = threadIdx.x; i < CHUNK * CHUNKS * COLUMNS; i += blockDim.x) {
            const u32 dim = i / COLUMNS, column = i % COLUMNS;
            reinterpret_cast<float*>(&q.octets[dim / 8][dim / 4 % 2][column])[dim % 4] = element(column, dim);
        }
    } else {
        // Four dims of each step and lane for bf16, two for tf32: those that load_octet gives the lane for that step.
        constexpr u32 OWN = DTYPE == BF16 ? 4 : 2, STEPS = 8 / OWN;
        for (u32 i = threadIdx.x; i < Queries<DTYPE, CHUNKS>::STEPS * WARP; i += blockDim.x) {
            const u32 step = i / WARP, lane = i % WARP;
            const u32 dim = 32 * (step / STEPS) + 8 * (lane % 4) + OWN * (step % STEPS);
            float x[OWN];
#pragma unroll
            for (u32 k = 0; k < OWN; k++) {
                x[k] = element(lane / 4, dim + k);
            }
            Split first, second;
            if constexpr (DTYPE == BF16) {
                first = split_bf16(x[0], x[1]);
                second = split_bf16(x[2], x[3]);
            } else {
                first = split_tf32(x[0]);
                second = split_tf32(x[1]);
            }
            q.fragments[step][lane] = {first.hi, first.lo, second.hi, second.lo};
        }
    }
}
