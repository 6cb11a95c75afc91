//! Q2_0: 64 weights in 18 bytes, 2.25 bits per weight.
//!
//! ```text
//! byte  0    2                           18
//!       | d  | 16 bytes of two-bit codes |       bits 2 (i % 4) .. of qs[i / 4]: weight i
//!        f16
//!
//! weight = d * (q - 1)
//! ```

use super::bits;
use crate::chunk::{GROUPED_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ2_0 {
    /// f16 scale, little endian.
    pub d: [u8; 2],
    /// Codes.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ2_0>() == 18 && align_of::<BlockQ2_0>() == 1);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q2_0;

impl Format for Q2_0 {
    type Block = BlockQ2_0;
    type Chunk = [BlockQ2_0; 4];
    const FAMILY: Family = Family::Grouped;
    const BITS: usize = 2;
    const LEVELS: Levels = Levels::From(GROUPED_OFFSET - 1);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &Self::Chunk) -> Weights<I> {
        let shift = isa.splat_byte(GROUPED_OFFSET - 1);
        let mut codes = [shift; 4];
        for q in 0..4 {
            codes[q] = isa.add(bits::pairs(isa, &b[q].qs), shift);
        }
        let [a, b, c, d] = [b[0].d, b[1].d, b[2].d, b[3].d];
        Weights::grouped(codes, isa.halves([a, a, b, b, c, c, d, d]))
    }
}
