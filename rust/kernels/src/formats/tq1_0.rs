//! TQ1_0: 256 ternary weights in 54 bytes, 1.6875 bits per weight.
//!
//! ```text
//! byte  0                                   48          52   54
//!       | 48 bytes of five digits base 3    | 4 bytes   | d  |
//!                                           | of four   | f16
//!
//! a byte is ceil(256 n / 243), n its digits as a number of five, the first digit the highest; digit k is the upper
//! byte of 3 * (byte * 3^k mod 256)
//!
//! qs[i], i < 32       digit k: weight 32 k + i
//! qs[32 + i], i < 16  digit k: weight 160 + 16 k + i
//! qh[i]               digit k: weight 240 + 4 k + i
//!
//! weight = d * (digit - 1)
//! ```

use crate::chunk::{CHUNK, SUPER_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockTq1_0 {
    /// Digits of weights 0 to 240, five to a byte.
    pub qs: [u8; 48],
    /// Digits of the last sixteen, four to a byte.
    pub qh: [u8; 4],
    /// f16 scale.
    pub d: [u8; 2],
}
const _: () = assert!(size_of::<BlockTq1_0>() == 54 && align_of::<BlockTq1_0>() == 1);

/// Where the byte of each weight is, and the number of its digit.
static PLACES: [(u8, u8); CHUNK] = {
    let mut out = [(0, 0); CHUNK];
    let mut i = 0;
    while i < CHUNK {
        let (at, digit) = match i {
            0..160 => (i % 32, i / 32),
            160..240 => (32 + i % 16, (i - 160) / 16),
            _ => (48 + i % 4, (i - 240) / 4),
        };
        out[i] = (at as u8, digit as u8);
        i += 1;
    }
    out
};

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Tq1_0;

impl Format for Tq1_0 {
    type Block = BlockTq1_0;
    type Chunk = BlockTq1_0;
    const HALVES: &'static [usize] = &[offset_of!(BlockTq1_0, d)];
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;
    const MAX_SCALE: i32 = 1;
    const BITS: usize = 2;
    const LEVELS: Levels = Levels::From(SUPER_OFFSET - 1);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockTq1_0) -> Weights<I> {
        let stored: &[u8; 54] = bytemuck::cast_ref(b);
        let mut codes = [isa.splat_byte(SUPER_OFFSET - 1); 4];
        for q in 0..4 {
            codes[q] = isa.add(codes[q], isa.bytes(&digits(stored, q)));
        }
        Weights { d: u16::from_le_bytes(b.d), scales: [1; 16], ..Weights::of(codes) }
    }
}

/// The digits of weights `64 quarter ..`.
#[inline(never)]
fn digits(stored: &[u8; 54], quarter: usize) -> [u8; 64] {
    let mut out = [0; 64];
    for (out, &(at, k)) in out.iter_mut().zip(&PLACES[64 * quarter..]) {
        let power = [1, 3, 9, 27, 81][usize::from(k)];
        let moved = stored[usize::from(at)].wrapping_mul(power);
        *out = ((u16::from(moved) * 3) >> 8) as u8;
    }
    out
}
