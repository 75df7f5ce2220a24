// One row for each load of weights: decode at batch 1.

alias Rows = f32;
const N_ROWS = 1u;

fn row_of(values: Rows, row: u32) -> f32 {
    return values;
}

fn load_inputs(starts: vec4<u32>, octet: u32) -> Inputs {
    let lo = input(starts.x + 2u * octet);
    let hi = input(starts.x + 2u * octet + 1u);
    return Inputs(lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w);
}
