//! IQ4_XS: 256 weights in 136 bytes, 4.25 bits per weight.
//!
//! ```text
//! byte  0    2          4          8                      136
//!       | d  | scales_h | scales_l | 128 bytes of nibbles |
//!        f16   u16        4 bytes
//!
//! scale of group g:   low four bits  nibble g % 2 of scales_l[g / 2]     high two  bits 2 g .. of scales_h
//! qs[16 g + i]        low nibble: weight 32 g + i    high nibble: weight 32 g + 16 + i
//!
//! weight = d * (scale - 32) * LEVELS[nibble]         LEVELS as in IQ4_NL
//! ```

use super::iq4_nl::SHIFTED;
use crate::chunk::Weights;
use crate::convert::f16_to_f32;
use crate::format::{Family, Format, Levels, Scale};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockIq4Xs {
    /// f16 scale of the scales.
    pub d: [u8; 2],
    /// Upper two bits of the scales.
    pub scales_h: [u8; 2],
    /// Their lower four.
    pub scales_l: [u8; 4],
    /// Indices into the levels.
    pub qs: [u8; 128],
}
const _: () = assert!(size_of::<BlockIq4Xs>() == 136 && align_of::<BlockIq4Xs>() == 1);

/// Unpacks the eight scales.
#[inline(always)]
pub fn unpack_scales(low: &[u8; 4], high: [u8; 2]) -> [i8; 8] {
    let high = u16::from_le_bytes(high);
    let mut out = [0; 8];
    for g in 0..8 {
        let low = low[g / 2] >> (4 * (g % 2)) & 15;
        out[g] = (low | ((high >> (2 * g)) as u8 & 3) << 4) as i8 - 32;
    }
    out
}

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Iq4Xs;

impl Format for Iq4Xs {
    type Block = BlockIq4Xs;
    type Chunk = BlockIq4Xs;
    // Levels up to 127 are too much for `Super`, whose codes have seven bits.
    const FAMILY: Family = Family::Grouped;
    const SCALE: Scale = Scale::Integer;
    const BITS: usize = 4;
    const LEVELS: Levels = Levels::Table(SHIFTED);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockIq4Xs) -> Weights<I> {
        let qs = b.qs.as_chunks::<16>().0;
        let mut codes = [isa.splat_byte(0); 4];
        for q in 0..4 {
            codes[q] = isa.lookup16(&SHIFTED, isa.nibbles(&qs[2 * q], &qs[2 * q + 1]));
        }
        let stored = u16::from_le_bytes(b.d);
        let d = f16_to_f32(stored);
        let numbers = unpack_scales(&b.scales_l, b.scales_h);
        let (mut group_d, mut scales) = ([0.0; 8], [0; 16]);
        for g in 0..8 {
            group_d[g] = d * f32::from(numbers[g]);
            scales[2 * g] = i16::from(numbers[g]);
            scales[2 * g + 1] = i16::from(numbers[g]);
        }
        Weights { d: stored, scales, ..Weights::grouped(codes, group_d) }
    }
}
