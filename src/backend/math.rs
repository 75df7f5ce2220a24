//! The few functions that every backend must agree on, as polynomials with explicit fused multiply-adds, and the
//! random numbers of a draw. The coefficients reach WGSL as constants from this file; the operations are the same.
//!
//! Polynomials: Cephes `expf` and `logf` (Moshier), about 1 ulp. Philox: Salmon et al., "Parallel random numbers: as
//! easy as 1, 2, 3" (2011).

/// Coefficients of `(e^r - 1 - r) / r^2` on |r| <= ln 2 / 2, highest power first.
pub const EXP_POLY: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
/// Coefficients of `(ln(1 + x) - x + x^2 / 2) / x^3` on [sqrt(1/2) - 1, sqrt(2) - 1], highest power first.
pub const LN_POLY: [f32; 9] = [
    7.037_683_6e-2,
    -1.151_461e-1,
    1.167_699_8e-1,
    -1.242_014_1e-1,
    1.424_932_3e-1,
    -1.666_805_7e-1,
    2.000_071_4e-1,
    -2.499_999_3e-1,
    3.333_333e-1,
];
/// High part of ln 2: few enough bits that its product with an exponent is exact.
pub const LN2_HI: f32 = 0.693_359_4;
/// ln 2 - [`LN2_HI`].
pub const LN2_LO: f32 = -2.121_944_4e-4;
/// 1.5 * 2^23: floats around it are 1 apart.
pub(crate) const INTEGERS: f32 = 12_582_912.0;
/// Below it, e^t is taken as 0.
pub const EXP_MIN: f32 = -87.0;
/// 2^-32: from 32 random bits to a share of 1.
pub(crate) const RANDOM_UNIT: f32 = 1.0 / (1u64 << 32) as f32;
/// 1 - 2^-24, the largest float below 1.
pub(crate) const BELOW_ONE: f32 = 1.0 - f32::EPSILON / 2.0;
/// sqrt(2 / pi), as GELU by tanh has it.
pub(crate) const GELU_LINEAR: f32 = 0.797_884_6;
/// What GELU by tanh has of x^3.
pub(crate) const GELU_CUBIC: f32 = 0.044_715;
/// Multipliers of Philox4x32.
pub const PHILOX_MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
/// What each round adds to its key.
pub const PHILOX_KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

#[inline(always)]
fn horner<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    coefficients[1..].iter().fold(coefficients[0], |sum, &c| sum.mul_add(x, c))
}

/// e^t for t <= 0. Without a branch, so that loops around it become vectors.
#[inline(always)] // the CPU's loops around it are compiled for several instruction sets
pub fn exp_nonpositive(t: f32) -> f32 {
    let n = t.mul_add(std::f32::consts::LOG2_E, 0.5).floor();
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, t));
    let y = (r * r).mul_add(horner(&EXP_POLY, r), r) + 1.0;
    // The sum's low bits are n: a cast, which saturates, would be made of scalars. NaN stays NaN through the product.
    let power = f32::from_bits(((n + INTEGERS).to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if t < EXP_MIN { 0.0 } else { y * power }
}

/// ln(1 + x) for x in [sqrt(1/2) - 1, sqrt(2) - 1].
#[inline(always)]
fn ln_1p_near_zero(x: f32) -> f32 {
    let z = x * x;
    x + z.mul_add(-0.5, horner(&LN_POLY, x) * x * z)
}

/// ln x for normal x > 0.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    // Exponent such that the mantissa falls in [sqrt(1/2), sqrt(2)).
    let offset = x.to_bits().wrapping_sub(std::f32::consts::FRAC_1_SQRT_2.to_bits());
    let e = ((offset as i32) >> 23) as f32;
    let m = f32::from_bits((offset & 0x007f_ffff) + std::f32::consts::FRAC_1_SQRT_2.to_bits());
    let x = m - 1.0;
    let z = x * x;
    let y = e.mul_add(LN2_LO, horner(&LN_POLY, x) * x * z);
    e.mul_add(LN2_HI, x + z.mul_add(-0.5, y))
}

/// `-ln(E)` with `E = -log1p(-v)`, `v = min((f32(x) + 0.5) * 2^-32, 1 - 2^-24)`: a Gumbel variate from 32 random bits.
#[inline(always)]
pub fn gumbel(x: u32) -> f32 {
    let v = ((x as f32 + 0.5) * RANDOM_UNIT).min(BELOW_ONE);
    // For small v, 1 - v would round away what matters.
    let e = if v < 0.25 { -ln_1p_near_zero(-v) } else { -ln(1.0 - v) };
    -ln(e)
}

/// Philox4x32-10.
#[inline]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let p = u64::from(a) * u64::from(PHILOX_MULTIPLIERS[0]);
        let q = u64::from(c) * u64::from(PHILOX_MULTIPLIERS[1]);
        (a, b, c, d) = ((q >> 32) as u32 ^ b ^ k0, q as u32, (p >> 32) as u32 ^ d ^ k1, p as u32);
        k0 = k0.wrapping_add(PHILOX_KEY_STEPS[0]);
        k1 = k1.wrapping_add(PHILOX_KEY_STEPS[1]);
    }
    [a, b, c, d]
}

/// [`philox`] of 16 counters that differ in their first words: `[word][counter]`.
#[inline(always)] // the CPU's loops around it are compiled for several instruction sets
pub fn philox_lanes(firsts: [u32; 16], rest: [u32; 3], key: [u32; 2]) -> [[u32; 16]; 4] {
    // Words stand in the low halves, as vectors multiply them; what is above is noise.
    const LOW: u64 = 0xffff_ffff;
    let (mut a, mut b, mut c, mut d) = ([0u64; 16], [0u64; 16], [0u64; 16], [0u64; 16]);
    for lane in 0..16 {
        a[lane] = firsts[lane].into();
        (b[lane], c[lane], d[lane]) = (rest[0].into(), rest[1].into(), rest[2].into());
    }
    let (mut k0, mut k1) = (u64::from(key[0]), u64::from(key[1]));
    for _ in 0..10 {
        for lane in 0..16 {
            let p = (a[lane] & LOW) * u64::from(PHILOX_MULTIPLIERS[0]);
            let q = (c[lane] & LOW) * u64::from(PHILOX_MULTIPLIERS[1]);
            (a[lane], b[lane], c[lane], d[lane]) = (q >> 32 ^ b[lane] ^ k0, q, p >> 32 ^ d[lane] ^ k1, p);
        }
        k0 += u64::from(PHILOX_KEY_STEPS[0]);
        k1 += u64::from(PHILOX_KEY_STEPS[1]);
    }
    let mut words = [[0; 16]; 4];
    for lane in 0..16 {
        (words[0][lane], words[1][lane]) = (a[lane] as u32, b[lane] as u32);
        (words[2][lane], words[3][lane]) = (c[lane] as u32, d[lane] as u32);
    }
    words
}

/// A float's bits as an integer of the same order, -inf lowest, +inf highest; -0 equals +0.
#[inline]
pub fn ordered_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits > 0x8000_0000 { !bits } else { bits | 0x8000_0000 }
}

/// e^t in units of 2^-36, truncated, for t <= 0: exact integers, so that their sum does not depend on its order.
#[inline(always)] // the CPU's loops around it are compiled for several instruction sets
pub fn mass(t: f32) -> u64 {
    let bits = exp_nonpositive(t).to_bits();
    let mantissa = u64::from(bits & 0x007f_ffff | 0x0080_0000);
    // 1 has the exponent 127 and its mantissa's bit at 2^23; smaller numbers have smaller exponents.
    mantissa << 13 >> (127 - (bits >> 23)).min(63)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_ln_are_within_two_ulp() {
        // Cephes states 1.7e-7 and 7.6e-8 relative; 2 ulp = 2.4e-7.
        for i in 0..200_000 {
            let t = -86.9 * i as f32 / 200_000.0;
            let (got, want) = (exp_nonpositive(t) as f64, (t as f64).exp());
            assert!((got - want).abs() <= 2.4e-7 * want, "exp({t}) = {got}, want {want}");
            let x = f32::from_bits(0x0080_0000 + i * 10_000);
            let (got, want) = (ln(x) as f64, (x as f64).ln());
            assert!((got - want).abs() <= 2.4e-7 * want.abs().max(1e-2), "ln({x}) = {got}, want {want}");
        }
    }

    #[test]
    fn gumbel_matches_f64_over_its_range() {
        for i in 0..100_000u32 {
            let x = i.wrapping_mul(42_949) ^ (i << 3);
            let v = ((x as f32 + 0.5) as f64 * 2f64.powi(-32)).min(1.0 - 2f64.powi(-24));
            let want = -(-(-v).ln_1p()).ln();
            let got = gumbel(x) as f64;
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "gumbel({x}) = {got}, want {want}");
        }
        assert!(gumbel(0).is_finite() && gumbel(u32::MAX).is_finite());
    }

    #[test]
    fn philox_matches_the_published_vectors() {
        // Random123's kat_vectors, philox4x32 10 rounds.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn exp_is_one_at_zero_nothing_at_the_bottom_and_keeps_nan() {
        assert_eq!([0.0, -0.0].map(exp_nonpositive), [1.0; 2]);
        assert!(exp_nonpositive(EXP_MIN) >= f32::MIN_POSITIVE);
        assert_eq!([EXP_MIN.next_down(), -1e9, f32::MIN, f32::NEG_INFINITY].map(exp_nonpositive), [0.0; 4]);
        for bits in [0x7fc0_0000, 0x7fc0_0155, 0xffff_ffff] {
            assert!(exp_nonpositive(f32::from_bits(bits)).is_nan());
        }
    }

    #[test]
    fn philox_lanes_are_philox() {
        let (rest, key) = ([7, !0, 0], [0xa409_3822, 0x299f_31d0]);
        for first in [0u32, 12_345, u32::MAX - 3] {
            let firsts = std::array::from_fn(|lane| first.wrapping_add((lane * lane) as u32));
            let words = philox_lanes(firsts, rest, key);
            for lane in 0..16 {
                let counter = [firsts[lane], rest[0], rest[1], rest[2]];
                assert_eq!(words.map(|word| word[lane]), philox(counter, key));
            }
        }
    }

    #[test]
    fn masses_are_truncated_products() {
        for t in (0..200_000).map(|i| -90.0 * i as f32 / 200_000.0).chain([-0.0, f32::NEG_INFINITY, -1e-30]) {
            assert_eq!(mass(t), (f64::from(exp_nonpositive(t)) * 2f64.powi(36)) as u64, "{t}");
        }
    }

    #[test]
    fn ordered_bits_keep_the_order() {
        let row = [f32::NEG_INFINITY, -1e30, -1.0, -1e-40, 0.0, 1e-40, 1.0, f32::INFINITY];
        assert_eq!(ordered_bits(-0.0), ordered_bits(0.0));
        assert!(row.windows(2).all(|w| ordered_bits(w[0]) < ordered_bits(w[1])));
    }
}
