//! The loops of attention: keys and values widened, queries times keys, weights times values.
//!
//! Keys and values of a block are `[keys][stride]` f32, the stride a whole number of [`LANES`]. A dot product is 16 sums,
//! element d in sum d mod 16 in order of d, folded by halves, as `rows::fold` does it.
//! Vectors fold sixteen (eight, four) keys at once by transposing as they add, about two instructions a key.

use super::{Isa, Lanes, Weight};
use crate::backend::cpu::rows::LANES;
use crate::backend::params::KEY_BLOCK;
use std::ops::Range;

impl Isa {
    /// `to[i] = from[i]`, exactly.
    pub(in crate::backend::cpu) fn widen<W: Weight>(self, from: &[W], to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        let (n, from, to) = (from.len(), from.as_ptr(), to.as_mut_ptr());
        // SAFETY: the lengths were just compared; a `Cpu` holds only instruction sets that are available.
        unsafe {
            match self {
                Isa::Portable => widen::<[f32; LANES], W>(from, to, n),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::widen_avx2(from, to, n),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::widen_avx512(from, to, n),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => widen::<neon::Vector, W>(from, to, n),
            }
        }
    }

    /// `scores[key] = q . keys[key]` for a whole number of [`LANES`] keys of `q.len()` elements.
    pub(in crate::backend::cpu) fn dot_keys(self, q: &[f32], keys: &[f32], scores: &mut [f32]) {
        let (stride, n) = (q.len(), scores.len());
        assert!(stride.is_multiple_of(LANES) && n.is_multiple_of(LANES) && keys.len() == n * stride);
        let (q, keys, scores) = (q.as_ptr(), keys.as_ptr(), scores.as_mut_ptr());
        // SAFETY: the lengths were just checked; a `Cpu` holds only instruction sets that are available.
        unsafe {
            match self {
                Isa::Portable => dot_keys::<[f32; LANES]>(q, keys, stride, n, scores),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::dot_keys_avx2(q, keys, stride, n, scores),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::dot_keys_avx512(q, keys, stride, n, scores),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => dot_keys::<neon::Vector>(q, keys, stride, n, scores),
            }
        }
    }

    /// `sums[head] = sum of weights[head][key] * values[key]` over `keys` in order. `weights` is `[heads][KEY_BLOCK]`,
    /// `values` is `[KEY_BLOCK][stride]`; `sums` is `[heads][width]`, of which the first `stride` are written.
    pub(in crate::backend::cpu) fn weigh_values(
        self,
        weights: &[f32],
        keys: Range<usize>,
        (values, stride): (&[f32], usize),
        (sums, width): (&mut [f32], usize),
    ) {
        let heads = weights.len() / KEY_BLOCK;
        assert!(stride > 0 && stride.is_multiple_of(LANES) && stride <= width && sums.len() == heads * width);
        assert!(keys.start <= keys.end && keys.end <= KEY_BLOCK && values.len() == KEY_BLOCK * stride);
        let (weights, values) = (weights[keys.start..].as_ptr(), values[keys.start * stride..].as_ptr());
        let block = Block { n: keys.len(), values, stride, width };
        // SAFETY: the lengths were just checked; a `Cpu` holds only instruction sets that are available.
        unsafe {
            match self {
                Isa::Portable => weigh_heads::<[f32; LANES], 1>(block, weights, heads, sums.as_mut_ptr()),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::weigh_avx2(block, weights, heads, sums.as_mut_ptr()),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::weigh_avx512(block, weights, heads, sums.as_mut_ptr()),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => weigh_heads::<neon::Vector, 4>(block, weights, heads, sums.as_mut_ptr()),
            }
        }
    }
}

/// # Safety
/// Both point to `n` elements, and the caller is compiled for `V`'s instruction set.
#[inline(always)]
unsafe fn widen<V: Lanes, W: Weight>(from: *const W, to: *mut f32, n: usize) {
    let whole = n / V::WIDTH * V::WIDTH;
    // SAFETY: every element is below n.
    unsafe {
        for at in (0..whole).step_by(V::WIDTH) {
            W::load::<V>(from.add(at)).store(to.add(at));
        }
        for at in whole..n {
            *to.add(at) = (*from.add(at)).widen();
        }
    }
}

/// Vectors that fold the sums of several keys at once.
trait Fold: Lanes {
    /// Scores of the next [`LANES`] keys.
    ///
    /// # Safety
    /// `q` has `stride` elements, `keys` has `LANES * stride`, `scores` has `LANES`; `stride` is a multiple of `LANES`;
    /// the caller is compiled for this instruction set.
    unsafe fn scores(q: *const f32, keys: *const f32, stride: usize, scores: *mut f32);
}

/// # Safety
/// As for [`Fold::scores`], with `n` keys, a multiple of `LANES`.
#[inline(always)]
unsafe fn dot_keys<V: Fold>(q: *const f32, keys: *const f32, stride: usize, n: usize, scores: *mut f32) {
    for key in (0..n).step_by(LANES) {
        // SAFETY: key + LANES <= n.
        unsafe { V::scores(q, keys.add(key * stride), stride, scores.add(key)) };
    }
}

/// The 16 sums of each of `K` keys, in `N` vectors.
///
/// # Safety
/// `q` has `stride` elements, `keys` has `K * stride`; `stride` is a multiple of `N * V::WIDTH`.
#[inline(always)]
unsafe fn sums_of_keys<V: Lanes, const K: usize, const N: usize>(
    q: *const f32,
    keys: *const f32,
    stride: usize,
) -> [[V; N]; K] {
    // SAFETY: d + N * V::WIDTH <= stride and key < K.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; K];
        let mut d = 0;
        while d < stride {
            let mut part = [V::splat(0.0); N];
            for (n, part) in part.iter_mut().enumerate() {
                *part = V::load_f32(q.add(d + n * V::WIDTH));
            }
            for (key, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = part[n].mul_add(V::load_f32(keys.add(key * stride + d + n * V::WIDTH)), *sum);
                }
            }
            d += N * V::WIDTH;
        }
        sums
    }
}

impl Fold for [f32; LANES] {
    #[inline(always)]
    unsafe fn scores(q: *const f32, keys: *const f32, stride: usize, scores: *mut f32) {
        for key in 0..LANES {
            // SAFETY: the caller's promise; key < LANES.
            unsafe {
                let [[sums]] = sums_of_keys::<Self, 1, 1>(q, keys.add(key * stride), stride);
                *scores.add(key) = crate::backend::cpu::rows::fold(sums);
            }
        }
    }
}

/// Values of `n` keys, `[n][stride]`, and the distance of the sums of two heads.
#[derive(Clone, Copy)]
struct Block {
    n: usize,
    values: *const f32,
    stride: usize,
    width: usize,
}

/// Heads in tiles of four, two and one, which share the loaded values.
///
/// # Safety
/// `weights` has `heads` rows of [`KEY_BLOCK`], of which the last may end after `n` elements; `sums` is
/// `[heads][width]`; `stride` is a multiple of `LANES`, the block is as it says, and the caller is compiled for `V`.
#[inline(always)]
unsafe fn weigh_heads<V: Lanes, const N: usize>(block: Block, weights: *const f32, heads: usize, sums: *mut f32) {
    let mut head = 0;
    while head < heads {
        // SAFETY: head + the tile's heads <= heads.
        unsafe {
            let (weights, sums) = (weights.add(head * KEY_BLOCK), sums.add(head * block.width));
            match heads - head {
                1 => weigh::<V, 1, N>(block, weights, sums),
                2 => weigh::<V, 2, N>(block, weights, sums),
                3 => weigh::<V, 3, N>(block, weights, sums),
                _ => weigh::<V, 4, N>(block, weights, sums),
            }
        }
        head += (heads - head).min(4);
    }
}

/// `H` heads times all lanes, `N` vectors at a time and then one.
///
/// # Safety
/// As for [`weigh_heads`], with `H` heads.
#[inline(always)]
unsafe fn weigh<V: Lanes, const H: usize, const N: usize>(block: Block, weights: *const f32, sums: *mut f32) {
    let mut lane = 0;
    // SAFETY: a tile ends at or before the stride, a multiple of V::WIDTH.
    unsafe {
        while lane + N * V::WIDTH <= block.stride {
            weigh_lanes::<V, H, N>(block, weights, sums, lane);
            lane += N * V::WIDTH;
        }
        while lane < block.stride {
            weigh_lanes::<V, H, 1>(block, weights, sums, lane);
            lane += V::WIDTH;
        }
    }
}

/// # Safety
/// As for [`weigh_heads`], with `H` heads; `lane + N * V::WIDTH` is at most the stride.
#[inline(always)]
unsafe fn weigh_lanes<V: Lanes, const H: usize, const N: usize>(
    block: Block,
    weights: *const f32,
    sums: *mut f32,
    lane: usize,
) {
    let Block { n, values, stride, width } = block;
    // SAFETY: key < n, head < H, and the lanes are inside by the caller's promise.
    unsafe {
        let mut acc = [[V::splat(0.0); N]; H];
        let mut value = [V::splat(0.0); N];
        for key in 0..n {
            for (part, value) in value.iter_mut().enumerate() {
                *value = V::load_f32(values.add(key * stride + lane + part * V::WIDTH));
            }
            for (head, acc) in acc.iter_mut().enumerate() {
                let weight = V::splat(*weights.add(head * KEY_BLOCK + key));
                for (acc, value) in acc.iter_mut().zip(value) {
                    *acc = weight.mul_add(value, *acc);
                }
            }
        }
        for (head, acc) in acc.iter().enumerate() {
            for (part, acc) in acc.iter().enumerate() {
                acc.store(sums.add(head * width + lane + part * V::WIDTH));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;

    /// # Safety
    /// As for [`widen`], and AVX2, FMA and F16C are available.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn widen_avx2<W: Weight>(from: *const W, to: *mut f32, n: usize) {
        // SAFETY: the caller's promise, passed on.
        unsafe { widen::<__m256, W>(from, to, n) }
    }

    /// # Safety
    /// As for [`widen`], and AVX-512 F is available.
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    pub(super) unsafe fn widen_avx512<W: Weight>(from: *const W, to: *mut f32, n: usize) {
        // SAFETY: the caller's promise, passed on.
        unsafe { widen::<__m512, W>(from, to, n) }
    }

    /// # Safety
    /// As for [`dot_keys`], and AVX2, FMA and F16C are available.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn dot_keys_avx2(q: *const f32, keys: *const f32, stride: usize, n: usize, scores: *mut f32) {
        // SAFETY: the caller's promise, passed on.
        unsafe { dot_keys::<__m256>(q, keys, stride, n, scores) }
    }

    /// # Safety
    /// As for [`dot_keys`], and AVX-512 F is available.
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    pub(super) unsafe fn dot_keys_avx512(q: *const f32, keys: *const f32, stride: usize, n: usize, scores: *mut f32) {
        // SAFETY: the caller's promise, passed on.
        unsafe { dot_keys::<__m512>(q, keys, stride, n, scores) }
    }

    /// # Safety
    /// As for [`weigh_heads`], and AVX2, FMA and F16C are available.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn weigh_avx2(block: Block, weights: *const f32, heads: usize, sums: *mut f32) {
        // SAFETY: the caller's promise, passed on. 16 registers hold 8 sums, the values and a weight.
        unsafe { weigh_heads::<__m256, 2>(block, weights, heads, sums) }
    }

    /// # Safety
    /// As for [`weigh_heads`], and AVX-512 F is available.
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    pub(super) unsafe fn weigh_avx512(block: Block, weights: *const f32, heads: usize, sums: *mut f32) {
        // SAFETY: the caller's promise, passed on. 32 registers hold 16 sums, the values and a weight.
        unsafe { weigh_heads::<__m512, 4>(block, weights, heads, sums) }
    }

    impl Fold for __m256 {
        #[inline(always)]
        unsafe fn scores(q: *const f32, keys: *const f32, stride: usize, scores: *mut f32) {
            // SAFETY: the caller's promise: keys `first..first + 8` and their scores are inside.
            unsafe {
                for first in [0, 8] {
                    let keys = keys.add(first * stride);
                    let early = sums_of_keys::<Self, 4, 2>(q, keys, stride);
                    let late = sums_of_keys::<Self, 4, 2>(q, keys.add(4 * stride), stride);
                    let mut quads = [_mm256_setzero_ps(); 4];
                    for (key, quad) in quads.iter_mut().enumerate() {
                        // Eight sums of a key, then four sums of keys `key` and `key + 4`.
                        let early = _mm256_add_ps(early[key][0], early[key][1]);
                        let late = _mm256_add_ps(late[key][0], late[key][1]);
                        let low = _mm256_permute2f128_ps::<0x20>(early, late);
                        *quad = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(early, late));
                    }
                    let (ab, cd) = (fold_pairs_256(quads[0], quads[1]), fold_pairs_256(quads[2], quads[3]));
                    let folded = _mm256_add_ps(_mm256_shuffle_ps::<0x88>(ab, cd), _mm256_shuffle_ps::<0xdd>(ab, cd));
                    _mm256_storeu_ps(scores.add(first), folded);
                }
            }
        }
    }

    /// In each half, lane i plus lane i + 2 of each.
    ///
    /// # Safety
    /// AVX is available.
    #[inline(always)]
    unsafe fn fold_pairs_256(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
            let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
            _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high))
        }
    }

    impl Fold for __m512 {
        #[inline(always)]
        unsafe fn scores(q: *const f32, keys: *const f32, stride: usize, scores: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe {
                let sums = sums_of_keys::<Self, 16, 1>(q, keys, stride);
                let mut quads = [_mm512_setzero_ps(); 4];
                for (key, quad) in quads.iter_mut().enumerate() {
                    // Eight sums of two keys, then four sums of keys `key`, `key + 4`, `key + 8` and `key + 12`.
                    let early = fold_halves(sums[key][0], sums[key + 4][0]);
                    let late = fold_halves(sums[key + 8][0], sums[key + 12][0]);
                    let (low, high) =
                        (_mm512_shuffle_f32x4::<0x88>(early, late), _mm512_shuffle_f32x4::<0xdd>(early, late));
                    *quad = _mm512_add_ps(low, high);
                }
                let (ab, cd) = (fold_pairs(quads[0], quads[1]), fold_pairs(quads[2], quads[3]));
                let folded = _mm512_add_ps(_mm512_shuffle_ps::<0x88>(ab, cd), _mm512_shuffle_ps::<0xdd>(ab, cd));
                _mm512_storeu_ps(scores, folded);
            }
        }
    }

    /// Lane i plus lane i + 8 of each.
    ///
    /// # Safety
    /// AVX-512 F is available.
    #[inline(always)]
    unsafe fn fold_halves(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b)) }
    }

    /// In each quarter, lane i plus lane i + 2 of each.
    ///
    /// # Safety
    /// AVX-512 F is available.
    #[inline(always)]
    unsafe fn fold_pairs(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
            let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
            _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::*;
    pub(super) use crate::backend::cpu::simd::neon::Vector;
    use std::arch::aarch64::*;

    impl Fold for Vector {
        #[inline(always)]
        unsafe fn scores(q: *const f32, keys: *const f32, stride: usize, scores: *mut f32) {
            // SAFETY: the caller's promise: keys `first..first + 4` and their scores are inside.
            unsafe {
                for first in (0..LANES).step_by(4) {
                    let sums = sums_of_keys::<Self, 4, 4>(q, keys.add(first * stride), stride);
                    let mut quads = [vdupq_n_f32(0.0); 4];
                    for (quad, [a, b, c, d]) in quads.iter_mut().zip(sums) {
                        *quad = vaddq_f32(vaddq_f32(a.0, c.0), vaddq_f32(b.0, d.0));
                    }
                    let (ab, cd) = (fold_pairs(quads[0], quads[1]), fold_pairs(quads[2], quads[3]));
                    vst1q_f32(scores.add(first), vpaddq_f32(ab, cd));
                }
            }
        }
    }

    /// Lane i plus lane i + 2 of each.
    ///
    /// # Safety
    /// NEON is available.
    #[inline(always)]
    unsafe fn fold_pairs(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
            let (low, high) = (vzip1q_f64(a, b), vzip2q_f64(a, b));
            vaddq_f32(vreinterpretq_f32_f64(low), vreinterpretq_f32_f64(high))
        }
    }
}
