// x[i][n] += scale * (sum over k of W[n][k] y[i][k] (+ bias[n])).
//
// x [members * cap][n_out] f32, w [members][part's rows][n_in], y [members * cap][n_in] f32.
// One workgroup: MATMUL_OUTPUTS outputs for N_ROWS rows of one member. Reads W once for each N_ROWS rows (from the
// cache after the first), y once for each workgroup's outputs; reads and writes x once.

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> extents: array<Extent>;
@group(0) @binding(5) var<uniform> params: MatmulAddParams;
@group(0) @binding(6) var<uniform> part: Part;

struct MatmulAddParams {
    cap: u32,
    n_in: u32,
    n_out: u32,
    scale: f32,
}

fn input(i: u32) -> vec4<f32> {
    return y[i];
}

// There is no gain: HAS_GAIN is false.
fn gain_of(i: u32) -> vec4<f32> {
    return vec4<f32>(1.0);
}

fn first_weights(row: u32, octet: u32) -> Octet {
    let i = row * (params.n_in / 8u) + octet;
    if W_DTYPE == F32 {
        return Octet(bitcast<vec4<f32>>(w[2u * i]), bitcast<vec4<f32>>(w[2u * i + 1u]));
    }
    return widen(w[i], W_DTYPE);
}

fn second_weights(row: u32, octet: u32) -> Octet {
    return first_weights(row, octet);
}

@compute @workgroup_size(N_THREADS)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let member = tile.z;
    let n_rows = extents[member].n_rows;
    let first_row = tile.x * N_ROWS;
    if first_row >= n_rows {
        return;
    }
    // Rows past the last repeat it; what they make is not stored.
    let x_rows = min(vec4<u32>(first_row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(n_rows - 1u));
    let starts = (x_rows + vec4<u32>(member * params.cap)) * (params.n_in / 4u);
    let first = tile.y * MATMUL_OUTPUTS + thread / N_LANES_OF_K * 4u;
    let in_part = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(part.n_rows - 1u));
    let rows = in_part + vec4<u32>(part.offset + member * part.stride);
    let s = sums(thread, params.n_in / 8u, rows, starts, 0u);

    let index = thread % N_LANES_OF_K;
    if index >= 4u || first + index >= part.n_rows {
        return;
    }
    let n = part.first + first + index;
    for (var i = 0u; i < N_ROWS && first_row + i < n_rows; i++) {
        var value = row_of(total(s, index), i);
        if HAS_BIAS {
            value += bias[member * params.n_out + n];
        }
        let at = (member * params.cap + first_row + i) * params.n_out + n;
        x[at] = fma(params.scale, value, x[at]);
    }
}
