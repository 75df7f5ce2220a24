// y[i] = softcap(scale * (r * sum over k of W[n][k] (g[k] x[k]) + bias[n])), x = x[gather[i]] or x[i].
//
// y [members * cap_out][n_out] f32, w [members] in tiles, x [members * cap_in][n_in] f32.
// One block: some tiles of outputs for some rows of one member, see matmul.cuh; grid (rows, outputs, members). Reads W
// once for each block of rows, from the cache after the first; x once for each block of outputs, from the cache; writes
// y once.
#include "matmul.cuh"

struct NormMatmulArgs {
    float* y;
    const uint4* w;
    const float* x;
    const float* gain;
    const float* bias;
    const u32* gather;
    const Extent* extents;
    NormMatmulParams params;
    // 16-byte vectors from one member's weights to the next's.
    u64 w_stride;
};

template <class F>
DEVICE void norm_matmul(const NormMatmulArgs& args) {
    SHARED(typename F::Shared, shared);
    const NormMatmulParams& params = args.params;
    const u32 member = blockIdx.z, n_in = params.n_in, n_out = params.n_out;
    const Extent extent = args.extents[member];
    const Inputs inputs = {
        args.x + (u64)member * params.cap_in * n_in,
        args.gather ? args.gather + member * params.cap_out : nullptr,
        args.gain ? args.gain + member * n_in : nullptr,
        args.gather ? extent.n_logits : extent.n_rows,
        n_in,
    };
    Product<F> product{shared};
    if (!product.multiply({args.w + member * args.w_stride}, inputs, n_out)) {
        return;
    }
    const float* bias = args.bias ? args.bias + (u64)member * n_out : nullptr;
    const float eps = of_member(params.eps, member);
    float* y = args.y + (u64)member * params.cap_out * n_out;
    product.finish(inputs, n_out, [&](u32 row, u32 n, const float(&sum)[1], float squares) {
        const float r = norm_factor(inputs, squares, eps);
        const float value = bias ? fmaf(r, sum[0], bias[n]) : r * sum[0];
        y[(u64)row * n_out + n] = softcapped(params.scale * value, params.softcap);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) norm_matmul_bf16_4(const NormMatmulArgs args) {
    norm_matmul<Form<BF16, 1, 1, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_OF_8) norm_matmul_bf16_8(const NormMatmulArgs args) {
    norm_matmul<Form<BF16, 1, 2, 2>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) norm_matmul_bf16_16(const NormMatmulArgs args) {
    norm_matmul<Form<BF16, 1, 4, 2>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) norm_matmul_bf16_32(const NormMatmulArgs args) {
    norm_matmul<Form<BF16, 1, 8, 4>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) norm_matmul_f16_4(const NormMatmulArgs args) {
    norm_matmul<Form<F16, 1, 1, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) norm_matmul_f16_8(const NormMatmulArgs args) {
    norm_matmul<Form<F16, 1, 2, 2>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) norm_matmul_f16_16(const NormMatmulArgs args) {
    norm_matmul<Form<F16, 1, 4, 2>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) norm_matmul_f16_32(const NormMatmulArgs args) {
    norm_matmul<Form<F16, 1, 8, 2>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) norm_matmul_f32_4(const NormMatmulArgs args) {
    norm_matmul<Form<F32, 1, 1, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) norm_matmul_f32_16(const NormMatmulArgs args) {
    norm_matmul<Form<F32, 1, 4, 1>>(args);
}
