// Races.
#include "common.cuh"

struct PlantedArgs {
    u32* out;
    const u32* in;
    u32* counter;
};

constexpr u32 THREADS = 64;

struct RaceShared {
    alignas(16) u32 words[THREADS];
    u16 halves[THREADS];
    u32 flag;
};

extern "C" __global__ void __launch_bounds__(THREADS) no_sync_block(const PlantedArgs args) {
    SHARED(RaceShared, shared);
    wait_for_earlier();
    shared.words[threadIdx.x] = 0;
    sync_block();
    shared.words[threadIdx.x] = args.in[threadIdx.x];
    sync_warp();
    args.out[threadIdx.x] = shared.words[threadIdx.x ^ WARP];
}

// The second round's writes meet the first's reads.
extern "C" __global__ void __launch_bounds__(THREADS) no_second_sync_block(const PlantedArgs args) {
    SHARED(RaceShared, shared);
    wait_for_earlier();
    u32 sum = 0;
    for (u32 round = 0; round < 2; round++) {
        shared.words[threadIdx.x] = args.in[threadIdx.x];
        sync_block();
        sum += shared.words[threadIdx.x ^ WARP];
    }
    args.out[threadIdx.x] = sum;
}

// A shuffle orders no memory.
extern "C" __global__ void __launch_bounds__(THREADS) no_sync_warp(const PlantedArgs args) {
    SHARED(RaceShared, shared);
    wait_for_earlier();
    shared.words[threadIdx.x] = args.in[threadIdx.x];
    const u32 word = lane_xor(threadIdx.x, 1);
    args.out[threadIdx.x] = word + shared.words[threadIdx.x ^ 1];
}

// All read one word, and then one lane of the warp writes it.
extern "C" __global__ void __launch_bounds__(THREADS) write_after_reads(const PlantedArgs args) {
    SHARED(RaceShared, shared);
    wait_for_earlier();
    if (threadIdx.x == 0) {
        shared.flag = 1;
    }
    sync_block();
    const u32 flag = shared.flag;
    if (threadIdx.x == 0) {
        shared.flag = flag + 1;
    }
    args.out[threadIdx.x] = flag;
}

extern "C" __global__ void __launch_bounds__(THREADS) two_store_one_word(const PlantedArgs args) {
    wait_for_earlier();
    args.out[threadIdx.x / 2] = 1;
}

// Neighbours' halves of a word are no race, and are here to show it; the first of another warp's is one.
extern "C" __global__ void __launch_bounds__(THREADS) halves_of_a_word(const PlantedArgs args) {
    SHARED(RaceShared, shared);
    wait_for_earlier();
    shared.halves[threadIdx.x] = (u16)args.in[threadIdx.x];
    shared.halves[0] = 1;
}

extern "C" __global__ void __launch_bounds__(THREADS) blocks_store_one_word(const PlantedArgs args) {
    wait_for_earlier();
    args.out[threadIdx.x] = blockIdx.x;
}

// The second block reads what the first wrote.
extern "C" __global__ void __launch_bounds__(THREADS) blocks_read_each_other(const PlantedArgs args) {
    wait_for_earlier();
    args.out[blockIdx.x * THREADS + threadIdx.x] = 1;
    args.counter[1 + blockIdx.x * THREADS + threadIdx.x] = args.out[(1 - blockIdx.x) * THREADS + threadIdx.x];
}

// As arrives_last(), but for the fence before the atomic, or after it.
DEVICE bool arrives_last_without(u32* counter, u32* flag, bool before) {
    if (!before) {
        fence_device();
    }
    sync_block();
    if (threadIdx.x == 0) {
        *flag = atomicAdd(counter, 1u) == gridDim.x - 1;
    }
    sync_block();
    if (before) {
        fence_device();
    }
    return *flag;
}

DEVICE void sum_by_last(const PlantedArgs& args, u32* flag, bool before) {
    args.out[blockIdx.x * THREADS + threadIdx.x] = 1;
    if (arrives_last_without(args.counter, flag, before)) {
        args.out[threadIdx.x] += args.out[THREADS + threadIdx.x];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) no_fence_before(const PlantedArgs args) {
    SHARED(RaceShared, shared);
    wait_for_earlier();
    sum_by_last(args, &shared.flag, true);
}

extern "C" __global__ void __launch_bounds__(THREADS) no_fence_after(const PlantedArgs args) {
    SHARED(RaceShared, shared);
    wait_for_earlier();
    sum_by_last(args, &shared.flag, false);
}

// What cp.async wrote is its own thread's until a barrier.
extern "C" __global__ void __launch_bounds__(THREADS) copy_without_barrier(const PlantedArgs args) {
    SHARED(RaceShared, shared);
    wait_for_earlier();
    if (threadIdx.x < THREADS / 4) {
        copy_async(&shared.words[4 * threadIdx.x], args.in + 4 * threadIdx.x);
    }
    copy_commit();
    copy_wait<0>();
    sync_warp();
    args.out[threadIdx.x] = shared.words[threadIdx.x];
}

// A plain write beside an atomic.
extern "C" __global__ void __launch_bounds__(THREADS) atomic_and_write(const PlantedArgs args) {
    wait_for_earlier();
    if (threadIdx.x == 0) {
        args.counter[0] = 7;
    } else {
        atomicAdd(args.counter, 1u);
    }
}
