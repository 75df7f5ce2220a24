// y[i] = softcap(scale * (r * sum over k of W[n][k] (g[k] x[k]) + bias[n])), x = x[gather[i]] or x[i].
//
// y [members * cap_out][n_out] f32, w [members][part's rows][n_in], x [members * cap_in][n_in] f32.
// One workgroup: MATMUL_OUTPUTS (ops.rs) outputs for N_ROWS rows of one member, see matmul.wgsl; binding 1, the weights, is
// declared by pipelines.rs. Reads W once for each N_ROWS rows (from the cache after the first), x once for each group's
// outputs; writes y once.

@group(0) @binding(0) var<storage, read_write> y: array<f32>;
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

const FOUR_ROWS = 4u;

fn n_in() -> u32 {
    return params.n_in;
}

fn rows_of(member: u32) -> u32 {
    return select(extents[member].n_rows, extents[member].n_logits, HAS_GATHER);
}

// Row of x for output row `row` of the member.
fn input_row(row: u32) -> u32 {
    if HAS_GATHER {
        return member * params.cap_in + gather[member * params.cap_out + row];
    }
    return member * params.cap_in + row;
}

fn input(i: u32) -> vec4<f32> {
    return x[i];
}

fn gain_of(i: u32) -> vec4<f32> {
    return gain[i];
}

fn finish(four: u32, totals: Four, squares: Rows) {
    let in_part = first + 4u * four + lane;
    if lane >= 4u || in_part >= part.n_rows {
        return;
    }
    let n = part.first + in_part;
    let sum = total(totals, lane);
    for (var i = 0u; i < N_ROWS && first_row + i < n_rows; i++) {
        let r = norm_factor(row_of(squares, i), params.eps[member]);
        var value = r * row_of(sum, i);
        if HAS_BIAS {
            value = fma(r, row_of(sum, i), bias[member * params.n_out + n]);
        }
        y[(member * params.cap_out + first_row + i) * params.n_out + n] = softcap(params.scale * value, params.softcap);
    }
}
