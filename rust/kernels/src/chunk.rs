//! The contract between formats, which decode [`Weights`], and drivers, which multiply them.
//!
//! A chunk is 256 weights of one row: one K-quant block, or as many smaller blocks. Whatever a format
//! looks like in memory, its decoder returns the same picture:
//!
//! ```text
//! codes    256 x u8, in row order; the code proper is the byte minus 64 (Super, SIGNED), 128 (Grouped) or 0
//! Family::Super    weight = d * (scales[k/16] * code) - dmin * mins[k/16]      bytes at most 127
//! Family::Grouped  weight = group_d[k/SUB] * code + group_m[k/32]              bytes up to 255
//! ```
//!
//! Bytes are unsigned because the dot-product instructions of x86 want one unsigned operand; the
//! offset comes off again through the activations' sums, exactly. Integer sub-scales are given per 16
//! weights; a format with one scale per 32 writes it twice. Float scales are given per `SUB`. The products stay
//! exact in i32 over the whole chunk, which is what makes every instruction set return the same bits (`docs/kernels.md`).

use crate::format::{Family, Format};
use crate::isa::Isa;

/// Weights in a chunk.
pub const CHUNK: usize = 256;
/// Weights that share one integer scale in the widest view.
pub const SUB: usize = 16;
/// Weights that share one float scale in [`crate::Family::Grouped`] formats.
pub const GROUP: usize = 32;
/// Largest integer scale of activations: with it the sums of every format stay exact ([`assert_sums_fit`]).
pub const MAX_STEP: i16 = 8;
/// Largest magnitude of an activation's code.
const MAX_CODE: i32 = 127;
/// What signed codes of [`crate::Family::Super`] formats are shifted up by: they lie in -64..=63.
pub const SUPER_OFFSET: u8 = 64;
/// What the codes of [`crate::Family::Grouped`] formats are shifted up by.
pub const GROUPED_OFFSET: u8 = 128;

/// Largest magnitude of a code.
pub(crate) const fn largest_code<F: Format>() -> usize {
    let bytes = F::LEVELS.bytes(F::BITS);
    let offset = match (F::FAMILY, F::SIGNED) {
        (Family::Grouped, _) => GROUPED_OFFSET as usize,
        (Family::Super, true) => SUPER_OFFSET as usize,
        (Family::Super, false) => 0,
    };
    let (mut largest, mut i) = (0, 0usize);
    while i < 256 {
        if bytes[i] && i.abs_diff(offset) > largest {
            largest = i.abs_diff(offset);
        }
        i += 1;
    }
    largest
}

/// Fails to compile where a sum of codes times activations could leave the integer it is kept in. The table of formats
/// asks it of each.
pub(crate) const fn assert_sums_fit<F: Format>() {
    let bytes = F::LEVELS.bytes(F::BITS);
    let (mut byte, mut i) = (0, 0);
    while i < 256 {
        byte = if bytes[i] { i } else { byte };
        i += 1;
    }
    let (i16_max, i32_max) = (i16::MAX as i64, i32::MAX as i64);
    let (code, byte, scale) = (largest_code::<F>() as i64, byte as i64, F::MAX_SCALE as i64);
    let (most, step) = (MAX_CODE as i64, MAX_STEP as i64);
    match F::FAMILY {
        Family::Super => {
            assert!(scale > 0, "a format with integer scales says how large they are");
            assert!(scale <= 128, "repacked scales are bytes");
            assert!(scale * step <= i16_max, "scale times step, in 16 bits");
            assert!(2 * byte * most <= i16_max, "two products of bytes, in 16 bits");
            assert!(scale * step * code * most * CHUNK as i64 <= i32_max, "a chunk, in 32 bits");
            assert!(scale * step * most * CHUNK as i64 <= i32_max, "the minimums of a chunk, in 32 bits");
        }
        // AVX2 moves the sign of a code to the activation.
        Family::Grouped => assert!(2 * code * most <= i16_max, "two products of bytes, in 16 bits"),
    }
}

const _: () = assert!(GROUP as i32 * MAX_CODE * MAX_STEP as i32 <= i16::MAX as i32, "ActChunk::sums32");

/// 256 decoded weights of one row; the codes are in registers where those suffice.
#[derive(Clone, Copy)]
pub struct Weights<I: Isa> {
    /// One byte per weight, in row order.
    pub codes: [I::Q; 4],
    /// Integer scale per 16 weights. `Super` only.
    pub scales: [i16; CHUNK / SUB],
    /// Integer minimum per 16 weights. `Super` with `HAS_MIN` only.
    pub mins: [i16; CHUNK / SUB],
    /// Float scale per [`crate::format::Format::SUB`] weights, the first ones in use. `Grouped` only.
    pub group_d: [f32; CHUNK / SUB],
    /// Float minimum per 32 weights, to be added. `Grouped` with `HAS_MIN` only.
    pub group_m: [f32; CHUNK / GROUP],
    /// Scale of the chunk, an f16 as bits, still without the format's `D_FACTOR`. `Super`, and `Grouped` formats
    /// whose float scales are an integer times it.
    pub d: u16,
    /// Scale of the minimums, as `d`. `Super` with `HAS_MIN` only.
    pub dmin: u16,
}

impl<I: Isa> Weights<I> {
    /// These codes, and everything else zero.
    #[inline(always)]
    pub fn of(codes: [I::Q; 4]) -> Self {
        Self { codes, scales: [0; 16], mins: [0; 16], group_d: [0.0; 16], group_m: [0.0; 8], d: 0, dmin: 0 }
    }

    /// These codes under one float scale per 32.
    #[inline(always)]
    pub fn grouped(codes: [I::Q; 4], d: [f32; CHUNK / GROUP]) -> Self {
        Self { group_d: bytemuck::cast([d, [0.0; CHUNK / GROUP]]), ..Self::of(codes) }
    }
}

/// 256 activations of one column, quantized to -127..=127: activation = scales[k/32] * steps[k/16] * code.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct ActChunk {
    /// One code per activation; zero past the end of the column.
    pub codes: [i8; CHUNK],
    /// The weights' offset times the sum of the codes of each 16, negated: what a dot product with
    /// shifted weights starts from.
    pub starts: [i32; CHUNK / SUB],
    /// The same per 32.
    pub starts32: [i32; CHUNK / GROUP],
    /// What sixteen-bit dot products start from: minus [`SUPER_OFFSET`] times the sums of the first and of the second
    /// two codes of each word of four, over 4 words, modulo 2^16.
    pub pairs: [[i16; 2]; CHUNK / SUB],
    /// The same over 8 words.
    pub pairs32: [[i16; 2]; CHUNK / GROUP],
    /// Integer scale of each 16, from 1 to [`MAX_STEP`]; 1 for `Grouped` formats.
    pub steps: [i16; CHUNK / SUB],
    /// Sum of the codes of each 16, times its step.
    pub sums: [i16; CHUNK / SUB],
    /// The same per 32.
    pub sums32: [i16; CHUNK / GROUP],
    /// Scale per 32; all eight are equal where the scale spans the chunk.
    pub scales: [f32; CHUNK / GROUP],
}

impl ActChunk {
    /// Sums of sub-blocks `2 p` and `2 p + 1` of `LEN` activations, 16 or 32, as two i16.
    #[inline(always)]
    pub(crate) fn sum_pairs<const LEN: usize>(&self, p: usize) -> i32 {
        if LEN == GROUP {
            bytemuck::cast_ref::<_, [i32; 4]>(&self.sums32)[p]
        } else {
            bytemuck::cast_ref::<_, [i32; 8]>(&self.sums)[p]
        }
    }

    /// Sum of the activations of group `g`. `Grouped` only.
    #[inline(always)]
    pub(crate) fn sum_of_group(&self, g: usize) -> f32 {
        self.scales[g] * f32::from(self.sums32[g])
    }

    /// What a dot product with `words` words of four shifted codes from `first` on starts from; `words` is 4 or 8.
    #[inline(always)]
    pub fn start(&self, first: usize, words: usize) -> i32 {
        if words == GROUP / 4 { self.starts32[first / words] } else { self.starts[first / words] }
    }

    /// The same in sixteen bits.
    #[inline(always)]
    pub fn pair_start(&self, first: usize, words: usize) -> i32 {
        bytemuck::cast(if words == GROUP / 4 {
            self.pairs32[first / words]
        } else {
            self.pairs[first / words]
        })
    }

    /// Everything that follows from codes and steps: sums, and what dot products with codes shifted by `offset`
    /// start from.
    #[inline(always)]
    pub fn add_up(&mut self, offset: u8) {
        let words = self.codes.as_chunks::<4>().0;
        for s in 0..CHUNK / SUB {
            let mut pair = [0i16; 2];
            for word in &words[4 * s..4 * s + 4] {
                pair[0] += i16::from(word[0]) + i16::from(word[1]);
                pair[1] += i16::from(word[2]) + i16::from(word[3]);
            }
            let sum = pair[0] + pair[1];
            self.sums[s] = sum * self.steps[s];
            self.starts[s] = -i32::from(offset) * i32::from(sum);
            self.pairs[s] = pair.map(|sum| sum.wrapping_mul(-i16::from(SUPER_OFFSET)));
        }
        for g in 0..CHUNK / GROUP {
            self.sums32[g] = self.sums[2 * g] + self.sums[2 * g + 1];
            self.starts32[g] = self.starts[2 * g] + self.starts[2 * g + 1];
            let (first, second) = (self.pairs[2 * g], self.pairs[2 * g + 1]);
            self.pairs32[g] = [first[0].wrapping_add(second[0]), first[1].wrapping_add(second[1])];
        }
    }
}

impl Default for ActChunk {
    fn default() -> Self {
        Self {
            codes: [0; CHUNK],
            starts: [0; CHUNK / SUB],
            starts32: [0; CHUNK / GROUP],
            pairs: [[0; 2]; CHUNK / SUB],
            pairs32: [[0; 2]; CHUNK / GROUP],
            steps: [1; CHUNK / SUB],
            sums: [0; CHUNK / SUB],
            sums32: [0; CHUNK / GROUP],
            scales: [0.0; CHUNK / GROUP],
        }
    }
}
