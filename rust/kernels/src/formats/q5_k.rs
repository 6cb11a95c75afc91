//! Q5_K: 256 weights in 176 bytes, 5.5 bits per weight.
//!
//! ```text
//! byte  0    2      4              16          48                     176
//!       | d  | dmin | scales, mins | fifth     | 128 bytes of nibbles |
//!        f16   f16    as in Q4_K   | bits      |
//!
//! qs[32 j + i]   low nibble: weight 64 j + i    high nibble: weight 64 j + 32 + i
//! qh[i]          bit 2 j: weight 64 j + i       bit 2 j + 1: weight 64 j + 32 + i
//! weight = d * (scale * q) - dmin * min         scale, min per 32 weights
//! ```

use super::q4_k::unpack_scales;
use crate::chunk::Weights;
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ5K {
    /// f16 scale of the scales.
    pub d: [u8; 2],
    /// f16 scale of the minimums.
    pub dmin: [u8; 2],
    /// Packed six-bit scales and minimums.
    pub scales: [u8; 12],
    /// Fifth bits of the codes.
    pub qh: [u8; 32],
    /// Their lower four.
    pub qs: [u8; 128],
}
const _: () = assert!(size_of::<BlockQ5K>() == 176 && align_of::<BlockQ5K>() == 1);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q5K;

impl Format for Q5K {
    type Block = BlockQ5K;
    type Chunk = BlockQ5K;
    const HALVES: &'static [usize] = &[offset_of!(BlockQ5K, d), offset_of!(BlockQ5K, dmin)];
    const FAMILY: Family = Family::Super;
    const HAS_MIN: bool = true;
    const MAX_SCALE: i32 = 63;
    const BITS: usize = 5;
    const LEVELS: Levels = Levels::From(0);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockQ5K) -> Weights<I> {
        let (low, fifth) = (isa.splat_byte(15), isa.splat_byte(16));
        let qs = b.qs.as_chunks::<32>().0;
        let high = isa.bytes2(&b.qh, &b.qh);
        let high =
            [isa.shl::<4, 3>(high), isa.shl::<2, 1>(high), isa.shr::<0, 1>(high), isa.shr::<2, 3>(high)];
        let mut codes = [low; 4];
        for q in 0..4 {
            let nibbles = isa.and(isa.shr::<0, 4>(isa.bytes2(&qs[q], &qs[q])), low);
            codes[q] = isa.or(nibbles, isa.and(high[q], fifth));
        }
        let (scales, mins) = unpack_scales(&b.scales);
        Weights {
            d: u16::from_le_bytes(b.d),
            dmin: u16::from_le_bytes(b.dmin),
            scales: isa.twice(scales),
            mins: isa.twice(mins),
            ..Weights::of(codes)
        }
    }
}
