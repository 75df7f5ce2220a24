// Four rows for each load of weights: small batches and prefill.

alias Rows = vec4<f32>;
const N_ROWS = 4u;

fn row_of(values: Rows, row: u32) -> f32 {
    return values[row];
}

fn load_inputs(starts: vec4<u32>, octet: u32) -> Inputs {
    let at = starts + vec4<u32>(2u * octet);
    let a = input(at.x);
    let b = input(at.y);
    let c = input(at.z);
    let d = input(at.w);
    let e = input(at.x + 1u);
    let f = input(at.y + 1u);
    let g = input(at.z + 1u);
    let h = input(at.w + 1u);
    return Inputs(
        Rows(a.x, b.x, c.x, d.x),
        Rows(a.y, b.y, c.y, d.y),
        Rows(a.z, b.z, c.z, d.z),
        Rows(a.w, b.w, c.w, d.w),
        Rows(e.x, f.x, g.x, h.x),
        Rows(e.y, f.y, g.y, h.y),
        Rows(e.z, f.z, g.z, h.z),
        Rows(e.w, f.w, g.w, h.w),
    );
}
