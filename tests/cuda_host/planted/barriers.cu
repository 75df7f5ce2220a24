// Mistakes with barriers and functions of the warp, each a kernel of two warps; and what is not one.
#include "common.cuh"

struct PlantedArgs {
    u32* out;
    const u32* in;
    u32* counter;
};

constexpr u32 THREADS = 64;

struct BarrierShared {
    u32 words[THREADS];
    u32 flag;
};

// The warps' words change places, lanes' neighbours within a warp, and the last block adds what the others left.
extern "C" __global__ void __launch_bounds__(THREADS) no_mistake(const PlantedArgs args) {
    SHARED(BarrierShared, shared);
    wait_for_earlier();
    const u32 thread = threadIdx.x;
    shared.words[thread] = args.in[thread];
    sync_block();
    const u32 other = shared.words[thread ^ 32];
    sync_block();
    shared.words[thread] = other;
    sync_warp();
    const u32 neighbour = shared.words[thread ^ 1];
    args.out[blockIdx.x * THREADS + thread] = neighbour;
    if (arrives_last(args.counter, gridDim.x, &shared.flag)) {
        u32 sum = 0;
        for (u32 block = 0; block < gridDim.x; block++) {
            sum += args.out[block * THREADS + thread];
        }
        args.out[gridDim.x * THREADS + thread] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) barrier_of_one_warp(const PlantedArgs args) {
    wait_for_earlier();
    if (threadIdx.x < WARP) {
        sync_block();
    }
    args.out[threadIdx.x] = 0;
}

extern "C" __global__ void __launch_bounds__(THREADS) barriers_on_two_lines(const PlantedArgs) {
    wait_for_earlier();
    if (threadIdx.x < WARP) {
        sync_block();
    } else {
        sync_block();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) barrier_after_one_left(const PlantedArgs) {
    wait_for_earlier();
    if (threadIdx.x == 0) {
        return;
    }
    sync_block();
}

extern "C" __global__ void __launch_bounds__(THREADS) half_a_warp(const PlantedArgs args) {
    wait_for_earlier();
    if (threadIdx.x % WARP < 16) {
        args.out[threadIdx.x] = lane_xor(threadIdx.x, 1);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) lanes_elsewhere(const PlantedArgs args) {
    wait_for_earlier();
    if (threadIdx.x % WARP < 16) {
        args.out[threadIdx.x] = lane_xor(threadIdx.x, 1);
    } else {
        args.out[threadIdx.x] = from_lane(threadIdx.x, 1);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) warp_against_block(const PlantedArgs) {
    wait_for_earlier();
    if (threadIdx.x % WARP < 16) {
        sync_warp();
    } else {
        sync_block();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) never_waits(const PlantedArgs) {}

DEVICE u32 deeper(const volatile u32* from, u32 depth) {
    volatile u32 frame[64];
    frame[depth % 64] = *from;
    return depth == 0 ? frame[0] : deeper(frame, depth - 1) + frame[depth % 64];
}

extern "C" __global__ void __launch_bounds__(THREADS) too_deep(const PlantedArgs args) {
    wait_for_earlier();
    args.out[threadIdx.x] = deeper(args.in, 100000);
}
