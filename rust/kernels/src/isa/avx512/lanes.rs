//! What several AVX-512 primitives are made of: moving lanes about and adding them up.
//!
//! SAFETY of every block here: as in `avx512.rs`; each function says what its caller must hold.

use crate::chunk::ActChunk;
use crate::isa::LANES;
use std::arch::x86_64::*;

/// The 64 activation codes of one quarter of a chunk.
/// # Safety
/// The CPU must have AVX-512: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn quarter(a: &ActChunk, quarter: usize) -> __m512i {
    let quarter: &[i8; 64] = a.codes[quarter * 64..][..64].try_into().expect("four quarters of 64");
    // SAFETY: 64 bytes are readable behind the reference.
    unsafe { _mm512_loadu_si512(quarter.as_ptr().cast()) }
}

/// Four rows' lanes, summed pairwise so that each 128 bits hold a partial sum of every row.
/// # Safety
/// The CPU must have AVX-512: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn fold4(x: [__m512i; 4]) -> __m512i {
    // SAFETY: register operations only; AVX-512 by the caller's token.
    unsafe {
        let (a, b) = (_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
        let (c, d) = (_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
        let (low, high) = (_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
        _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high))
    }
}

/// Words of four rows: result `c`, 128-bit block `b` holds word `4 b + c` of each.
/// # Safety
/// The CPU must have AVX-512: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn interleave4(x: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: register operations only; AVX-512 by the caller's token.
    unsafe {
        let (a, b) = (_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
        let (c, d) = (_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
        [
            _mm512_unpacklo_epi64(a, c),
            _mm512_unpackhi_epi64(a, c),
            _mm512_unpacklo_epi64(b, d),
            _mm512_unpackhi_epi64(b, d),
        ]
    }
}

/// The lower two 128-bit blocks of `a`, then those of `b`.
/// # Safety
/// The CPU must have AVX-512: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn lower_blocks(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: register operations only; AVX-512 by the caller's token.
    unsafe { _mm512_shuffle_i32x4::<0x44>(a, b) }
}

/// The upper two 128-bit blocks of `a`, then those of `b`.
/// # Safety
/// The CPU must have AVX-512: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn upper_blocks(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: register operations only; AVX-512 by the caller's token.
    unsafe { _mm512_shuffle_i32x4::<0xee>(a, b) }
}

/// 128-bit blocks 0 and 2 of `a`, then those of `b`.
/// # Safety
/// The CPU must have AVX-512: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn even_blocks(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: register operations only; AVX-512 by the caller's token.
    unsafe { _mm512_shuffle_i32x4::<0x88>(a, b) }
}

/// 128-bit blocks 1 and 3 of `a`, then those of `b`.
/// # Safety
/// The CPU must have AVX-512: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn odd_blocks(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: register operations only; AVX-512 by the caller's token.
    unsafe { _mm512_shuffle_i32x4::<0xdd>(a, b) }
}

/// Four entries of a table, numbered by the four 16-bit parts of `at`.
/// # Safety
/// The CPU must have AVX-512: the caller holds the level's token. The numbers must be below 2048.
#[inline(always)]
pub(super) unsafe fn entries4(table: &[[u8; 8]; 2048], at: u64) -> __m256i {
    let mut at = at;
    // SAFETY: no instruction at all. It keeps the four numbers in one general register: taken out of the vector
    // one by one they would cost more than the lookups.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) at, options(pure, nomem, nostack, preserves_flags)) };
    let entry = |shift: u32| table.as_ptr().wrapping_add((at >> shift) as u16 as usize);
    // SAFETY: the numbers are within the table, by the caller's promise.
    unsafe {
        let low = _mm_castsi128_pd(_mm_loadl_epi64(entry(0).cast()));
        let high = _mm_castsi128_pd(_mm_loadl_epi64(entry(32).cast()));
        let low = _mm_loadh_pd(low, entry(16).cast());
        let high = _mm_loadh_pd(high, entry(48).cast());
        _mm256_castpd_si256(_mm256_set_m128d(high, low))
    }
}

/// Lanes `i` and `i + 8` added up: those of `a`, then those of `b`.
/// # Safety
/// The CPU must have AVX-512: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn fold8(a: __m512, b: __m512) -> __m512 {
    // SAFETY: register operations only; AVX-512 by the caller's token.
    unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b)) }
}

/// Lanes `i` and `i + 2` of each 128-bit block added up: those of `a`, then those of `b`.
/// # Safety
/// The CPU must have AVX-512: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn fold2(a: __m512, b: __m512) -> __m512 {
    // SAFETY: register operations only; AVX-512 by the caller's token.
    unsafe {
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    }
}

/// Row `r` and row `r + 4`.
/// # Safety
/// The CPU must have AVX-512: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn pair(x: &[[f32; 8]; LANES], r: usize) -> __m512i {
    // SAFETY: 32 bytes are readable behind each row.
    unsafe {
        let low = _mm512_castsi256_si512(_mm256_loadu_si256(x[r].as_ptr().cast()));
        _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(x[r + 4].as_ptr().cast()))
    }
}
