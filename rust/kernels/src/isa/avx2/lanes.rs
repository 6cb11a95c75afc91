//! What several AVX2 primitives are made of: moving lanes about and adding them up.
//!
//! SAFETY of every block here: as in `avx2.rs`; each function says what its caller must hold.

use crate::chunk::{ActChunk, GROUP};
use crate::isa::LANES;
use std::arch::x86_64::*;

/// Pair sums of 32 products as sixteen i16. They cannot saturate: activations stay within +-127, so a pair is at most
/// 2 * 128 * 127 = 32512.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn signed_pairs(w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe {
        // The multiplier wants one unsigned operand: move the weight's sign to the activation.
        _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w))
    }
}

/// [`signed_pairs`] for weights shifted up by 128.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn full_pairs(w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe { signed_pairs(_mm256_xor_si256(w, _mm256_set1_epi8(-128)), a) }
}

/// `x`, by way of no instruction: the sums of a tile are added up in the order in which they are written. The compiler
/// prefers column after column, and keeps all codes of a tile on the stack for it.
// Not `inline(always)`, which may not stand beside a target feature: inlined like the intrinsics, which are the same.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn in_order(mut x: __m256i) -> __m256i {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) x, options(pure, nomem, nostack, preserves_flags)) };
    x
}

/// The 32 activation codes of unit `unit`.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn load_unit(a: &ActChunk, unit: usize) -> __m256i {
    let unit: &[i8; GROUP] = a.codes[unit * GROUP..][..GROUP].try_into().expect("eight units of 32");
    // SAFETY: 32 bytes are readable behind the reference.
    unsafe { _mm256_loadu_si256(unit.as_ptr().cast()) }
}

/// Words of four rows: result `c`, 128-bit half `h` holds word `4 h + c` of each.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn interleave4(a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> [__m256i; 4] {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe {
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (ab2, cd2) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab2, cd2),
            _mm256_unpackhi_epi64(ab2, cd2),
        ]
    }
}

/// Columns of eight rows of eight 4-byte words.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn transpose8(x: [__m256i; 8]) -> [__m256i; 8] {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe {
        // Within each half: words of four rows.
        let u = interleave4(x[0], x[1], x[2], x[3]);
        let v = interleave4(x[4], x[5], x[6], x[7]);
        let mut out = x;
        for i in 0..4 {
            out[i] = _mm256_permute2x128_si256::<0x20>(u[i], v[i]);
            out[4 + i] = _mm256_permute2x128_si256::<0x31>(u[i], v[i]);
        }
        out
    }
}

/// Lane sums of eight registers, in order: a tree of pairwise adds.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn sum_each(x: [__m256i; 8]) -> __m256i {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe {
        let a = _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
        let b = _mm256_hadd_epi32(_mm256_hadd_epi32(x[4], x[5]), _mm256_hadd_epi32(x[6], x[7]));
        let low = _mm256_permute2x128_si256::<0x20>(a, b);
        let high = _mm256_permute2x128_si256::<0x31>(a, b);
        _mm256_add_epi32(low, high)
    }
}

/// Sum of eight f32 lanes in the order `i + 4`, `i + 2`, `i + 1`.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(in crate::isa) unsafe fn sum_f32(x: __m256) -> f32 {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        let x = _mm_add_ss(x, _mm_movehdup_ps(x));
        _mm_cvtss_f32(x)
    }
}

/// Lane sums of eight rows from `first`, each in the order `i + 8`, `i + 4`, `i + 2`, `i + 1`.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn sum8_f32(x: &[(__m256, __m256); LANES], first: usize) -> __m256 {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe {
        // Row 4 h + j goes by way of register j into half h.
        let mut four = [_mm256_setzero_ps(); 4];
        for j in 0..4 {
            let (a, b) = (x[first + j], x[first + 4 + j]);
            let (a, b) = (_mm256_add_ps(a.0, a.1), _mm256_add_ps(b.0, b.1));
            let (low, high) = (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            four[j] = _mm256_add_ps(low, high);
        }
        let mut two = [_mm256_setzero_ps(); 2];
        for j in 0..2 {
            let (a, b) = (_mm256_castps_pd(four[2 * j]), _mm256_castps_pd(four[2 * j + 1]));
            let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
            two[j] = _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
        }
        let (low, high) =
            (_mm256_shuffle_ps::<0x88>(two[0], two[1]), _mm256_shuffle_ps::<0xdd>(two[0], two[1]));
        _mm256_add_ps(low, high)
    }
}

/// Two 64-bit words. By way of vector loads where they come from memory.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(in crate::isa) unsafe fn pair64(low: u64, high: u64) -> __m128i {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe { _mm_unpacklo_epi64(_mm_cvtsi64_si128(low as i64), _mm_cvtsi64_si128(high as i64)) }
}

/// Eight rows from `first`, the words from `word`.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn load8<T, const N: usize>(
    rows: &[[T; N]; LANES],
    first: usize,
    word: usize,
) -> [__m256i; 8] {
    assert!(size_of::<[T; N]>() >= 4 * word + 32 && first <= 8);
    // SAFETY: each row has 32 bytes from its word `word`, as asserted.
    unsafe {
        let mut out = [_mm256_setzero_si256(); 8];
        for i in 0..8 {
            out[i] = _mm256_loadu_si256(rows[first + i].as_ptr().cast::<i32>().add(word).cast());
        }
        out
    }
}

/// Each byte of a half, shifted right, zeros coming in.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn shift_right(x: __m256i, n: u32) -> __m256i {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe {
        let moved = _mm256_srl_epi16(x, _mm_cvtsi32_si128(n as i32));
        _mm256_and_si256(moved, _mm256_set1_epi8((0xffu8 >> n) as i8))
    }
}

/// Each byte of a half, shifted left, zeros coming in.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn shift_left(x: __m256i, n: u32) -> __m256i {
    // SAFETY: register operations only; AVX2 by the caller's token.
    unsafe {
        let moved = _mm256_sll_epi16(x, _mm_cvtsi32_si128(n as i32));
        _mm256_and_si256(moved, _mm256_set1_epi8((0xffu8 << n) as i8))
    }
}

/// Low nibbles of 16 bytes, then their high nibbles.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn nibbles16(x: &[u8; 16]) -> __m256i {
    // SAFETY: 16 bytes are readable behind the reference.
    unsafe {
        let x = _mm_loadu_si128(x.as_ptr().cast());
        _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(x), x), _mm256_set1_epi8(15))
    }
}

/// Each byte twice, widened.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(in crate::isa) unsafe fn twice(x: [u8; 8]) -> [i16; 16] {
    let mut out = [0; 16];
    // SAFETY: a store of 32 bytes into as many.
    unsafe {
        let x = _mm_cvtsi64_si128(i64::from_le_bytes(x));
        _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, x)));
    }
    out
}

/// Each byte, widened.
/// # Safety
/// The CPU must have AVX2: the caller holds the level's token.
#[inline(always)]
pub(in crate::isa) unsafe fn widen(x: [i8; 16]) -> [i16; 16] {
    let mut out = [0; 16];
    // SAFETY: a load of 16 bytes and a store of 32, each the size of its array.
    unsafe {
        let x = _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().cast()));
        _mm256_storeu_si256(out.as_mut_ptr().cast(), x);
    }
    out
}

/// Eight f16 to f32.
/// # Safety
/// The CPU must have F16C: the caller holds the level's token.
#[inline(always)]
pub(in crate::isa) unsafe fn halves(x: [[u8; 2]; 8]) -> [f32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: a load of 16 bytes, a store of 32, each the size of its array.
    unsafe {
        let x = _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast()));
        _mm256_storeu_ps(out.as_mut_ptr(), x);
    }
    out
}
