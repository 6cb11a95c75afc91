//! What the i-quants share: codebooks and signs, unpacked at compile time.
//!
//! Knows: how the packed entries of `grids/tables.rs` become bytes, and that the eighth sign of a group is
//! the parity of the other seven. Does not know: scales or blocks.

use super::bits::spread_bits;
use crate::chunk::SUPER_OFFSET;
use crate::isa::Isa;

mod tables;

pub(crate) use tables::{IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};

/// Eight signs by their seven stored bits: bit `j` set where weight `j` is negative. The eighth makes the
/// number of negative weights even.
pub static SIGNS: [u8; 128] = signs();

/// [`SIGNS`] as byte masks: 127 where the weight is negative, else 0.
static SIGN_MASKS: [[u8; 8]; 128] = sign_masks();

const fn signs() -> [u8; 128] {
    let mut out = [0; 128];
    let mut i = 0;
    while i < 128 {
        out[i] = i as u8 | ((i.count_ones() & 1) << 7) as u8;
        i += 1;
    }
    out
}

const fn sign_masks() -> [[u8; 8]; 128] {
    let signs = signs();
    let mut out = [[0; 8]; 128];
    let mut i = 0;
    while i < 128 * 8 {
        out[i / 8][i % 8] = 127 * (signs[i / 8] >> (i % 8) & 1);
        i += 1;
    }
    out
}

/// Entries of `LEN` bytes from entries of as many level numbers, `bits` wide each.
pub(super) const fn unpack<const LEN: usize, const ENTRIES: usize>(
    packed: &[u16; ENTRIES],
    levels: &[i8],
    bits: usize,
) -> [[i8; LEN]; ENTRIES] {
    let mut out = [[0; LEN]; ENTRIES];
    let mut i = 0;
    while i < ENTRIES * LEN {
        let number = packed[i / LEN] >> (bits * (i % LEN)) & ((1 << bits) - 1);
        out[i / LEN][i % LEN] = levels[number as usize];
        i += 1;
    }
    out
}

/// A codebook with its entries shifted as [`crate::chunk::Weights`] wants them.
pub(super) const fn shift<const LEN: usize, const ENTRIES: usize>(
    grid: &[[i8; LEN]; ENTRIES],
) -> [[u8; LEN]; ENTRIES] {
    let mut out = [[0; LEN]; ENTRIES];
    let mut i = 0;
    while i < ENTRIES * LEN {
        out[i / LEN][i % LEN] = (grid[i / LEN][i % LEN] as u8).wrapping_add(SUPER_OFFSET);
        i += 1;
    }
    out
}

/// The packed entries as two tables of bytes, lower and upper: what [`Isa::lookup256`] takes.
pub(super) const fn split(packed: &[u16; 256]) -> [[u8; 256]; 2] {
    let mut out = [[0; 256]; 2];
    let mut i = 0;
    while i < 256 {
        [out[0][i], out[1][i]] = packed[i].to_le_bytes();
        i += 1;
    }
    out
}

/// The shifted level for every index whose low bits, as many as number the levels, are its number.
pub(super) const fn repeat<const LEVELS: usize>(levels: &[i8; LEVELS]) -> [u8; 64] {
    let period = LEVELS.next_power_of_two();
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        if i % period < LEVELS {
            out[i] = (levels[i % period] as u8) + SUPER_OFFSET;
        }
        i += 1;
    }
    out
}

/// Levels by number; zero where there are fewer than sixteen.
pub(super) const fn levels(levels: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < levels.len() {
        out[i] = levels[i];
        i += 1;
    }
    out
}

/// Shifted levels of both signs, by number.
pub(super) const fn signed(magnitudes: &[i8]) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < magnitudes.len() {
        out[i] = SUPER_OFFSET - magnitudes[i] as u8;
        out[magnitudes.len() + i] = SUPER_OFFSET + magnitudes[i] as u8;
        i += 1;
    }
    out
}

/// Eight shifted codes with signs: bits 0..7 of `number` index [`SIGNS`]. A negative code is 128 minus
/// itself: its complement in seven bits plus one, which cannot carry, because no code is zero.
#[inline(always)]
pub(super) fn apply_signs(codes: u64, number: u64) -> u64 {
    let masks = u64::from_le_bytes(SIGN_MASKS[(number & 127) as usize]);
    (codes ^ masks) + (masks >> 6 & 0x0101_0101_0101_0101)
}

/// As [`apply_signs`], bit `j` set where code `j` is negative.
#[inline(always)]
pub(super) fn apply_sign_bits(codes: u64, signs: u8) -> u64 {
    let ones = spread_bits(signs);
    (codes ^ (ones * 127)) + ones
}

/// `2 s + 1`, where `s` are the nibbles, the lower of each byte first.
#[inline(always)]
pub(super) fn odd_nibbles(bytes: &[u8; 8]) -> [i16; 16] {
    let mut out = [0; 16];
    for s in 0..16 {
        out[s] = i16::from(bytes[s / 2] >> (4 * (s % 2)) & 15) << 1 | 1;
    }
    out
}

/// `2 s + 1`, where `s` is the upper half of each byte.
#[inline(always)]
pub(super) fn odd_scales(bytes: [i16; 16]) -> [i16; 16] {
    let mut out = bytes;
    for s in 0..16 {
        out[s] = bytes[s] >> 3 | 1;
    }
    out
}

/// Sign bits of 256 weights, byte `i` those of weights `8 i .. 8 i + 8`, from eight little-endian u32 whose
/// bits `7 j .. 7 j + 7` number the signs of entry `j`. The u32s are in the lower half of `words`.
#[inline(always)]
pub(super) fn sign_bits<I: Isa>(isa: I, words: I::Q) -> I::Q {
    isa.parity_signs(isa.fields(words, [0, 7, 14, 21, 32, 39, 46, 53]))
}
