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

use super::half_at;
use crate::chunk::Chunk;
use crate::format::{Family, Format};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

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

/// Unpacks the eight six-bit scales and minimums.
#[inline(always)]
pub fn unpack_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for s in 0..4 {
        scales[s] = packed[s] & 63;
        mins[s] = packed[s + 4] & 63;
        scales[s + 4] = (packed[s + 8] & 15) | ((packed[s] >> 6) << 4);
        mins[s + 4] = (packed[s + 8] >> 4) | ((packed[s + 4] >> 6) << 4);
    }
    (scales, mins)
}

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q4K;

impl Format for Q4K {
    type Block = BlockQ4K;
    const BLOCK: usize = 256;
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = false;
    const HAS_MIN: bool = true;

    #[inline(always)]
    fn decode<I: Isa>(isa: I, blocks: &[BlockQ4K], out: &mut Chunk) {
        let b = &blocks[0];
        out.d = half_at(b.d);
        out.dmin = half_at(b.dmin);
        let (scales, mins) = unpack_scales(&b.scales);
        for s in 0..16 {
            out.scales[s] = i16::from(scales[s / 2]);
            out.mins[s] = i16::from(mins[s / 2]);
        }
        let units = out.codes.as_chunks_mut::<32>().0;
        for (j, qs) in b.qs.as_chunks::<32>().0.iter().enumerate() {
            let qs = isa.bytes(qs);
            isa.put(isa.and(qs, isa.splat_byte(15)), &mut units[2 * j]);
            isa.put(isa.shr::<4>(qs), &mut units[2 * j + 1]);
        }
    }
}
