//! Q1_0: 128 weights in 18 bytes, 1.125 bits per weight.
//!
//! ```text
//! byte  0    2                  18
//!       | d  | 16 bytes of bits |       bit i % 8 of qs[i / 8]: weight i
//!        f16
//!
//! weight = d where the bit is set, else -d
//! ```

use super::{bits, grids};
use crate::chunk::{GROUPED_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ1_0 {
    /// f16 scale, little endian.
    pub d: [u8; 2],
    /// Signs.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ1_0>() == 18 && align_of::<BlockQ1_0>() == 1);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q1_0;

impl Format for Q1_0 {
    type Block = BlockQ1_0;
    type Chunk = [BlockQ1_0; 2];
    const FAMILY: Family = Family::Grouped;
    const BITS: usize = 1;
    const LEVELS: Levels = Levels::Table(grids::levels(&[GROUPED_OFFSET - 1, GROUPED_OFFSET + 1]));

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &Self::Chunk) -> Weights<I> {
        let down = isa.splat_byte(GROUPED_OFFSET - 1);
        let mut codes = [down; 4];
        for q in 0..4 {
            let set = bits::bits(isa, &b[q / 2].qs.as_chunks().0[q % 2]);
            codes[q] = isa.add(isa.shl::<1, 1>(set), down);
        }
        let [first, second] = [b[0].d, b[1].d];
        let d = [first, first, first, first, second, second, second, second];
        Weights::grouped(codes, isa.halves(d))
    }
}
