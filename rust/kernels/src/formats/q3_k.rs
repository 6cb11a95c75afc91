//! Q3_K: 256 weights in 110 bytes, 3.4375 bits per weight.
//!
//! ```text
//! byte  0          32              96           108  110
//!       | hmask:   | 64 bytes of   | 16 six-bit | d  |
//!       | top bits | two-bit codes | scales     | f16
//!
//! qs[32 h + i]   bits 2 j .. 2 j + 2: weight 128 h + 32 j + i           hmask[i]   bit 4 h + j: its top bit
//!
//! scale s of weights 16 s ..:   low four bits  nibble s / 8 of byte s % 8
//!                               high two       bits 2 (s / 4) .. of byte 8 + s % 4
//! weight = d * ((scale - 32) * (q - 4))
//! ```

use crate::chunk::{SUPER_OFFSET, Weights};
use crate::format::{Family, Format, Levels};
use crate::isa::Isa;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// One block as it lies in the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ3K {
    /// Top bits of the codes.
    pub hmask: [u8; 32],
    /// Their lower two.
    pub qs: [u8; 64],
    /// Packed six-bit scales.
    pub scales: [u8; 12],
    /// f16 scale of the scales.
    pub d: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ3K>() == 110 && align_of::<BlockQ3K>() == 1);

/// Unpacks the sixteen scales.
#[inline(always)]
pub fn unpack_scales(packed: &[u8; 12]) -> [i8; 16] {
    let (words, _) = packed.as_chunks::<4>();
    let (a, b) = (u32::from_le_bytes(words[0]), u32::from_le_bytes(words[1]));
    let top = u32::from_le_bytes(words[2]);
    const FOUR: u32 = 0x0f0f_0f0f;
    const TWO: u32 = 0x3030_3030;
    let fours = [
        a & FOUR | top << 4 & TWO,
        b & FOUR | top << 2 & TWO,
        a >> 4 & FOUR | top & TWO,
        b >> 4 & FOUR | top >> 2 & TWO,
    ];
    let bytes: [u8; 16] = bytemuck::cast(fours.map(u32::to_le));
    let mut out = [0; 16];
    for s in 0..16 {
        out[s] = bytes[s] as i8 - 32;
    }
    out
}

/// Marker of the format.
#[derive(Debug, Clone, Copy)]
pub struct Q3K;

impl Format for Q3K {
    type Block = BlockQ3K;
    type Chunk = BlockQ3K;
    const HALVES: &'static [usize] = &[offset_of!(BlockQ3K, d)];
    const FAMILY: Family = Family::Super;
    const SIGNED: bool = true;
    const SUB: usize = 16;
    const MAX_SCALE: i32 = 32;
    const BITS: usize = 3;
    const LEVELS: Levels = Levels::From(SUPER_OFFSET - 4);

    #[inline(always)]
    fn decode<I: Isa>(isa: I, b: &BlockQ3K) -> Weights<I> {
        let (three, four) = (isa.splat_byte(3), isa.splat_byte(4));
        let shift = isa.splat_byte(SUPER_OFFSET - 4);
        let qs = b.qs.as_chunks::<32>().0;
        let (first, second) = (isa.bytes2(&qs[0], &qs[0]), isa.bytes2(&qs[1], &qs[1]));
        let low = [
            isa.shr::<0, 2>(first),
            isa.shr::<4, 6>(first),
            isa.shr::<0, 2>(second),
            isa.shr::<4, 6>(second),
        ];
        let mask = isa.bytes2(&b.hmask, &b.hmask);
        // The top bit goes where the third bit is.
        let high =
            [isa.shl::<2, 1>(mask), isa.shr::<0, 1>(mask), isa.shr::<2, 3>(mask), isa.shr::<4, 5>(mask)];
        let mut codes = [three; 4];
        for q in 0..4 {
            codes[q] = isa.add(isa.or(isa.and(low[q], three), isa.and(high[q], four)), shift);
        }
        let scales = isa.widen(unpack_scales(&b.scales));
        Weights { d: u16::from_le_bytes(b.d), scales, ..Weights::of(codes) }
    }
}
