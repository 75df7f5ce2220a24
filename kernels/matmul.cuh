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
// to which tolerances refer; were all of one sign, the sum could come out lower by 2^-15 at 18,944. On an H100 and an
// H200 the self-test, whose K is a few thousand at most, comes to less than half of its tolerance.
//
// A block is N_SLICES warps over the same TILE x TILES outputs (of each of one or two matrices) and the same 4 x FOURS
// rows of x; each has a slice. So W is read once for each block of rows, 16 bytes per lane and tile, and x from the
// caches, by the one warp of the block that multiplies it.
//
// Weights come through a ring in shared memory, by copies that are waited for in groups. Loads to registers are waited
// for by scoreboards, of which a warp has six: the compiler gave all of them one, so that waiting for the oldest waited
// for the youngest, and each place of K took as long as a load (benches/README.md). A lane copies its own 16 bytes and
// reads no other's, which needs no barrier. A block has 48 KiB under way; an H100 needs 3.35 TB/s x 0.7 us / 132 =
// 18 KiB per SM. A group is a third of the ring: two are under way while one is multiplied, and x of the next is loaded
// meanwhile. From 16 rows on its x would take too many registers, and a group is one place.
#pragma once
#include "common.cuh"

constexpr u32 N_SLICES = 8;
constexpr u32 THREADS = N_SLICES * WARP;
// 16-byte copies of weights that a lane has under way: 48 KiB a block.
constexpr u32 LOADS_AHEAD = 12;

// Blocks on a processor that bf16's forms of one matrix and 8 rows are compiled for: on sm_80 the registers that three
// leave do not suffice. Each block of any form has 49 KiB of shared memory: an H100 (227 KiB) holds four, an A100 (164)
// three, a card of 100 KiB two.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr u32 BLOCKS_OF_8 = 2;
#else
constexpr u32 BLOCKS_OF_8 = 3;
#endif

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
    // Places of K that are copied, and whose x is loaded, together: a group.
    static constexpr u32 TOGETHER = FOURS > 2 ? 1 : AHEAD / 3;
    static_assert(AHEAD % TOGETHER == 0, "whole groups");
    // A lane's sums of a tile and four rows: D of an mma, or [row][g, g + 8].
    static constexpr u32 SUMS = DTYPE == F32 ? 8 : 4;

    // A row's four elements of x as products take them: bf16 by pairs, of tf32 and f32 each one.
    static constexpr u32 WORDS = DTYPE == BF16 ? 2 : 4;

    // Weights of a place of K, of a warp.
    struct Place {
        uint4 vectors[HELD][VECTORS][WARP];
    };
    // Partial sums of one tile of outputs.
    struct Partial {
        float sums[MATRICES][N_SLICES][ROWS][TILE];
        float squares[N_SLICES][ROWS];
    };
    union Shared {
        Place ring[N_SLICES][AHEAD];
        Partial partial;
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
    typename F::Shared& shared;
    u32 lane, slice;
    // Places of K of the slice, and of this lane's columns there the first one and the last one.
    u32 n_places, first_column, last_column;
    u32 first_row, first_tile;
    const uint4* w[F::HELD];
    // Where the lane's row of each four begins in x. Rows past the last repeat it; what they make is not stored.
    u32 rows[F::FOURS];
    // Of the two columns that are a row, whether this lane has the rest.
    bool is_rest;
    float squares[F::FOURS];
    float sums[F::HELD][F::FOURS][F::SUMS];

    // The lane's columns of its rows at some places of K, and of the gain.
    struct Activations {
        float4 x[F::TOGETHER][F::FOURS];
        float4 gains[F::TOGETHER];
    };
    // The same for the products.
    struct Operands {
        u32 words[F::TOGETHER][F::FOURS][F::WORDS];
    };

    // The sums of the slice. False where the block has no row: it need not finish.
    DEVICE bool multiply(const uint4* const (&matrices)[F::MATRICES], const Inputs& inputs, u32 n_out) {
        start(matrices, inputs, n_out);
        wait_for_earlier();
        let_next_start();
        if (first_row >= inputs.n_rows) {
            copy_wait<0>();
            return false;
        }
        run(inputs);
        return true;
    }

    // Begins to copy weights, and finds the rows: before wait_for_earlier(), for no kernel writes either. Whether there
    // are rows is not waited for: few blocks have none, and all would begin later. Tiles of outputs past the last repeat
    // it; what they make is not stored.
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
        for (u32 i = 0; i < F::AHEAD; i += F::TOGETHER) {
            copy(i, &shared.ring[slice][i]);
        }
        const u32 last_row = max_of(inputs.n_rows, 1) - 1;
#pragma unroll
        for (u32 four = 0; four < F::FOURS; four++) {
            const u32 row = min_of(first_row + 4 * four + lane / 8, last_row);
            rows[four] = (inputs.gather ? inputs.gather[row] : row) * inputs.n_in;
        }
        is_rest = lane / 4 % 2 == 1;
    }

    // Begins to copy the weights of a group of places, of those that the slice has.
    DEVICE void copy(u32 place, typename F::Place* to) {
        if (place + F::TOGETHER <= n_places) {
#pragma unroll
            for (u32 j = 0; j < F::TOGETHER; j++) {
                copy_place(place + j, to[j]);
            }
        } else {
#pragma unroll 1
            for (u32 j = 0; place + j < n_places; j++) {
                copy_place(place + j, to[j]);
            }
        }
        copy_commit();
    }

    DEVICE void copy_place(u32 place, typename F::Place& to) {
#pragma unroll
        for (u32 held = 0; held < F::HELD; held++) {
#pragma unroll
            for (u32 v = 0; v < F::VECTORS; v++) {
                copy_async(&to.vectors[held][v][lane], w[held] + (place * F::VECTORS + v) * WARP);
            }
        }
    }

    DEVICE void run(const Inputs& inputs) {
        clear();
        Activations x = {};
        // A slice of a short row may have no place.
        if (n_places > 0) {
            x = load(inputs, 0);
        }
        u32 slot = 0;
#pragma unroll 1
        for (u32 place = 0; place < n_places; place += F::TOGETHER) {
            if (inputs.gain) {
                norm(x, place);
            }
            const Operands own = operands(x);
            x = load(inputs, place + F::TOGETHER);
            typename F::Place* const group = &shared.ring[slice][slot];
            copy_wait<F::AHEAD / F::TOGETHER - 1>();
            if (place + F::TOGETHER <= n_places) {
#pragma unroll
                for (u32 j = 0; j < F::TOGETHER; j++) {
                    add(group[j], own.words[j]);
                }
            } else {
#pragma unroll
                for (u32 j = 0; j < F::TOGETHER - 1; j++) {
                    if (place + j < n_places) {
                        add(group[j], own.words[j]);
                    }
                }
            }
            copy(place + F::AHEAD, group);
            slot = slot + F::TOGETHER == F::AHEAD ? 0 : slot + F::TOGETHER;
        }
        end_slice();
    }

    // Not where they are declared: there they would take registers while the first copies begin.
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

    // From a place on. Past its last column a lane repeats that: W is zero past the row, and nothing is added past the
    // slice.
    DEVICE Activations load(const Inputs& inputs, u32 place) {
        const u32 column = first_column + place * TILE;
        Activations loaded = {};
#pragma unroll
        for (u32 j = 0; j < F::TOGETHER; j++) {
            const u32 at = min_of(column + j * TILE, last_column);
#pragma unroll
            for (u32 four = 0; four < F::FOURS; four++) {
                loaded.x[j][four] = *(const float4*)(inputs.x + (rows[four] + at));
            }
            if (inputs.gain) {
                loaded.gains[j] = *(const float4*)(inputs.gain + at);
            }
        }
        return loaded;
    }

    // Adds the squares, each once, and multiplies by the gain what was loaded from a place on.
    DEVICE void norm(Activations& own, u32 place) {
        const u32 column = first_column + place * TILE;
#pragma unroll
        for (u32 j = 0; j < F::TOGETHER; j++) {
            const bool is_new = column + j * TILE <= last_column;
#pragma unroll
            for (u32 four = 0; four < F::FOURS; four++) {
                const float4 x = own.x[j][four], g = own.gains[j];
                const float sum = fmaf(x.y, x.y, fmaf(x.x, x.x, squares[four]));
                squares[four] = is_new ? fmaf(x.w, x.w, fmaf(x.z, x.z, sum)) : squares[four];
                own.x[j][four] = {g.x * x.x, g.y * x.y, g.z * x.z, g.w * x.w};
            }
        }
    }

    // Of tensor cores' columns this lane's: the nearest numbers of the type, or what they leave.
    DEVICE Operands operands(const Activations& own) {
        Operands operands;
#pragma unroll
        for (u32 j = 0; j < F::TOGETHER; j++) {
#pragma unroll
            for (u32 four = 0; four < F::FOURS; four++) {
                const float4 x = own.x[j][four];
                u32(&words)[F::WORDS] = operands.words[j][four];
                if constexpr (F::DTYPE == BF16) {
                    words[0] = part_of_bf16(x.x, x.y, is_rest);
                    words[1] = part_of_bf16(x.z, x.w, is_rest);
                } else {
                    const float of_row[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        words[i] = F::DTYPE == F16 ? part_of_tf32(of_row[i], is_rest) : bits_of(of_row[i]);
                    }
                }
            }
        }
        return operands;
    }

    // Adds the products of a place of K.
    DEVICE void add(const typename F::Place& place, const u32 (&x)[F::FOURS][F::WORDS]) {
        uint4 weights[F::HELD][F::VECTORS];
#pragma unroll
        for (u32 held = 0; held < F::HELD; held++) {
#pragma unroll
            for (u32 v = 0; v < F::VECTORS; v++) {
                weights[held][v] = place.vectors[held][v][lane];
            }
        }
#pragma unroll
        for (u32 four = 0; four < F::FOURS; four++) {
            if constexpr (F::DTYPE == BF16) {
#pragma unroll
                for (u32 held = 0; held < F::HELD; held++) {
                    mma_bf16(sums[held][four], weights[held][0], {x[four][0], x[four][1]});
                }
            } else if constexpr (F::DTYPE == F16) {
#pragma unroll
                for (u32 held = 0; held < F::HELD; held++) {
                    const uint4 w = weights[held][0];
                    mma_tf32(sums[held][four], {low_f16(w.x), low_f16(w.y), high_f16(w.x), high_f16(w.y)},
                             {x[four][0], x[four][1]});
                    mma_tf32(sums[held][four], {low_f16(w.z), low_f16(w.w), high_f16(w.z), high_f16(w.w)},
                             {x[four][2], x[four][3]});
                }
            } else {
#pragma unroll
                for (u32 row = 0; row < 4; row++) {
                    const u32 from = 8 * row + lane % 4;
                    const float4 of_row = {
                        float_of(from_lane(x[four][0], from)), float_of(from_lane(x[four][1], from)),
                        float_of(from_lane(x[four][2], from)), float_of(from_lane(x[four][3], from))};
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
    DEVICE void finish(const Inputs& inputs, u32 n_out, Store store) {
        const u32 g = lane / 4, t = lane % 4;
        typename F::Partial& partial = shared.partial;
#pragma unroll
        for (u32 tile = 0; tile < F::TILES; tile++) {
            // The ring, and the tile before, are read.
            sync_block();
#pragma unroll
            for (u32 four = 0; four < F::FOURS; four++) {
                if (tile == 0 && t == 0 && g % 2 == 0) {
                    partial.squares[slice][4 * four + g / 2] = squares[four];
                }
#pragma unroll
                for (u32 matrix = 0; matrix < F::MATRICES; matrix++) {
                    float(&to)[TILE] = partial.sums[matrix][slice][4 * four + t];
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
                        total[matrix] += partial.sums[matrix][i][row][at % TILE];
                    }
                    total_squares += partial.squares[i][row];
                }
                store(first_row + row, output, total, total_squares);
            }
        }
    }
};
