// The canonical sum of the matrix ops: sums over k of W[n][k] x[k] for some rows of x, in f32. The op's file has the
// arguments and what becomes of the sums.
//
// Order. K is cut into N_SLICES slices of whole tiles of W: of the n tiles that a row of W has, slice s is tiles
// s n / N_SLICES .. (s + 1) n / N_SLICES. A slice's sum is one chain from 0, tile after tile; the slices' sums are
// added in their order. Within a tile, by the type of W:
//   bf16  one mma; x enters as two columns, its bf16 value and the rest in bf16, whose sums are added at the end of the
//         slice. The two are off by at most 2^-17 of x.
//   f16   two mma of tf32, to which f16 widens exactly: columns 4t and 4t + 1, then 4t + 2 and 4t + 3. x enters as its
//         tf32 value and the rest, off by at most 2^-23 of x.
//   f32   a chain of fmaf for each t, over columns 4t .. 4t + 3; at the end of the slice (t0 + t1) + (t2 + t3).
// With a norm x is g x, and a slice's sum of squares goes as the products of f32 do. How many rows and outputs are held
// at once, and which rows are beside a row, is not in the order.
//
// Tensor cores cut what they add: each product, and the partial sum, towards 0 at a bit or two below the last one of
// the largest among them, and sm_80 makes an mma of two halves. From what others have measured of their units, that is
// some units (2^-23) of the partial sum for each mma, four in the mean and thirteen at worst. A slice is an eighth of
// K: 28 mma at K = 3,584, 148 at 18,944. A partial sum of terms of both signs is small beside the sum of their sizes,
// to which tolerances refer; were all of one sign, the sum could come out lower by 2^-15 at 18,944. No card has shown
// it yet.
//
// A block is N_SLICES warps over the same TILE x TILES outputs (of each of one or two matrices) and the same 4 x FOURS
// rows of x; each has a slice. So W is read once for each block of rows, 16 bytes per lane and tile, and x from the
// caches, by the one warp of the block that multiplies it. Under way are always 8 loads of each lane: 4 KiB a warp,
// 32 KiB a block. H100 needs 3.35 TB/s x 0.7 us / 132 = 18 KiB per SM. Of bf16's forms of 4 rows three blocks fit
// (96 KiB, and the 288 blocks of 7B's QKV are all there at once), of those of 8 and 16 rows two. What a warp issues for
// 512 bytes of bf16 (sm_90): 27 to 43 instructions at 4 rows, 39 to 72 at 8, 51 to 78 at 16; at full rate an SM has 140
// slots in the time that they take from memory.
#pragma once
#include "common.cuh"

constexpr u32 N_SLICES = 8;
constexpr u32 THREADS = N_SLICES * WARP;
// 16-byte loads of weights that a lane has under way.
constexpr u32 LOADS_AHEAD = 8;

// How much a block holds at once.
template <u32 DTYPE_, u32 MATRICES_, u32 FOURS_, u32 TILES_>
struct Form {
    static constexpr u32 DTYPE = DTYPE_;
    static constexpr u32 MATRICES = MATRICES_;
    // Of rows: the eight columns of an mma are four rows, each twice.
    static constexpr u32 FOURS = FOURS_;
    // Of outputs, in each matrix.
    static constexpr u32 TILES = TILES_;
    static constexpr u32 ROWS = 4 * FOURS;
    // Tiles of W at one place of K.
    static constexpr u32 HELD = MATRICES * TILES;
    // 16-byte loads of a lane for a tile.
    static constexpr u32 VECTORS = DTYPE == F32 ? 2 : 1;
    // Places of K under way.
    static constexpr u32 AHEAD = LOADS_AHEAD / (HELD * VECTORS);
    // Places of K whose x is loaded together.
    static constexpr u32 TOGETHER = FOURS > 2 ? 1 : 2;
    static_assert(AHEAD % TOGETHER == 0, "whole steps");
    // A lane's sums of a tile and four rows: D of an mma, or [row][g, g + 8].
    static constexpr u32 SUMS = DTYPE == F32 ? 8 : 4;

    // Partial sums of one tile of outputs.
    struct Shared {
        float sums[MATRICES][N_SLICES][ROWS][TILE];
        float squares[N_SLICES][ROWS];
    };
};

// Rows of x to multiply, of one member. Of what it refers to kernels write x alone.
struct Inputs {
    // Row 0.
    const float* x;
    // The row of x behind each row, or null: the same.
    const u32* gather;
    // Or null: no norm.
    const float* gain;
    u32 n_rows;
    u32 n_in;
};

// 1 where there is no norm.
DEVICE float norm_factor(const Inputs& inputs, float squares, float eps) {
    return inputs.gain ? inverse_rms(squares, inputs.n_in, eps) : 1.0f;
}

DEVICE u32 low_f16(u32 pair) { return bits_of(f16_to_f32((u16)pair)); }
DEVICE u32 high_f16(u32 pair) { return bits_of(f16_to_f32((u16)(pair >> 16))); }

DEVICE float add_products(float sum, uint4 w, float4 x) {
    sum = fmaf(float_of(w.x), x.x, sum);
    sum = fmaf(float_of(w.y), x.y, sum);
    sum = fmaf(float_of(w.z), x.z, sum);
    return fmaf(float_of(w.w), x.w, sum);
}

// A lane's part in the sums of a block.
template <class F>
struct Product {
    u32 lane, slice;
    // Places of K of the slice, and of this lane's columns there the first one and the last one.
    u32 n_places, first_column, last_column;
    u32 first_row, first_tile;
    const uint4* w[F::HELD];
    uint4 ahead[F::AHEAD][F::HELD][F::VECTORS];
    // Where the lane's row of each four begins in x. Rows past the last repeat it; what they make is not stored.
    u32 rows[F::FOURS];
    float squares[F::FOURS];
    float sums[F::HELD][F::FOURS][F::SUMS];

    // The sums of the slice. False where the block has no row: it need not finish.
    DEVICE bool multiply(const uint4* const (&matrices)[F::MATRICES], const Inputs& inputs, u32 n_out) {
        start(matrices, inputs, n_out);
        wait_for_earlier();
        let_next_start();
        if (first_row >= inputs.n_rows) {
            return false;
        }
        run(inputs);
        return true;
    }

    // Begins to load weights, and finds the rows: before wait_for_earlier(), for no kernel writes either. Tiles of
    // outputs past the last repeat it; what they make is not stored.
    DEVICE void start(const uint4* const (&matrices)[F::MATRICES], const Inputs& inputs, u32 n_out) {
        lane = threadIdx.x % WARP;
        // Through a shuffle the compiler sees that a warp has one, and that its branches do not part.
        slice = from_lane(threadIdx.x / WARP, 0);
        const u32 n_tiles = ceil_div(inputs.n_in, TILE), first = slice * n_tiles / N_SLICES;
        n_places = (slice + 1) * n_tiles / N_SLICES - first;
        first_column = first * TILE + lane % 4 * 4;
        last_column = min_of(first_column + n_places * TILE, inputs.n_in + TILE - 4) - TILE;
        first_row = blockIdx.x * F::ROWS;
        first_tile = blockIdx.y * F::TILES;
#pragma unroll
        for (u32 held = 0; held < F::HELD; held++) {
            const u32 tile = min_of(first_tile + held % F::TILES, ceil_div(n_out, TILE) - 1);
            w[held] = matrices[held / F::TILES] + ((u64)tile * n_tiles + first) * F::VECTORS * WARP + lane;
        }
#pragma unroll
        for (u32 i = 0; i < F::AHEAD; i++) {
            load(ahead[i], i);
        }
        const u32 last_row = max_of(inputs.n_rows, 1) - 1;
#pragma unroll
        for (u32 four = 0; four < F::FOURS; four++) {
            const u32 row = min_of(first_row + 4 * four + lane / 8, last_row);
            rows[four] = (inputs.gather ? inputs.gather[row] : row) * inputs.n_in;
        }
    }

    // Weights of a place of K, if the slice has it.
    DEVICE void load(uint4 (&to)[F::HELD][F::VECTORS], u32 place) {
        if (place < n_places) {
#pragma unroll
            for (u32 held = 0; held < F::HELD; held++) {
#pragma unroll
                for (u32 v = 0; v < F::VECTORS; v++) {
                    to[held][v] = load_weights(w[held] + (place * F::VECTORS + v) * WARP);
                }
            }
        }
    }

    DEVICE void run(const Inputs& inputs) {
        clear();
#pragma unroll 1
        for (u32 first = 0; first < n_places; first += F::AHEAD) {
#pragma unroll
            for (u32 i = 0; i < F::AHEAD; i += F::TOGETHER) {
                const u32 column = first_column + (first + i) * TILE;
                float4 x[F::TOGETHER][F::FOURS];
                load_x(x, inputs, column);
                if (inputs.gain) {
                    norm_x(x, inputs.gain, column);
                }
#pragma unroll
                for (u32 j = 0; j < F::TOGETHER; j++) {
                    if (first + i + j < n_places) {
                        add(ahead[i + j], x[j]);
                        load(ahead[i + j], first + i + j + F::AHEAD);
                    }
                }
            }
        }
        end_slice();
    }

    DEVICE void clear() {
#pragma unroll
        for (u32 four = 0; four < F::FOURS; four++) {
            squares[four] = 0.0f;
#pragma unroll
            for (u32 held = 0; held < F::HELD; held++) {
#pragma unroll
                for (u32 i = 0; i < F::SUMS; i++) {
                    sums[held][four][i] = 0.0f;
                }
            }
        }
    }

    // The lane's columns of its rows, from `column` on. Past its last column it repeats that, without a branch, so that
    // loads may be moved ahead of products: W is zero past the row, and nothing is added past the slice.
    DEVICE void load_x(float4 (&x)[F::TOGETHER][F::FOURS], const Inputs& inputs, u32 column) {
#pragma unroll
        for (u32 j = 0; j < F::TOGETHER; j++) {
            const u32 at = min_of(column + j * TILE, last_column);
#pragma unroll
            for (u32 four = 0; four < F::FOURS; four++) {
                x[j][four] = *(const float4*)(inputs.x + (rows[four] + at));
            }
        }
    }

    // Adds their squares, each once, and multiplies them by the gain.
    DEVICE void norm_x(float4 (&x)[F::TOGETHER][F::FOURS], const float* gain, u32 column) {
        float4 gains[F::TOGETHER];
#pragma unroll
        for (u32 j = 0; j < F::TOGETHER; j++) {
            gains[j] = *(const float4*)(gain + min_of(column + j * TILE, last_column));
        }
#pragma unroll
        for (u32 j = 0; j < F::TOGETHER; j++) {
            const bool is_new = column + j * TILE <= last_column;
#pragma unroll
            for (u32 four = 0; four < F::FOURS; four++) {
                const float4 own = x[j][four], g = gains[j];
                const float sum = fmaf(own.y, own.y, fmaf(own.x, own.x, squares[four]));
                squares[four] = is_new ? fmaf(own.w, own.w, fmaf(own.z, own.z, sum)) : squares[four];
                x[j][four] = {g.x * own.x, g.y * own.y, g.z * own.z, g.w * own.w};
            }
        }
    }

    // Adds the products of a place of K.
    DEVICE void add(const uint4 (&weights)[F::HELD][F::VECTORS], const float4 (&x)[F::FOURS]) {
        // Of the two columns that are a row, this lane's.
        const bool is_rest = lane / 4 % 2 == 1;
        const auto own = [&](Split first, Split second) -> uint2 {
            const uint2 near = {first.hi, second.hi}, rest = {first.lo, second.lo};
            return is_rest ? rest : near;
        };
        if constexpr (F::DTYPE == BF16) {
#pragma unroll
            for (u32 four = 0; four < F::FOURS; four++) {
                const uint2 b = own(split_bf16(x[four].x, x[four].y), split_bf16(x[four].z, x[four].w));
#pragma unroll
                for (u32 held = 0; held < F::HELD; held++) {
                    mma_bf16(sums[held][four], weights[held][0], b);
                }
            }
        } else if constexpr (F::DTYPE == F16) {
#pragma unroll
            for (u32 held = 0; held < F::HELD; held++) {
                const uint4 w = weights[held][0];
#pragma unroll
                for (u32 four = 0; four < F::FOURS; four++) {
                    const uint2 b = own(split_tf32(x[four].x), split_tf32(x[four].y));
                    mma_tf32(sums[held][four], {low_f16(w.x), low_f16(w.y), high_f16(w.x), high_f16(w.y)}, b);
                }
#pragma unroll
                for (u32 four = 0; four < F::FOURS; four++) {
                    const uint2 b = own(split_tf32(x[four].z), split_tf32(x[four].w));
                    mma_tf32(sums[held][four], {low_f16(w.z), low_f16(w.w), high_f16(w.z), high_f16(w.w)}, b);
                }
            }
        } else {
#pragma unroll
            for (u32 four = 0; four < F::FOURS; four++) {
#pragma unroll
                for (u32 row = 0; row < 4; row++) {
                    const u32 from = 8 * row + lane % 4;
                    const float4 of_row = {from_lane(x[four].x, from), from_lane(x[four].y, from),
                                           from_lane(x[four].z, from), from_lane(x[four].w, from)};
#pragma unroll
                    for (u32 held = 0; held < F::HELD; held++) {
                        float(&sum)[F::SUMS] = sums[held][four];
                        sum[2 * row] = add_products(sum[2 * row], weights[held][0], of_row);
                        sum[2 * row + 1] = add_products(sum[2 * row + 1], weights[held][1], of_row);
                    }
                }
            }
        }
    }

    // Leaves in the first two sums of each four those of outputs g and g + 8 for its row t.
    DEVICE void end_slice() {
#pragma unroll
        for (u32 four = 0; four < F::FOURS; four++) {
            squares[four] += lane_xor(squares[four], 1);
            squares[four] += lane_xor(squares[four], 2);
#pragma unroll
            for (u32 held = 0; held < F::HELD; held++) {
                float(&sum)[F::SUMS] = sums[held][four];
                if constexpr (F::DTYPE != F32) {
                    sum[0] += sum[1];
                    sum[1] = sum[2] + sum[3];
                } else {
#pragma unroll
                    for (u32 i = 0; i < F::SUMS; i++) {
                        sum[i] += lane_xor(sum[i], 1);
                        sum[i] += lane_xor(sum[i], 2);
                    }
                    const u32 row = lane % 4;
#pragma unroll
                    for (u32 half = 0; half < 2; half++) {
                        const float first = row % 2 == 0 ? sum[half] : sum[2 + half];
                        const float second = row % 2 == 0 ? sum[4 + half] : sum[6 + half];
                        sum[half] = row < 2 ? first : second;
                    }
                }
            }
        }
    }

    // Adds the slices, and calls store(row, output, sums of each matrix, sum of squares) for each output that there is.
    template <class Store>
    DEVICE void finish(typename F::Shared& shared, const Inputs& inputs, u32 n_out, Store store) {
        const u32 g = lane / 4, t = lane % 4;
#pragma unroll
        for (u32 tile = 0; tile < F::TILES; tile++) {
            if (tile > 0) {
                sync_block();
            }
#pragma unroll
            for (u32 four = 0; four < F::FOURS; four++) {
                if (tile == 0 && t == 0 && g % 2 == 0) {
                    shared.squares[slice][4 * four + g / 2] = squares[four];
                }
#pragma unroll
                for (u32 matrix = 0; matrix < F::MATRICES; matrix++) {
                    float(&to)[TILE] = shared.sums[matrix][slice][4 * four + t];
                    to[g] = sums[matrix * F::TILES + tile][four][0];
                    to[g + 8] = sums[matrix * F::TILES + tile][four][1];
                }
            }
            sync_block();
            for (u32 at = threadIdx.x; at < F::ROWS * TILE; at += THREADS) {
                const u32 row = at / TILE, output = (first_tile + tile) * TILE + at % TILE;
                if (first_row + row >= inputs.n_rows || output >= n_out) {
                    continue;
                }
                float total[F::MATRICES] = {}, total_squares = 0.0f;
#pragma unroll
                for (u32 i = 0; i < N_SLICES; i++) {
#pragma unroll
                    for (u32 matrix = 0; matrix < F::MATRICES; matrix++) {
                        total[matrix] += shared.sums[matrix][i][row][at % TILE];
                    }
                    total_squares += shared.squares[i][row];
                }
                store(first_row + row, output, total, total_squares);
            }
        }
    }
};
