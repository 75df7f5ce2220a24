// h[i][n] = act(r * sum over k of Wg[n][k] g[k] x[k]) * (r * sum over k of Wu[n][k] g[k] x[k]).
//
// h [members * cap][n_out] f32, w_gate and w_up [members][part's rows][n_in], x [members * cap][n_in] f32.
// One workgroup: GATE_UP_OUTPUTS outputs for N_ROWS rows of one member; a group has two rows of each matrix. Reads both
// matrices once for each N_ROWS rows (from the cache after the first), x once for each
// workgroup's outputs; writes h once.

@group(0) @binding(0) var<storage, read_write> h: array<f32>;
@group(0) @binding(1) var<storage, read> w_gate: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> w_up: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> extents: array<Extent>;
@group(0) @binding(6) var<uniform> params: NormGateUpParams;
@group(0) @binding(7) var<uniform> part: Part;

struct NormGateUpParams {
    cap: u32,
    n_in: u32,
    n_out: u32,
    activation: u32,
    eps: vec2<f32>,
}

fn input(i: u32) -> vec4<f32> {
    return x[i];
}

fn gain_of(i: u32) -> vec4<f32> {
    return gain[i];
}

fn first_weights(row: u32, octet: u32) -> Octet {
    let i = row * (params.n_in / 8u) + octet;
    if W_DTYPE == F32 {
        return Octet(bitcast<vec4<f32>>(w_gate[2u * i]), bitcast<vec4<f32>>(w_gate[2u * i + 1u]));
    }
    return widen(w_gate[i], W_DTYPE);
}

fn second_weights(row: u32, octet: u32) -> Octet {
    let i = row * (params.n_in / 8u) + octet;
    if SECOND_DTYPE == F32 {
        return Octet(bitcast<vec4<f32>>(w_up[2u * i]), bitcast<vec4<f32>>(w_up[2u * i + 1u]));
    }
    return widen(w_up[i], SECOND_DTYPE);
}

fn activated(g: f32) -> f32 {
    if params.activation == SILU {
        return g * sigmoid(g);
    }
    // (1 + tanh(u)) / 2 = sigmoid(2 u), u = sqrt(2 / pi) (g + 0.044715 g^3).
    return g * sigmoid(1.5957691 * fma(0.044715 * g * g, g, g));
}

@compute @workgroup_size(N_THREADS)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let member = tile.z;
    let n_rows = extents[member].n_rows;
    let first_row = tile.x * N_ROWS;
    if first_row >= n_rows {
        return;
    }
    let n_fours = params.n_in / 4u;
    // Rows past the last repeat it; what they make is not stored.
    let x_rows = min(vec4<u32>(first_row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(n_rows - 1u));
    let starts = (x_rows + vec4<u32>(member * params.cap)) * n_fours;
    let first = tile.y * GATE_UP_OUTPUTS + thread / N_LANES_OF_K * 2u;
    let in_part = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 0u, 1u), vec4<u32>(part.n_rows - 1u));
    let gate = part.offset + member * part.stride;
    let up = part.second_offset + member * part.second_stride;
    let s = sums(thread, params.n_in / 8u, in_part + vec4<u32>(gate, gate, up, up), starts, member * n_fours);

    let index = thread % N_LANES_OF_K;
    if index >= 2u || first + index >= part.n_rows {
        return;
    }
    let n = part.first + first + index;
    for (var i = 0u; i < N_ROWS && first_row + i < n_rows; i++) {
        let r = norm_factor(row_of(s.squares, i), params.n_in, params.eps[member]);
        let g = r * row_of(total(s, index), i);
        let u = r * row_of(total(s, index + 2u), i);
        h[(member * params.cap + first_row + i) * params.n_out + n] = activated(g) * u;
    }
}
