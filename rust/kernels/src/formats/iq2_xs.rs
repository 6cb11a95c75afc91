//! IQ2_XS: 256 weights in 74 bytes, 2.3125 bits per weight.
//!
//! ```text
//! byte  0    2                       66          74
//!       | d  | 32 u16, one per eight | 16 scales |
//!        f16                           nibbles
//!
//! qs[j], u16:  bits 0..9   number of the entry: weights 8 j .. are GRID[e], magnitudes 8, 25 or 43
//!              bits 9..16  number of its signs (SIGNS)
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
pub static GRID: [[i8; 8]; 512] = grids::unpack(&grids::IQ2_XS, &MAGNITUDES, 2);

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockIq2Xs {
    /// f16 scale; the weights' scale is an eighth of it times an odd number.
    pub d: [u8; 2],
    /// Thirty-two little-endian u16 of entry and signs.
    pub qs: [u8; 64],
    /// Four bits of scale per 16 weights.
    pub scales: [u8; 8],
}
const _: () = assert!(size_of::<BlockIq2Xs>() == 74 && align_of::<BlockIq2Xs>() == 1);

/// The codebook as decoding wants it.
static SHIFTED: [[u8; 8]; 512] = grids::shift(&GRID);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Iq2Xs;

impl Format for Iq2Xs {
    type Block = BlockIq2Xs;
    type Chunk = BlockIq2Xs;
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;
    const D_FACTOR: f32 = 0.125;
    const SUB: usize = 16;
    const MAX_SCALE: i32 = 31;
    const BITS: usize = 3;
    const LEVELS: Levels = Levels::Table(grids::signed(&MAGNITUDES));

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockIq2Xs) -> Weights<I> {
        let qs = b.qs.as_chunks::<2>().0;
        let mut codes = [isa.splat_byte(0); 4];
        for q in 0..4 {
            let mut entries = [0; 8];
            for i in 0..8 {
                let word = u16::from_le_bytes(qs[8 * q + i]);
                let entry = u64::from_le_bytes(SHIFTED[usize::from(word & 511)]);
                entries[i] = grids::apply_signs(entry, u64::from(word >> 9));
            }
            codes[q] = isa.words(entries);
        }
        let scales = grids::odd_nibbles(&b.scales);
        Weights { d: u16::from_le_bytes(b.d), scales, ..Weights::of(codes) }
    }
}
