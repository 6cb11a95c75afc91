//! AVX-512 (F, BW, DQ, VL) with VNNI: Ice Lake, Zen 4 and later.
//!
//! SAFETY of every block here: the token exists only where `dispatch.rs` has asked the CPU for the
//! feature list of [`enter`], and each load or store stays inside the fixed-size array it is given.

use super::avx2::{self, Avx2};
use super::{Isa, LANES};
use crate::chunk::{ActChunk, CHUNK, Chunk};
use crate::dispatch::Op;
use std::arch::x86_64::*;

/// Proof that AVX-512 F, BW, DQ, VL and VNNI exist. Made by `dispatch.rs` only.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU must have the features of [`enter`].
    pub(crate) unsafe fn new_unchecked() -> Self {
        Self(())
    }

    /// What 256 bits suffice for is AVX2's: its features are among ours.
    #[inline(always)]
    fn narrow(self) -> Avx2 {
        // SAFETY: `detected` includes AVX2's own test.
        unsafe { Avx2::new_unchecked() }
    }
}

/// Whether this CPU has the features of [`enter`].
pub(crate) fn detected() -> bool {
    avx2::detected()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Runs `op` compiled with the features of this level.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn enter<O: Op>(isa: Avx512, op: O) -> O::Out {
    op.run(isa)
}

/// The 64 codes of one quarter of a chunk.
/// # Safety
/// The CPU must have the features of [`enter`]: the caller holds the level's token.
#[inline(always)]
unsafe fn load_quarter(codes: &[i8; CHUNK], quarter: usize) -> __m512i {
    let quarter: &[i8; 64] = codes[quarter * 64..][..64].try_into().expect("four quarters of 64");
    // SAFETY: 64 bytes are readable behind the reference.
    unsafe { _mm512_loadu_si512(quarter.as_ptr().cast()) }
}

/// Sixteen sums of four products. Signed codes are shifted up by 128, because the instruction
/// wants one unsigned operand; the caller takes `128 * activation sum` off again.
/// # Safety
/// The CPU must have the features of [`enter`]: the caller holds the level's token.
#[inline(always)]
unsafe fn quads<const SIGNED: bool>(w: &Chunk, a: &ActChunk, quarter: usize) -> __m512i {
    // SAFETY: register operations only; VNNI by the caller's token.
    unsafe {
        let mut codes = load_quarter(&w.codes, quarter);
        if SIGNED {
            codes = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
        }
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, load_quarter(&a.codes, quarter))
    }
}

impl Isa for Avx512 {
    type F = __m512;
    type B = __m256i;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        // SAFETY: see the head of the file.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        // SAFETY: see the head of the file.
        unsafe { avx2::sum_f32(_mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x))) }
    }

    #[inline(always)]
    fn load_half(self, x: &[u16; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_codes(self, x: &[i8; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn store_half(self, x: Self::F, out: &mut [u16; LANES]) {
        // SAFETY: see the head of the file.
        unsafe {
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, w: &Chunk, a: &ActChunk) -> i32 {
        // SAFETY: see the head of the file; the sixteen scales widen to one register.
        unsafe {
            let scales = _mm512_cvtepi16_epi32(_mm256_mullo_epi16(
                _mm256_loadu_si256(w.scales.as_ptr().cast()),
                _mm256_loadu_si256(a.steps.as_ptr().cast()),
            ));
            let mut sum = _mm512_setzero_si512();
            for quarter in 0..4 {
                // Lanes 4s..4s+4 of a quarter belong to one sub-block of 16 weights.
                let lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
                let lane = _mm512_add_epi32(lane, _mm512_set1_epi32(4 * quarter as i32));
                let spread = _mm512_permutexvar_epi32(lane, scales);
                let scaled = _mm512_mullo_epi32(quads::<SIGNED>(w, a, quarter), spread);
                sum = _mm512_add_epi32(sum, scaled);
            }
            let sum = avx2::sum_i32(_mm256_add_epi32(
                _mm512_castsi512_si256(sum),
                _mm512_extracti32x8_epi32::<1>(sum),
            ));
            if SIGNED { sum.wrapping_sub(self.dot_sums(&w.scales, &a.sums).wrapping_mul(128)) } else { sum }
        }
    }

    #[inline(always)]
    fn dot_groups<const SIGNED: bool>(self, w: &Chunk, a: &ActChunk) -> [i32; 8] {
        // SAFETY: see the head of the file.
        unsafe {
            let mut unit = [_mm256_setzero_si256(); 8];
            for quarter in 0..4 {
                let sums = quads::<SIGNED>(w, a, quarter);
                unit[2 * quarter] = _mm512_castsi512_si256(sums);
                unit[2 * quarter + 1] = _mm512_extracti32x8_epi32::<1>(sums);
            }
            let mut out = avx2::sum_each(unit);
            if SIGNED {
                for (g, out) in out.iter_mut().enumerate() {
                    *out -= 128 * (i32::from(a.sums[2 * g]) + i32::from(a.sums[2 * g + 1]));
                }
            }
            out
        }
    }

    #[inline(always)]
    fn dot_sums(self, a: &[i16; 16], b: &[i16; 16]) -> i32 {
        self.narrow().dot_sums(a, b)
    }

    #[inline(always)]
    fn bytes(self, x: &[u8; 32]) -> Self::B {
        self.narrow().bytes(x)
    }

    #[inline(always)]
    fn nibbles(self, x: &[u8; 16]) -> Self::B {
        self.narrow().nibbles(x)
    }

    #[inline(always)]
    fn put(self, x: Self::B, out: &mut [i8; 32]) {
        self.narrow().put(x, out)
    }

    #[inline(always)]
    fn splat_byte(self, x: u8) -> Self::B {
        self.narrow().splat_byte(x)
    }

    #[inline(always)]
    fn and(self, a: Self::B, b: Self::B) -> Self::B {
        self.narrow().and(a, b)
    }

    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        self.narrow().or(a, b)
    }

    #[inline(always)]
    fn sub(self, a: Self::B, b: Self::B) -> Self::B {
        self.narrow().sub(a, b)
    }

    #[inline(always)]
    fn shr<const N: i32>(self, x: Self::B) -> Self::B {
        self.narrow().shr::<N>(x)
    }

    #[inline(always)]
    fn shl<const N: i32>(self, x: Self::B) -> Self::B {
        self.narrow().shl::<N>(x)
    }

    #[inline(always)]
    fn lookup16(self, table: &[i8; 16], indices: Self::B) -> Self::B {
        self.narrow().lookup16(table, indices)
    }
}
