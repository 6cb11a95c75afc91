//! Q5_1: 32 weights in 24 bytes, 6 bits per weight.
//!
//! ```text
//! byte  0    2    4     8                     24
//!       | d  | m  | qh  | 16 bytes of nibbles |
//!        f16  f16  u32
//!
//! qh  bit i: the fifth bit of weight i
//! qs[i]  low nibble: weight i    high nibble: weight 16 + i
//!
//! weight = d * q + m
//! ```

use super::bits;
use crate::chunk::{GROUPED_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ5_1 {
    /// f16 scale, little endian.
    pub d: [u8; 2],
    /// f16 minimum.
    pub m: [u8; 2],
    /// Upper bits of the codes.
    pub qh: [u8; 4],
    /// Their lower four.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ5_1>() == 24 && align_of::<BlockQ5_1>() == 1);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q5_1;

impl Format for Q5_1 {
    type Block = BlockQ5_1;
    type Chunk = [BlockQ5_1; 8];
    const HALVES: &'static [usize] = &[offset_of!(BlockQ5_1, d), offset_of!(BlockQ5_1, m)];
    const FAMILY: Family = Family::Grouped;
    const HAS_MIN: bool = true;
    const BITS: usize = 5;
    const LEVELS: Levels = Levels::From(GROUPED_OFFSET);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &Self::Chunk) -> Weights<I> {
        let shift = isa.splat_byte(GROUPED_OFFSET);
        let mut codes = [shift; 4];
        for q in 0..4 {
            let (first, second) = (&b[2 * q], &b[2 * q + 1]);
            let low = isa.nibbles(&first.qs, &second.qs);
            let [[a0, a1, a2, a3], [b0, b1, b2, b3]] = [first.qh, second.qh];
            let high = isa.shl::<4, 4>(bits::bits(isa, &[a0, a1, a2, a3, b0, b1, b2, b3]));
            codes[q] = isa.add(isa.or(low, high), shift);
        }
        let d = [b[0].d, b[1].d, b[2].d, b[3].d, b[4].d, b[5].d, b[6].d, b[7].d];
        let m = [b[0].m, b[1].m, b[2].m, b[3].m, b[4].m, b[5].m, b[6].m, b[7].m];
        Weights { group_m: isa.halves(m), ..Weights::grouped(codes, isa.halves(d)) }
    }
}
