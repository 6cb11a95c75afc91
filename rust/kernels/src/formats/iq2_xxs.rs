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

use super::{grids, half_at};
use crate::chunk::Chunk;
use crate::format::{Family, Format};
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

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Iq2Xxs;

impl Format for Iq2Xxs {
    type Block = BlockIq2Xxs;
    const BLOCK: usize = 256;
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;

    #[inline(always)]
    fn decode<I: Isa>(_: I, blocks: &[BlockIq2Xxs], out: &mut Chunk) {
        let b = &blocks[0];
        out.d = half_at(b.d) * 0.125;
        let (groups, units) = (b.qs.as_chunks::<8>().0, out.codes.as_chunks_mut::<8>().0);
        for g in 0..8 {
            let word = u64::from_le_bytes(groups[g]);
            let scale = (word >> 60) as i16 * 2 + 1;
            (out.scales[2 * g], out.scales[2 * g + 1]) = (scale, scale);
            for j in 0..4 {
                let masks = grids::SIGN_MASKS[(word >> (32 + 7 * j)) as usize & 127];
                units[4 * g + j] = grids::apply_signs(GRID[usize::from(groups[g][j])], masks);
            }
        }
    }
}
