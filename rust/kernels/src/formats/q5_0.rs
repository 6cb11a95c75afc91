//! Q5_0: 32 weights in 22 bytes, 5.5 bits per weight.
//!
//! ```text
//! byte  0    2     6                     22
//!       | d  | qh  | 16 bytes of nibbles |
//!        f16  u32
//!
//! qh  bit i: the fifth bit of weight i
//! qs[i]  low nibble: weight i    high nibble: weight 16 + i
//!
//! weight = d * (q - 16)
//! ```

use super::bits;
use crate::chunk::{GROUPED_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ5_0 {
    /// f16 scale, little endian.
    pub d: [u8; 2],
    /// Upper bits of the codes.
    pub qh: [u8; 4],
    /// Their lower four.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ5_0>() == 22 && align_of::<BlockQ5_0>() == 1);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q5_0;

impl Format for Q5_0 {
    type Block = BlockQ5_0;
    type Chunk = [BlockQ5_0; 8];
    const FAMILY: Family = Family::Grouped;
    const BITS: usize = 5;
    const LEVELS: Levels = Levels::From(GROUPED_OFFSET - 16);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &Self::Chunk) -> Weights<I> {
        let shift = isa.splat_byte(GROUPED_OFFSET - 16);
        let mut codes = [shift; 4];
        for q in 0..4 {
            let (first, second) = (&b[2 * q], &b[2 * q + 1]);
            let low = isa.nibbles(&first.qs, &second.qs);
            let [[a0, a1, a2, a3], [b0, b1, b2, b3]] = [first.qh, second.qh];
            let high = isa.shl::<4, 4>(bits::bits(isa, &[a0, a1, a2, a3, b0, b1, b2, b3]));
            codes[q] = isa.add(isa.or(low, high), shift);
        }
        let d = [b[0].d, b[1].d, b[2].d, b[3].d, b[4].d, b[5].d, b[6].d, b[7].d];
        Weights::grouped(codes, isa.halves(d))
    }
}
