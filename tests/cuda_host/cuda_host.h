// Plays the device for kernels/*.cu compiled as C++17: the words of CUDA that they use, and a body for each function
// of common.cuh that is PTX or a built-in there. Threads are fibres of one process (block.h), so nothing here runs
// at once with anything else; what a device would not define is an error that ends the process.
//
// mma_* multiply exactly (two numbers of 8 or 11 bits fit f32) and add in f32 in the order of k, onto what d holds.
#pragma once

#include <cmath>
#include <cstring>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE inline
#define __device__
#define __global__
#define __forceinline__
#define __launch_bounds__(...)

struct alignas(8) uint2 {
    u32 x, y;
};
struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct uint3 {
    u32 x, y, z;
};

// Of the fibre that runs.
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

// Where a kernel calls a function that others must come to.
struct Site {
    const char* function;
    const char* file;
    u32 line;
};

// Ends the process with a message that names kernel, block and thread.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

void* shared_memory(u64 bytes);
void meet_block(Site site);
void meet_warp(Site site);
// What lane `from` gives.
u32 exchange(Site site, u32 bits, u32 from);
void multiply_bf16(Site site, float* d, uint4 a, uint2 b);
void multiply_tf32(Site site, float* d, uint4 a, uint2 b);
void issue_copy(Site site, void* shared, const void* global);
void commit_copies();
void wait_for_copies(u32 n_under_way);
void wait_for_earlier();
void fence();
// Before a read-modify-write of the word at `word`.
void atomic(void* word, u32 bytes);

}  // namespace host

#define SHARED(Type, name)                                                                                 \
    static_assert(sizeof(Type) <= 48 * 1024 && alignof(Type) <= 128, "at most 48 KiB of shared memory");   \
    Type& name = *static_cast<Type*>(host::shared_memory(sizeof(Type)))

#define OFFSET_OF(Type, field) __builtin_offsetof(Type, field)

// Default arguments, so that a message names the kernel's line.
#define HOST_SITE const char *file = __builtin_FILE(), u32 line = __builtin_LINE()

DEVICE u32 bits_of(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return bits;
}
DEVICE float float_of(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

DEVICE float f16_to_f32(u16 bits) {
    const u32 sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 0x3ffu;
    if (exponent == 31) {
        return float_of(sign | 0x7f800000u | mantissa << 13);
    }
    if (exponent == 0) {
        const float magnitude = (float)mantissa * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

// Nearest, ties to even: the add rounds at the bit where f16 ends.
DEVICE u16 f32_to_f16(float x) {
    const u32 bits = bits_of(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (u16)0x7fffu;
    }
    if (magnitude >= 0x477ff000u) {
        return (u16)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) {
        return (u16)(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
    }
    return (u16)(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13));
}

DEVICE u16 f32_to_bf16(float x) {
    const u32 bits = bits_of(x);
    return (bits & 0x7fffffffu) > 0x7f800000u ? (u16)0x7fffu : (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

DEVICE u32 bf16_pair(float first, float second) { return f32_to_bf16(first) | (u32)f32_to_bf16(second) << 16; }

DEVICE void mma_bf16(float (&d)[4], uint4 a, uint2 b, HOST_SITE) {
    host::multiply_bf16({"mma_bf16", file, line}, d, a, b);
}
DEVICE void mma_tf32(float (&d)[4], uint4 a, uint2 b, HOST_SITE) {
    host::multiply_tf32({"mma_tf32", file, line}, d, a, b);
}

DEVICE u32 lane_xor(u32 x, u32 mask, HOST_SITE) {
    return host::exchange({"lane_xor", file, line}, x, (threadIdx.x % 32) ^ mask);
}
DEVICE float lane_xor(float x, u32 mask, HOST_SITE) { return float_of(lane_xor(bits_of(x), mask, file, line)); }
DEVICE u32 from_lane(u32 x, u32 lane, HOST_SITE) { return host::exchange({"from_lane", file, line}, x, lane); }
DEVICE float from_lane(float x, u32 lane, HOST_SITE) { return float_of(from_lane(bits_of(x), lane, file, line)); }
DEVICE void sync_warp(HOST_SITE) { host::meet_warp({"sync_warp", file, line}); }

DEVICE void sync_block(HOST_SITE) { host::meet_block({"sync_block", file, line}); }

DEVICE void copy_async(void* shared, const void* global, HOST_SITE) {
    host::issue_copy({"copy_async", file, line}, shared, global);
}
DEVICE void copy_commit() { host::commit_copies(); }
template <u32 N>
DEVICE void copy_wait() {
    host::wait_for_copies(N);
}

DEVICE void let_next_start() {}
DEVICE void wait_for_earlier() { host::wait_for_earlier(); }
DEVICE void fence_device() { host::fence(); }

// Not inline: a race check must see these as atomic, not as a read and a write.
u32 atomicAdd(u32* word, u32 value);
u64 atomicAdd(u64* word, u64 value);
