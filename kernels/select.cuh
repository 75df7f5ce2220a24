// top-k and top-p without a sort: the twin of src/backend/cpu/select.rs, for many blocks a sample.
//
// A place is where (t, id) stands from best to worst: 31 bits of depth below t = 0, then 19 bits of the id. The end of
// a prefix of the places is found digit by digit, ten bits each, by one launch per digit: blocks add the weights of
// their ids to bins in memory, and the last of a sample looks in which bin the goal is reached. Weights are integers,
// so that their sums are exact in any order.
#pragma once

#include "ids.cuh"

constexpr u32 ID_BITS = 19;
constexpr u32 N_BINS = 1u << DIGIT_BITS;
static_assert(MAX_VOCAB <= 1u << ID_BITS && 31 + ID_BITS == DIGIT_BITS * N_DIGITS, "a place is made of whole digits");

// The place after all.
constexpr u64 NO_END = ~0ull;

// What is known of the prefix of one sample, in memory.
struct Prefix {
    // Its last place, as the filters before left it.
    u64 end;
    // The digits that are known of a nearer end,
    u64 pivot;
    // and what weight is still to be reached from there.
    u64 goal;
    // 0 between launches.
    u64 bins[N_BINS];
    // Blocks of the sample that have arrived; 0 between launches.
    u32 arrived;
    u32 reserved;
};

// Which prefix is looked for: so many ids, or the share amount * 2^-32 of all mass.
struct Wanted {
    bool by_mass;
    u32 amount;
};

// Bins of a block, in halves: shared memory adds 32 bits at once, but 64 in a loop, and many ids meet in few bins.
struct SelectShared {
    u32 low[N_BINS];
    u32 high[N_BINS];
    u64 sums[THREADS];
    u32 is_last;
};

// t <= 0.
DEVICE u64 place_of(u32 t_bits, u32 id) { return (u64)(0x80000000u - ordered_bits(float_of(t_bits))) << ID_BITS | id; }

DEVICE void begin(Prefix* prefix) {
    prefix->end = NO_END;
    prefix->pivot = 0;
}

// The least mass with mass * 2^32 >= total * top_p.
DEVICE u64 nucleus_goal(u64 total, u32 top_p) {
    const u64 low = (total & 0xffffffffu) * top_p;
    return (total >> 32) * top_p + (low >> 32) + ((u32)low != 0 ? 1 : 0);
}

DEVICE u64 first_goal(u64 total, Wanted wanted) {
    if (wanted.by_mass) {
        return nucleus_goal(total, wanted.amount);
    }
    return wanted.amount < total ? wanted.amount : total;
}

// Leaves in `sums` the weight of each thread's bins and of all before.
DEVICE void sum_bins(const u64* bins, u64 (&sums)[THREADS]) {
    u64 own = 0;
    for (u32 i = 0; i < N_BINS / THREADS; i++) {
        own += bins[threadIdx.x * (N_BINS / THREADS) + i];
    }
    sums[threadIdx.x] = own;
    for (u32 offset = 1; offset < THREADS; offset *= 2) {
        sync_block();
        own += threadIdx.x >= offset ? sums[threadIdx.x - offset] : 0;
        sync_block();
        sums[threadIdx.x] = own;
    }
    sync_block();
}

DEVICE void add_to_bin(SelectShared& shared, u32 bin, u64 weight) {
    const u32 low = (u32)weight, before = atomicAdd(&shared.low[bin], low);
    const u32 high = (u32)(weight >> 32) + (before + low < before ? 1 : 0);
    if (high > 0) {
        atomicAdd(&shared.high[bin], high);
    }
}

// Finds digit number `digit` of the end, of ids whose t are given, -inf where there is none: the best is 0.
DEVICE void find_digit(Prefix* prefix, const Four& t, u32 four, u32 digit, Wanted wanted, SelectShared& shared) {
    const u32 shift = DIGIT_BITS * (N_DIGITS - 1 - digit);
    const u64 end = prefix->end, pivot = prefix->pivot;
    for (u32 bin = threadIdx.x; bin < N_BINS; bin += THREADS) {
        shared.low[bin] = 0;
        shared.high[bin] = 0;
    }
    sync_block();
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u64 place = place_of(t.bits[i], 4 * four + i);
        const bool agrees = (place ^ pivot) >> shift >> DIGIT_BITS == 0;
        if (t.bits[i] != NEG_INF && place <= end && agrees) {
            const u64 weight = wanted.by_mass ? mass(float_of(t.bits[i])) : 1;
            if (weight > 0) {
                add_to_bin(shared, place >> shift & (N_BINS - 1), weight);
            }
        }
    }
    sync_block();
    for (u32 bin = threadIdx.x; bin < N_BINS; bin += THREADS) {
        const u64 weight = (u64)shared.high[bin] << 32 | shared.low[bin];
        if (weight > 0) {
            atomicAdd(&prefix->bins[bin], weight);
        }
    }
    if (!arrives_last(&prefix->arrived, gridDim.x, &shared.is_last)) {
        return;
    }
    sum_bins(prefix->bins, shared.sums);
    const u64 goal = digit > 0 ? prefix->goal : first_goal(shared.sums[THREADS - 1], wanted);
    // All have read the goal before one writes what is left of it.
    sync_block();
    const u64 before = threadIdx.x > 0 ? shared.sums[threadIdx.x - 1] : 0;
    const bool is_here = before < goal && goal <= shared.sums[threadIdx.x];
    u64 left = is_here ? goal - before : 0;
    for (u32 i = 0; i < N_BINS / THREADS; i++) {
        const u32 bin = threadIdx.x * (N_BINS / THREADS) + i;
        const u64 weight = prefix->bins[bin];
        prefix->bins[bin] = 0;
        if (left > 0 && left <= weight) {
            const u64 found = pivot | (u64)bin << shift;
            const bool is_end = digit + 1 == N_DIGITS;
            prefix->end = is_end ? found : end;
            prefix->pivot = is_end ? 0 : found;
            prefix->goal = left;
        }
        left = left > weight ? left - weight : 0;
    }
}
