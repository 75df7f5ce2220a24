// What combine_sample and record share. A block has a part of the ids of one sample, of fixed size, and a thread of it
// four of them: nothing depends on how many blocks run at a time. Scores are moved as bits.
#pragma once

#include "common.cuh"

constexpr u32 THREADS = 256;
constexpr u32 N_WARPS = THREADS / WARP;
// Parts of the widest row. PART_IDS are four for each thread.
constexpr u32 N_PARTS = (MAX_VOCAB + PART_IDS - 1) / PART_IDS;
static_assert(PART_IDS == 4 * THREADS, "a thread has four ids");

constexpr u32 NEG_INF = 0xff800000u;
constexpr u32 POS_INF = 0x7f800000u;

// Bits of four scores, of the ids 4 i .. 4 i + 3.
struct Four {
    u32 bits[4];
};

DEVICE Four four_of(uint4 bits) { return {{bits.x, bits.y, bits.z, bits.w}}; }
DEVICE Four four_of(u32 bits) { return {{bits, bits, bits, bits}}; }
DEVICE Four load_four(const u32* row, u32 four) { return four_of(((const uint4*)row)[four]); }
DEVICE void store_four(u32* row, u32 four, const Four& from) {
    ((uint4*)row)[four] = {from.bits[0], from.bits[1], from.bits[2], from.bits[3]};
}

// Four logits of row `index`; -inf past n_ids, where nothing is read but what fills a row up to a multiple of four.
DEVICE Four logits_four(const u32* rows, u32 index, u32 stride, u32 four, u32 n_ids) {
    const u32* row = rows + (u64)index * stride;
    if (stride % 4 == 0) {
        return 4 * four < n_ids ? load_four(row, four) : four_of(NEG_INF);
    }
    Four loaded;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        loaded.bits[i] = 4 * four + i < n_ids ? row[4 * four + i] : NEG_INF;
    }
    return loaded;
}

// What one sample reads. Rows that are not read have what stands for the base: the base, or the expert that runs alone.
struct Reads {
    Sample sample;
    bool is_expert_only;
    bool has_pair;
};

DEVICE Reads reads_of(const Sample& sample, const Slot* slot) {
    return {sample, slot->expert_only == 1, slot->alpha != 0.0f};
}

template <class Args>
DEVICE Four base_four(const Args& args, const Reads& reads, u32 four) {
    if (reads.is_expert_only) {
        return logits_four(args.expert, reads.sample.row_expert, args.params.strides[1], four, args.params.n_ids);
    }
    return logits_four(args.base, reads.sample.row_base, args.params.strides[0], four, args.params.n_ids);
}

template <class Args>
DEVICE Four expert_four(const Args& args, const Reads& reads, u32 four) {
    return logits_four(args.expert, reads.sample.row_expert, args.params.strides[1], four, args.params.n_ids);
}

template <class Args>
DEVICE Four anti_four(const Args& args, const Reads& reads, u32 four) {
    return logits_four(args.anti, reads.sample.row_anti, args.params.strides[2], four, args.params.n_ids);
}

// Bits of a four in a mask over ids.
DEVICE u32 four_in_mask(const u32* mask, u32 four) { return mask[four / 8] >> (4 * (four % 8)) & 15u; }

// The live ids of a four, as bits.
template <class Args>
DEVICE u32 live_ids(const Args& args, u32 four) {
    return 4 * four < args.params.n_ids ? four_in_mask(args.constraints, four) : 0;
}

// Which of two ids is better: by score, ties to the lowest id. The higher key is; 0 is that of none.
DEVICE u64 key_of(u32 bits, u32 id) { return (u64)ordered_bits(float_of(bits)) << 32 | (u32)~id; }
DEVICE u32 id_of(u64 key) { return ~(u32)key; }
DEVICE u32 ordered_of(u64 key) { return (u32)(key >> 32); }
DEVICE float from_ordered(u32 ordered) { return float_of(ordered >= 0x80000000u ? ordered ^ 0x80000000u : ~ordered); }
DEVICE u64 higher(u64 a, u64 b) { return a > b ? a : b; }

// What `join` makes of a value of each thread, in all of them. Whole blocks come here.
template <class T, class Join>
DEVICE T over_block(T value, T (&warps)[N_WARPS], Join join) {
    value = over_lanes(value, join);
    // Some may still read what was here before.
    sync_block();
    if (threadIdx.x % WARP == 0) {
        warps[threadIdx.x / WARP] = value;
    }
    sync_block();
    for (u32 warp = 0; warp < N_WARPS; warp++) {
        value = join(value, warps[warp]);
    }
    return value;
}

// The highest key of the block's threads.
DEVICE u64 best_of_block(u64 key, u64 (&warps)[N_WARPS]) { return over_block(key, warps, higher); }
