//! What fills the matrices and activations of tests, drawn from a seed, so that shrinking works on shapes; and when
//! two results are the same.

#![allow(dead_code, reason = "not every test binary uses all of it")]

use crate::blocks;
use kizami_kernels::Type;
use kizami_kernels::convert::f32_to_bf16;
use kizami_kernels::matrix::SCALE_BLOCK;

/// xorshift64*.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 33) as usize % n
    }

    /// Uniform in -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// What fills a matrix and its activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Random bits under ordinary scales.
    Random,
    /// One random byte repeated and activations of one magnitude: where 16-bit sums would overflow.
    Extreme,
    /// Some scales, weights and activations are zeros, huge, infinite or NaN.
    Hostile,
}

const HOSTILE_HALVES: [u16; 8] = [0x0000, 0x8000, 0x0001, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00];
const HOSTILE_FLOATS: [f32; 6] = [0.0, -0.0, 1e-40, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];

/// An f16 between about 2^-14 and 2, of either sign, or a hostile one in every fourth.
fn half(rng: &mut Rng, contents: Contents) -> u16 {
    if contents == Contents::Hostile && rng.below(4) == 0 {
        return HOSTILE_HALVES[rng.below(HOSTILE_HALVES.len())];
    }
    (rng.bits() & 0x83ff) as u16 | (rng.below(15) as u16 + 1) << 10
}

fn float(rng: &mut Rng, contents: Contents) -> f32 {
    if contents == Contents::Hostile && rng.below(64) == 0 {
        return HOSTILE_FLOATS[rng.below(HOSTILE_FLOATS.len())];
    }
    rng.unit()
}

/// `count` weights.
pub(crate) fn weights(ty: Type, rng: &mut Rng, count: usize, contents: Contents) -> Vec<u8> {
    match ty {
        Type::F32 => (0..count).flat_map(|_| float(rng, contents).to_le_bytes()).collect(),
        Type::F16 => (0..count).flat_map(|_| half(rng, contents).to_le_bytes()).collect(),
        Type::BF16 => (0..count).flat_map(|_| f32_to_bf16(float(rng, contents)).to_le_bytes()).collect(),
        Type::F8E4M3 => {
            let nan = |byte: u8| byte & 0x7f == 0x7f && contents != Contents::Hostile;
            (0..count).map(|_| rng.bits() as u8).map(|byte| if nan(byte) { 0 } else { byte }).collect()
        }
        _ => {
            let mut bytes = vec![0; count / ty.block() * ty.block_bytes()];
            for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                let byte = rng.bits() as u8;
                block.fill_with(|| if contents == Contents::Extreme { byte } else { rng.bits() as u8 });
                blocks::set_scales(ty, block, || half(rng, contents));
            }
            bytes
        }
    }
}

/// The scales of a matrix: of its squares for FP8, else one for all of it or none.
pub(crate) fn scales(ty: Type, rng: &mut Rng, rows: usize, cols: usize, contents: Contents) -> Vec<f32> {
    if ty == Type::F8E4M3 {
        let squares = rows.div_ceil(SCALE_BLOCK) * cols.div_ceil(SCALE_BLOCK);
        return (0..squares).map(|_| rng.unit()).collect();
    }
    (0..rng.below(2)).map(|_| scale(rng, contents)).collect()
}

/// A scale of a whole matrix.
fn scale(rng: &mut Rng, contents: Contents) -> f32 {
    if contents == Contents::Hostile {
        HOSTILE_FLOATS[rng.below(HOSTILE_FLOATS.len())]
    } else {
        3.0 * rng.unit()
    }
}

/// `n` columns, each of a magnitude of its own.
pub(crate) fn activations(rng: &mut Rng, n: usize, cols: usize, contents: Contents) -> Vec<f32> {
    let mut x = Vec::with_capacity(n * cols);
    for _ in 0..n {
        let magnitude = [0.0, 1e-3, 1.0, 300.0][rng.below(4)];
        for _ in 0..cols {
            let value = match contents {
                Contents::Extreme => rng.unit().signum(),
                contents => float(rng, contents),
            };
            x.push(magnitude * value);
        }
    }
    x
}

/// Equal bits, or both NaN.
pub(crate) fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Where two results differ in their bits; any NaN equals any other.
pub(crate) fn difference(found: &[f32], expected: &[f32]) -> Option<String> {
    assert_eq!(found.len(), expected.len());
    let at = (0..found.len()).find(|&i| !same(found[i], expected[i]))?;
    Some(format!("output {at}: {:e}, not {:e}", found[at], expected[at]))
}
