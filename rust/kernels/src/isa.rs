//! What an instruction set must offer: about two dozen primitives, no formats, no drivers.
//!
//! An implementation is a zero-sized token; holding one proves that the instructions exist,
//! because only [`crate::dispatch`] makes them after asking the CPU. Every method must be
//! `#[inline(always)]` and return exactly what [`scalar::Scalar`] returns; the register width is
//! the implementation's business. Only files under `isa/` and `dispatch.rs` may use `unsafe`.

use crate::chunk::{ActChunk, Chunk};

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub mod avx512;
pub mod scalar;

/// Logical lanes of the float primitives.
pub const LANES: usize = 16;

/// One instruction set.
pub trait Isa: Copy + Send + Sync + 'static {
    /// Sixteen f32 lanes: one 512-bit register, two of 256 bits, or an array.
    type F: Copy;
    /// Thirty-two bytes.
    type B: Copy;
    /// Whether sixteen [`Isa::F`] accumulators fit the register file.
    const WIDE: bool;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Loads sixteen lanes.
    fn load(self, x: &[f32; LANES]) -> Self::F;
    /// Stores sixteen lanes.
    fn store(self, x: Self::F, out: &mut [f32; LANES]);
    /// Fused `a * b + c`, lane by lane.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The sum of the lanes in the one fixed order: `i + 8`, `i + 4`, `i + 2`, `i + 1`.
    fn sum(self, x: Self::F) -> f32;
    /// Loads sixteen f16 values, exactly.
    fn load_half(self, x: &[u16; LANES]) -> Self::F;
    /// Loads sixteen signed bytes as numbers.
    fn load_codes(self, x: &[i8; LANES]) -> Self::F;
    /// Stores sixteen lanes as f16, rounded to nearest even.
    fn store_half(self, x: Self::F, out: &mut [u16; LANES]);

    /// `sum over s of scales[s] * steps[s] * (sum over its 16 of code * activation)`, exact modulo 2^32.
    /// `SIGNED` says whether weight codes may be negative ([`crate::Format::SIGNED`]).
    fn dot<const SIGNED: bool>(self, w: &Chunk, a: &ActChunk) -> i32;
    /// `sum of code * activation` for each of the eight groups of 32, exact.
    fn dot_groups<const SIGNED: bool>(self, w: &Chunk, a: &ActChunk) -> [i32; 8];
    /// `sum of a[s] * b[s]`, exact: sub-block minimums times activation sums.
    fn dot_sums(self, a: &[i16; 16], b: &[i16; 16]) -> i32;

    /// Loads 32 bytes.
    fn bytes(self, x: &[u8; 32]) -> Self::B;
    /// Low nibbles of 16 bytes, then their high nibbles.
    fn nibbles(self, x: &[u8; 16]) -> Self::B;
    /// Stores 32 bytes.
    fn put(self, x: Self::B, out: &mut [i8; 32]);
    /// All bytes `x`.
    fn splat_byte(self, x: u8) -> Self::B;
    /// Bitwise and.
    fn and(self, a: Self::B, b: Self::B) -> Self::B;
    /// Bitwise or.
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// `a - b`, wrapping, byte by byte.
    fn sub(self, a: Self::B, b: Self::B) -> Self::B;
    /// Each byte shifted right, zeros coming in.
    fn shr<const N: i32>(self, x: Self::B) -> Self::B;
    /// Each byte shifted left, zeros coming in.
    fn shl<const N: i32>(self, x: Self::B) -> Self::B;
    /// `table[index]` for 32 indices below 16.
    fn lookup16(self, table: &[i8; 16], indices: Self::B) -> Self::B;
}
