//! IQ3_S: 256 weights in 110 bytes, 3.4375 bits per weight.
//!
//! ```text
//! byte  0    2               66             74           106        110
//!       | d  | low bytes of  | high bits of | sign bits, | 8 scales |
//!        f16 | 64 entries    | entries      | 32 bytes   | nibbles
//!
//! e[j]   qs[j], and bit j % 8 of qh[j / 8] above it: weights 4 j .. are GRID[e], odd magnitudes 1 to 15
//! signs[j], bit i: weight 8 j + i is negative
//! scales[g / 2], nibble g % 2: s of weights 32 g ..
//!
//! weight = d * ((2 s + 1) * code)               code = signed magnitude
//! ```

use super::grids;
use crate::chunk::Weights;
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// The magnitudes an entry is made of.
pub const MAGNITUDES: [i8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

/// The codebook: magnitudes of four neighbours.
pub static GRID: [[i8; 4]; 512] = grids::unpack(&grids::IQ3_S, &MAGNITUDES, 3);

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockIq3S {
    /// f16 scale; the weights' scale is it times an odd number.
    pub d: [u8; 2],
    /// Low bytes of the entry numbers.
    pub qs: [u8; 64],
    /// High bits of the entry numbers.
    pub qh: [u8; 8],
    /// Signs.
    pub signs: [u8; 32],
    /// Four bits of scale per 32 weights.
    pub scales: [u8; 4],
}
const _: () = assert!(size_of::<BlockIq3S>() == 110 && align_of::<BlockIq3S>() == 1);

/// The codebook as decoding wants it.
static SHIFTED: [[u8; 4]; 512] = grids::shift(&GRID);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Iq3S;

impl Format for Iq3S {
    type Block = BlockIq3S;
    type Chunk = BlockIq3S;
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;
    const MAX_SCALE: i32 = 31;
    const BITS: usize = 4;
    const LEVELS: Levels = Levels::Table(grids::signed(&MAGNITUDES));

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockIq3S) -> Weights<I> {
        let entry = |j: usize| {
            let number = u16::from(b.qs[j]) | u16::from(b.qh[j / 8] >> (j % 8) & 1) << 8;
            u64::from(u32::from_le_bytes(SHIFTED[usize::from(number)]))
        };
        let mut codes = [isa.splat_byte(0); 4];
        for q in 0..4 {
            let mut entries = [0; 8];
            for i in 0..8 {
                let j = 8 * q + i;
                entries[i] = grids::apply_sign_bits(entry(2 * j) | entry(2 * j + 1) << 32, b.signs[j]);
            }
            codes[q] = isa.words(entries);
        }
        let mut scales = [0; 16];
        for s in 0..16 {
            scales[s] = i16::from(b.scales[s / 4] >> (4 * (s / 2 % 2)) & 15) << 1 | 1;
        }
        Weights { d: u16::from_le_bytes(b.d), scales, ..Weights::of(codes) }
    }
}
