//! IQ2_XXS: 256 weights in 66 bytes, 2.0625 bits per weight.
//!
//! ```text
//! byte  0    2        10                        66
//!       | d  | group 0 | group 1 | ... | group 7 |        32 weights per group
//!        f16
//!
//! group:  bytes 0..4   entry numbers e0..e3: weights 8 j .. 8 j + 8 are GRID[e_j], magnitudes 8, 25 or 43
//!         bytes 4..8   u32:  bits 7 j .. 7 j + 7  number of the entry's signs (SIGNS)     bits 28..32  s
//!
//! weight = d / 8 * ((2 s + 1) * code)               code = signed magnitude
//! ```

use super::grids;
use crate::chunk::{SUPER_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

pub use super::grids::SIGNS;

/// The magnitudes an entry is made of.
pub const MAGNITUDES: [i8; 3] = [8, 25, 43];

/// The codebook: magnitudes of eight neighbours.
pub static GRID: [[i8; 8]; 256] = grids::unpack(&grids::IQ2_XXS, &MAGNITUDES, 2);

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockIq2Xxs {
    /// f16 scale; the weights' scale is an eighth of it times an odd number.
    pub d: [u8; 2],
    /// Eight groups of four entry numbers and a u32 of signs and scale.
    pub qs: [u8; 64],
}
const _: () = assert!(size_of::<BlockIq2Xxs>() == 66 && align_of::<BlockIq2Xxs>() == 1);

/// The codebook as decoding wants it.
static SHIFTED: [[u8; 8]; 256] = grids::shift(&GRID);

/// The codebook once more, two bits per level number: the lower and the upper four of each entry.
static PACKED: [[u8; 256]; 2] = grids::split(&grids::IQ2_XXS);

/// Level numbers to shifted magnitudes, whatever the upper four index bits are.
static LEVELS: [u8; 64] = grids::repeat(&MAGNITUDES);

/// Where the entries of each quarter are, two bytes in every word.
static ENTRIES: [[u8; 64]; 4] = {
    let mut out = [[0; 64]; 4];
    let mut i = 0;
    while i < 32 {
        let at = (8 * (i / 4) + i % 4) as u8;
        out[i / 8][8 * (i % 8)] = at;
        out[i / 8][8 * (i % 8) + 1] = 64 + at;
        i += 1;
    }
    out
};

/// Where the sign numbers and scales are: the upper half of each group.
static SIGN_WORDS: [u8; 64] = {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 32 {
        out[i] = (8 * (i / 4) + 4 + i % 4) as u8;
        i += 1;
    }
    out
};

/// Where the scales are: the last byte of each group, its upper half.
static SCALES: [u8; 8] = [7, 15, 23, 31, 39, 47, 55, 63];

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Iq2Xxs;

impl Format for Iq2Xxs {
    type Block = BlockIq2Xxs;
    type Chunk = BlockIq2Xxs;
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;
    const D_FACTOR: f32 = 0.125;
    const MAX_SCALE: i32 = 31;
    const BITS: usize = 3;
    const LEVELS: Levels = Levels::Table(grids::signed(&MAGNITUDES));

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockIq2Xxs) -> Weights<I> {
        let words = isa.bytes(&b.qs);
        let scales = isa.spread(words, &SCALES);
        let codes = if I::BYTE_PERMUTE { permuted(isa, words) } else { looked_up(isa, &b.qs) };
        Weights { d: u16::from_le_bytes(b.d), scales: grids::odd_scales(scales), ..Weights::of(codes) }
    }
}

/// Codes by way of the table of entries.
#[inline(always)]
fn looked_up<I: Isa>(isa: I, qs: &[u8; 64]) -> [I::Q; 4] {
    let groups = qs.as_chunks::<8>().0;
    let mut codes = [isa.splat_byte(0); 4];
    for q in 0..4 {
        let mut entries = [0; 8];
        for i in 0..8 {
            let (word, j) = (u64::from_le_bytes(groups[2 * q + i / 4]), i % 4);
            let entry = u64::from_le_bytes(SHIFTED[usize::from((word >> (8 * j)) as u8)]);
            entries[i] = grids::apply_signs(entry, word >> (32 + 7 * j));
        }
        codes[q] = isa.words(entries);
    }
    codes
}

/// Codes without leaving registers: all entries as two bytes each, spread to level numbers, those to
/// magnitudes; signs as masks of bits.
#[inline(always)]
fn permuted<I: Isa>(isa: I, words: I::Q) -> [I::Q; 4] {
    let (low, high) = (isa.lookup256(&PACKED[0], words), isa.lookup256(&PACKED[1], words));
    let signs = grids::sign_bits(isa, isa.pick(words, words, &SIGN_WORDS));
    let mut codes = [words; 4];
    for q in 0..4 {
        let numbers = isa.fields(isa.pick(low, high, &ENTRIES[q]), [0, 2, 4, 6, 8, 10, 12, 14]);
        codes[q] = isa.negate(isa.lookup64(&LEVELS, numbers), SUPER_OFFSET, signs, q);
    }
    codes
}
