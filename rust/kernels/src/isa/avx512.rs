//! AVX-512 (F, BW, DQ, VL) with VNNI: Ice Lake, Zen 4 and later; with VBMI and GFNI, which all of them
//! have, tables of 256 bytes and bit fields are instructions too.
//!
//! SAFETY of every block here: the token exists only where `dispatch.rs` has asked the CPU for the
//! feature list of [`enter`] or [`enter_vbmi`], and each load or store stays inside the fixed-size array
//! it is given. VBMI and GFNI instructions stand behind `if VBMI`.

use super::avx2;
use super::avx2::lanes::{halves, pair64, sum_f32, twice, widen};
use super::scalar::Scalar;
use super::{Isa, LANES, by_scalar};
use crate::chunk::{ActChunk, SUPER_OFFSET};
use crate::dispatch::Op;
use std::arch::x86_64::*;

mod lanes;

use lanes::{
    entries4, even_blocks, fold2, fold4, fold8, interleave4, lower_blocks, odd_blocks, pair, quarter,
    upper_blocks,
};

/// Proof that AVX-512 F, BW, DQ, VL and VNNI exist, and VBMI and GFNI where `VBMI` says so. Made by
/// `dispatch.rs` only.
#[derive(Debug, Clone, Copy)]
pub struct Avx512<const VBMI: bool>(());

impl<const VBMI: bool> Avx512<VBMI> {
    /// # Safety
    /// The CPU must have the features of [`enter`], or of [`enter_vbmi`] if `VBMI`.
    pub(crate) unsafe fn new_unchecked() -> Self {
        Self(())
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

/// Whether this CPU has the features of [`enter_vbmi`].
pub(crate) fn detected_vbmi() -> bool {
    detected() && is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("gfni")
}

/// Runs `op` compiled with the features of this level.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn enter<O: Op>(isa: Avx512<false>, op: O) -> O::Out {
    op.run(isa)
}

/// Runs `op` compiled with the features of this level.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,gfni")]
pub(crate) fn enter_vbmi<O: Op>(isa: Avx512<true>, op: O) -> O::Out {
    op.run(isa)
}

impl<const VBMI: bool> Isa for Avx512<VBMI> {
    type F = __m512;
    type V = __m512i;
    type D = __m512i;
    type Q = __m512i;
    type S = __m512i;
    type U = [__m512i; 4];
    const WIDE: bool = true;
    const FLOAT_COLUMNS: usize = 4;
    const TILE: usize = 8;
    const NARROW: bool = false;
    const PREFETCH: bool = false;
    const BYTE_PERMUTE: bool = VBMI;

    // Not inlined, or LLVM would make one function of all of them; on a function with target features of its own
    // the compiler does not heed the attribute.
    #[inline(never)]
    fn enter<O: Op>(self, op: O) -> O::Out {
        // SAFETY: this token proves the features of its own level.
        unsafe { if VBMI { enter_vbmi(Avx512::<true>(()), op) } else { enter(Avx512::<false>(()), op) } }
    }

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
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), x);
        }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn plus(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn minus(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn least(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn most(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn where_less(self, a: Self::F, b: Self::F, then: Self::F, otherwise: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), otherwise, then) }
    }

    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        // SAFETY: see the head of the file.
        unsafe { sum_f32(_mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x))) }
    }

    #[inline(always)]
    fn sum_each(self, x: &[Self::F; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe {
            // Each addition meets lanes of every row at the distance that its turn in the order asks for. Row
            // 4 b + j goes by way of register j into block b.
            let mut four = [_mm512_setzero_ps(); 4];
            for j in 0..4 {
                let (a, b) = (fold8(x[j], x[4 + j]), fold8(x[8 + j], x[12 + j]));
                let (low, high) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                four[j] = _mm512_add_ps(low, high);
            }
            let (a, b) = (fold2(four[0], four[1]), fold2(four[2], four[3]));
            _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b))
        }
    }

    #[inline(always)]
    fn halves(self, x: [[u8; 2]; 8]) -> [f32; 8] {
        // SAFETY: see the head of the file.
        unsafe { halves(x) }
    }

    #[inline(always)]
    fn load_half(self, x: &[u16; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_brain(self, x: &[u16; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe {
            let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
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
            let nan = _mm256_cmpeq_epi16_mask(_mm256_and_si256(bits, largest), largest);
            let bits = _mm256_mask_mov_epi16(bits, nan, _mm256_set1_epi16(0x7e00));
            _mm512_mul_ps(_mm512_cvtph_ps(bits), _mm512_set1_ps(256.0))
        }
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
    fn transpose_groups(self, x: &[[f32; 8]; LANES]) -> [Self::F; 8] {
        // SAFETY: see the head of the file.
        unsafe {
            // Rows i and i + 4 in one register, so that blocks come out in row order.
            let u = interleave4([pair(x, 0), pair(x, 1), pair(x, 2), pair(x, 3)]);
            let v = interleave4([pair(x, 8), pair(x, 9), pair(x, 10), pair(x, 11)]);
            let mut out = [_mm512_setzero_ps(); 8];
            for c in 0..4 {
                out[c] = _mm512_castsi512_ps(even_blocks(u[c], v[c]));
                out[4 + c] = _mm512_castsi512_ps(odd_blocks(u[c], v[c]));
            }
            out
        }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    fn to_float(self, x: Self::V) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn load_i32(self, x: &[i32; LANES]) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_i32(self, x: Self::V, out: &mut [i32; LANES]) {
        // SAFETY: see the head of the file.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn widen_i32(self, x: &[i8; LANES]) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn widen_pairs(self, x: &[i8; 2 * LANES]) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn add_i32(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn dot2(self, acc: Self::V, w: Self::V, a: i32) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { _mm512_dpwssd_epi32(acc, w, _mm512_set1_epi32(a)) }
    }

    #[inline(always)]
    fn dot_zero(self) -> Self::D {
        self.splat_i32(0)
    }

    #[inline(always)]
    fn dot_start(self, a: &ActChunk, first: usize, words: usize) -> Self::D {
        self.splat_i32(a.start(first, words))
    }

    #[inline(always)]
    fn dot(self, acc: Self::D, w: Self::Q, a: i32) -> Self::D {
        // SAFETY: see the head of the file.
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a)) }
    }

    #[inline(always)]
    fn dot_sum(self, acc: Self::D) -> Self::V {
        acc
    }

    #[inline(always)]
    fn dot_end(self, total: Self::V, acc: Self::D, factor: Self::V) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { _mm512_add_epi32(total, _mm512_mullo_epi32(acc, factor)) }
    }

    #[inline(always)]
    fn dot_wide(self, acc: Self::V, w: Self::Q, a: i32) -> Self::V {
        self.dot(acc, w, a)
    }

    #[inline(always)]
    fn wide_end(self, total: Self::V, acc: Self::V, factor: Self::V) -> Self::V {
        self.dot_end(total, acc, factor)
    }

    #[inline(always)]
    fn factors(self, x: &[i8; LANES]) -> Self::V {
        self.widen_i32(x)
    }

    #[inline(always)]
    fn mul_factors(self, x: Self::V, by: i16) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { _mm512_mullo_epi32(x, _mm512_set1_epi32(i32::from(by))) }
    }

    #[inline(always)]
    fn abs_factors(self, x: Self::V) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { _mm512_abs_epi32(x) }
    }

    #[inline(always)]
    fn full_start(self, start: i32) -> Self::V {
        self.splat_i32(start)
    }

    #[inline(always)]
    fn dot_full(self, acc: Self::V, w: Self::Q, a: i32) -> Self::V {
        self.dot(acc, w, a)
    }

    #[inline(always)]
    fn transpose_words(self, rows: &[[u8; 64]; LANES], out: &mut [[u8; 64]; LANES]) {
        // SAFETY: see the head of the file.
        unsafe {
            let mut x = [[_mm512_setzero_si512(); 4]; 4];
            for i in 0..4 {
                let r = 4 * i;
                x[i] = interleave4([
                    self.bytes(&rows[r]),
                    self.bytes(&rows[r + 1]),
                    self.bytes(&rows[r + 2]),
                    self.bytes(&rows[r + 3]),
                ]);
            }
            for c in 0..4 {
                // Blocks of four registers, transposed.
                let (a, b) = (lower_blocks(x[0][c], x[1][c]), upper_blocks(x[0][c], x[1][c]));
                let (d, e) = (lower_blocks(x[2][c], x[3][c]), upper_blocks(x[2][c], x[3][c]));
                self.put(even_blocks(a, d), &mut out[c]);
                self.put(odd_blocks(a, d), &mut out[4 + c]);
                self.put(even_blocks(b, e), &mut out[8 + c]);
                self.put(odd_blocks(b, e), &mut out[12 + c]);
            }
        }
    }

    #[inline(always)]
    fn no_lanes(self) -> Self::S {
        // SAFETY: see the head of the file.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn no_units(self) -> Self::U {
        // SAFETY: see the head of the file.
        unsafe { [_mm512_setzero_si512(); 4] }
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
            let both = _mm512_castsi256_si512(both);
            let mut sum = _mm512_setzero_si512();
            for q in 0..4 {
                // Sixteen codes are eight pairs: each scale serves eight lanes.
                let lane = _mm512_set_epi64(
                    0x3_0003_0003_0003,
                    0x3_0003_0003_0003,
                    0x2_0002_0002_0002,
                    0x2_0002_0002_0002,
                    0x1_0001_0001_0001,
                    0x1_0001_0001_0001,
                    0,
                    0,
                );
                let lane = _mm512_add_epi16(lane, _mm512_set1_epi16(4 * q as i16));
                // Pairs of products stay within 2 * 127 * 127 < 2^15.
                let pairs = _mm512_maddubs_epi16(codes[q], quarter(a, q));
                sum = _mm512_dpwssd_epi32(sum, pairs, _mm512_permutexvar_epi16(lane, both));
            }
            if SIGNED {
                const { assert!(SUPER_OFFSET == 1 << 6) };
                let shift = _mm256_madd_epi16(scales, _mm256_loadu_si256(a.sums.as_ptr().cast()));
                sum = _mm512_sub_epi32(sum, _mm512_zextsi256_si512(_mm256_slli_epi32::<6>(shift)));
            }
            sum
        }
    }

    #[inline(always)]
    fn dot_mins(self, mins: &[i16; 16], a: &ActChunk) -> Self::S {
        // SAFETY: see the head of the file.
        unsafe {
            let mins = _mm256_loadu_si256(mins.as_ptr().cast());
            _mm512_zextsi256_si512(_mm256_madd_epi16(mins, _mm256_loadu_si256(a.sums.as_ptr().cast())))
        }
    }

    #[inline(always)]
    fn sum_rows(self, x: &[Self::S; LANES]) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe {
            let (a, b) = (fold4([x[0], x[1], x[2], x[3]]), fold4([x[4], x[5], x[6], x[7]]));
            let (c, d) = (fold4([x[8], x[9], x[10], x[11]]), fold4([x[12], x[13], x[14], x[15]]));
            let low = _mm512_add_epi32(lower_blocks(a, b), upper_blocks(a, b));
            let high = _mm512_add_epi32(lower_blocks(c, d), upper_blocks(c, d));
            _mm512_add_epi32(even_blocks(low, high), odd_blocks(low, high))
        }
    }

    #[inline(always)]
    fn dot_units(self, codes: &[Self::Q; 4], a: &ActChunk) -> Self::U {
        // SAFETY: see the head of the file.
        unsafe {
            let zero = _mm512_setzero_si512();
            let mut out = [zero; 4];
            for q in 0..4 {
                out[q] = _mm512_dpbusd_epi32(zero, codes[q], quarter(a, q));
            }
            out
        }
    }

    #[inline(always)]
    fn sum_units(self, x: &[Self::U; LANES], act: &ActChunk) -> [Self::V; 8] {
        // SAFETY: see the head of the file.
        unsafe {
            let mut out = [_mm512_setzero_si512(); 8];
            for q in 0..4 {
                // Blocks 0 and 1 belong to the first group of the quarter, 2 and 3 to the second.
                let mut folded = [_mm512_setzero_si512(); 4];
                for i in 0..4 {
                    folded[i] = fold4([x[4 * i][q], x[4 * i + 1][q], x[4 * i + 2][q], x[4 * i + 3][q]]);
                }
                let [a, b, c, d] = folded;
                let low = _mm512_add_epi32(even_blocks(a, b), odd_blocks(a, b));
                let high = _mm512_add_epi32(even_blocks(c, d), odd_blocks(c, d));
                let (first, second) =
                    (self.splat_i32(act.starts32[2 * q]), self.splat_i32(act.starts32[2 * q + 1]));
                out[2 * q] = _mm512_add_epi32(even_blocks(low, high), first);
                out[2 * q + 1] = _mm512_add_epi32(odd_blocks(low, high), second);
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
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn bytes2(self, low: &[u8; 32], high: &[u8; 32]) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(low.as_ptr().cast()));
            _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(high.as_ptr().cast()))
        }
    }

    #[inline(always)]
    fn nibbles(self, low: &[u8; 16], high: &[u8; 16]) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe {
            let low = _mm256_castsi128_si256(_mm_loadu_si128(low.as_ptr().cast()));
            let x = _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(high.as_ptr().cast()));
            let twice = _mm512_permutexvar_epi64(
                _mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3),
                _mm512_castsi256_si512(x),
            );
            let shift = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
            _mm512_and_si512(_mm512_srlv_epi64(twice, shift), _mm512_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn words(self, x: [u64; 8]) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe {
            let (a, b) = (pair64(x[0], x[1]), pair64(x[2], x[3]));
            let (c, d) = (pair64(x[4], x[5]), pair64(x[6], x[7]));
            let (low, high) = (_mm256_set_m128i(b, a), _mm256_set_m128i(d, c));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }

    #[inline(always)]
    fn grid(self, table: &[[u8; 8]; 2048], low: &[u8; 32], high: &[u8; 16]) -> [Self::Q; 4] {
        // SAFETY: see the head of the file; numbers have eleven bits, eight from a byte and three masked.
        unsafe {
            const FOUR: i64 = 0x1_0001_0001_0001;
            let high = _mm512_castsi128_si512(_mm_loadu_si128(high.as_ptr().cast()));
            let lane = _mm512_setr_epi64(0, FOUR, 2 * FOUR, 3 * FOUR, 4 * FOUR, 5 * FOUR, 6 * FOUR, 7 * FOUR);
            let spread = _mm512_permutexvar_epi16(lane, high);
            let field = _mm512_srlv_epi16(spread, _mm512_set1_epi64(0x9_0006_0003_0000));
            let field = _mm512_and_si512(_mm512_slli_epi16::<8>(field), _mm512_set1_epi16(0x700));
            let low = _mm512_cvtepu8_epi16(_mm256_loadu_si256(low.as_ptr().cast()));
            let at = _mm512_or_si512(field, low);
            let mut out = [_mm512_setzero_si512(); 4];
            for q in 0..4 {
                let at = match q {
                    0 => _mm512_castsi512_si128(at),
                    1 => _mm512_extracti32x4_epi32::<1>(at),
                    2 => _mm512_extracti32x4_epi32::<2>(at),
                    _ => _mm512_extracti32x4_epi32::<3>(at),
                };
                let low = entries4(table, _mm_cvtsi128_si64(at) as u64);
                let high = entries4(table, _mm_extract_epi64::<1>(at) as u64);
                out[q] = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            }
            out
        }
    }

    #[inline(always)]
    fn put(self, x: Self::Q, out: &mut [u8; 64]) {
        // SAFETY: see the head of the file.
        unsafe {
            _mm512_storeu_si512(out.as_mut_ptr().cast(), x);
        }
    }

    #[inline(always)]
    fn splat_byte(self, x: u8) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { _mm512_set1_epi8(x as i8) }
    }

    #[inline(always)]
    fn and(self, a: Self::Q, b: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    fn or(self, a: Self::Q, b: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn xor(self, a: Self::Q, b: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { _mm512_xor_si512(a, b) }
    }

    #[inline(always)]
    fn add(self, a: Self::Q, b: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { _mm512_add_epi8(a, b) }
    }

    #[inline(always)]
    fn shr<const LOW: u32, const HIGH: u32>(self, x: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe {
            let (l, h) = (i64::from(LOW), i64::from(HIGH));
            let moved = _mm512_srlv_epi64(x, _mm512_setr_epi64(l, l, l, l, h, h, h, h));
            let (low, high) =
                (_mm256_set1_epi8((0xffu8 >> LOW) as i8), _mm256_set1_epi8((0xffu8 >> HIGH) as i8));
            _mm512_and_si512(moved, _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high))
        }
    }

    #[inline(always)]
    fn shl<const LOW: u32, const HIGH: u32>(self, x: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe {
            let (l, h) = (i64::from(LOW), i64::from(HIGH));
            let moved = _mm512_sllv_epi64(x, _mm512_setr_epi64(l, l, l, l, h, h, h, h));
            let (low, high) =
                (_mm256_set1_epi8((0xffu8 << LOW) as i8), _mm256_set1_epi8((0xffu8 << HIGH) as i8));
            _mm512_and_si512(moved, _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high))
        }
    }

    #[inline(always)]
    fn lookup16(self, table: &[u8; 16], indices: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, indices)
        }
    }

    #[inline(always)]
    fn lookup256(self, table: &[u8; 256], indices: Self::Q) -> Self::Q {
        if !VBMI {
            return by_scalar(self, indices, |x| Scalar.lookup256(table, x));
        }
        // SAFETY: see the head of the file.
        unsafe {
            let table: *const u8 = table.as_ptr();
            let (a, b) = (_mm512_loadu_si512(table.cast()), _mm512_loadu_si512(table.add(64).cast()));
            let (c, d) =
                (_mm512_loadu_si512(table.add(128).cast()), _mm512_loadu_si512(table.add(192).cast()));
            let low = _mm512_permutex2var_epi8(a, indices, b);
            let high = _mm512_permutex2var_epi8(c, indices, d);
            _mm512_mask_blend_epi8(_mm512_movepi8_mask(indices), low, high)
        }
    }

    #[inline(always)]
    fn lookup64(self, table: &[u8; 64], indices: Self::Q) -> Self::Q {
        if !VBMI {
            return by_scalar(self, indices, |x| Scalar.lookup64(table, x));
        }
        // SAFETY: see the head of the file.
        unsafe { _mm512_permutexvar_epi8(indices, self.bytes(table)) }
    }

    #[inline(always)]
    fn spread(self, x: Self::Q, at: &[u8; 8]) -> [i16; 16] {
        if !VBMI {
            let mut bytes = [0; 64];
            self.put(x, &mut bytes);
            return Scalar.spread(bytes, at);
        }
        let mut lanes = [0; 64];
        for i in 0..16 {
            lanes[2 * i] = at[i / 2];
        }
        let mut out = [0; 16];
        // SAFETY: see the head of the file; 32 bytes are stored into as many.
        unsafe {
            let bytes = _mm512_maskz_permutexvar_epi8(0x5555_5555, self.bytes(&lanes), x);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_castsi512_si256(bytes));
        }
        out
    }

    #[inline(always)]
    fn pick(self, low: Self::Q, high: Self::Q, at: &[u8; 64]) -> Self::Q {
        if !VBMI {
            return {
                let mut bytes = [[0; 64]; 2];
                self.put(low, &mut bytes[0]);
                self.put(high, &mut bytes[1]);
                self.bytes(&Scalar.pick(bytes[0], bytes[1], at))
            };
        }
        // SAFETY: see the head of the file.
        unsafe { _mm512_permutex2var_epi8(low, self.bytes(at), high) }
    }

    #[inline(always)]
    fn fields(self, words: Self::Q, at: [u8; 8]) -> Self::Q {
        if !VBMI {
            return by_scalar(self, words, |x| Scalar.fields(x, at));
        }
        // SAFETY: see the head of the file.
        unsafe { _mm512_multishift_epi64_epi8(_mm512_set1_epi64(i64::from_le_bytes(at)), words) }
    }

    #[inline(always)]
    fn parity_signs(self, x: Self::Q) -> Self::Q {
        if !VBMI {
            return by_scalar(self, x, |x| Scalar.parity_signs(x));
        }
        // SAFETY: see the head of the file.
        unsafe {
            // One byte per output bit, bit 0 in the top byte: bits 0..7 copied, bit 7 the sum of the others.
            _mm512_gf2p8affine_epi64_epi8::<0>(x, _mm512_set1_epi64(0x0102_0408_1020_407f))
        }
    }

    #[inline(always)]
    fn negate(self, x: Self::Q, offset: u8, signs: Self::Q, quarter: usize) -> Self::Q {
        if !VBMI {
            let mut bytes = [[0; 64]; 2];
            self.put(x, &mut bytes[0]);
            self.put(signs, &mut bytes[1]);
            return self.bytes(&Scalar.negate(bytes[0], offset, bytes[1], quarter));
        }
        // SAFETY: see the head of the file.
        unsafe {
            // Each byte of signs eight times, then one bit of it for each code.
            let word = _mm512_set1_epi64(0x0101_0101_0101_0101 * 8 * quarter as i64);
            const EIGHT: i64 = 0x0101_0101_0101_0101;
            let lane =
                _mm512_setr_epi64(0, EIGHT, 2 * EIGHT, 3 * EIGHT, 4 * EIGHT, 5 * EIGHT, 6 * EIGHT, 7 * EIGHT);
            let bytes = _mm512_permutexvar_epi8(_mm512_add_epi8(lane, word), signs);
            let negative = _mm512_test_epi8_mask(bytes, _mm512_set1_epi64(0x8040_2010_0804_0201_u64 as i64));
            _mm512_mask_sub_epi8(x, negative, _mm512_set1_epi8(offset.wrapping_mul(2) as i8), x)
        }
    }
}
