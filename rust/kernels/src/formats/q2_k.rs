//! Q2_K: 256 weights in 84 bytes, 2.625 bits per weight.
//!
//! ```text
//! byte  0              16              80   82     84
//!       | 16 scales,   | 64 bytes of   | d  | dmin |
//!       | minimums     | two-bit codes | f16  f16
//!
//! scales[s]   low nibble: scale    high nibble: minimum          of weights 16 s ..
//! qs[32 h + i]   bits 2 j .. 2 j + 2: weight 128 h + 32 j + i
//!
//! weight = d * (scale * q) - dmin * min
//! ```

use crate::chunk::Weights;
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ2K {
    /// Scale and minimum per 16 weights.
    pub scales: [u8; 16],
    /// Codes.
    pub qs: [u8; 64],
    /// f16 scale of the scales.
    pub d: [u8; 2],
    /// f16 scale of the minimums.
    pub dmin: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ2K>() == 84 && align_of::<BlockQ2K>() == 1);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q2K;

impl Format for Q2K {
    type Block = BlockQ2K;
    type Chunk = BlockQ2K;
    const HALVES: &'static [usize] = &[offset_of!(BlockQ2K, d), offset_of!(BlockQ2K, dmin)];
    const FAMILY: Family = Family::Super;
    const HAS_MIN: bool = true;
    const SUB: usize = 16;
    const MAX_SCALE: i32 = 15;
    const BITS: usize = 2;
    const LEVELS: Levels = Levels::From(0);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockQ2K) -> Weights<I> {
        let three = isa.splat_byte(3);
        let qs = b.qs.as_chunks::<32>().0;
        let mut codes = [three; 4];
        for h in 0..2 {
            let both = isa.bytes2(&qs[h], &qs[h]);
            codes[2 * h] = isa.and(isa.shr::<0, 2>(both), three);
            codes[2 * h + 1] = isa.and(isa.shr::<4, 6>(both), three);
        }
        let (mut scales, mut mins) = ([0; 16], [0; 16]);
        for s in 0..16 {
            scales[s] = i16::from(b.scales[s] & 15);
            mins[s] = i16::from(b.scales[s] >> 4);
        }
        Weights {
            d: u16::from_le_bytes(b.d),
            dmin: u16::from_le_bytes(b.dmin),
            scales,
            mins,
            ..Weights::of(codes)
        }
    }
}
