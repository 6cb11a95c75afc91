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

use super::{grids, half_at};
use crate::chunk::Chunk;
use crate::format::{Family, Format};
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

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Iq3Xxs;

impl Format for Iq3Xxs {
    type Block = BlockIq3Xxs;
    const BLOCK: usize = 256;
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;

    #[inline(always)]
    fn decode<I: Isa>(_: I, blocks: &[BlockIq3Xxs], out: &mut Chunk) {
        let b = &blocks[0];
        out.d = half_at(b.d) * 0.25;
        let (pairs, words) = (b.qs.as_chunks::<2>().0, b.signs_scales.as_chunks::<4>().0);
        let units = out.codes.as_chunks_mut::<8>().0;
        for g in 0..8 {
            let word = u32::from_le_bytes(words[g]);
            let scale = (word >> 28) as i16 * 2 + 1;
            (out.scales[2 * g], out.scales[2 * g + 1]) = (scale, scale);
            for j in 0..4 {
                let [first, second] = pairs[4 * g + j];
                let magnitudes = bytemuck::cast([GRID[usize::from(first)], GRID[usize::from(second)]]);
                let masks = grids::SIGN_MASKS[(word >> (7 * j)) as usize & 127];
                units[4 * g + j] = grids::apply_signs(magnitudes, masks);
            }
        }
    }
}
