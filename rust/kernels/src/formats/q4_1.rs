//! Q4_1: 32 weights in 20 bytes, 5 bits per weight.
//!
//! ```text
//! byte  0    2    4                     20
//!       | d  | m  | 16 bytes of nibbles |       qs[i]   low nibble: weight i    high nibble: weight 16 + i
//!        f16  f16
//!
//! weight = d * q + m
//! ```

use crate::chunk::{GROUPED_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ4_1 {
    /// f16 scale, little endian.
    pub d: [u8; 2],
    /// f16 minimum.
    pub m: [u8; 2],
    /// Codes.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ4_1>() == 20 && align_of::<BlockQ4_1>() == 1);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q4_1;

impl Format for Q4_1 {
    type Block = BlockQ4_1;
    type Chunk = [BlockQ4_1; 8];
    const HALVES: &'static [usize] = &[offset_of!(BlockQ4_1, d), offset_of!(BlockQ4_1, m)];
    const FAMILY: Family = Family::Grouped;
    const HAS_MIN: bool = true;
    const BITS: usize = 4;
    const LEVELS: Levels = Levels::From(GROUPED_OFFSET);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &Self::Chunk) -> Weights<I> {
        let shift = isa.splat_byte(GROUPED_OFFSET);
        let mut codes = [shift; 4];
        for q in 0..4 {
            codes[q] = isa.or(isa.nibbles(&b[2 * q].qs, &b[2 * q + 1].qs), shift);
        }
        let d = [b[0].d, b[1].d, b[2].d, b[3].d, b[4].d, b[5].d, b[6].d, b[7].d];
        let m = [b[0].m, b[1].m, b[2].m, b[3].m, b[4].m, b[5].m, b[6].m, b[7].m];
        Weights { group_m: isa.halves(m), ..Weights::grouped(codes, isa.halves(d)) }
    }
}
