//! MXFP4: 32 weights in 17 bytes, 4.25 bits per weight (OCP Microscaling Formats 1.0).
//!
//! ```text
//! byte  0    1                     17
//!       | e  | 16 bytes of nibbles |       qs[i]   low nibble: weight i    high nibble: weight 16 + i
//!        E8M0
//!
//! weight = 2^(e - 128) * E2M1[nibble]          E2M1 twice its values, hence 128 and not 127
//! ```

pub use super::bits::E2M1;
use super::bits::E2M1_SHIFTED;
use crate::chunk::Weights;
use crate::format::{Family, Format, Levels, Scale};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockMxfp4 {
    /// Exponent of the scale.
    pub e: u8,
    /// E2M1 codes.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<BlockMxfp4>() == 17 && align_of::<BlockMxfp4>() == 1);

/// `2^(e - 128)`: half of what E8M0 says.
#[inline(always)]
pub fn scale(e: u8) -> f32 {
    // The two smallest are subnormal.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Mxfp4;

impl Format for Mxfp4 {
    type Block = BlockMxfp4;
    type Chunk = [BlockMxfp4; 8];
    const HALVES: &'static [usize] = &[];
    const FAMILY: Family = Family::Grouped;
    const SCALE: Scale = Scale::Brain;
    const BITS: usize = 4;
    const LEVELS: Levels = Levels::Table(E2M1_SHIFTED);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &Self::Chunk) -> Weights<I> {
        let mut codes = [isa.splat_byte(0); 4];
        for q in 0..4 {
            codes[q] = isa.lookup16(&E2M1_SHIFTED, isa.nibbles(&b[2 * q].qs, &b[2 * q + 1].qs));
        }
        let mut d = [0.0; 8];
        for g in 0..8 {
            d[g] = scale(b[g].e);
        }
        Weights::grouped(codes, d)
    }
}
