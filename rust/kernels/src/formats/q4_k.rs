//! Q4_K: 256 weights in 144 bytes, 4.5 bits per weight.
//!
//! ```text
//! byte  0    2      4              16                                144
//!       | d  | dmin | scales, mins | 128 bytes of nibbles            |
//!        f16   f16    8 + 8 six-bit numbers
//!
//! qs[32 j + i]   low nibble: weight 64 j + i    high nibble: weight 64 j + 32 + i
//! weight = d * (scale * q) - dmin * min          scale, min per 32 weights
//!
//! scales[12]: sub-block s < 4:  scale = low 6 bits of byte s,    min = low 6 bits of byte s + 4
//!             sub-block s >= 4: scale = low nibble of byte s + 4 | top two bits of byte s - 4, shifted to 4..5
//!                               min   = high nibble of byte s + 4 | top two bits of byte s
//! ```

use crate::chunk::Weights;
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ4K {
    /// f16 scale of the scales.
    pub d: [u8; 2],
    /// f16 scale of the minimums.
    pub dmin: [u8; 2],
    /// Packed six-bit scales and minimums.
    pub scales: [u8; 12],
    /// Packed codes.
    pub qs: [u8; 128],
}
const _: () = assert!(size_of::<BlockQ4K>() == 144 && align_of::<BlockQ4K>() == 1);

/// Unpacks the eight six-bit scales and minimums, eight at a time.
#[inline(always)]
pub fn unpack_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (words, _) = packed.as_chunks::<4>();
    let a = u64::from(u32::from_le_bytes(words[0]));
    let b = u64::from(u32::from_le_bytes(words[1]));
    let c = u64::from(u32::from_le_bytes(words[2]));
    const SIX: u64 = 0x3f3f_3f3f;
    const FOUR: u64 = 0x0f0f_0f0f;
    const TOP: u64 = 0x3030_3030;
    let scales = (a & SIX) | ((c & FOUR) | (a >> 2 & TOP)) << 32;
    let mins = (b & SIX) | ((c >> 4 & FOUR) | (b >> 2 & TOP)) << 32;
    (scales.to_le_bytes(), mins.to_le_bytes())
}

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q4K;

impl Format for Q4K {
    type Block = BlockQ4K;
    type Chunk = BlockQ4K;
    const HALVES: &'static [usize] = &[offset_of!(BlockQ4K, d), offset_of!(BlockQ4K, dmin)];
    const FAMILY: Family = Family::Super;
    const HAS_MIN: bool = true;
    const MAX_SCALE: i32 = 63;
    const BITS: usize = 4;
    const LEVELS: Levels = Levels::From(0);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockQ4K) -> Weights<I> {
        let low = isa.splat_byte(15);
        let qs = b.qs.as_chunks::<32>().0;
        let mut codes = [low; 4];
        for q in 0..4 {
            codes[q] = isa.and(isa.shr::<0, 4>(isa.bytes2(&qs[q], &qs[q])), low);
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
