//! Q8_0: 32 weights in 34 bytes, 8.5 bits per weight.
//!
//! ```text
//! byte  0    2                                34
//!       | d  | q0 q1 q2 ...              q31 |      weight = d * q
//!        f16   i8
//! ```

use super::half_at;
use crate::chunk::{Chunk, GROUP};
use crate::format::{Family, Format};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

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
    const BLOCK: usize = 32;
    const FAMILY: Family = Family::Grouped;
    const SIGNED: bool = true;

    #[inline(always)]
    fn decode<I: Isa>(_: I, blocks: &[BlockQ8_0], out: &mut Chunk) {
        let codes = out.codes.as_chunks_mut::<GROUP>().0;
        for g in 0..blocks.len().min(codes.len()) {
            codes[g] = blocks[g].qs;
            out.group_d[g] = half_at(blocks[g].d);
        }
    }
}
