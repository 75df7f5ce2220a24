// x[i][n] += scale * (sum over k of W[n][k] y[i][k] (+ bias[n])).
//
// x [members * cap][n_out] f32, w [members] in tiles, y [members * cap][n_in] f32.
// One block: some tiles of outputs for some rows of one member, see matmul.cuh; grid (rows, outputs, members). Reads W
// once for each block of rows, from the cache after the first; y once for each block of outputs, from the cache; reads
// and writes x once.
#include "matmul.cuh"

struct MatmulAddArgs {
    float* x;
    const uint4* w;
    const float* y;
    const float* bias;
    const Extent* extents;
    MatmulAddParams params;
    // 16-byte vectors from one member's weights to the next's.
    u64 w_stride;
};

template <class F>
DEVICE void matmul_add(const MatmulAddArgs& args) {
    SHARED(typename F::Shared, shared);
    const MatmulAddParams& params = args.params;
    const u32 member = blockIdx.z, n_in = params.n_in, n_out = params.n_out;
    const float* y = args.y + (u64)member * params.cap * n_in;
    const Inputs inputs = {y, nullptr, nullptr, args.extents[member].n_rows, n_in};
    Product<F> product{shared};
    if (!product.multiply({args.w + member * args.w_stride}, inputs, n_out)) {
        return;
    }
    const float* bias = args.bias ? args.bias + (u64)member * n_out : nullptr;
    float* x = args.x + (u64)member * params.cap * n_out;
    product.finish(inputs, n_out, [&](u32 row, u32 n, const float(&sum)[1], float) {
        const float value = bias ? sum[0] + bias[n] : sum[0];
        float* at = x + (u64)row * n_out + n;
        *at = fmaf(params.scale, value, *at);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) matmul_add_bf16_4(const MatmulAddArgs args) {
    matmul_add<Form<BF16, 1, 1, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_OF_8) matmul_add_bf16_8(const MatmulAddArgs args) {
    matmul_add<Form<BF16, 1, 2, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) matmul_add_bf16_16(const MatmulAddArgs args) {
    matmul_add<Form<BF16, 1, 4, 2>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) matmul_add_bf16_32(const MatmulAddArgs args) {
    matmul_add<Form<BF16, 1, 8, 4>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) matmul_add_f16_4(const MatmulAddArgs args) {
    matmul_add<Form<F16, 1, 1, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) matmul_add_f16_8(const MatmulAddArgs args) {
    matmul_add<Form<F16, 1, 2, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) matmul_add_f16_16(const MatmulAddArgs args) {
    matmul_add<Form<F16, 1, 4, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) matmul_add_f16_32(const MatmulAddArgs args) {
    matmul_add<Form<F16, 1, 8, 2>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) matmul_add_f32_4(const MatmulAddArgs args) {
    matmul_add<Form<F32, 1, 1, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) matmul_add_f32_16(const MatmulAddArgs args) {
    matmul_add<Form<F32, 1, 4, 1>>(args);
}
