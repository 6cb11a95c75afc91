//! IQ4_NL: 32 weights in 18 bytes, 4.5 bits per weight.
//!
//! ```text
//! byte  0    2                     18
//!       | d  | 16 bytes of nibbles |       qs[i]   low nibble: weight i    high nibble: weight 16 + i
//!        f16
//!
//! weight = d * LEVELS[nibble]
//! ```

use super::bits;
use crate::chunk::Weights;
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// The sixteen codes, ascending and denser around zero.
pub const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockIq4Nl {
    /// f16 scale, little endian.
    pub d: [u8; 2],
    /// Indices into [`LEVELS`].
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockIq4Nl>() == 18 && align_of::<BlockIq4Nl>() == 1);

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Iq4Nl;

/// [`LEVELS`] as decoding wants them.
pub(super) const SHIFTED: [u8; 16] = bits::shifted(&LEVELS);

impl Format for Iq4Nl {
    type Block = BlockIq4Nl;
    type Chunk = [BlockIq4Nl; 8];
    const FAMILY: Family = Family::Grouped;
    const BITS: usize = 4;
    const LEVELS: Levels = Levels::Table(SHIFTED);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &Self::Chunk) -> Weights<I> {
        let mut codes = [isa.splat_byte(0); 4];
        for q in 0..4 {
            codes[q] = isa.lookup16(&SHIFTED, isa.nibbles(&b[2 * q].qs, &b[2 * q + 1].qs));
        }
        let d = [b[0].d, b[1].d, b[2].d, b[3].d, b[4].d, b[5].d, b[6].d, b[7].d];
        Weights::grouped(codes, isa.halves(d))
    }
}
