//! The oracle: plain loops, any CPU. Every other instruction set must return its bits.

use super::{Isa, LANES};
use crate::chunk::{ActChunk, Chunk, GROUP, SUB};
use crate::convert::{f16_to_f32, f32_to_f16};

/// Plain Rust.
#[derive(Debug, Clone, Copy)]
pub struct Scalar;

#[inline(always)]
fn dot_range(w: &Chunk, a: &ActChunk, start: usize, len: usize) -> i32 {
    let (w, a) = (&w.codes[start..start + len], &a.codes[start..start + len]);
    w.iter().zip(a).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum()
}

impl Isa for Scalar {
    type F = [f32; LANES];
    type B = [u8; 32];
    const WIDE: bool = false;

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
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
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
    fn load_half(self, x: &[u16; LANES]) -> Self::F {
        x.map(f16_to_f32)
    }

    #[inline(always)]
    fn load_codes(self, x: &[i8; LANES]) -> Self::F {
        x.map(f32::from)
    }

    #[inline(always)]
    fn store_half(self, x: Self::F, out: &mut [u16; LANES]) {
        *out = x.map(f32_to_f16);
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, w: &Chunk, a: &ActChunk) -> i32 {
        let mut sum = 0i32;
        for (s, &scale) in w.scales.iter().enumerate() {
            let scale = i32::from(scale) * i32::from(a.steps[s]);
            sum = sum.wrapping_add(scale.wrapping_mul(dot_range(w, a, s * SUB, SUB)));
        }
        sum
    }

    #[inline(always)]
    fn dot_groups<const SIGNED: bool>(self, w: &Chunk, a: &ActChunk) -> [i32; 8] {
        std::array::from_fn(|g| dot_range(w, a, g * GROUP, GROUP))
    }

    #[inline(always)]
    fn dot_sums(self, a: &[i16; 16], b: &[i16; 16]) -> i32 {
        a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).fold(0, i32::wrapping_add)
    }

    #[inline(always)]
    fn bytes(self, x: &[u8; 32]) -> Self::B {
        *x
    }

    #[inline(always)]
    fn nibbles(self, x: &[u8; 16]) -> Self::B {
        std::array::from_fn(|i| if i < 16 { x[i] & 15 } else { x[i - 16] >> 4 })
    }

    #[inline(always)]
    fn put(self, x: Self::B, out: &mut [i8; 32]) {
        *out = x.map(|x| x as i8);
    }

    #[inline(always)]
    fn splat_byte(self, x: u8) -> Self::B {
        [x; 32]
    }

    #[inline(always)]
    fn and(self, a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn shr<const N: i32>(self, x: Self::B) -> Self::B {
        x.map(|x| x >> N)
    }

    #[inline(always)]
    fn shl<const N: i32>(self, x: Self::B) -> Self::B {
        x.map(|x| x << N)
    }

    #[inline(always)]
    fn lookup16(self, table: &[i8; 16], indices: Self::B) -> Self::B {
        indices.map(|i| table[usize::from(i & 15)] as u8)
    }
}
