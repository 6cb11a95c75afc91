//! What formats share: bits and fields of a few words spread to bytes, and the E2M1 levels.
//!
//! Knows no format. Words, not vectors: every CPU has them, and rows are decoded where speed is not at stake
//! (`repack.rs` has the layout that is fast).

use crate::chunk::GROUPED_OFFSET;
use crate::isa::Isa;

/// Twice the values of E2M1 (OCP Microscaling Formats 1.0): sign, two bits of exponent, one of mantissa.
pub const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// [`E2M1`] as decoding wants it.
pub(super) const E2M1_SHIFTED: [u8; 16] = shifted(&E2M1);

/// Levels as codes of [`crate::Family::Grouped`].
pub(super) const fn shifted(levels: &[i8; 16]) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (levels[i] as u8).wrapping_add(GROUPED_OFFSET);
        i += 1;
    }
    out
}

/// The eight bits of `x`, the lowest first, as bytes.
#[inline(always)]
pub(super) fn spread_bits(x: u8) -> u64 {
    let each = (u64::from(x) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
    // Nothing carries: a byte is at most 128.
    (each + 0x7f7f_7f7f_7f7f_7f7f) >> 7 & 0x0101_0101_0101_0101
}

/// The eight two-bit fields of `x`, the lowest first, as bytes.
#[inline(always)]
pub(super) fn spread_pairs(x: u16) -> u64 {
    let x = u64::from(x);
    let x = (x | x << 24) & 0x0000_00ff_0000_00ff;
    let x = (x | x << 12) & 0x000f_000f_000f_000f;
    (x | x << 6) & 0x0303_0303_0303_0303
}

/// 64 bits, those of each byte from the lowest, as bytes.
#[inline(always)]
pub(super) fn bits<I: Isa>(isa: I, x: &[u8; 8]) -> I::Q {
    let mut words = [0; 8];
    for i in 0..8 {
        words[i] = spread_bits(x[i]);
    }
    isa.words(words)
}

/// 64 two-bit fields, those of each byte from the lowest, as bytes.
#[inline(always)]
pub(super) fn pairs<I: Isa>(isa: I, x: &[u8; 16]) -> I::Q {
    let halves = x.as_chunks::<2>().0;
    let mut words = [0; 8];
    for i in 0..8 {
        words[i] = spread_pairs(u16::from_le_bytes(halves[i]));
    }
    isa.words(words)
}
