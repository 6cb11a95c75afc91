//! NVFP4: 64 weights in 36 bytes, 4.5 bits per weight.
//!
//! ```text
//! byte  0               4                     36
//!       | four scales   | 32 bytes of nibbles |
//!         UE4M3
//!
//! qs[8 s + i]   low nibble: weight 16 s + i    high nibble: weight 16 s + 8 + i
//!
//! weight = scale[s] / 2 * E2M1[nibble]          E2M1 twice its values
//! ```
//!
//! UE4M3 is E4M3 without the sign, whose bit is not looked at; 0x7f, NaN elsewhere, is zero as in llama.cpp.
//! The second level, an f32 for a whole matrix, is a tensor of its own in files and [`crate::Matrix::scale`] here.

use super::bits::E2M1_SHIFTED;
use crate::chunk::Weights;
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockNvfp4 {
    /// UE4M3 scale per 16 weights.
    pub d: [u8; 4],
    /// E2M1 codes.
    pub qs: [u8; 32],
}
const _: () = assert!(size_of::<BlockNvfp4>() == 36 && align_of::<BlockNvfp4>() == 1);

/// Half the value of every UE4M3 byte.
pub static SCALES: [f32; 256] = {
    let mut out = [0.0; 256];
    let mut x = 1;
    while x < 256 {
        let (exponent, mantissa) = (x >> 3 & 15, x & 7);
        out[x] = match exponent {
            0 => mantissa as f32 / 1024.0,
            // (8 + mantissa) / 8 * 2^(exponent - 7) / 2
            _ => ((8 + mantissa) << exponent) as f32 / 2048.0,
        };
        x += 1;
    }
    out[0x7f] = 0.0;
    out
};

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Nvfp4;

impl Format for Nvfp4 {
    type Block = BlockNvfp4;
    type Chunk = [BlockNvfp4; 4];
    const HALVES: &'static [usize] = &[];
    const FAMILY: Family = Family::Grouped;
    const SUB: usize = 16;
    const BITS: usize = 4;
    const LEVELS: Levels = Levels::Table(E2M1_SHIFTED);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &Self::Chunk) -> Weights<I> {
        let mut codes = [isa.splat_byte(0); 4];
        let mut group_d = [0.0; 16];
        for q in 0..4 {
            let mut words = [0; 8];
            for (s, packed) in b[q].qs.as_chunks::<8>().0.iter().enumerate() {
                let packed = u64::from_le_bytes(*packed);
                words[2 * s] = packed & 0x0f0f_0f0f_0f0f_0f0f;
                words[2 * s + 1] = packed >> 4 & 0x0f0f_0f0f_0f0f_0f0f;
                group_d[4 * q + s] = SCALES[usize::from(b[q].d[s])];
            }
            codes[q] = isa.lookup16(&E2M1_SHIFTED, isa.words(words));
        }
        Weights { group_d, ..Weights::of(codes) }
    }
}
