//! Q4_0: 32 weights in 18 bytes, 4.5 bits per weight.
//!
//! ```text
//! byte  0    2                     18
//!       | d  | 16 bytes of nibbles |       qs[i]   low nibble: weight i    high nibble: weight 16 + i
//!        f16
//!
//! weight = d * (q - 8)
//! ```

use crate::chunk::{GROUPED_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ4_0 {
    /// f16 scale, little endian.
    pub d: [u8; 2],
    /// Codes.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ4_0>() == 18 && align_of::<BlockQ4_0>() == 1);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q4_0;

impl Format for Q4_0 {
    type Block = BlockQ4_0;
    type Chunk = [BlockQ4_0; 8];
    const FAMILY: Family = Family::Grouped;
    const BITS: usize = 4;
    const LEVELS: Levels = Levels::From(GROUPED_OFFSET - 8);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &Self::Chunk) -> Weights<I> {
        let shift = isa.splat_byte(GROUPED_OFFSET - 8);
        let mut codes = [shift; 4];
        for q in 0..4 {
            codes[q] = isa.add(isa.nibbles(&b[2 * q].qs, &b[2 * q + 1].qs), shift);
        }
        let d = [b[0].d, b[1].d, b[2].d, b[3].d, b[4].d, b[5].d, b[6].d, b[7].d];
        Weights::grouped(codes, isa.halves(d))
    }
}
