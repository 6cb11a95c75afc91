//! AVX2 with FMA and F16C: Haswell, Zen and later; with AVX-VNNI, which Intel's later client CPUs have in place of
//! AVX-512, four products of bytes are added up by one instruction.
//!
//! SAFETY of every block here: the token exists only where `dispatch.rs` has asked the CPU for the
//! feature list of [`enter`] or [`enter_vnni`], and each load or store stays inside the fixed-size array it is
//! given. AVX-VNNI instructions stand behind `if VNNI`.

use super::{Isa, LANES};
use crate::chunk::{ActChunk, CHUNK, GROUP, GROUPED_OFFSET, SUPER_OFFSET};
use crate::dispatch::Op;
use std::arch::x86_64::*;

pub(super) mod lanes;

use lanes::{
    full_pairs, halves, in_order, load_unit, load8, nibbles16, pair64, shift_left, shift_right, signed_pairs,
    sum_each, sum_f32, sum8_f32, transpose8, twice, widen,
};

/// Proof that AVX2, FMA and F16C exist, and AVX-VNNI where `VNNI` says so. Made by `dispatch.rs` only.
#[derive(Debug, Clone, Copy)]
pub struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// # Safety
    /// The CPU must have the features of [`enter`], or of [`enter_vnni`] if `VNNI`.
    pub(crate) unsafe fn new_unchecked() -> Self {
        Self(())
    }

    /// Half of [`Isa::dot2`], with a pair for each lane.
    #[inline(always)]
    fn dot_pairs(self, acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
        // SAFETY: see the head of the file.
        unsafe {
            if VNNI {
                _mm256_dpwssd_avx_epi32(acc, w, a)
            } else {
                _mm256_add_epi32(acc, _mm256_madd_epi16(w, a))
            }
        }
    }
}

/// Whether this CPU has the features of [`enter`].
pub(crate) fn detected() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Whether this CPU has the features of [`enter_vnni`].
pub(crate) fn detected_vnni() -> bool {
    detected() && is_x86_feature_detected!("avxvnni")
}

/// Runs `op` compiled with the features of this level.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn enter<O: Op>(isa: Avx2<false>, op: O) -> O::Out {
    op.run(isa)
}

/// Runs `op` compiled with the features of this level.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(crate) fn enter_vnni<O: Op>(isa: Avx2<true>, op: O) -> O::Out {
    op.run(isa)
}

impl<const VNNI: bool> Isa for Avx2<VNNI> {
    type F = (__m256, __m256);
    type V = (__m256i, __m256i);
    type D = (__m256i, __m256i);
    type Q = (__m256i, __m256i);
    type S = __m256i;
    type U = [__m256i; 8];
    const WIDE: bool = false;
    const FLOAT_COLUMNS: usize = 3;
    const TILE: usize = 4;
    const NARROW: bool = !VNNI;
    const PREFETCH: bool = !VNNI;
    const SMALL_OFFSET: u8 = if VNNI { GROUPED_OFFSET } else { SUPER_OFFSET };
    const FULL_OFFSET: u8 = if VNNI { GROUPED_OFFSET } else { 0 };
    const BYTE_PERMUTE: bool = false;

    // Not inlined, or LLVM would make one function of all of them; on a function with target features of its own
    // the compiler does not heed the attribute.
    #[inline(never)]
    fn enter<O: Op>(self, op: O) -> O::Out {
        // SAFETY: this token proves the features of its own level.
        unsafe { if VNNI { enter_vnni(Avx2::<true>(()), op) } else { enter(Avx2::<false>(()), op) } }
    }

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
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }

    #[inline(always)]
    fn plus(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn minus(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn least(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn most(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn where_less(self, a: Self::F, b: Self::F, then: Self::F, otherwise: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe {
            let less = [_mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0), _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1)];
            (_mm256_blendv_ps(otherwise.0, then.0, less[0]), _mm256_blendv_ps(otherwise.1, then.1, less[1]))
        }
    }

    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        // SAFETY: see the head of the file.
        unsafe { sum_f32(_mm256_add_ps(x.0, x.1)) }
    }

    #[inline(always)]
    fn sum_each(self, x: &[Self::F; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { (sum8_f32(x, 0), sum8_f32(x, 8)) }
    }

    #[inline(always)]
    fn halves(self, x: [[u8; 2]; 8]) -> [f32; 8] {
        // SAFETY: see the head of the file.
        unsafe { halves(x) }
    }

    #[inline(always)]
    fn load_half(self, x: &[u16; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast()));
            (low, _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(8).cast())))
        }
    }

    #[inline(always)]
    fn load_brain(self, x: &[u16; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(8).cast()));
            (
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }

    #[inline(always)]
    fn load_e4m3(self, x: &[u8; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe {
            // Sign and magnitude where f16 has them; the product moves the exponent from bias 7 to bias 15. Not by
            // way of f32 alone, where small numbers would be subnormal, which is slow.
            let x = _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().cast()));
            let bits = _mm256_and_si256(_mm256_slli_epi16::<7>(x), _mm256_set1_epi16(0xbf80_u16 as i16));
            let largest = _mm256_set1_epi16(0x3f80);
            let nan = _mm256_cmpeq_epi16(_mm256_and_si256(bits, largest), largest);
            let bits = _mm256_or_si256(bits, _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00)));
            let low = _mm256_cvtph_ps(_mm256_castsi256_si128(bits));
            let high = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(bits));
            let factor = _mm256_set1_ps(256.0);
            (_mm256_mul_ps(low, factor), _mm256_mul_ps(high, factor))
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
    fn transpose_groups(self, x: &[[f32; 8]; LANES]) -> [Self::F; 8] {
        // SAFETY: see the head of the file.
        unsafe {
            let (low, high) = (transpose8(load8(x, 0, 0)), transpose8(load8(x, 8, 0)));
            let mut out = [self.splat(0.0); 8];
            for g in 0..8 {
                out[g] = (_mm256_castsi256_ps(low[g]), _mm256_castsi256_ps(high[g]));
            }
            out
        }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_set1_epi32(x), _mm256_set1_epi32(x)) }
    }

    #[inline(always)]
    fn to_float(self, x: Self::V) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_cvtepi32_ps(x.0), _mm256_cvtepi32_ps(x.1)) }
    }

    #[inline(always)]
    fn load_i32(self, x: &[i32; LANES]) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(8).cast())) }
    }

    #[inline(always)]
    fn store_i32(self, x: Self::V, out: &mut [i32; LANES]) {
        // SAFETY: see the head of the file.
        unsafe {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), x.0);
            _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), x.1);
        }
    }

    #[inline(always)]
    fn widen_i32(self, x: &[i8; LANES]) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe {
            let x = _mm_loadu_si128(x.as_ptr().cast());
            (_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x)))
        }
    }

    #[inline(always)]
    fn widen_pairs(self, x: &[i8; 2 * LANES]) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe {
            let low = _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().cast()));
            (low, _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().add(16).cast())))
        }
    }

    #[inline(always)]
    fn add_i32(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)) }
    }

    #[inline(always)]
    fn dot2(self, acc: Self::V, w: Self::V, a: i32) -> Self::V {
        let (pair, _) = self.splat_i32(a);
        (self.dot_pairs(acc.0, w.0, pair), self.dot_pairs(acc.1, w.1, pair))
    }

    #[inline(always)]
    fn dot_zero(self) -> Self::D {
        self.splat_i32(0)
    }

    #[inline(always)]
    fn dot_start(self, a: &ActChunk, first: usize, words: usize) -> Self::D {
        self.splat_i32(if VNNI { a.start(first, words) } else { a.pair_start(first, words) })
    }

    #[inline(always)]
    fn dot(self, acc: Self::D, w: Self::Q, a: i32) -> Self::D {
        if VNNI {
            return self.dot_wide(acc, w, a);
        }
        let (a, _) = self.splat_i32(a);
        // SAFETY: see the head of the file.
        unsafe {
            // A pair of products stays within 2 * 127 * 127 < 2^15. Sums of pairs may wrap, and come back.
            let (low, high) = (_mm256_maddubs_epi16(w.0, a), _mm256_maddubs_epi16(w.1, a));
            (in_order(_mm256_add_epi16(acc.0, low)), in_order(_mm256_add_epi16(acc.1, high)))
        }
    }

    #[inline(always)]
    fn dot_sum(self, acc: Self::D) -> Self::V {
        if VNNI {
            return acc;
        }
        // SAFETY: see the head of the file.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            (_mm256_madd_epi16(acc.0, ones), _mm256_madd_epi16(acc.1, ones))
        }
    }

    #[inline(always)]
    fn dot_end(self, total: Self::V, acc: Self::D, factor: Self::V) -> Self::V {
        if VNNI {
            return self.wide_end(total, acc, factor);
        }
        // SAFETY: see the head of the file.
        unsafe {
            let (low, high) = (_mm256_madd_epi16(acc.0, factor.0), _mm256_madd_epi16(acc.1, factor.1));
            (_mm256_add_epi32(total.0, low), _mm256_add_epi32(total.1, high))
        }
    }

    #[inline(always)]
    fn dot_wide(self, acc: Self::V, w: Self::Q, a: i32) -> Self::V {
        let (a, _) = self.splat_i32(a);
        // SAFETY: see the head of the file.
        unsafe {
            if VNNI {
                return (_mm256_dpbusd_avx_epi32(acc.0, w.0, a), _mm256_dpbusd_avx_epi32(acc.1, w.1, a));
            }
            let ones = _mm256_set1_epi16(1);
            let low = _mm256_madd_epi16(_mm256_maddubs_epi16(w.0, a), ones);
            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(w.1, a), ones);
            (_mm256_add_epi32(acc.0, low), _mm256_add_epi32(acc.1, high))
        }
    }

    #[inline(always)]
    fn wide_end(self, total: Self::V, acc: Self::V, factor: Self::V) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe {
            let mut whole = factor;
            if !VNNI {
                // Both halves of a lane are the number; one of them, with its sign, is what is multiplied.
                whole = (_mm256_srai_epi32::<16>(factor.0), _mm256_srai_epi32::<16>(factor.1));
            }
            let low = _mm256_mullo_epi32(acc.0, whole.0);
            let high = _mm256_mullo_epi32(acc.1, whole.1);
            (_mm256_add_epi32(total.0, low), _mm256_add_epi32(total.1, high))
        }
    }

    #[inline(always)]
    fn factors(self, x: &[i8; LANES]) -> Self::V {
        if VNNI {
            return self.widen_i32(x);
        }
        // SAFETY: see the head of the file.
        unsafe {
            // Each number twice, for both pairs of a row.
            let x = _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().cast()));
            let x = _mm256_permute4x64_epi64::<0b11_01_10_00>(x);
            (_mm256_unpacklo_epi16(x, x), _mm256_unpackhi_epi16(x, x))
        }
    }

    #[inline(always)]
    fn mul_factors(self, x: Self::V, by: i16) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe {
            if VNNI {
                let by = _mm256_set1_epi32(i32::from(by));
                return (_mm256_mullo_epi32(x.0, by), _mm256_mullo_epi32(x.1, by));
            }
            let by = _mm256_set1_epi16(by);
            (_mm256_mullo_epi16(x.0, by), _mm256_mullo_epi16(x.1, by))
        }
    }

    #[inline(always)]
    fn abs_factors(self, x: Self::V) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe {
            if VNNI {
                return (_mm256_abs_epi32(x.0), _mm256_abs_epi32(x.1));
            }
            (_mm256_abs_epi16(x.0), _mm256_abs_epi16(x.1))
        }
    }

    #[inline(always)]
    fn full_start(self, start: i32) -> Self::V {
        self.splat_i32(if VNNI { start } else { 0 })
    }

    #[inline(always)]
    fn dot_full(self, acc: Self::V, w: Self::Q, a: i32) -> Self::V {
        if VNNI {
            return self.dot_wide(acc, w, a);
        }
        let (a, _) = self.splat_i32(a);
        // SAFETY: see the head of the file.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let low = _mm256_madd_epi16(signed_pairs(w.0, a), ones);
            let high = _mm256_madd_epi16(signed_pairs(w.1, a), ones);
            (in_order(_mm256_add_epi32(acc.0, low)), in_order(_mm256_add_epi32(acc.1, high)))
        }
    }

    #[inline(always)]
    fn transpose_words(self, rows: &[[u8; 64]; LANES], out: &mut [[u8; 64]; LANES]) {
        // SAFETY: see the head of the file.
        unsafe {
            for (r, k) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let columns = transpose8(load8(rows, 8 * r, 8 * k));
                for i in 0..8 {
                    _mm256_storeu_si256(out[8 * k + i].as_mut_ptr().add(32 * r).cast(), columns[i]);
                }
            }
        }
    }

    #[inline(always)]
    fn no_lanes(self) -> Self::S {
        // SAFETY: see the head of the file.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn no_units(self) -> Self::U {
        // SAFETY: see the head of the file.
        unsafe { [_mm256_setzero_si256(); 8] }
    }

    #[inline(always)]
    fn dot_super<const SIGNED: bool>(
        self,
        codes: &[Self::Q; 4],
        scales: &[i16; 16],
        a: &ActChunk,
    ) -> Self::S {
        // SAFETY: see the head of the file.
        unsafe {
            let scales = _mm256_loadu_si256(scales.as_ptr().cast());
            let both = _mm256_mullo_epi16(scales, _mm256_loadu_si256(a.steps.as_ptr().cast()));
            // Both halves hold all sixteen scales' bytes of their own; a byte shuffle then spreads
            // scale 2u over the lower and 2u + 1 over the upper half.
            let low = _mm256_permute2x128_si256::<0x00>(both, both);
            let high = _mm256_permute2x128_si256::<0x11>(both, both);
            let mut sum = _mm256_setzero_si256();
            for unit in 0..CHUNK / GROUP {
                let half = codes[unit / 2];
                let p = _mm256_maddubs_epi16(if unit % 2 == 0 { half.0 } else { half.1 }, load_unit(a, unit));
                let pick = 4 * (unit % 4) as i16;
                let pick = (pick + 1) << 8 | pick;
                let spread = _mm256_setr_m128i(_mm_set1_epi16(pick), _mm_set1_epi16(pick + 0x202));
                let source = if unit < 4 { low } else { high };
                sum = self.dot_pairs(sum, p, _mm256_shuffle_epi8(source, spread));
            }
            if SIGNED {
                const { assert!(SUPER_OFFSET == 1 << 6) };
                let shift = _mm256_madd_epi16(scales, _mm256_loadu_si256(a.sums.as_ptr().cast()));
                sum = _mm256_sub_epi32(sum, _mm256_slli_epi32::<6>(shift));
            }
            sum
        }
    }

    #[inline(always)]
    fn dot_mins(self, mins: &[i16; 16], a: &ActChunk) -> Self::S {
        // SAFETY: see the head of the file.
        unsafe {
            let mins = _mm256_loadu_si256(mins.as_ptr().cast());
            _mm256_madd_epi16(mins, _mm256_loadu_si256(a.sums.as_ptr().cast()))
        }
    }

    #[inline(always)]
    fn sum_rows(self, x: &[Self::S; LANES]) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe {
            (
                sum_each([x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]]),
                sum_each([x[8], x[9], x[10], x[11], x[12], x[13], x[14], x[15]]),
            )
        }
    }

    #[inline(always)]
    fn dot_units(self, codes: &[Self::Q; 4], a: &ActChunk) -> Self::U {
        // SAFETY: see the head of the file.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut out = [ones; 8];
            for unit in 0..CHUNK / GROUP {
                let (half, a) = (codes[unit / 2], load_unit(a, unit));
                let w = if unit % 2 == 0 { half.0 } else { half.1 };
                out[unit] = if VNNI {
                    _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), w, a)
                } else {
                    _mm256_madd_epi16(full_pairs(w, a), ones)
                };
            }
            out
        }
    }

    #[inline(always)]
    fn sum_units(self, x: &[Self::U; LANES], a: &ActChunk) -> [Self::V; 8] {
        // SAFETY: see the head of the file.
        unsafe {
            let (mut low, mut high) = ([_mm256_setzero_si256(); 8], [_mm256_setzero_si256(); 8]);
            for r in 0..8 {
                low[r] = sum_each(x[r]);
                high[r] = sum_each(x[r + 8]);
            }
            let (low, high) = (transpose8(low), transpose8(high));
            let mut out = [self.splat_i32(0); 8];
            for g in 0..8 {
                // What the codes were shifted up by; without VNNI they met the activations as they are.
                let (start, _) = self.full_start(a.starts32[g]);
                out[g] = (_mm256_add_epi32(low[g], start), _mm256_add_epi32(high[g], start));
            }
            out
        }
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8], at: usize) {
        // SAFETY: a hint, which no address makes fault; the pointer is never read through.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(at).cast());
        }
    }

    #[inline(always)]
    fn twice(self, x: [u8; 8]) -> [i16; 16] {
        // SAFETY: see the head of the file.
        unsafe { twice(x) }
    }

    #[inline(always)]
    fn widen(self, x: [i8; 16]) -> [i16; 16] {
        // SAFETY: see the head of the file.
        unsafe { widen(x) }
    }

    #[inline(always)]
    fn bytes(self, x: &[u8; 64]) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(32).cast())) }
    }

    #[inline(always)]
    fn bytes2(self, low: &[u8; 32], high: &[u8; 32]) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_loadu_si256(low.as_ptr().cast()), _mm256_loadu_si256(high.as_ptr().cast())) }
    }

    #[inline(always)]
    fn nibbles(self, low: &[u8; 16], high: &[u8; 16]) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { (nibbles16(low), nibbles16(high)) }
    }

    #[inline(always)]
    fn words(self, x: [u64; 8]) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe {
            let low = _mm256_set_m128i(pair64(x[2], x[3]), pair64(x[0], x[1]));
            (low, _mm256_set_m128i(pair64(x[6], x[7]), pair64(x[4], x[5])))
        }
    }

    #[inline(always)]
    fn put(self, x: Self::Q, out: &mut [u8; 64]) {
        // SAFETY: see the head of the file.
        unsafe {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), x.0);
            _mm256_storeu_si256(out.as_mut_ptr().add(32).cast(), x.1);
        }
    }

    #[inline(always)]
    fn splat_byte(self, x: u8) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_set1_epi8(x as i8), _mm256_set1_epi8(x as i8)) }
    }

    #[inline(always)]
    fn and(self, a: Self::Q, b: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_and_si256(a.0, b.0), _mm256_and_si256(a.1, b.1)) }
    }

    #[inline(always)]
    fn or(self, a: Self::Q, b: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1)) }
    }

    #[inline(always)]
    fn xor(self, a: Self::Q, b: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_xor_si256(a.0, b.0), _mm256_xor_si256(a.1, b.1)) }
    }

    #[inline(always)]
    fn add(self, a: Self::Q, b: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { (_mm256_add_epi8(a.0, b.0), _mm256_add_epi8(a.1, b.1)) }
    }

    #[inline(always)]
    fn shr<const LOW: u32, const HIGH: u32>(self, x: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { (shift_right(x.0, LOW), shift_right(x.1, HIGH)) }
    }

    #[inline(always)]
    fn shl<const LOW: u32, const HIGH: u32>(self, x: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { (shift_left(x.0, LOW), shift_left(x.1, HIGH)) }
    }

    #[inline(always)]
    fn lookup16(self, table: &[u8; 16], indices: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            (_mm256_shuffle_epi8(table, indices.0), _mm256_shuffle_epi8(table, indices.1))
        }
    }
}
