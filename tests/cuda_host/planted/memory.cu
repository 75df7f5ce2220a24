// Mistakes with memory.
#include "common.cuh"

struct PlantedArgs {
    u32* out;
    const u32* in;
    u32* counter;
};

constexpr u32 THREADS = 64;

struct MemoryShared {
    alignas(16) u32 words[THREADS];
};

// Reads what nobody wrote.
extern "C" __global__ void __launch_bounds__(THREADS) shared_unwritten(const PlantedArgs args) {
    SHARED(MemoryShared, shared);
    wait_for_earlier();
    args.out[threadIdx.x] = shared.words[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(THREADS) shared_past_end(const PlantedArgs args) {
    SHARED(MemoryShared, shared);
    wait_for_earlier();
    u32* words = shared.words;
    words[threadIdx.x + 1] = args.in[0];
}

extern "C" __global__ void __launch_bounds__(THREADS) global_past_end(const PlantedArgs args) {
    wait_for_earlier();
    args.out[threadIdx.x] = args.in[threadIdx.x + 1];
}

// Without a wait the target holds poison.
extern "C" __global__ void __launch_bounds__(THREADS) copy_without_wait(const PlantedArgs args) {
    SHARED(MemoryShared, shared);
    wait_for_earlier();
    if (threadIdx.x < THREADS / 4) {
        copy_async(&shared.words[4 * threadIdx.x], args.in + 4 * threadIdx.x);
        copy_commit();
        args.out[threadIdx.x] = shared.words[4 * threadIdx.x];
    }
}

// The wait lets the last group be under way.
extern "C" __global__ void __launch_bounds__(THREADS) copy_with_short_wait(const PlantedArgs args) {
    SHARED(MemoryShared, shared);
    wait_for_earlier();
    if (threadIdx.x == 0) {
        copy_async(&shared.words[0], args.in);
        copy_commit();
        copy_async(&shared.words[4], args.in + 4);
        copy_commit();
        copy_wait<1>();
        args.out[0] = shared.words[0];
        args.out[1] = shared.words[4];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) copy_past_end(const PlantedArgs args) {
    SHARED(MemoryShared, shared);
    wait_for_earlier();
    copy_async(&shared.words[4], args.in + THREADS);
    copy_commit();
    copy_wait<0>();
}

extern "C" __global__ void __launch_bounds__(THREADS) misaligned(const PlantedArgs args) {
    wait_for_earlier();
    args.out[threadIdx.x] = reinterpret_cast<const uint4*>(args.in + 1)->x;
}

extern "C" __global__ void __launch_bounds__(THREADS) writes_before_wait(const PlantedArgs args) {
    args.out[threadIdx.x] = 1;
    wait_for_earlier();
}

// Of a kernel before it: the test launches it twice.
extern "C" __global__ void __launch_bounds__(THREADS) reads_before_wait(const PlantedArgs args) {
    u32* word = args.out + blockIdx.x * THREADS + threadIdx.x;
    const u32 before = *word;
    wait_for_earlier();
    *word = before + 1;
}
