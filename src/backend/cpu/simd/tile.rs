//! The loop that a model's time goes into: a tile of rows times a group of outputs.
//!
//! Lanes are outputs, sums stay in registers, K runs in order, one fused multiply-add a step: the same bits for every
//! instruction set and every tiling of rows. Two things bound it, and on the machine it was written on (EPYC 9004, two
//! cores) it is within a few per cent of both: up to about four rows memory, 30 GB/s; from there on the multiply-adds,
//! 116 G/s as a loop over registers alone makes them. So a bf16 weight must be widened in one instruction (pairs), be
//! used for as many rows as there are registers, and be on its way from memory before it is needed (`Ahead`).

use super::{Isa, LINE, Lanes, Weight};

/// Outputs whose weights stand interleaved, and whose sums are made together.
pub(in super::super) const GROUP: usize = 32;
/// Lanes `l` and `l + HALF` of a group are loaded together.
pub(super) const HALF: usize = GROUP / 2;
/// Most rows of a tile on any instruction set.
pub(in super::super) const MAX_TILE_ROWS: usize = 12;
/// How far a single tile fetches ahead: what it goes through while memory answers.
const DISTANCE: usize = 96 * LINE;

/// The rows of a tile, and what to fetch meanwhile.
#[derive(Clone, Copy)]
pub(in super::super) struct Tile<'a> {
    /// The first row; the others follow `stride` elements apart.
    pub(in super::super) x: &'a [f32],
    pub(in super::super) stride: usize,
    pub(in super::super) ahead: Ahead,
}

/// Memory to bring into the cache while a tile is multiplied.
#[derive(Clone, Copy)]
pub(in super::super) struct Ahead {
    from: *const u8,
    /// Bytes for each row of weights that is multiplied.
    step: usize,
}

impl Ahead {
    /// For tile `index` of the `n` that go through `weights`: of several, each fetches its share of the group behind.
    pub(in super::super) fn new<W>(weights: &[W], index: usize, n: usize) -> Self {
        let (from, bytes) = (weights.as_ptr().cast::<u8>(), size_of_val(weights));
        let offset = if n == 1 { DISTANCE } else { bytes + bytes * index / n };
        Ahead { from: from.wrapping_add(offset), step: GROUP * size_of::<W>() / n }
    }
}

impl Isa {
    /// Most rows of a tile: as many as there are registers for the sums.
    pub(in super::super) fn tile_rows(self) -> usize {
        match self {
            Isa::Portable => 4,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => 6,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => MAX_TILE_ROWS,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => 6,
        }
    }

    /// `sums[row][lane] = sum over k of x[row][k] * weights[k][lane]`, k ascending, one fused multiply-add each.
    ///
    /// `weights` is a group of a matrix, `[n_in][GROUP]`; there are as many rows as sums, at most [`Self::tile_rows`].
    pub(in super::super) fn multiply<W: Weight>(self, weights: &[W], tile: Tile<'_>, sums: &mut [[f32; GROUP]]) {
        let (n_in, n_rows) = (weights.len() / GROUP, sums.len());
        assert!((1..=self.tile_rows()).contains(&n_rows) && (n_rows - 1) * tile.stride + n_in <= tile.x.len());
        let (w, sums) = (weights.as_ptr(), sums.as_mut_ptr().cast());
        // SAFETY: the lengths were just checked; a `Cpu` holds only instruction sets that are available.
        unsafe {
            match self {
                Isa::Portable => multiply::<[f32; 16], W, 1, 1, 1>(w, n_in, n_rows, tile, sums),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::multiply_avx2(w, n_in, n_rows, tile, sums),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::multiply_avx512(w, n_in, n_rows, tile, sums),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => multiply::<super::neon::Vector, W, 4, 4, 2>(w, n_in, n_rows, tile, sums),
            }
        }
    }

    /// `n` steps of multiply-adds that wait for nothing but each other; how many that were, all lanes counted.
    pub(in super::super) fn multiply_registers(self, n: usize) -> usize {
        // SAFETY: a `Cpu` holds only instruction sets that are available.
        unsafe {
            match self {
                Isa::Portable => registers::<[f32; 16], 1>(n),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::registers_avx2(n),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::registers_avx512(n),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => registers::<super::neon::Vector, 24>(n),
            }
        }
    }
}

/// Sums in `R` registers.
///
/// # Safety
/// The caller is compiled for `V`'s instruction set.
#[inline(always)]
unsafe fn registers<V: Lanes, const R: usize>(n: usize) -> usize {
    // SAFETY: the caller's promise; a sum is stored into as many elements as it has lanes.
    unsafe {
        let (x, w) = (V::splat(std::hint::black_box(0.5)), V::splat(std::hint::black_box(0.25)));
        let mut acc = [V::splat(0.0); R];
        for _ in 0..n {
            for acc in &mut acc {
                *acc = x.mul_add(w, *acc);
            }
        }
        let mut out = [0.0f32; HALF];
        for acc in acc {
            acc.store(out.as_mut_ptr());
            std::hint::black_box(&out);
        }
    }
    n * R * V::WIDTH
}

/// A tile by its number of rows, with `P1`, `P3` or `P4` pairs of vectors at a time for 1 or 2, 3, or more rows: so
/// many that sums and weights stay in registers.
///
/// # Safety
/// `w` has `n_in * GROUP` elements, `tile` has `n_rows` rows of `n_in`, `sums` has `n_rows * GROUP`; the caller is
/// compiled for `V`'s instruction set.
#[inline(always)]
unsafe fn multiply<V: Lanes, W: Weight, const P1: usize, const P3: usize, const P4: usize>(
    w: *const W,
    n_in: usize,
    n_rows: usize,
    tile: Tile<'_>,
    sums: *mut f32,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match n_rows {
            1 => rows::<V, W, 1, P1>(w, n_in, tile, sums),
            2 => rows::<V, W, 2, P1>(w, n_in, tile, sums),
            3 => rows::<V, W, 3, P3>(w, n_in, tile, sums),
            4 => rows::<V, W, 4, P4>(w, n_in, tile, sums),
            5 => rows::<V, W, 5, P4>(w, n_in, tile, sums),
            6 => rows::<V, W, 6, P4>(w, n_in, tile, sums),
            7 => rows::<V, W, 7, P4>(w, n_in, tile, sums),
            8 => rows::<V, W, 8, P4>(w, n_in, tile, sums),
            9 => rows::<V, W, 9, P4>(w, n_in, tile, sums),
            10 => rows::<V, W, 10, P4>(w, n_in, tile, sums),
            11 => rows::<V, W, 11, P4>(w, n_in, tile, sums),
            _ => rows::<V, W, 12, P4>(w, n_in, tile, sums),
        }
    }
}

/// `R` rows times the lanes of a group, `P` pairs of vectors at a time.
///
/// # Safety
/// As for [`multiply`], with `R` rows.
#[inline(always)]
unsafe fn rows<V: Lanes, W: Weight, const R: usize, const P: usize>(
    w: *const W,
    n_in: usize,
    tile: Tile<'_>,
    sums: *mut f32,
) {
    let Tile { x, stride, ahead } = tile;
    let x = x.as_ptr();
    let mut lane = 0;
    while lane < HALF {
        // SAFETY: k < n_in, r < R and the lanes are inside by the caller's promise; HALF is a multiple of P * V::WIDTH
        // for every instantiation above.
        unsafe {
            let mut acc = [[[V::splat(0.0); 2]; P]; R];
            let mut pairs = [[V::splat(0.0); 2]; P];
            for k in 0..n_in {
                // One or two rows wait for memory anyway: the processor's own fetching does as well.
                if R > 2 && lane == 0 {
                    for line in 0..GROUP * size_of::<W>() / LINE {
                        V::fetch(ahead.from.wrapping_add(k * ahead.step + line * LINE));
                    }
                }
                for (p, pair) in pairs.iter_mut().enumerate() {
                    *pair = W::load_halves(w.add(k * GROUP), lane + p * V::WIDTH);
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = V::splat(*x.add(r * stride + k));
                    for (acc, pair) in acc.iter_mut().zip(pairs) {
                        for (acc, w) in acc.iter_mut().zip(pair) {
                            *acc = x.mul_add(w, *acc);
                        }
                    }
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (p, acc) in acc.iter().enumerate() {
                    for (half, acc) in acc.iter().enumerate() {
                        acc.store(sums.add(r * GROUP + half * HALF + lane + p * V::WIDTH));
                    }
                }
            }
        }
        lane += P * V::WIDTH;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Tile, Weight, multiply, registers};
    use std::arch::x86_64::{__m256, __m512};

    /// # Safety
    /// As for [`multiply`], and AVX2, FMA and F16C are available.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn multiply_avx2<W: Weight>(w: *const W, n_in: usize, n_rows: usize, tile: Tile, sums: *mut f32) {
        // SAFETY: the caller's promise, passed on. 16 registers hold 12 sums and a pair.
        unsafe { multiply::<__m256, W, 2, 1, 1>(w, n_in, n_rows, tile, sums) }
    }

    /// # Safety
    /// As for [`multiply`], and AVX-512 F, AVX2, FMA and F16C are available.
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    pub(super) unsafe fn multiply_avx512<W: Weight>(
        w: *const W,
        n_in: usize,
        n_rows: usize,
        tile: Tile,
        sums: *mut f32,
    ) {
        // SAFETY: the caller's promise, passed on. 32 registers hold 24 sums and a pair.
        unsafe { multiply::<__m512, W, 1, 1, 1>(w, n_in, n_rows, tile, sums) }
    }
    /// # Safety
    /// AVX2 and FMA are available.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn registers_avx2(n: usize) -> usize {
        // SAFETY: the caller's promise, passed on.
        unsafe { registers::<__m256, 12>(n) }
    }

    /// # Safety
    /// AVX-512 F is available.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub(super) unsafe fn registers_avx512(n: usize) -> usize {
        // SAFETY: the caller's promise, passed on.
        unsafe { registers::<__m512, 24>(n) }
    }
}
