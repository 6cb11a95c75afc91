//! What an instruction set must offer: primitives, no formats, no drivers.
//!
//! An implementation is a zero-sized token; holding one proves that the instructions exist,
//! because only [`crate::dispatch`] makes them after asking the CPU. Numbers and bytes that methods return must be exactly those of
//! [`scalar::Scalar`] (any NaN for a NaN); what stands in between is the implementation's business: the register width, what
//! `D`, `S` and `U` hold, starts and factors. On real instruction sets every method is `#[inline(always)]`. Only files under
//! `isa/` and `dispatch.rs` may use `unsafe`.

use crate::chunk::{ActChunk, GROUPED_OFFSET, SUPER_OFFSET};
use crate::dispatch::Op;
use scalar::Scalar;

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub mod avx512;
#[allow(unsafe_code)]
pub(crate) mod environment;
#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
pub mod neon;
pub mod scalar;

/// Logical lanes of the float and integer primitives.
pub const LANES: usize = 16;

/// One instruction set.
pub trait Isa: Copy + Send + Sync + 'static {
    /// Sixteen f32 lanes: one 512-bit register, two of 256 bits, four of 128, or an array.
    type F: Copy;
    /// Sixteen i32 lanes.
    type V: Copy;
    /// Sixty-four bytes.
    type Q: Copy;
    /// Sums of products under way, four codes of each row at a time: [`Isa::V`], or sixteen-bit pairs of it.
    type D: Copy;
    /// Lanes whose sum is one exact i32: what [`Isa::sum_rows`] adds up.
    type S: Copy;
    /// Lanes whose sums are eight exact i32, one per 32 codes: what [`Isa::sum_units`] adds up.
    type U: Copy;
    /// Whether sixteen [`Isa::F`] accumulators fit the register file.
    const WIDE: bool;
    /// Columns whose products of f32 are summed side by side: 4 with four rows, 3 with two, 1 with four (`float.rs`).
    const FLOAT_COLUMNS: usize;
    /// Columns whose sums and totals over sixteen rows fit the register file.
    const TILE: usize;
    /// Whether [`Isa::D`] has sixteen bits and holds no more words than [`crate::repack::Layout::REACH`].
    const NARROW: bool;
    /// What the signed codes of a `Super` format are shifted up by when they meet activations: what starts are made for
    /// ([`ActChunk::starts`], or [`ActChunk::pairs`]), or zero where bytes are signed and nothing has to start.
    const SUPER_OFFSET: u8 = SUPER_OFFSET;
    /// The same for `Grouped` formats with few levels.
    const SMALL_OFFSET: u8 = GROUPED_OFFSET;
    /// The same for those whose codes fill a byte.
    const FULL_OFFSET: u8 = GROUPED_OFFSET;
    /// Whether one column's stream of records is asked for ahead, line by line. It pays where the CPU's own prefetching
    /// does not keep up: half again as fast on Zen 3, slower on Zen 4.
    const PREFETCH: bool;
    /// Whether byte permutations of 256-entry tables and bit fields are instructions, so that
    /// [`Isa::lookup256`], [`Isa::fields`], [`Isa::parity_signs`] and [`Isa::negate`] are fast.
    const BYTE_PERMUTE: bool;

    /// Runs `op` as a function of its own, compiled for this instruction set.
    fn enter<O: Op>(self, op: O) -> O::Out;

    // Floats.

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Loads sixteen lanes.
    fn load(self, x: &[f32; LANES]) -> Self::F;
    /// Stores sixteen lanes.
    fn store(self, x: Self::F, out: &mut [f32; LANES]);
    /// `a * b`, lane by lane.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// Fused `a * b + c`, lane by lane.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a + b`, lane by lane.
    fn plus(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`, lane by lane.
    fn minus(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a` where `a < b`, else `b`: the lesser one, and `b` where either is NaN or both are zeros.
    fn least(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a` where `a > b`, else `b`.
    fn most(self, a: Self::F, b: Self::F) -> Self::F;
    /// `then` where `a < b`, else `otherwise`.
    fn where_less(self, a: Self::F, b: Self::F, then: Self::F, otherwise: Self::F) -> Self::F;
    /// The sum of the lanes in the one fixed order: `i + 8`, `i + 4`, `i + 2`, `i + 1`.
    fn sum(self, x: Self::F) -> f32;
    /// Lane `r` is [`Isa::sum`] of `x[r]`.
    fn sum_each(self, x: &[Self::F; LANES]) -> Self::F;
    /// Eight little-endian f16 to f32.
    fn halves(self, x: [[u8; 2]; 8]) -> [f32; 8];
    /// Loads sixteen f16 values, exactly.
    fn load_half(self, x: &[u16; LANES]) -> Self::F;
    /// Loads sixteen bf16 values, exactly.
    fn load_brain(self, x: &[u16; LANES]) -> Self::F;
    /// Loads sixteen E4M3 values, exactly.
    fn load_e4m3(self, x: &[u8; LANES]) -> Self::F;
    /// Loads sixteen signed bytes as numbers.
    fn load_codes(self, x: &[i8; LANES]) -> Self::F;
    /// Stores sixteen lanes as f16, rounded to nearest even.
    fn store_half(self, x: Self::F, out: &mut [u16; LANES]);
    /// `out[g][r] = x[r][g]`: rows become lanes.
    fn transpose_groups(self, x: &[[f32; 8]; LANES]) -> [Self::F; 8];

    // Sixteen i32: one lane per row of weights.

    /// All lanes `x`.
    fn splat_i32(self, x: i32) -> Self::V;
    /// Loads sixteen lanes.
    fn load_i32(self, x: &[i32; LANES]) -> Self::V;
    /// Stores sixteen lanes.
    fn store_i32(self, x: Self::V, out: &mut [i32; LANES]);
    /// Loads sixteen signed bytes.
    fn widen_i32(self, x: &[i8; LANES]) -> Self::V;
    /// Loads signed bytes as pairs of i16, a pair a lane.
    fn widen_pairs(self, x: &[i8; 2 * LANES]) -> Self::V;
    /// Nearest f32, lane by lane.
    fn to_float(self, x: Self::V) -> Self::F;
    /// `a + b`, wrapping, lane by lane.
    fn add_i32(self, a: Self::V, b: Self::V) -> Self::V;
    /// `acc[r] + low i16 of w[r] * low i16 of a + high * high`.
    fn dot2(self, acc: Self::V, w: Self::V, a: i32) -> Self::V;

    // Dot products: start, a word of four codes per row at a time, end.

    /// The sum of no products.
    fn dot_zero(self) -> Self::D;
    /// Minus the offset times the sum of the activations of `words` words from `first` on: what products with
    /// shifted codes start from. `words` is 4 or 8.
    fn dot_start(self, a: &ActChunk, first: usize, words: usize) -> Self::D;
    /// `acc[r] + sum over i < 4 of w[4 r + i] * byte i of a`, with signed bytes of `a`; bytes of `w` are at most 127, or
    /// signed where the offset is zero.
    fn dot(self, acc: Self::D, w: Self::Q, a: i32) -> Self::D;
    /// The sums.
    fn dot_sum(self, acc: Self::D) -> Self::V;
    /// `total + acc * factor`, lane by lane.
    fn dot_end(self, total: Self::V, acc: Self::D, factor: Self::V) -> Self::V;
    /// As [`Isa::dot`], in whole lanes.
    fn dot_wide(self, acc: Self::V, w: Self::Q, a: i32) -> Self::V;
    /// As [`Isa::dot_end`], of whole lanes.
    fn wide_end(self, total: Self::V, acc: Self::V, factor: Self::V) -> Self::V;
    /// Scales as [`Isa::dot_end`] takes them: the lower half of each lane is the number.
    fn factors(self, x: &[i8; LANES]) -> Self::V;
    /// Factors times `by`, below 2^15.
    fn mul_factors(self, x: Self::V, by: i16) -> Self::V;
    /// Magnitudes of factors.
    fn abs_factors(self, x: Self::V) -> Self::V;
    /// What [`Isa::dot_full`] starts from; `start` is `-128` times the sum of the activations to come.
    fn full_start(self, start: i32) -> Self::V;
    /// As [`Isa::dot`] for codes that fill a byte, under [`Isa::FULL_OFFSET`]: with [`Isa::full_start`] it yields
    /// the sum of products without the offset.
    fn dot_full(self, acc: Self::V, w: Self::Q, a: i32) -> Self::V;
    /// Transposes sixteen rows of sixteen 4-byte words.
    fn transpose_words(self, rows: &[[u8; 64]; LANES], out: &mut [[u8; 64]; LANES]);

    // One row of weights.

    /// Lanes that sum to zero.
    fn no_lanes(self) -> Self::S;
    /// Lanes of eight sums of nothing.
    fn no_units(self) -> Self::U;
    /// Lanes of `sum over s of scales[s] * steps[s] * (sum over its 16 of (code - offset) * activation)`,
    /// exact modulo 2^32. The offset is [`crate::chunk::SUPER_OFFSET`] if `SIGNED`, else zero.
    fn dot_super<const SIGNED: bool>(self, codes: &[Self::Q; 4], scales: &[i16; 16], a: &ActChunk)
    -> Self::S;
    /// Lanes of `sum of a[s] * b[s]`: sub-block minimums times activation sums.
    fn dot_mins(self, mins: &[i16; 16], a: &ActChunk) -> Self::S;
    /// Lane `r` is the sum of `x[r]`.
    fn sum_rows(self, x: &[Self::S; LANES]) -> Self::V;
    /// Lanes of `sum of code * activation` over each 32, codes still shifted by
    /// [`crate::chunk::GROUPED_OFFSET`] or not: [`Isa::sum_units`] knows.
    fn dot_units(self, codes: &[Self::Q; 4], a: &ActChunk) -> Self::U;
    /// `out[g]`, lane `r`: the sum of `(code - 128) * activation` over group `g` of row `r`.
    fn sum_units(self, x: &[Self::U; LANES], a: &ActChunk) -> [Self::V; 8];
    /// Asks for the cache line `at` bytes after the start of `bytes`, wherever that is, ahead of its use.
    fn prefetch(self, bytes: &[u8], at: usize);

    // Sixteen i16.

    /// Bytes `at` of `x`, each twice.
    #[inline(always)]
    fn spread(self, x: Self::Q, at: &[u8; 8]) -> [i16; 16] {
        let mut bytes = [0; 64];
        self.put(x, &mut bytes);
        Scalar.spread(bytes, at)
    }
    /// Each byte twice.
    fn twice(self, x: [u8; 8]) -> [i16; 16];
    /// Each byte.
    fn widen(self, x: [i8; 16]) -> [i16; 16];

    // Sixty-four bytes. A pair of constants or arrays means: for the lower 32, for the upper 32.

    /// Loads 64 bytes.
    fn bytes(self, x: &[u8; 64]) -> Self::Q;
    /// Loads 32 and 32 bytes.
    fn bytes2(self, low: &[u8; 32], high: &[u8; 32]) -> Self::Q;
    /// Low nibbles of 16 bytes, then their high nibbles, for each of two arrays.
    fn nibbles(self, low: &[u8; 16], high: &[u8; 16]) -> Self::Q;
    /// Eight little-endian words as 64 bytes.
    fn words(self, x: [u64; 8]) -> Self::Q;
    /// Stores 64 bytes.
    fn put(self, x: Self::Q, out: &mut [u8; 64]);
    /// All bytes `x`.
    fn splat_byte(self, x: u8) -> Self::Q;
    /// Bitwise and.
    fn and(self, a: Self::Q, b: Self::Q) -> Self::Q;
    /// Bitwise or.
    fn or(self, a: Self::Q, b: Self::Q) -> Self::Q;
    /// Bitwise exclusive or.
    fn xor(self, a: Self::Q, b: Self::Q) -> Self::Q;
    /// `a + b`, wrapping, byte by byte.
    fn add(self, a: Self::Q, b: Self::Q) -> Self::Q;
    /// Each byte shifted right, zeros coming in.
    fn shr<const LOW: u32, const HIGH: u32>(self, x: Self::Q) -> Self::Q;
    /// Each byte shifted left, zeros coming in.
    fn shl<const LOW: u32, const HIGH: u32>(self, x: Self::Q) -> Self::Q;
    /// `table[index]` for 64 indices below 16.
    fn lookup16(self, table: &[u8; 16], indices: Self::Q) -> Self::Q;

    /// Entries of `table`, whose eleven-bit numbers are byte `i` of `low` under bits
    /// `3 (i % 4) .. 3 (i % 4) + 3` of the little-endian 16-bit word `i / 4` of `high`.
    #[inline(always)]
    fn grid(self, table: &[[u8; 8]; 2048], low: &[u8; 32], high: &[u8; 16]) -> [Self::Q; 4] {
        let mut out = [self.splat_byte(0); 4];
        for q in 0..4 {
            let mut words = [0; 8];
            for i in 0..8 {
                let (at, g) = (8 * q + i, 2 * (2 * q + i / 4));
                let word = usize::from(u16::from_le_bytes([high[g], high[g + 1]]));
                words[i] = u64::from_le_bytes(table[usize::from(low[at]) | (word >> (3 * (i % 4)) & 7) << 8]);
            }
            out[q] = self.words(words);
        }
        out
    }

    // Codebooks; instructions where `BYTE_PERMUTE`, else by way of memory.

    /// `table[index]` for 64 indices.
    #[inline(always)]
    fn lookup256(self, table: &[u8; 256], indices: Self::Q) -> Self::Q {
        by_scalar(self, indices, |x| Scalar.lookup256(table, x))
    }
    /// `table[index & 63]` for 64 indices.
    #[inline(always)]
    fn lookup64(self, table: &[u8; 64], indices: Self::Q) -> Self::Q {
        by_scalar(self, indices, |x| Scalar.lookup64(table, x))
    }
    /// Byte `i`: byte `at[i]` of `low` and `high` one after the other; `at[i]` below 128.
    #[inline(always)]
    fn pick(self, low: Self::Q, high: Self::Q, at: &[u8; 64]) -> Self::Q {
        let mut bytes = [[0; 64]; 2];
        self.put(low, &mut bytes[0]);
        self.put(high, &mut bytes[1]);
        self.bytes(&Scalar.pick(bytes[0], bytes[1], at))
    }
    /// Byte `8 i + j`: bits `at[j] .. at[j] + 8` (modulo 64) of the little-endian 64-bit word `i`.
    #[inline(always)]
    fn fields(self, words: Self::Q, at: [u8; 8]) -> Self::Q {
        by_scalar(self, words, |x| Scalar.fields(x, at))
    }
    /// Each byte with its top bit replaced by the parity of the other seven.
    #[inline(always)]
    fn parity_signs(self, x: Self::Q) -> Self::Q {
        by_scalar(self, x, |x| Scalar.parity_signs(x))
    }
    /// Flips the sign of shifted codes: byte `i` becomes `2 * offset - x` where bit `i % 8` of byte
    /// `8 * quarter + i / 8` of `signs` is set.
    #[inline(always)]
    fn negate(self, x: Self::Q, offset: u8, signs: Self::Q, quarter: usize) -> Self::Q {
        let mut bytes = [[0; 64]; 2];
        self.put(x, &mut bytes[0]);
        self.put(signs, &mut bytes[1]);
        self.bytes(&Scalar.negate(bytes[0], offset, bytes[1], quarter))
    }
}

/// An operation on 64 bytes for which an instruction set has nothing of its own.
#[inline(always)]
fn by_scalar<I: Isa>(isa: I, x: I::Q, f: impl Fn([u8; 64]) -> [u8; 64]) -> I::Q {
    let mut bytes = [0; 64];
    isa.put(x, &mut bytes);
    isa.bytes(&f(bytes))
}
