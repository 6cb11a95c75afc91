//! What the i-quants share: codebooks and signs, unpacked at compile time.
//!
//! Knows: how the packed entries of `grids/tables.rs` become bytes, and that the eighth sign of a group is
//! the parity of the other seven. Does not know: scales or blocks.

mod tables;

pub(crate) use tables::{IQ1_S, IQ2_XXS, IQ3_XXS};

/// Eight signs by their seven stored bits: bit `j` set where weight `j` is negative. The eighth makes the
/// number of negative weights even.
pub static SIGNS: [u8; 128] = signs();

/// [`SIGNS`] as byte masks: -1 where the weight is negative, else 0.
pub(super) static SIGN_MASKS: [[i8; 8]; 128] = sign_masks();

const fn signs() -> [u8; 128] {
    let mut out = [0; 128];
    let mut i = 0;
    while i < 128 {
        out[i] = i as u8 | ((i.count_ones() & 1) << 7) as u8;
        i += 1;
    }
    out
}

const fn sign_masks() -> [[i8; 8]; 128] {
    let signs = signs();
    let mut out = [[0; 8]; 128];
    let mut i = 0;
    while i < 128 * 8 {
        out[i / 8][i % 8] = -((signs[i / 8] >> (i % 8) & 1) as i8);
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

/// `-code` where the mask is -1, `code` where it is 0, for eight positive codes at once. Each byte is
/// complemented and gets one added, which cannot carry into the next: only a zero code would.
#[inline(always)]
pub(super) fn apply_signs(codes: [i8; 8], masks: [i8; 8]) -> [i8; 8] {
    let (codes, masks): (u64, u64) = (bytemuck::cast(codes), bytemuck::cast(masks));
    bytemuck::cast((codes ^ masks) + (masks & 0x0101_0101_0101_0101))
}
