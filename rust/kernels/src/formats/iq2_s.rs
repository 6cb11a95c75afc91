//! IQ2_S: 256 weights in 82 bytes, 2.5625 bits per weight.
//!
//! ```text
//! byte  0    2               34           66             74          82
//!       | d  | low bytes of  | sign bits, | high bits of | 16 scales |
//!        f16 | 32 entries    | 32 bytes   | entries      | nibbles
//!
//! e[j]   qs[j], and bits 2 (j % 4) .. of qh[j / 4] above it: weights 8 j .. are GRID[e], magnitudes 8, 25 or 43
//! signs[j], bit i: weight 8 j + i is negative
//! scales[s / 2], nibble s % 2: s of weights 16 s ..
//!
//! weight = d / 8 * ((2 s + 1) * code)               code = signed magnitude
//! ```

use super::grids;
use crate::chunk::Weights;
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

pub use super::iq2_xxs::MAGNITUDES;

/// The codebook: magnitudes of eight neighbours.
pub static GRID: [[i8; 8]; 1024] = grids::unpack(&grids::IQ2_S, &MAGNITUDES, 2);

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockIq2S {
    /// f16 scale; the weights' scale is an eighth of it times an odd number.
    pub d: [u8; 2],
    /// Low bytes of the entry numbers.
    pub qs: [u8; 32],
    /// Signs.
    pub signs: [u8; 32],
    /// High bits of the entry numbers.
    pub qh: [u8; 8],
    /// Four bits of scale per 16 weights.
    pub scales: [u8; 8],
}
const _: () = assert!(size_of::<BlockIq2S>() == 82 && align_of::<BlockIq2S>() == 1);

/// The codebook as decoding wants it.
static SHIFTED: [[u8; 8]; 1024] = grids::shift(&GRID);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Iq2S;

impl Format for Iq2S {
    type Block = BlockIq2S;
    type Chunk = BlockIq2S;
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;
    const D_FACTOR: f32 = 0.125;
    const SUB: usize = 16;
    const MAX_SCALE: i32 = 31;
    const BITS: usize = 3;
    const LEVELS: Levels = Levels::Table(grids::signed(&MAGNITUDES));

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockIq2S) -> Weights<I> {
        let mut codes = [isa.splat_byte(0); 4];
        for q in 0..4 {
            let mut entries = [0; 8];
            for i in 0..8 {
                let j = 8 * q + i;
                let number = u16::from(b.qs[j]) | u16::from(b.qh[j / 4] >> (2 * (j % 4)) & 3) << 8;
                let entry = u64::from_le_bytes(SHIFTED[usize::from(number)]);
                entries[i] = grids::apply_sign_bits(entry, b.signs[j]);
            }
            codes[q] = isa.words(entries);
        }
        let scales = grids::odd_nibbles(&b.scales);
        Weights { d: u16::from_le_bytes(b.d), scales, ..Weights::of(codes) }
    }
}
