// h[i][n] = act(r * sum over k of Wg[n][k] g[k] x[k]) * (r * sum over k of Wu[n][k] g[k] x[k]).
//
// h [members * cap][n_out] f32, w_gate and w_up [members][part's rows][n_in], x [members * cap][n_in] f32.
// One workgroup: GATE_UP_OUTPUTS (ops.rs) outputs for N_ROWS rows of one member, see matmul.wgsl; a four is two rows of each
// matrix. Bindings 1 and 2, the weights, are declared by pipelines.rs. Reads both matrices once for each N_ROWS rows
// (from the cache after the first), x once for each group's outputs; writes h once.

@group(0) @binding(0) var<storage, read_write> h: array<f32>;
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

const FOUR_ROWS = 2u;

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
    return x[i];
}

fn gain_of(i: u32) -> vec4<f32> {
    return gain[i];
}

// 1 / (1 + e^-x), without overflow.
fn sigmoid(x: f32) -> f32 {
    let e = settled(exp_nonpositive(-abs(x)));
    return settled(settled(select(e, 1.0, x >= 0.0)) / (1.0 + e));
}

fn activated(g: f32) -> f32 {
    if params.activation == SILU {
        return g * sigmoid(g);
    }
    // (1 + tanh(u)) / 2 = sigmoid(2 u), u = sqrt(2 / pi) (g + 0.044715 g^3).
    return g * sigmoid(settled(1.5957691 * fma(settled(settled(0.044715 * g) * g), g, g)));
}

fn finish(four: u32, totals: Four, squares: Rows) {
    let in_part = first + 2u * four + lane;
    if lane >= 2u || in_part >= part.n_rows {
        return;
    }
    let n = part.first + in_part;
    let gates = total(totals, lane);
    let ups = total(totals, lane + 2u);
    for (var i = 0u; i < N_ROWS && first_row + i < n_rows; i++) {
        let r = norm_factor(row_of(squares, i), params.eps[member]);
        let g = settled(r * row_of(gates, i));
        let u = settled(r * row_of(ups, i));
        h[(member * params.cap + first_row + i) * params.n_out + n] = settled(activated(g)) * u;
    }
}
