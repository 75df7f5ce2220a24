// The functions of src/backend/math.rs: same constants, same operations, explicit fma.

// e^t for t <= 0. A NaN stays one.
fn exp_nonpositive(t: f32) -> f32 {
    if t < EXP_MIN {
        return 0.0;
    }
    let n = floor(fma(t, LOG2_E, 0.5));
    let r = fma(n, -LN2_LO, fma(n, -LN2_HI, t));
    var p = EXP_POLY[0];
    p = fma(p, r, EXP_POLY[1]);
    p = fma(p, r, EXP_POLY[2]);
    p = fma(p, r, EXP_POLY[3]);
    p = fma(p, r, EXP_POLY[4]);
    p = fma(p, r, EXP_POLY[5]);
    let y = fma(r * r, p, r) + 1.0;
    // 2^n is normal for every n here; times it is exact, where adding to the bits would lose a NaN.
    return y * bitcast<f32>(u32(clamp(i32(n), -126, 0) + 127) << 23u);
}

// c * tanh(x / c); 0 is off.
fn softcap(x: f32, c: f32) -> f32 {
    if c == 0.0 {
        return x;
    }
    let e = exp_nonpositive(-2.0 * abs(x / c));
    return sign(x) * c * ((1.0 - e) / (1.0 + e));
}

// ln(1 + x) for x in [sqrt(1/2) - 1, sqrt(2) - 1], less x and its square's half.
fn ln_tail(x: f32) -> f32 {
    var p = LN_POLY[0];
    p = fma(p, x, LN_POLY[1]);
    p = fma(p, x, LN_POLY[2]);
    p = fma(p, x, LN_POLY[3]);
    p = fma(p, x, LN_POLY[4]);
    p = fma(p, x, LN_POLY[5]);
    p = fma(p, x, LN_POLY[6]);
    p = fma(p, x, LN_POLY[7]);
    p = fma(p, x, LN_POLY[8]);
    return p * x * (x * x);
}

const SQRT_HALF_BITS = 0x3f3504f3u;

// ln x for normal x > 0.
fn ln(x: f32) -> f32 {
    let offset = bitcast<u32>(x) - SQRT_HALF_BITS;
    let e = f32(bitcast<i32>(offset) >> 23u);
    let m = bitcast<f32>((offset & 0x007fffffu) + SQRT_HALF_BITS) - 1.0;
    let y = fma(e, LN2_LO, ln_tail(m));
    return fma(e, LN2_HI, m + fma(m * m, -0.5, y));
}

// -ln(-log1p(-v)), v = min((f32(x) + 0.5) * 2^-32, 1 - 2^-24): a Gumbel variate from 32 random bits.
fn gumbel(x: u32) -> f32 {
    let v = min((f32(x) + 0.5) * 0x1p-32f, 0x1.fffffep-1f);
    // For small v, 1 - v would round away what matters.
    if v < 0.25 {
        return -ln(v - fma(v * v, -0.5, ln_tail(-v)));
    }
    return -ln(-ln(1.0 - v));
}

// A float's bits as an integer of the same order, -inf lowest, +inf highest; -0 equals +0.
fn ordered_bits(bits: u32) -> u32 {
    return select(bits | 0x80000000u, ~bits, bits > 0x80000000u);
}

// The float with these ordered bits.
fn from_ordered(ordered: u32) -> f32 {
    return bitcast<f32>(select(~ordered, ordered ^ 0x80000000u, ordered >= 0x80000000u));
}
