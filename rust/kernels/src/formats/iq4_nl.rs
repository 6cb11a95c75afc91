//! IQ4_NL: 32 weights in 18 bytes, 4.5 bits per weight.
//!
//! ```text
//! byte  0    2                     18
//!       | d  | 16 bytes of nibbles |       qs[i]   low nibble: weight i    high nibble: weight 16 + i
//!        f16
//!
//! weight = d * LEVELS[nibble]
//! ```

use super::half_at;
use crate::chunk::{Chunk, GROUP};
use crate::format::{Family, Format};
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

impl Format for Iq4Nl {
    type Block = BlockIq4Nl;
    const BLOCK: usize = 32;
    const FAMILY: Family = Family::Grouped;
    const SIGNED: bool = true;

    #[inline(always)]
    fn decode<I: Isa>(isa: I, blocks: &[BlockIq4Nl], out: &mut Chunk) {
        let codes = out.codes.as_chunks_mut::<GROUP>().0;
        for g in 0..blocks.len().min(codes.len()) {
            isa.put(isa.lookup16(&LEVELS, isa.nibbles(&blocks[g].qs)), &mut codes[g]);
            out.group_d[g] = half_at(blocks[g].d);
        }
    }
}
