//! Q6_K: 256 weights in 210 bytes, 6.5625 bits per weight.
//!
//! ```text
//! byte  0                128             192          208  210
//!       | ql: low nibbles | qh: high bits | 16 scales | d  |
//!                                           i8         f16
//!
//! each half h of 128 weights has 64 bytes of ql and 32 of qh; for i < 32:
//!   weight 128 h + i        low nibble of ql[64 h + i]           bits 0..2 of qh[32 h + i]
//!   weight 128 h + 32 + i   low nibble of ql[64 h + 32 + i]      bits 2..4
//!   weight 128 h + 64 + i   high nibble of ql[64 h + i]          bits 4..6
//!   weight 128 h + 96 + i   high nibble of ql[64 h + 32 + i]     bits 6..8
//!
//! weight = d * (scale * (q - 32))                    scale per 16 weights
//! ```

use super::half_at;
use crate::chunk::Chunk;
use crate::format::{Family, Format};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ6K {
    /// Low four bits of the codes.
    pub ql: [u8; 128],
    /// High two bits of the codes.
    pub qh: [u8; 64],
    /// Scale per 16 weights.
    pub scales: [i8; 16],
    /// f16 scale of the scales.
    pub d: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ6K>() == 210 && align_of::<BlockQ6K>() == 1);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q6K;

impl Format for Q6K {
    type Block = BlockQ6K;
    const BLOCK: usize = 256;
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;

    #[inline(always)]
    fn decode<I: Isa>(isa: I, blocks: &[BlockQ6K], out: &mut Chunk) {
        let b = &blocks[0];
        out.d = half_at(b.d);
        out.scales = b.scales.map(i16::from);
        let units = out.codes.as_chunks_mut::<32>().0;
        let (ql, qh) = (b.ql.as_chunks::<32>().0, b.qh.as_chunks::<32>().0);
        let (low, two, offset) = (isa.splat_byte(15), isa.splat_byte(0x30), isa.splat_byte(32));
        for half in 0..2 {
            let (a, b, top) = (isa.bytes(&ql[2 * half]), isa.bytes(&ql[2 * half + 1]), isa.bytes(&qh[half]));
            let codes = [
                isa.or(isa.and(a, low), isa.and(isa.shl::<4>(top), two)),
                isa.or(isa.and(b, low), isa.and(isa.shl::<2>(top), two)),
                isa.or(isa.shr::<4>(a), isa.and(top, two)),
                isa.or(isa.shr::<4>(b), isa.and(isa.shr::<2>(top), two)),
            ];
            for (i, codes) in codes.into_iter().enumerate() {
                isa.put(isa.sub(codes, offset), &mut units[4 * half + i]);
            }
        }
    }
}
