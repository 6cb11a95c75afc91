//! IQ1_S: 256 weights in 50 bytes, 1.5625 bits per weight.
//!
//! ```text
//! byte  0    2                                34                       50
//!       | d  | low bytes of entries e0 .. e31 | eight u16, one per 32  |
//!        f16
//!
//! qh, u16:  bits 3 j .. 3 j + 3  bits 8..11 of the group's entry j     bits 12..15  s     bit 15  shift down
//! e[j]      weights 8 j .. 8 j + 8 are GRID[e_j], each -1, 0 or 1
//!
//! weight = d / 8 * ((2 s + 1) * code)         code = 8 * GRID value + 1, or - 1 where the shift is down
//! ```

use super::{grids, half_at};
use crate::chunk::Chunk;
use crate::format::{Family, Format};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// The codebook: eight neighbours, each -1, 0 or 1.
pub static GRID: [[i8; 8]; 2048] = grids::unpack(&grids::IQ1_S, &[-1, 0, 1], 2);

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockIq1S {
    /// f16 scale; the scale of a group is an odd multiple of it.
    pub d: [u8; 2],
    /// Low bytes of the entry numbers.
    pub qs: [u8; 32],
    /// Eight little-endian u16: high bits of four entry numbers, scale, shift.
    pub qh: [u8; 16],
}
const _: () = assert!(size_of::<BlockIq1S>() == 50 && align_of::<BlockIq1S>() == 1);

/// The codebook as decoding wants it: `8 * value` with the top bit flipped, so that one can be added
/// or taken in each of eight bytes at once without a carry.
static SHIFTABLE: [[i8; 8]; 2048] = grids::unpack(&grids::IQ1_S, &[-8 ^ i8::MIN, i8::MIN, 8 ^ i8::MIN], 2);

/// A one in each of eight bytes.
const BYTES: u64 = 0x0101_0101_0101_0101;

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Iq1S;

impl Format for Iq1S {
    type Block = BlockIq1S;
    const BLOCK: usize = 256;
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;

    #[inline(always)]
    fn decode<I: Isa>(_: I, blocks: &[BlockIq1S], out: &mut Chunk) {
        let b = &blocks[0];
        out.d = half_at(b.d) * 0.125;
        let (low, high) = (b.qs.as_chunks::<4>().0, b.qh.as_chunks::<2>().0);
        let units = out.codes.as_chunks_mut::<8>().0;
        for g in 0..8 {
            let word = u16::from_le_bytes(high[g]);
            let scale = (word >> 12 & 7) as i16 * 2 + 1;
            (out.scales[2 * g], out.scales[2 * g + 1]) = (scale, scale);
            // Plus or minus one in each byte.
            let shift = if word >> 15 == 0 { BYTES } else { BYTES.wrapping_neg() };
            for j in 0..4 {
                let entry = usize::from(low[g][j]) | usize::from(word >> (3 * j) & 7) << 8;
                let eightfold: u64 = bytemuck::cast(SHIFTABLE[entry]);
                units[4 * g + j] = bytemuck::cast(eightfold.wrapping_add(shift) ^ (0x80 * BYTES));
            }
        }
    }
}
