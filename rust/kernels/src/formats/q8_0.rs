//! Q8_0: 32 weights in 34 bytes, 8.5 bits per weight.
//!
//! ```text
//! byte  0    2                                34
//!       | d  | q0 q1 q2 ...              q31 |      weight = d * q
//!        f16   i8
//! ```

use crate::chunk::{GROUPED_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable, cast_ref};

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ8_0 {
    /// f16 scale, little endian.
    pub d: [u8; 2],
    /// Codes.
    pub qs: [i8; 32],
}
const _: () = assert!(size_of::<BlockQ8_0>() == 34 && align_of::<BlockQ8_0>() == 1);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q8_0;

impl Format for Q8_0 {
    type Block = BlockQ8_0;
    type Chunk = [BlockQ8_0; 8];
    const FAMILY: Family = Family::Grouped;
    const BITS: usize = 8;
    const LEVELS: Levels = Levels::From(0);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &Self::Chunk) -> Weights<I> {
        let shift = isa.splat_byte(GROUPED_OFFSET);
        let mut codes = [shift; 4];
        for q in 0..4 {
            let pair = isa.bytes2(cast_ref(&b[2 * q].qs), cast_ref(&b[2 * q + 1].qs));
            codes[q] = isa.xor(pair, shift);
        }
        let d = [b[0].d, b[1].d, b[2].d, b[3].d, b[4].d, b[5].d, b[6].d, b[7].d];
        Weights::grouped(codes, isa.halves(d))
    }
}
