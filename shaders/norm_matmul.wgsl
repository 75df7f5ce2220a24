// y[i] = softcap(scale * (r * sum over k of W[n][k] (g[k] x[k]) + bias[n])), x = x[gather[i]] or x[i].
//
// y [members * cap_out][n_out] f32, w [members][part's rows][n_in], x [members * cap_in][n_in] f32.
// One workgroup: MATMUL_OUTPUTS outputs for N_ROWS rows of one member. Reads W once for each N_ROWS rows (from the
// cache after the first), x once for each workgroup's outputs; writes y once.

@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> gather: array<u32>;
@group(0) @binding(6) var<storage, read> extents: array<Extent>;
@group(0) @binding(7) var<uniform> params: NormMatmulParams;
@group(0) @binding(8) var<uniform> part: Part;

struct NormMatmulParams {
    cap_in: u32,
    cap_out: u32,
    n_in: u32,
    n_out: u32,
    eps: vec2<f32>,
    softcap: f32,
    scale: f32,
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
        return Octet(bitcast<vec4<f32>>(w[2u * i]), bitcast<vec4<f32>>(w[2u * i + 1u]));
    }
    return widen(w[i], W_DTYPE);
}

fn second_weights(row: u32, octet: u32) -> Octet {
    return first_weights(row, octet);
}

// Row of x, within the member, for output row `row`.
fn input_row(member: u32, row: u32) -> u32 {
    if HAS_GATHER {
        return gather[member * params.cap_out + row];
    }
    return row;
}

@compute @workgroup_size(N_THREADS)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let member = tile.z;
    let n_rows = select(extents[member].n_rows, extents[member].n_logits, HAS_GATHER);
    let first_row = tile.x * N_ROWS;
    if first_row >= n_rows {
        return;
    }
    let n_fours = params.n_in / 4u;
    var starts: vec4<u32>;
    for (var i = 0u; i < N_ROWS; i++) {
        // Rows past the last repeat it; what they make is not stored.
        let row = input_row(member, min(first_row + i, n_rows - 1u));
        starts[i] = (member * params.cap_in + row) * n_fours;
    }
    let first = tile.y * MATMUL_OUTPUTS + thread / N_LANES_OF_K * 4u;
    let in_part = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(part.n_rows - 1u));
    let rows = in_part + vec4<u32>(part.offset + member * part.stride);
    let s = sums(thread, params.n_in / 8u, rows, starts, member * n_fours);

    let index = thread % N_LANES_OF_K;
    if index >= 4u || first + index >= part.n_rows {
        return;
    }
    let n = part.first + first + index;
    for (var i = 0u; i < N_ROWS && first_row + i < n_rows; i++) {
        let r = norm_factor(row_of(s.squares, i), params.n_in, params.eps[member]);
        var value = r * row_of(total(s, index), i);
        if HAS_BIAS {
            value = fma(r, row_of(total(s, index), i), bias[member * params.n_out + n]);
        }
        y[(member * params.cap_out + first_row + i) * params.n_out + n] = softcap(params.scale * value, params.softcap);
    }
}
