// What every kernel shares: 16-bit types by bits, the instructions that C++ has no words for, and the functions of
// src/backend/math.rs. A .cu includes this, or a header of ours that does, and nothing of CUDA's own, so that NVRTC
// alone compiles it; g++ and clang compile the same files for tests, where tests/cuda_host/cuda_host.h plays the
// device.
//
// Convention: a kernel has one argument, a struct NAMEArgs by value: pointers in the order of the fields of the op's
// struct in src/backend/mod.rs (outputs, inputs), its params, then what only CUDA needs; src/backend/cuda/ mirrors it.
// A pointer that an op may lack is null. Blocks are one-dimensional and of whole warps. Every kernel calls
// wait_for_earlier() before it touches anything that a kernel writes, and all its threads come there. What only copies
// between steps write (weights, gains, extents, gather) may be read before: the first launch of a step overlaps none.
#pragma once

#ifdef __CUDACC_RTC__
#define DEVICE __device__ __forceinline__
// The shared memory of a block, one struct per kernel.
#define SHARED(Type, name) __shared__ Type name
// What offsetof is made of in the compiler's front end; NVRTC 12 has no other name for it.
#define OFFSET_OF(Type, field) __INTADDR__(&((Type*)0)->field)
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#else
#include "cuda_host.h"
#endif

#include "constants.cuh"
#include "records.cuh"
#include "layouts.cuh"

constexpr u32 WARP = 32;

DEVICE u32 min_of(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 max_of(u32 a, u32 b) { return a > b ? a : b; }
DEVICE u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

// A params' value of a member. An index that the compiler does not know would put all arguments into local memory.
template <class T>
DEVICE T of_member(const T (&values)[MAX_MEMBERS], u32 member) { return member == 0 ? values[0] : values[1]; }

// ---- What has PTX or a built-in on the device; tests/cuda_host/cuda_host.h has the bodies for the host.
#ifdef __CUDACC_RTC__

DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }

DEVICE float f16_to_f32(u16 bits) {
    float x;
    asm("{ .reg .f16 h; mov.b16 h, %1; cvt.f32.f16 %0, h; }" : "=f"(x) : "h"(bits));
    return x;
}
// Nearest, ties to even.
DEVICE u16 f32_to_f16(float x) {
    u16 bits;
    asm("{ .reg .f16 h; cvt.rn.f16.f32 h, %1; mov.b16 %0, h; }" : "=h"(bits) : "f"(x));
    return bits;
}
DEVICE u16 f32_to_bf16(float x) {
    u16 bits;
    asm("{ .reg .b16 h; cvt.rn.bf16.f32 h, %1; mov.b16 %0, h; }" : "=h"(bits) : "f"(x));
    return bits;
}

// Two numbers as bf16 in one register, the first in the low half.
DEVICE u32 bf16_pair(float first, float second) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
}

// d += a b, for A 16 x 16 and B 16 x 8 of bf16. Lane l has, with g = l / 4 and t = l % 4 (two elements a register, the
// first in the low half): a.x = A[g][2t..], a.y = A[g + 8][2t..], a.z = A[g][2t + 8..], a.w = A[g + 8][2t + 8..],
// b.x = B[2t..][g], b.y = B[2t + 8..][g]; d = D[g][2t], D[g][2t + 1], D[g + 8][2t], D[g + 8][2t + 1].
DEVICE void mma_bf16(float (&d)[4], uint4 a, uint2 b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

// d += a b, for A 16 x 8 and B 8 x 8 of tf32 (f32 whose low 13 bits are not read): a.x = A[g][t], a.y = A[g + 8][t],
// a.z = A[g][t + 4], a.w = A[g + 8][t + 4], b.x = B[t][g], b.y = B[t + 4][g]; d as in mma_bf16.
DEVICE void mma_tf32(float (&d)[4], uint4 a, uint2 b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

// The whole warp comes to each of these.
DEVICE float lane_xor(float x, u32 mask) { return __shfl_xor_sync(~0u, x, mask); }
DEVICE u32 lane_xor(u32 x, u32 mask) { return __shfl_xor_sync(~0u, x, mask); }
DEVICE float from_lane(float x, u32 lane) { return __shfl_sync(~0u, x, lane); }
DEVICE u32 from_lane(u32 x, u32 lane) { return __shfl_sync(~0u, x, lane); }
DEVICE void sync_warp() { __syncwarp(); }

// The whole block comes to this.
DEVICE void sync_block() { __syncthreads(); }

// 16 bytes from global to shared memory, not through L1; there after a wait of the same thread (for others, and a
// barrier). Without a cache policy: with one, ptxas 12.9 makes code that an H100 refuses as an illegal instruction.
DEVICE void copy_async(void* shared, const void* global) {
    const u32 to = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most N groups are under way.
template <u32 N>
DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Programmatic dependent launch: the next kernel of the stream may start; what it reads of this one it waits for.
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// All that earlier kernels wrote is there.
DEVICE void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// What this thread wrote, and what it has seen written, is seen by whoever sees what it writes next.
DEVICE void fence_device() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

#endif

DEVICE u64 lane_xor(u64 x, u32 mask) { return (u64)lane_xor((u32)(x >> 32), mask) << 32 | lane_xor((u32)x, mask); }

DEVICE float bf16_to_f32(u32 bits) { return float_of(bits << 16); }

// What `join` makes of a value of each lane, in all of them: by halves.
template <class T, class Join>
DEVICE T over_lanes(T value, Join join) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        value = join(value, lane_xor(value, mask));
    }
    return value;
}

DEVICE float sum_of_lanes(float own) {
    return over_lanes(own, [](float a, float b) { return a + b; });
}

// 1 / sqrt(mean of n squares + eps).
DEVICE float inverse_rms(float squares, u32 n, float eps) { return 1.0f / sqrtf(squares / (float)n + eps); }

// Numbers as tensor cores take them: the nearest of their type, and what that leaves.
struct Split {
    u32 hi;
    u32 lo;
};

// One half of the split of two numbers as pairs of bf16, without a branch: what the nearest ones leave, or these.
DEVICE u32 part_of_bf16(float x, float y, bool is_rest) {
    const u32 hi = bf16_pair(x, y);
    return bf16_pair(x - float_of(hi * (is_rest ? 0x10000u : 0u)), y - float_of(hi & (is_rest ? 0xffff0000u : 0u)));
}
// The same of one number as tf32, to nearest with ties away from 0. What is left is cut, not rounded: a NaN stays one
// there, whatever the other half makes of it.
DEVICE u32 part_of_tf32(float x, bool is_rest) {
    const u32 hi = (bits_of(x) + 0x1000u) & 0xffffe000u;
    return (bits_of(x - float_of(is_rest ? hi : 0u)) + (is_rest ? 0u : 0x1000u)) & 0xffffe000u;
}

DEVICE Split split_bf16(float x, float y) { return {part_of_bf16(x, y, false), part_of_bf16(x, y, true)}; }
DEVICE Split split_tf32(float x) { return {part_of_tf32(x, false), part_of_tf32(x, true)}; }

// True in all threads of the last of n blocks that come here, after which everything the others wrote before is seen:
// the barrier and thread 0's fence order what the block wrote before its atomic, and the fence and barrier after it
// what the block then reads. No block waits for another. The counter is 0 before and after; `flag` is a word of shared
// memory.
DEVICE bool arrives_last(u32* counter, u32 n, u32* flag) {
    sync_block();
    if (threadIdx.x == 0) {
        fence_device();
        *flag = atomicAdd(counter, 1u) == n - 1;
        fence_device();
        if (*flag) {
            *counter = 0;
        }
    }
    sync_block();
    return *flag;
}

// ---- Weight matrices, as src/backend/cuda/matrix.rs lays them out: tiles of TILE x TILE, [n_out / TILE][n_in / TILE],
// both rounded up. A lane of a warp has of a tile, with g = lane / 4 and t = lane % 4, columns 4t .. 4t + 3 of rows g
// and g + 8, so that it needs four neighbours of a row of x. In a tile of 16 bits they stand lane by lane in the order
// in which mma_bf16 takes them, its k = 2t, 2t + 1 being columns 4t, 4t + 1 and its 2t + 8, 2t + 9 the two after them;
// a tile of f32 is row-major, which is the first row of every lane, then the second.

// Elements 2 pair and 2 pair + 1 of a row of a matrix whose rows have n_in elements.
template <u32 DTYPE>
DEVICE float2 pair_of_weights(const void* tiles, u32 n_in, u32 row, u32 pair) {
    constexpr u32 PAIRS = TILE / 2;
    const u64 tile = ((u64)(row / TILE) * ceil_div(n_in, TILE) + pair / PAIRS) * TILE * PAIRS;
    row %= TILE;
    pair %= PAIRS;
    if constexpr (DTYPE == F32) {
        return ((const float2*)tiles)[tile + row * PAIRS + pair];
    } else {
        const u32 lane = row % 8 * 4 + pair / 2;
        const u32 both = ((const u32*)tiles)[tile + lane * 4 + pair % 2 * 2 + row / 8];
        if constexpr (DTYPE == F16) {
            return {f16_to_f32((u16)both), f16_to_f32((u16)(both >> 16))};
        } else {
            return {bf16_to_f32(both & 0xffffu), bf16_to_f32(both >> 16)};
        }
    }
}

// ---- src/backend/math.rs: the same constants and operations.

template <u32 N>
DEVICE float horner(const float (&coefficients)[N], float x) {
    float sum = coefficients[0];
#pragma unroll
    for (u32 i = 1; i < N; i++) {
        sum = fmaf(sum, x, coefficients[i]);
    }
    return sum;
}

// e^t for t <= 0.
DEVICE float exp_nonpositive(float t) {
    constexpr float poly[] = EXP_POLY;
    float n = floorf(fmaf(t, LOG2_E, 0.5f));
    float r = fmaf(n, -LN2_LO, fmaf(n, -LN2_HI, t));
    float y = fmaf(r * r, horner(poly, r), r) + 1.0f;
    float power = float_of((bits_of(n + INTEGERS) << 23) + 0x3f800000u);
    return t < EXP_MIN ? 0.0f : y * power;
}

DEVICE float ln_tail(float x, float z) {
    constexpr float poly[] = LN_POLY;
    return horner(poly, x) * x * z;
}

// ln(1 + x) for x in [sqrt(1/2) - 1, sqrt(2) - 1].
DEVICE float ln_1p_near_zero(float x) {
    float z = x * x;
    return x + fmaf(z, -0.5f, ln_tail(x, z));
}

// ln x for normal x > 0.
DEVICE float ln(float x) {
    u32 offset = bits_of(x) - SQRT_HALF_BITS;
    float e = (float)((int)offset >> 23);
    float m = float_of((offset & 0x007fffffu) + SQRT_HALF_BITS) - 1.0f;
    float z = m * m;
    float y = fmaf(e, LN2_LO, ln_tail(m, z));
    return fmaf(e, LN2_HI, m + fmaf(z, -0.5f, y));
}

// -ln(E) with E = -log1p(-v): a Gumbel variate from 32 random bits.
DEVICE float gumbel(u32 x) {
    float v = fminf(((float)x + 0.5f) * RANDOM_UNIT, BELOW_ONE);
    float e = v < 0.25f ? -ln_1p_near_zero(-v) : -ln(1.0f - v);
    return -ln(e);
}

// Philox4x32-10.
DEVICE uint4 philox(uint4 counter, u32 key_0, u32 key_1) {
    for (u32 round = 0; round < 10; round++) {
        u64 p = (u64)counter.x * PHILOX_MULTIPLIER_0;
        u64 q = (u64)counter.z * PHILOX_MULTIPLIER_1;
        counter = {(u32)(q >> 32) ^ counter.y ^ key_0, (u32)q, (u32)(p >> 32) ^ counter.w ^ key_1, (u32)p};
        key_0 += PHILOX_KEY_STEP_0;
        key_1 += PHILOX_KEY_STEP_1;
    }
    return counter;
}

// A float's bits as an integer of the same order; -0 equals +0.
DEVICE u32 ordered_bits(float x) {
    u32 bits = bits_of(x);
    return bits > 0x80000000u ? ~bits : bits | 0x80000000u;
}

// e^t in units of 2^-36, truncated, for t <= 0.
DEVICE u64 mass(float t) {
    u32 bits = bits_of(exp_nonpositive(t));
    u64 mantissa = (bits & 0x007fffffu) | 0x00800000u;
    return mantissa << 13 >> min_of(127 - (bits >> 23), 63);
}

DEVICE float softcapped(float x, float cap) { return cap == 0.0f ? x : cap * tanhf(x / cap); }

// ---- Where tokens stand in pages: [K | V][n_kv_heads][tokens][head_dim] of the cache's type, from word
// page_id * page_words of the plane.

// Words of a token's key or value of one head.
DEVICE u32 head_words(u32 head_dim, u32 dtype) { return dtype == F32 ? head_dim : head_dim / 2; }

// Word of a token's key of head `cell`, or of its value where `cell` is n_kv_heads + head. A plane has less than 2^32.
DEVICE u32 cell_word(const PageParams& page, const u32* lane_pages, u32 position, u32 cell, u32 words) {
    const u32 page_id = lane_pages[position / page.page_tokens];
    return page_id * page.page_words + (cell * page.page_tokens + position % page.page_tokens) * words;
}
