// x[i][n] += scale * (sum over k of W[n][k] y[i][k] (+ bias[n])).
//
// x [members * cap][n_out] f32, w [members][part's rows][n_in], y [members * cap][n_in] f32.
// One workgroup: MATMUL_OUTPUTS (ops.rs) outputs for N_ROWS rows of one member, see matmul.wgsl; binding 1, the weights, is
// declared by pipelines.rs. Reads W once for each N_ROWS rows (from the cache after the first), y once for each group's
// outputs; reads and writes x once.

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
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

const FOUR_ROWS = 4u;

fn n_in() -> u32 {
    return params.n_in;
}

fn rows_of(member: u32) -> u32 {
    return extents[member].n_rows;
}

fn input_row(row: u32) -> u32 {
    return member * params.cap + row;
}

fn input(i: u32) -> vec4<f32> {
    return y[i];
}

// There is no gain: HAS_GAIN is false.
fn gain_of(i: u32) -> vec4<f32> {
    return vec4<f32>(1.0);
}

fn finish(four: u32, totals: Four, squares: Rows) {
    let in_part = first + 4u * four + lane;
    if lane >= 4u || in_part >= part.n_rows {
        return;
    }
    let n = part.first + in_part;
    let sum = total(totals, lane);
    for (var i = 0u; i < N_ROWS && first_row + i < n_rows; i++) {
        var value = row_of(sum, i);
        if HAS_BIAS {
            value += bias[member * params.n_out + n];
        }
        let at = (member * params.cap + first_row + i) * params.n_out + n;
        x[at] = fma(params.scale, value, x[at]);
    }
}
