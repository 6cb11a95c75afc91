//! IQ3_XXS: 256 weights in 98 bytes, 3.0625 bits per weight.
//!
//! ```text
//! byte  0    2                              66                      98
//!       | d  | entry numbers e0 ... e63     | eight u32, one per 32 |
//!        f16
//!
//! e[j]                weights 4 j .. 4 j + 4 are GRID[e_j], eight magnitudes from 4 to 62
//! signs_scales, u32:  bits 7 i .. 7 i + 7  number of the signs of eight weights (SIGNS)     bits 28..32  s
//!
//! weight = d / 4 * ((2 s + 1) * code)               code = signed magnitude
//! ```

use super::grids;
use crate::chunk::{SUPER_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

pub use super::grids::SIGNS;

/// The magnitudes an entry is made of.
pub const MAGNITUDES: [i8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];

/// The codebook: magnitudes of four neighbours.
pub static GRID: [[i8; 4]; 256] = grids::unpack(&grids::IQ3_XXS, &MAGNITUDES, 3);

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockIq3Xxs {
    /// f16 scale; the weights' scale is a quarter of it times an odd number.
    pub d: [u8; 2],
    /// Entry numbers.
    pub qs: [u8; 64],
    /// Eight little-endian u32 of signs and scale.
    pub signs_scales: [u8; 32],
}
const _: () = assert!(size_of::<BlockIq3Xxs>() == 98 && align_of::<BlockIq3Xxs>() == 1);

/// The codebook as decoding wants it.
static SHIFTED: [[u8; 4]; 256] = grids::shift(&GRID);

/// The codebook once more, three bits per level number, in two bytes.
static PACKED: [[u8; 256]; 2] = grids::split(&grids::IQ3_XXS);

/// Level numbers to shifted magnitudes, whatever the upper three index bits are.
static LEVELS: [u8; 64] = grids::repeat(&MAGNITUDES);

/// Where the entries of each quarter are, two of two bytes in every word.
static ENTRIES: [[u8; 64]; 4] = {
    let mut out = [[0; 64]; 4];
    let mut i = 0;
    while i < 64 {
        out[i / 16][4 * (i % 16)] = i as u8;
        out[i / 16][4 * (i % 16) + 1] = 64 + i as u8;
        i += 1;
    }
    out
};

/// Where the scales are: the last byte of each word, its upper half.
static SCALES: [u8; 8] = [3, 7, 11, 15, 19, 23, 27, 31];

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Iq3Xxs;

impl Format for Iq3Xxs {
    type Block = BlockIq3Xxs;
    type Chunk = BlockIq3Xxs;
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;
    const D_FACTOR: f32 = 0.25;
    const MAX_SCALE: i32 = 31;
    const BITS: usize = 4;
    const LEVELS: Levels = Levels::Table(grids::signed(&MAGNITUDES));

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockIq3Xxs) -> Weights<I> {
        let words = isa.bytes2(&b.signs_scales, &b.signs_scales);
        let scales = isa.spread(words, &SCALES);
        let codes = if I::BYTE_PERMUTE { permuted(isa, b, words) } else { looked_up(isa, b) };
        Weights { d: u16::from_le_bytes(b.d), scales: grids::odd_scales(scales), ..Weights::of(codes) }
    }
}

/// Codes by way of the table of entries.
#[inline(always)]
fn looked_up<I: Isa>(isa: I, b: &BlockIq3Xxs) -> [I::Q; 4] {
    let groups = b.signs_scales.as_chunks::<4>().0;
    let mut codes = [isa.splat_byte(0); 4];
    for q in 0..4 {
        let mut entries = [0; 8];
        for i in 0..8 {
            let at = 16 * q + 2 * i;
            let first = u64::from(u32::from_le_bytes(SHIFTED[usize::from(b.qs[at])]));
            let second = u64::from(u32::from_le_bytes(SHIFTED[usize::from(b.qs[at + 1])]));
            let word = u64::from(u32::from_le_bytes(groups[2 * q + i / 4]));
            entries[i] = grids::apply_signs(first | second << 32, word >> (7 * (i % 4)));
        }
        codes[q] = isa.words(entries);
    }
    codes
}

/// Codes without leaving registers: all entries as two bytes each, spread to level numbers, those to
/// magnitudes; signs as masks of bits.
#[inline(always)]
fn permuted<I: Isa>(isa: I, b: &BlockIq3Xxs, words: I::Q) -> [I::Q; 4] {
    let numbers = isa.bytes(&b.qs);
    let (low, high) = (isa.lookup256(&PACKED[0], numbers), isa.lookup256(&PACKED[1], numbers));
    let signs = grids::sign_bits(isa, words);
    let mut codes = [numbers; 4];
    for q in 0..4 {
        let numbers = isa.fields(isa.pick(low, high, &ENTRIES[q]), [0, 3, 6, 9, 32, 35, 38, 41]);
        codes[q] = isa.negate(isa.lookup64(&LEVELS, numbers), SUPER_OFFSET, signs, q);
    }
    codes
}
