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

use super::grids;
use crate::chunk::{SUPER_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
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

/// The codebook as decoding wants it: `8 * value`, shifted.
pub(super) static SHIFTED: [[u8; 8]; 2048] = grids::shift(&grids::unpack(&grids::IQ1_S, &[-8, 0, 8], 2));

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Iq1S;

impl Format for Iq1S {
    type Block = BlockIq1S;
    type Chunk = BlockIq1S;
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;
    const D_FACTOR: f32 = 0.125;
    const MAX_SCALE: i32 = 15;
    const BITS: usize = 2;
    const LEVELS: Levels =
        Levels::Shifted(grids::levels(&[SUPER_OFFSET - 8, SUPER_OFFSET, SUPER_OFFSET + 8]));

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockIq1S) -> Weights<I> {
        let words: [u16; 8] = bytemuck::cast(b.qh);
        let (mut scales, mut shifts) = ([0; 16], [0; 8]);
        for g in 0..8 {
            // Plus or minus one in the lower byte.
            shifts[g] = (u16::from_le(words[g]) as i16 >> 15) as u16 | 1;
        }
        for s in 0..16 {
            scales[s] = (u16::from_le(words[s / 2]) >> 11 & 14 | 1) as i16;
        }
        let shifts: [u8; 16] = bytemuck::cast(shifts.map(u16::to_le));
        let mut codes = isa.grid(&SHIFTED, &b.qs, &b.qh);
        for q in 0..4 {
            codes[q] = isa.add(codes[q], isa.lookup16(&shifts, isa.bytes(&GROUP_OF[q])));
        }
        Weights { d: u16::from_le_bytes(b.d), scales, ..Weights::of(codes) }
    }
}

/// For each code of a quarter, where the shift of its group is.
static GROUP_OF: [[u8; 64]; 4] = {
    let mut out = [[0; 64]; 4];
    let mut i = 0;
    while i < 256 {
        out[i / 64][i % 64] = 2 * (i / 32) as u8;
        i += 1;
    }
    out
};
