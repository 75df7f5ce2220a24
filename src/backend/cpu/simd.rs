//! Instruction sets, chosen at run time, and the loops written in their terms: a tile of a matrix product (`tile`).
//!
//! Everything else is plain Rust compiled once more per instruction set by [`Isa::run`]: `mul_add` rounds once wherever
//! it runs, lanes are independent, and the compiler does not reorder floating-point sums, so the bits are the same.
//! All unsafe code of the backend is here and below: vectors (`tile`, and of attention's keys `keys`), tasks and buffers
//! that threads share (`work`), and the memory that all of it stands in (`memory`).
#![allow(
    unsafe_code,
    reason = "SIMD intrinsics and calls of functions compiled for an instruction set; in `work` the lifetime of a task \
              that threads help with, and blocks of one buffer handed to several threads; in `memory` regions of one \
              mapping"
)]

mod keys;
pub(super) mod memory;
mod tile;
pub(super) mod work;

pub(super) use tile::{Ahead, GROUP, MAX_TILE_ROWS, Tile};

use half::f16;
use tile::HALF;

/// Bytes of a cache line.
const LINE: usize = 64;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What the target always has.
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, with the above.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// All that this build knows, slowest first.
    pub const ALL: &'static [Isa] = &[
        Isa::Portable,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon,
    ];

    /// The fastest that is here.
    pub fn best() -> Self {
        Self::ALL.iter().copied().rfind(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Isa::Avx2.is_available() && is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
        }
    }

    /// `portable`, `avx2`, `avx512`, `neon`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
        }
    }

    /// Sends for elements that will soon be read.
    pub(super) fn fetch<T>(self, elements: &[T]) {
        let first = elements.as_ptr().cast::<u8>();
        for offset in (0..size_of_val(elements)).step_by(LINE) {
            let line = first.wrapping_add(offset);
            match self {
                Isa::Portable => <[f32; 16] as Lanes>::fetch(line),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 | Isa::Avx512 => <std::arch::x86_64::__m256 as Lanes>::fetch(line),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => <neon::Vector as Lanes>::fetch(line),
            }
        }
    }

    /// Runs a loop compiled for this instruction set: inside, `mul_add` is one instruction and lanes are vectors.
    #[inline(always)]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Portable => kernel.run(),
            // SAFETY: a `Cpu` holds only instruction sets that are available.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::run_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::run_avx512(kernel) },
            // NEON and its fused multiply-add are part of the target's base.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => kernel.run(),
        }
    }
}

/// A loop that [`Isa::run`] compiles for each instruction set. A trait and not a closure, because its `run`, and what
/// that calls in the loop, must be `#[inline(always)]`: what is not inlined is compiled without the instruction set.
pub(super) trait Kernel {
    /// What it gives.
    type Output;
    /// Runs it.
    fn run(self) -> Self::Output;
}

/// A vector of f32 lanes.
pub(super) trait Lanes: Copy {
    /// Lanes.
    const WIDTH: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn load_f32(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const f16) -> Self;
    unsafe fn load_bf16(from: *const half::bf16) -> Self;
    /// The first of each of `WIDTH` pairs, and the second.
    unsafe fn load_bf16_pairs(from: *const half::bf16) -> [Self; 2];
    /// Brings a line of memory into the cache; where there is no such line, nothing happens.
    fn fetch(line: *const u8);
}

/// How a weight is stored.
pub(super) trait Weight: Copy + Send + Sync {
    /// Widened, exactly.
    fn widen(self) -> f32;
    /// # Safety
    /// `from` points to `V::WIDTH` elements, and the caller is compiled for `V`'s instruction set.
    unsafe fn load<V: Lanes>(from: *const Self) -> V;
    /// Where the weight of a lane stands in its row of a group.
    fn place(lane: usize) -> usize {
        lane
    }
    /// Lanes `lane..lane + V::WIDTH` of a row of a group, and those [`HALF`] further.
    /// # Safety
    /// `row` points to `GROUP` elements, `lane + V::WIDTH <= HALF`, and the caller is compiled for `V`'s instruction set.
    #[inline(always)]
    unsafe fn load_halves<V: Lanes>(row: *const Self, lane: usize) -> [V; 2] {
        // SAFETY: the caller's promise.
        unsafe { [Self::load(row.add(lane)), Self::load(row.add(lane + HALF))] }
    }
}

impl Weight for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise, passed on.
        unsafe { V::load_f32(from) }
    }
}

impl Weight for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise, passed on.
        unsafe { V::load_f16(from) }
    }
}

impl Weight for half::bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise, passed on.
        unsafe { V::load_bf16(from) }
    }

    /// Lanes `l` and `l + HALF` side by side: one operation widens either.
    fn place(lane: usize) -> usize {
        lane % HALF * 2 + lane / HALF
    }

    #[inline(always)]
    unsafe fn load_halves<V: Lanes>(row: *const Self, lane: usize) -> [V; 2] {
        // SAFETY: the caller's promise, passed on.
        unsafe { V::load_bf16_pairs(row.add(2 * lane)) }
    }
}

impl Lanes for [f32; 16] {
    const WIDTH: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; 16]
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        std::array::from_fn(|i| self[i].mul_add(factor[i], sum[i]))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise: 16 elements.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self {
        // SAFETY: the caller's promise: 16 elements.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise: 16 elements.
        unsafe { from.cast::<[f16; 16]>().read_unaligned() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const half::bf16) -> Self {
        // SAFETY: the caller's promise: 16 elements.
        unsafe { from.cast::<[half::bf16; 16]>().read_unaligned() }.map(Weight::widen)
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const half::bf16) -> [Self; 2] {
        // SAFETY: the caller's promise: 16 pairs.
        let pairs = unsafe { from.cast::<[[half::bf16; 2]; 16]>().read_unaligned() };
        [pairs.map(|pair| pair[0].widen()), pairs.map(|pair| pair[1].widen())]
    }

    #[inline(always)]
    fn fetch(_: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Lanes};
    use half::{bf16, f16};
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX2, FMA and F16C are available.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }

    /// # Safety
    /// AVX-512 F, AVX2, FMA and F16C are available.
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }

    // SAFETY of both implementations: the callers are compiled for the instruction set and promise WIDTH elements.
    impl Lanes for __m256 {
        const WIDTH: usize = 8;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: see the implementation's head.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
            // SAFETY: see the implementation's head.
            unsafe { _mm256_fmadd_ps(self, factor, sum) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: see the implementation's head.
            unsafe { _mm256_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn load_f32(from: *const f32) -> Self {
            // SAFETY: see the implementation's head.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> Self {
            // SAFETY: see the implementation's head.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            // SAFETY: see the implementation's head.
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))
            }
        }

        #[inline(always)]
        unsafe fn load_bf16_pairs(from: *const bf16) -> [Self; 2] {
            // SAFETY: see the implementation's head.
            unsafe {
                let pairs = _mm256_loadu_si256(from.cast());
                let first = _mm256_slli_epi32(pairs, 16);
                let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
                [_mm256_castsi256_ps(first), _mm256_castsi256_ps(second)]
            }
        }

        #[inline(always)]
        fn fetch(line: *const u8) {
            // SAFETY: it does not fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
        }
    }

    impl Lanes for __m512 {
        const WIDTH: usize = 16;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: see the implementations' head.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
            // SAFETY: see the implementations' head.
            unsafe { _mm512_fmadd_ps(self, factor, sum) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: see the implementations' head.
            unsafe { _mm512_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn load_f32(from: *const f32) -> Self {
            // SAFETY: see the implementations' head.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> Self {
            // SAFETY: see the implementations' head.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            // SAFETY: see the implementations' head.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))
            }
        }

        #[inline(always)]
        unsafe fn load_bf16_pairs(from: *const bf16) -> [Self; 2] {
            // SAFETY: see the implementation's head.
            unsafe {
                let pairs = _mm512_loadu_si512(from.cast());
                let first = _mm512_slli_epi32(pairs, 16);
                let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                [_mm512_castsi512_ps(first), _mm512_castsi512_ps(second)]
            }
        }

        #[inline(always)]
        fn fetch(line: *const u8) {
            // SAFETY: it does not fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::{Lanes, Weight};
    use half::{bf16, f16};
    use std::arch::aarch64::*;

    /// Four lanes.
    #[derive(Clone, Copy)]
    pub(super) struct Vector(pub(super) float32x4_t);

    // SAFETY of the implementation: NEON is part of the target's base; the callers promise 4 elements.
    impl Lanes for Vector {
        const WIDTH: usize = 4;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: see the implementation's head.
            Vector(unsafe { vdupq_n_f32(x) })
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
            // SAFETY: see the implementation's head.
            Vector(unsafe { vfmaq_f32(sum.0, self.0, factor.0) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: see the implementation's head.
            unsafe { vst1q_f32(to, self.0) }
        }

        #[inline(always)]
        unsafe fn load_f32(from: *const f32) -> Self {
            // SAFETY: see the implementation's head.
            Vector(unsafe { vld1q_f32(from) })
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> Self {
            // The vector conversion is not stable in Rust; the scalar one is one instruction.
            // SAFETY: see the implementation's head.
            let wide = unsafe { from.cast::<[f16; 4]>().read_unaligned() }.map(Weight::widen);
            // SAFETY: an array of 4 elements.
            Vector(unsafe { vld1q_f32(wide.as_ptr()) })
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            // SAFETY: see the implementation's head.
            Vector(unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.cast()))) })
        }

        #[inline(always)]
        unsafe fn load_bf16_pairs(from: *const bf16) -> [Self; 2] {
            // SAFETY: see the implementation's head.
            unsafe {
                let pairs = vld1q_u32(from.cast());
                let (first, second) = (vshlq_n_u32::<16>(pairs), vandq_u32(pairs, vdupq_n_u32(0xffff_0000)));
                [Vector(vreinterpretq_f32_u32(first)), Vector(vreinterpretq_f32_u32(second))]
            }
        }

        // The instruction is not stable in Rust; these processors fetch streams well by themselves.
        #[inline(always)]
        fn fetch(_: *const u8) {}
    }
}
