// x[i] += rms_norm(y[i]) * gain.
//
// x and y [members * cap][d_model] f32, gain [members][d_model] f32. One workgroup: one row of one member.
// Reads y twice, reads and writes x once.

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
@group(0) @binding(3) var<storage, read> extents: array<Extent>;
@group(0) @binding(4) var<uniform> params: NormAddParams;

struct NormAddParams {
    cap: u32,
    d_model: u32,
    eps: vec2<f32>,
}

const N_THREADS = 64u;
var<workgroup> squares: array<f32, N_THREADS>;

@compute @workgroup_size(N_THREADS)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let member = tile.z;
    if tile.x >= extents[member].n_rows {
        return;
    }
    let start = (member * params.cap + tile.x) * params.d_model;
    var own = 0.0;
    for (var k = thread; k < params.d_model; k += N_THREADS) {
        own = fma(y[start + k], y[start + k], own);
    }
    squares[thread] = own;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < N_THREADS; i++) {
        sum += squares[i];
    }
    // An explicit fma, as in matmul.wgsl.
    let r = 1.0 / sqrt(fma(sum, 1.0 / f32(params.d_model), params.eps[member]));
    for (var k = thread; k < params.d_model; k += N_THREADS) {
        x[start + k] = fma(r * y[start + k], gain[member * params.d_model + k], x[start + k]);
    }
}
