// h[i][n] = act(r * sum over k of Wg[n][k] g[k] x[k]) * (r * sum over k of Wu[n][k] g[k] x[k]).
//
// h [members * cap][n_out] f32, w_gate and w_up [members] in tiles, x [members * cap][n_in] f32.
// One block: some tiles of outputs of both matrices for some rows of one member, see matmul.cuh; grid (rows, outputs,
// members). Reads both matrices once for each block of rows, from the cache after the first; x once for each block of
// outputs, from the cache; writes h once.
#include "matmul.cuh"

struct NormGateUpArgs {
    float* h;
    const uint4* w_gate;
    const uint4* w_up;
    const float* x;
    const float* gain;
    const Extent* extents;
    NormGateUpParams params;
    // 16-byte vectors from one member's weights to the next's, in each matrix.
    u64 w_stride;
};

// x * sigmoid(x).
DEVICE float silu(float x) {
    const float e = exp_nonpositive(-fabsf(x));
    return x * ((x < 0.0f ? e : 1.0f) / (1.0f + e));
}

// 0.5 x (1 + tanh u), u = GELU_LINEAR (x + GELU_CUBIC x^3).
DEVICE float gelu_tanh(float x) {
    const float u = GELU_LINEAR * fmaf(GELU_CUBIC * x * x, x, x);
    const float e = exp_nonpositive(-2.0f * fabsf(u));
    return 0.5f * x * (1.0f + copysignf((1.0f - e) / (1.0f + e), u));
}

template <class F>
DEVICE void norm_gate_up(const NormGateUpArgs& args) {
    SHARED(typename F::Shared, shared);
    const NormGateUpParams& params = args.params;
    const u32 member = blockIdx.z, n_in = params.n_in, n_out = params.n_out;
    const float* x = args.x + (u64)member * params.cap * n_in;
    const float* gain = args.gain ? args.gain + member * n_in : nullptr;
    const Inputs inputs = {x, nullptr, gain, args.extents[member].n_rows, n_in};
    Product<F> product{shared};
    if (!product.multiply({args.w_gate + member * args.w_stride, args.w_up + member * args.w_stride}, inputs, n_out)) {
        return;
    }
    const float eps = of_member(params.eps, member);
    float* h = args.h + (u64)member * params.cap * n_out;
    product.finish(inputs, n_out, [&](u32 row, u32 n, const float(&sums)[2], float squares) {
        const float r = norm_factor(inputs, squares, eps);
        const float gate = r * sums[0];
        const float active = params.activation == SILU ? silu(gate) : gelu_tanh(gate);
        h[(u64)row * n_out + n] = active * (r * sums[1]);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) norm_gate_up_bf16_4(const NormGateUpArgs args) {
    norm_gate_up<Form<BF16, 2, 1, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) norm_gate_up_bf16_8(const NormGateUpArgs args) {
    norm_gate_up<Form<BF16, 2, 2, 2>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) norm_gate_up_bf16_16(const NormGateUpArgs args) {
    norm_gate_up<Form<BF16, 2, 4, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) norm_gate_up_bf16_32(const NormGateUpArgs args) {
    norm_gate_up<Form<BF16, 2, 8, 2>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) norm_gate_up_f16_4(const NormGateUpArgs args) {
    norm_gate_up<Form<F16, 2, 1, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) norm_gate_up_f16_8(const NormGateUpArgs args) {
    norm_gate_up<Form<F16, 2, 2, 2>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) norm_gate_up_f16_16(const NormGateUpArgs args) {
    norm_gate_up<Form<F16, 2, 4, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) norm_gate_up_f32_4(const NormGateUpArgs args) {
    norm_gate_up<Form<F32, 2, 1, 1>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) norm_gate_up_f32_16(const NormGateUpArgs args) {
    norm_gate_up<Form<F32, 2, 4, 1>>(args);
}
