// x[i] += rms_norm(y[i]) * gain, for models that norm after a block.
//
// x, y [members * cap][d_model] f32, gain [members][d_model] f32. One block: one row of one member; grid (rows, 1,
// members). Its threads take every THREADS-th element; their sums of squares are added by halves of a warp's lanes,
// then warp by warp. Reads y twice (the second time from a cache), x once; writes x.
#include "common.cuh"

struct NormAddArgs {
    float* x;
    const float* y;
    const float* gain;
    const Extent* extents;
    NormAddParams params;
};

constexpr u32 THREADS = 256;

struct NormAddShared {
    float sums[THREADS / WARP];
};

extern "C" __global__ void __launch_bounds__(THREADS) norm_add(const NormAddArgs args) {
    SHARED(NormAddShared, shared);
    wait_for_earlier();
    let_next_start();
    const u32 member = blockIdx.z, d_model = args.params.d_model;
    if (blockIdx.x >= args.extents[member].n_rows) {
        return;
    }
    const u64 row = member * args.params.cap + blockIdx.x;
    float* x = args.x + row * d_model;
    const float* y = args.y + row * d_model;
    const float* gain = args.gain + member * d_model;
    float own = 0.0f;
    for (u32 i = threadIdx.x; i < d_model; i += THREADS) {
        own = fmaf(y[i], y[i], own);
    }
    own = sum_of_lanes(own);
    if (threadIdx.x % WARP == 0) {
        shared.sums[threadIdx.x / WARP] = own;
    }
    sync_block();
    float sum = 0.0f;
    for (u32 warp = 0; warp < THREADS / WARP; warp++) {
        sum += shared.sums[warp];
    }
    const float r = inverse_rms(sum, d_model, of_member(args.params.eps, member));
    for (u32 i = threadIdx.x; i < d_model; i += THREADS) {
        x[i] = fmaf(y[i] * r, gain[i], x[i]);
    }
}
