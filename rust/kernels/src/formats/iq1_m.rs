//! IQ1_M: 256 weights in 56 bytes, 1.75 bits per weight.
//!
//! ```text
//! byte  0               32                48                 56
//!       | low bytes of  | 32 nibbles of   | four u16: scales |
//!       | 32 entries    | high bits, shift| and d            |
//!
//! nibble j of qh:   bits 0..3  bits 8..11 of entry j     bit 3  shift down
//! e[j]              weights 8 j .. are GRID[e_j], each -1, 0 or 1 (IQ1_S)
//! scales[w], u16:   bits 3 i .. 3 i + 3  s of weights 64 w + 16 i ..     bits 12..16  bits 4 w .. of d, an f16
//!
//! weight = d / 8 * ((2 s + 1) * code)         code = 8 * GRID value + 1, or - 1 where the shift is down
//! ```

use super::{grids, iq1_s};
use crate::chunk::{SUPER_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockIq1M {
    /// Low bytes of the entry numbers.
    pub qs: [u8; 32],
    /// High bits of the entry numbers, and shifts.
    pub qh: [u8; 16],
    /// Scales per 16 weights, and the f16 that scales them.
    pub scales: [u8; 8],
}
const _: () = assert!(size_of::<BlockIq1M>() == 56 && align_of::<BlockIq1M>() == 1);

impl BlockIq1M {
    /// The scale of the scales, whose nibbles are spread over four words.
    #[inline(always)]
    pub fn d(&self) -> u16 {
        let words = u64::from_le_bytes(self.scales);
        (words >> 12 & 0x000f | words >> 24 & 0x00f0 | words >> 36 & 0x0f00 | words >> 48 & 0xf000) as u16
    }
}

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Iq1M;

/// Every byte one: a shift of eight codes.
const ONES: u64 = 0x0101_0101_0101_0101;

impl Format for Iq1M {
    type Block = BlockIq1M;
    type Chunk = BlockIq1M;
    const HALVES: &'static [usize] = &[];
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;
    const D_FACTOR: f32 = 0.125;
    const SUB: usize = 16;
    const MAX_SCALE: i32 = 15;
    const BITS: usize = 3;
    const LEVELS: Levels = Levels::Table(grids::levels(&[
        SUPER_OFFSET - 9,
        SUPER_OFFSET - 7,
        SUPER_OFFSET - 1,
        SUPER_OFFSET + 1,
        SUPER_OFFSET + 7,
        SUPER_OFFSET + 9,
    ]));

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockIq1M) -> Weights<I> {
        let mut codes = [isa.splat_byte(0); 4];
        for q in 0..4 {
            let mut entries = [0; 8];
            for i in 0..8 {
                let j = 8 * q + i;
                let nibble = b.qh[j / 2] >> (4 * (j % 2)) & 15;
                let number = usize::from(b.qs[j]) | usize::from(nibble & 7) << 8;
                let entry = u64::from_le_bytes(iq1_s::SHIFTED[number]);
                // Plus one, or minus one: no byte leaves 55..=73.
                entries[i] = if nibble & 8 == 0 { entry + ONES } else { entry - ONES };
            }
            codes[q] = isa.words(entries);
        }
        let words = u64::from_le_bytes(b.scales);
        let mut scales = [0; 16];
        for s in 0..16 {
            scales[s] = (words >> (16 * (s / 4) + 3 * (s % 4)) & 7) as i16 * 2 + 1;
        }
        Weights { d: b.d(), scales, ..Weights::of(codes) }
    }
}
