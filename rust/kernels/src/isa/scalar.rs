//! The oracle: plain loops, any CPU. Every other instruction set must return its bits.
//!
//! Loops over 64 bytes are functions of their own here: they need no CPU feature that inlining would bring, and
//! unrolled into every driver they would take minutes to compile.

use super::{Isa, LANES};
use crate::chunk::{ActChunk, GROUP, GROUPED_OFFSET, SUB, SUPER_OFFSET};
use crate::convert::{bf16_to_f32, e4m3_to_f32, f16_to_f32, f32_to_f16};
use crate::dispatch::Op;

/// Plain Rust.
#[derive(Debug, Clone, Copy)]
pub struct Scalar;

/// Sum of `(code - offset) * activation` over `len` codes from `start`.
#[inline(always)]
fn dot_range(codes: &[[u8; 64]; 4], offset: u8, a: &ActChunk, start: usize, len: usize) -> i32 {
    let codes: &[u8; 256] = bytemuck::cast_ref(codes);
    let (w, a) = (&codes[start..start + len], &a.codes[start..start + len]);
    w.iter().zip(a).map(|(&w, &a)| (i32::from(w) - i32::from(offset)) * i32::from(a)).sum()
}

impl Isa for Scalar {
    type F = [f32; LANES];
    type V = [i32; LANES];
    type D = [i32; LANES];
    type Q = [u8; 64];
    type S = i32;
    type U = [i32; 8];
    const WIDE: bool = false;
    const FLOAT_COLUMNS: usize = 1;
    const TILE: usize = 4;
    const NARROW: bool = false;
    const PREFETCH: bool = false;
    const BYTE_PERMUTE: bool = false;

    #[inline(never)]
    fn enter<O: Op>(self, op: O) -> O::Out {
        op.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        *out = x;
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn plus(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn minus(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn least(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn most(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn where_less(self, a: Self::F, b: Self::F, then: Self::F, otherwise: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] < b[i] { then[i] } else { otherwise[i] })
    }

    #[inline(always)]
    fn sum(self, mut x: Self::F) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                x[i] += x[i + half];
            }
        }
        x[0]
    }

    #[inline(always)]
    fn sum_each(self, x: &[Self::F; LANES]) -> Self::F {
        x.map(|x| self.sum(x))
    }

    #[inline(always)]
    fn halves(self, x: [[u8; 2]; 8]) -> [f32; 8] {
        x.map(|x| f16_to_f32(u16::from_le_bytes(x)))
    }

    #[inline(never)]
    fn load_half(self, x: &[u16; LANES]) -> Self::F {
        x.map(f16_to_f32)
    }

    #[inline(never)]
    fn load_brain(self, x: &[u16; LANES]) -> Self::F {
        x.map(bf16_to_f32)
    }

    #[inline(never)]
    fn load_e4m3(self, x: &[u8; LANES]) -> Self::F {
        x.map(e4m3_to_f32)
    }

    #[inline(never)]
    fn load_codes(self, x: &[i8; LANES]) -> Self::F {
        x.map(f32::from)
    }

    #[inline(never)]
    fn store_half(self, x: Self::F, out: &mut [u16; LANES]) {
        *out = x.map(f32_to_f16);
    }

    #[inline(never)]
    fn transpose_groups(self, x: &[[f32; 8]; LANES]) -> [Self::F; 8] {
        std::array::from_fn(|g| std::array::from_fn(|r| x[r][g]))
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    fn to_float(self, x: Self::V) -> Self::F {
        x.map(|x| x as f32)
    }

    #[inline(never)]
    fn load_i32(self, x: &[i32; LANES]) -> Self::V {
        *x
    }

    #[inline(never)]
    fn store_i32(self, x: Self::V, out: &mut [i32; LANES]) {
        *out = x;
    }

    #[inline(never)]
    fn widen_i32(self, x: &[i8; LANES]) -> Self::V {
        x.map(i32::from)
    }

    #[inline(never)]
    fn widen_pairs(self, x: &[i8; 2 * LANES]) -> Self::V {
        std::array::from_fn(|r| i32::from(x[2 * r]) & 0xffff | i32::from(x[2 * r + 1]) << 16)
    }

    #[inline(never)]
    fn add_i32(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|r| a[r].wrapping_add(b[r]))
    }

    #[inline(never)]
    fn dot2(self, acc: Self::V, w: Self::V, a: i32) -> Self::V {
        let (low, high) = (i32::from(a as i16), a >> 16);
        std::array::from_fn(|r| {
            let (w_low, w_high) = (i32::from(w[r] as i16), w[r] >> 16);
            acc[r].wrapping_add((w_low * low).wrapping_add(w_high * high))
        })
    }

    #[inline(always)]
    fn dot_zero(self) -> Self::D {
        [0; LANES]
    }

    #[inline(always)]
    fn dot_start(self, a: &ActChunk, first: usize, words: usize) -> Self::D {
        [a.start(first, words); LANES]
    }

    #[inline(never)]
    fn dot(self, acc: Self::D, w: Self::Q, a: i32) -> Self::D {
        let a = a.to_le_bytes();
        std::array::from_fn(|r| {
            (0..4).fold(acc[r], |s, i| s + i32::from(w[4 * r + i]) * i32::from(a[i] as i8))
        })
    }

    #[inline(always)]
    fn dot_sum(self, acc: Self::D) -> Self::V {
        acc
    }

    #[inline(never)]
    fn dot_end(self, total: Self::V, acc: Self::D, factor: Self::V) -> Self::V {
        std::array::from_fn(|r| total[r].wrapping_add(acc[r].wrapping_mul(factor[r])))
    }

    #[inline(always)]
    fn dot_wide(self, acc: Self::V, w: Self::Q, a: i32) -> Self::V {
        self.dot(acc, w, a)
    }

    #[inline(always)]
    fn wide_end(self, total: Self::V, acc: Self::V, factor: Self::V) -> Self::V {
        self.dot_end(total, acc, factor)
    }

    #[inline(never)]
    fn factors(self, x: &[i8; LANES]) -> Self::V {
        x.map(i32::from)
    }

    #[inline(never)]
    fn mul_factors(self, x: Self::V, by: i16) -> Self::V {
        x.map(|x| x * i32::from(by))
    }

    #[inline(never)]
    fn abs_factors(self, x: Self::V) -> Self::V {
        x.map(i32::abs)
    }

    #[inline(always)]
    fn full_start(self, start: i32) -> Self::V {
        [start; LANES]
    }

    #[inline(never)]
    fn dot_full(self, acc: Self::V, w: Self::Q, a: i32) -> Self::V {
        self.dot(acc, w, a)
    }

    #[inline(never)]
    fn transpose_words(self, rows: &[[u8; 64]; LANES], out: &mut [[u8; 64]; LANES]) {
        for (r, row) in rows.iter().enumerate() {
            for (k, word) in row.as_chunks::<4>().0.iter().enumerate() {
                out[k][4 * r..4 * r + 4].copy_from_slice(word);
            }
        }
    }

    #[inline(always)]
    fn no_lanes(self) -> Self::S {
        0
    }

    #[inline(always)]
    fn no_units(self) -> Self::U {
        [0; 8]
    }

    #[inline(never)]
    fn dot_super<const SIGNED: bool>(
        self,
        codes: &[Self::Q; 4],
        scales: &[i16; 16],
        a: &ActChunk,
    ) -> Self::S {
        let offset = if SIGNED { SUPER_OFFSET } else { 0 };
        let mut sum = 0i32;
        for (s, &scale) in scales.iter().enumerate() {
            let scale = i32::from(scale) * i32::from(a.steps[s]);
            sum = sum.wrapping_add(scale.wrapping_mul(dot_range(codes, offset, a, s * SUB, SUB)));
        }
        sum
    }

    #[inline(never)]
    fn dot_mins(self, mins: &[i16; 16], a: &ActChunk) -> Self::S {
        mins.iter().zip(&a.sums).map(|(&m, &a)| i32::from(m) * i32::from(a)).fold(0, i32::wrapping_add)
    }

    #[inline(always)]
    fn sum_rows(self, x: &[Self::S; LANES]) -> Self::V {
        *x
    }

    #[inline(never)]
    fn dot_units(self, codes: &[Self::Q; 4], a: &ActChunk) -> Self::U {
        std::array::from_fn(|g| dot_range(codes, GROUPED_OFFSET, a, g * GROUP, GROUP))
    }

    #[inline(never)]
    fn sum_units(self, x: &[Self::U; LANES], _: &ActChunk) -> [Self::V; 8] {
        std::array::from_fn(|g| std::array::from_fn(|r| x[r][g]))
    }

    #[inline(always)]
    fn prefetch(self, _: &[u8], _: usize) {}

    #[inline(never)]
    fn spread(self, x: Self::Q, at: &[u8; 8]) -> [i16; 16] {
        std::array::from_fn(|i| i16::from(x[usize::from(at[i / 2])]))
    }

    #[inline(always)]
    fn twice(self, x: [u8; 8]) -> [i16; 16] {
        std::array::from_fn(|i| i16::from(x[i / 2]))
    }

    #[inline(always)]
    fn widen(self, x: [i8; 16]) -> [i16; 16] {
        x.map(i16::from)
    }

    #[inline(always)]
    fn bytes(self, x: &[u8; 64]) -> Self::Q {
        *x
    }

    #[inline(never)]
    fn bytes2(self, low: &[u8; 32], high: &[u8; 32]) -> Self::Q {
        std::array::from_fn(|i| if i < 32 { low[i] } else { high[i - 32] })
    }

    #[inline(never)]
    fn nibbles(self, low: &[u8; 16], high: &[u8; 16]) -> Self::Q {
        std::array::from_fn(|i| {
            let byte = if i < 32 { low[i % 16] } else { high[i % 16] };
            if i % 32 < 16 { byte & 15 } else { byte >> 4 }
        })
    }

    #[inline(always)]
    fn words(self, x: [u64; 8]) -> Self::Q {
        bytemuck::cast(x.map(u64::to_le))
    }

    #[inline(always)]
    fn put(self, x: Self::Q, out: &mut [u8; 64]) {
        *out = x;
    }

    #[inline(always)]
    fn splat_byte(self, x: u8) -> Self::Q {
        [x; 64]
    }

    #[inline(never)]
    fn and(self, a: Self::Q, b: Self::Q) -> Self::Q {
        std::array::from_fn(|i| a[i] & b[i])
    }

    #[inline(never)]
    fn or(self, a: Self::Q, b: Self::Q) -> Self::Q {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(never)]
    fn xor(self, a: Self::Q, b: Self::Q) -> Self::Q {
        std::array::from_fn(|i| a[i] ^ b[i])
    }

    #[inline(never)]
    fn add(self, a: Self::Q, b: Self::Q) -> Self::Q {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(never)]
    fn shr<const LOW: u32, const HIGH: u32>(self, x: Self::Q) -> Self::Q {
        std::array::from_fn(|i| x[i] >> if i < 32 { LOW } else { HIGH })
    }

    #[inline(never)]
    fn shl<const LOW: u32, const HIGH: u32>(self, x: Self::Q) -> Self::Q {
        std::array::from_fn(|i| x[i] << if i < 32 { LOW } else { HIGH })
    }

    #[inline(never)]
    fn lookup16(self, table: &[u8; 16], indices: Self::Q) -> Self::Q {
        indices.map(|i| table[usize::from(i & 15)])
    }

    #[inline(never)]
    fn lookup256(self, table: &[u8; 256], indices: Self::Q) -> Self::Q {
        indices.map(|i| table[usize::from(i)])
    }

    #[inline(never)]
    fn lookup64(self, table: &[u8; 64], indices: Self::Q) -> Self::Q {
        indices.map(|i| table[usize::from(i & 63)])
    }

    #[inline(never)]
    fn pick(self, low: Self::Q, high: Self::Q, at: &[u8; 64]) -> Self::Q {
        at.map(|at| if at < 64 { low[usize::from(at)] } else { high[usize::from(at % 64)] })
    }

    #[inline(never)]
    fn fields(self, words: Self::Q, at: [u8; 8]) -> Self::Q {
        let words: [u64; 8] = bytemuck::cast(words);
        std::array::from_fn(|i| u64::from_le(words[i / 8]).rotate_right(u32::from(at[i % 8])) as u8)
    }

    #[inline(never)]
    fn parity_signs(self, x: Self::Q) -> Self::Q {
        x.map(|x| x & 127 | ((x & 127).count_ones() as u8 & 1) << 7)
    }

    #[inline(never)]
    fn negate(self, x: Self::Q, offset: u8, signs: Self::Q, quarter: usize) -> Self::Q {
        std::array::from_fn(|i| {
            let negative = signs[8 * quarter + i / 8] >> (i % 8) & 1 == 1;
            if negative { offset.wrapping_mul(2).wrapping_sub(x[i]) } else { x[i] }
        })
    }
}
