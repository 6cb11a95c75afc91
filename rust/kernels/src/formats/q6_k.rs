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

use crate::chunk::{SUPER_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

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
    type Chunk = BlockQ6K;
    const HALVES: &'static [usize] = &[offset_of!(BlockQ6K, d)];
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;
    const SUB: usize = 16;
    const MAX_SCALE: i32 = 128;
    const BITS: usize = 6;
    const LEVELS: Levels = Levels::From(SUPER_OFFSET - 32);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockQ6K) -> Weights<I> {
        let (ql, qh) = (b.ql.as_chunks::<64>().0, b.qh.as_chunks::<32>().0);
        let (low, two) = (isa.splat_byte(15), isa.splat_byte(0x30));
        let shift = isa.splat_byte(SUPER_OFFSET - 32);
        let mut codes = [low; 4];
        for h in 0..2 {
            let (bottom, top) = (isa.bytes(&ql[h]), isa.bytes2(&qh[h], &qh[h]));
            let first = isa.or(isa.and(bottom, low), isa.and(isa.shl::<4, 2>(top), two));
            let second = isa.or(isa.shr::<4, 4>(bottom), isa.and(isa.shr::<0, 2>(top), two));
            codes[2 * h] = isa.add(first, shift);
            codes[2 * h + 1] = isa.add(second, shift);
        }
        Weights { d: u16::from_le_bytes(b.d), scales: isa.widen(b.scales), ..Weights::of(codes) }
    }
}
