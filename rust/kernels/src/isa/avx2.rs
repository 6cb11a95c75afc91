//! AVX2 with FMA and F16C: Haswell, Zen and later.
//!
//! SAFETY of every block here: the token exists only where `dispatch.rs` has asked the CPU for the
//! feature list of [`enter`], and each load or store stays inside the fixed-size array it is given.

use super::{Isa, LANES};
use crate::chunk::{ActChunk, CHUNK, Chunk, GROUP};
use crate::dispatch::Op;
use std::arch::x86_64::*;

/// Proof that AVX2, FMA and F16C exist. Made by `dispatch.rs` only.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU must have AVX2, FMA and F16C.
    pub(crate) unsafe fn new_unchecked() -> Self {
        Self(())
    }
}

/// Whether this CPU has the features of [`enter`].
pub(crate) fn detected() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Runs `op` compiled with the features of this level.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn enter<O: Op>(isa: Avx2, op: O) -> O::Out {
    op.run(isa)
}

/// Sum of eight i32 lanes.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn sum_i32(x: __m256i) -> i32 {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe {
        let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
        let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
        let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b10_11_00_01>(x));
        _mm_cvtsi128_si32(x)
    }
}

/// Pair sums of 32 code products as sixteen i16. They cannot saturate: activations stay within
/// +-127, so a pair is at most 2 * 128 * 127 = 32512.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
unsafe fn pairs<const SIGNED: bool>(w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe {
        if SIGNED {
            // The multiplier wants one unsigned operand: move the weight's sign to the activation.
            _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w))
        } else {
            _mm256_maddubs_epi16(w, a)
        }
    }
}

/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
unsafe fn load_unit(codes: &[i8; CHUNK], unit: usize) -> __m256i {
    let unit: &[i8; GROUP] = codes[unit * GROUP..][..GROUP].try_into().expect("eight units of 32");
    // SAFETY: 32 bytes are readable behind the reference.
    unsafe { _mm256_loadu_si256(unit.as_ptr().cast()) }
}

impl Isa for Avx2 {
    type F = (__m256, __m256);
    type B = __m256i;
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        // SAFETY: see the head of the file.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), x.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), x.1);
        }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }

    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        // SAFETY: see the head of the file.
        unsafe { sum_f32(_mm256_add_ps(x.0, x.1)) }
    }

    #[inline(always)]
    fn load_half(self, x: &[u16; LANES]) -> Self::F {
        // SAFETY: see the head of the file; F16C is in its list.
        unsafe {
            (
                _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(8).cast())),
            )
        }
    }

    #[inline(always)]
    fn load_codes(self, x: &[i8; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe {
            let x = _mm_loadu_si128(x.as_ptr().cast());
            let (low, high) = (_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x)));
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    fn store_half(self, x: Self::F, out: &mut [u16; LANES]) {
        // SAFETY: see the head of the file; F16C is in its list.
        unsafe {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.1);
            _mm_storeu_si128(out.as_mut_ptr().cast(), low);
            _mm_storeu_si128(out.as_mut_ptr().add(8).cast(), high);
        }
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, w: &Chunk, a: &ActChunk) -> i32 {
        // SAFETY: see the head of the file; scales and steps are 16 i16 each, exactly one register.
        unsafe {
            let scales = _mm256_mullo_epi16(
                _mm256_loadu_si256(w.scales.as_ptr().cast()),
                _mm256_loadu_si256(a.steps.as_ptr().cast()),
            );
            // Both halves hold all sixteen scales' bytes of their own; a byte shuffle then spreads
            // scale 2u over the lower and 2u + 1 over the upper half.
            let low = _mm256_permute2x128_si256::<0x00>(scales, scales);
            let high = _mm256_permute2x128_si256::<0x11>(scales, scales);
            let mut sum = _mm256_setzero_si256();
            for unit in 0..CHUNK / GROUP {
                let p = pairs::<SIGNED>(load_unit(&w.codes, unit), load_unit(&a.codes, unit));
                let pick = |s: usize| (((s % 8) * 2 + 1) << 8 | ((s % 8) * 2)) as i16;
                let spread =
                    _mm256_setr_m128i(_mm_set1_epi16(pick(2 * unit)), _mm_set1_epi16(pick(2 * unit + 1)));
                let source = if unit < 4 { low } else { high };
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(p, _mm256_shuffle_epi8(source, spread)));
            }
            sum_i32(sum)
        }
    }

    #[inline(always)]
    fn dot_groups<const SIGNED: bool>(self, w: &Chunk, a: &ActChunk) -> [i32; 8] {
        // SAFETY: see the head of the file; the result array is exactly one register.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let dot = |unit: usize| {
                _mm256_madd_epi16(pairs::<SIGNED>(load_unit(&w.codes, unit), load_unit(&a.codes, unit)), ones)
            };
            sum_each([dot(0), dot(1), dot(2), dot(3), dot(4), dot(5), dot(6), dot(7)])
        }
    }

    #[inline(always)]
    fn dot_sums(self, a: &[i16; 16], b: &[i16; 16]) -> i32 {
        // SAFETY: see the head of the file.
        unsafe {
            let a = _mm256_loadu_si256(a.as_ptr().cast());
            let b = _mm256_loadu_si256(b.as_ptr().cast());
            sum_i32(_mm256_madd_epi16(a, b))
        }
    }

    #[inline(always)]
    fn bytes(self, x: &[u8; 32]) -> Self::B {
        // SAFETY: see the head of the file.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn nibbles(self, x: &[u8; 16]) -> Self::B {
        // SAFETY: see the head of the file.
        unsafe {
            let x = _mm_loadu_si128(x.as_ptr().cast());
            let both = _mm256_set_m128i(_mm_srli_epi16::<4>(x), x);
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn put(self, x: Self::B, out: &mut [i8; 32]) {
        // SAFETY: see the head of the file.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn splat_byte(self, x: u8) -> Self::B {
        // SAFETY: see the head of the file.
        unsafe { _mm256_set1_epi8(x as i8) }
    }

    #[inline(always)]
    fn and(self, a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: see the head of the file.
        unsafe { _mm256_and_si256(a, b) }
    }

    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: see the head of the file.
        unsafe { _mm256_or_si256(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: see the head of the file.
        unsafe { _mm256_sub_epi8(a, b) }
    }

    #[inline(always)]
    fn shr<const N: i32>(self, x: Self::B) -> Self::B {
        // SAFETY: see the head of the file.
        unsafe { _mm256_and_si256(_mm256_srli_epi16::<N>(x), _mm256_set1_epi8((0xffu8 >> N) as i8)) }
    }

    #[inline(always)]
    fn shl<const N: i32>(self, x: Self::B) -> Self::B {
        // SAFETY: see the head of the file.
        unsafe { _mm256_and_si256(_mm256_slli_epi16::<N>(x), _mm256_set1_epi8((0xffu8 << N) as i8)) }
    }

    #[inline(always)]
    fn lookup16(self, table: &[i8; 16], indices: Self::B) -> Self::B {
        // SAFETY: see the head of the file.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, indices)
        }
    }
}

/// Lane sums of eight registers, in order: a tree of pairwise adds.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn sum_each(x: [__m256i; 8]) -> [i32; 8] {
    let mut out = [0i32; 8];
    // SAFETY: register operations and one 32-byte store into `out`; AVX2 by the caller's token.
    unsafe {
        let a = _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
        let b = _mm256_hadd_epi32(_mm256_hadd_epi32(x[4], x[5]), _mm256_hadd_epi32(x[6], x[7]));
        let low = _mm256_permute2x128_si256::<0x20>(a, b);
        let high = _mm256_permute2x128_si256::<0x31>(a, b);
        _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_add_epi32(low, high));
    }
    out
}

/// Sum of eight f32 lanes in the order `i + 4`, `i + 2`, `i + 1`.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn sum_f32(x: __m256) -> f32 {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        let x = _mm_add_ss(x, _mm_movehdup_ps(x));
        _mm_cvtss_f32(x)
    }
}
