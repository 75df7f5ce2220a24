// Exact sums: 64-bit integers as vec2(low, high), and what is made of them.

fn multiply(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let middle_0 = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let middle_1 = (a & 0xffffu) * (b >> 16u) + (middle_0 & 0xffffu);
    return vec2(a * b, (a >> 16u) * (b >> 16u) + (middle_0 >> 16u) + (middle_1 >> 16u));
}

fn add64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn subtract64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn less64(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

// e^t in units of 2^-36, truncated, for t <= 0.
fn mass(t: f32) -> vec2<u32> {
    let bits = bitcast<u32>(exp_nonpositive(t));
    let mantissa = (bits & 0x007fffffu) | 0x00800000u;
    // Places by which the mantissa's lowest bit stands above 2^-36.
    let shift = i32(bits >> 23u) - 127 + 36 - 23;
    if shift > 0 {
        return vec2(mantissa << u32(shift), mantissa >> u32(32 - shift));
    }
    return vec2(select(0u, mantissa >> u32(min(-shift, 31)), bits != 0u), 0u);
}

// The least mass with mass * 2^32 >= total * top_p.
fn nucleus(total: vec2<u32>, top_p: u32) -> vec2<u32> {
    let low = multiply(total.x, top_p);
    return add64(add64(multiply(total.y, top_p), vec2(low.y, 0u)), vec2(select(0u, 1u, low.x != 0u), 0u));
}

// Philox4x32-10.
fn philox(start: vec4<u32>, start_key: vec2<u32>) -> vec4<u32> {
    var counter = start;
    var key = start_key;
    for (var round = 0u; round < 10u; round++) {
        let p = multiply(counter.x, PHILOX_MULTIPLIER_0);
        let q = multiply(counter.z, PHILOX_MULTIPLIER_1);
        counter = vec4(q.y ^ counter.y ^ key.x, q.x, p.y ^ counter.w ^ key.y, p.x);
        key += vec2(PHILOX_KEY_STEP_0, PHILOX_KEY_STEP_1);
    }
    return counter;
}
