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
    fn decode<I: Isa>(_: I, blocks: &[BlockQ6K], out: &mut Chunk) {
        let b = &blocks[0];
        out.d = half_at(b.d);
        out.scales = b.scales.map(i16::from);
        let halves = b.ql.chunks_exact(64).zip(b.qh.chunks_exact(32));
        for (codes, (ql, qh)) in out.codes.chunks_exact_mut(128).zip(halves) {
            for i in 0..32 {
                let (low, high, top) = (ql[i], ql[32 + i], qh[i]);
                codes[i] = (low & 15 | (top & 3) << 4) as i8 - 32;
                codes[32 + i] = (high & 15 | (top >> 2 & 3) << 4) as i8 - 32;
                codes[64 + i] = (low >> 4 | (top >> 4 & 3) << 4) as i8 - 32;
                codes[96 + i] = (high >> 4 | (top >> 6) << 4) as i8 - 32;
            }
        }
    }
}
