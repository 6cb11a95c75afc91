//! TQ2_0: 256 ternary weights in 66 bytes, 2.0625 bits per weight.
//!
//! ```text
//! byte  0                             64   66
//!       | 64 bytes of two-bit codes   | d  |       qs[32 h + i]   bits 2 j .. 2 j + 2: weight 128 h + 32 j + i
//!                                      f16
//!
//! weight = d * (q - 1)          q = 3, which nobody writes, is 2
//! ```

use crate::chunk::{SUPER_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockTq2_0 {
    /// Codes.
    pub qs: [u8; 64],
    /// f16 scale.
    pub d: [u8; 2],
}
const _: () = assert!(size_of::<BlockTq2_0>() == 66 && align_of::<BlockTq2_0>() == 1);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Tq2_0;

impl Format for Tq2_0 {
    type Block = BlockTq2_0;
    type Chunk = BlockTq2_0;
    const HALVES: &'static [usize] = &[offset_of!(BlockTq2_0, d)];
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;
    const MAX_SCALE: i32 = 1;
    const BITS: usize = 2;
    const LEVELS: Levels = Levels::From(SUPER_OFFSET - 1);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockTq2_0) -> Weights<I> {
        let (three, shift) = (isa.splat_byte(3), isa.splat_byte(SUPER_OFFSET - 1));
        let qs = b.qs.as_chunks::<32>().0;
        let mut codes = [three; 4];
        for h in 0..2 {
            let both = isa.bytes2(&qs[h], &qs[h]);
            codes[2 * h] = isa.add(isa.and(isa.shr::<0, 2>(both), three), shift);
            codes[2 * h + 1] = isa.add(isa.and(isa.shr::<4, 6>(both), three), shift);
        }
        Weights { d: u16::from_le_bytes(b.d), scales: [1; 16], ..Weights::of(codes) }
    }
}
