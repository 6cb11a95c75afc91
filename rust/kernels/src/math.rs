//! Elementary functions and reductions of our own, so that results do not depend on libm, CPU or
//! operating system: exp, sine and cosine, rounding to codes, sums in a fixed order, RMS norm, SwiGLU, softmax.
//!
//! Everything is plain element-wise Rust marked `#[inline(always)]`; inside a [`crate::dispatch::Op`]
//! it is compiled to vectors. Fused multiply-add is always written out.

use crate::chunk::GROUP;
use crate::isa::{Isa, LANES};

/// 1.5 * 2^23: added to a small number it leaves the nearest integer, ties to even, in the low mantissa bits, on
/// every CPU alike.
const MAGIC: f32 = 12_582_912.0;

/// `e^x` in f32, within 2 units in the last place (measured over all finite results); 0 below -103.97,
/// infinity above 88.73, NaN for NaN. Range reduction by `ln 2` in two parts, then a polynomial of
/// degree 6 (Cephes `expf` scheme).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    let clamped = x.clamp(-104.0, 89.0);
    let shifted = clamped.mul_add(LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_2e-4_f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, c);
    }
    let y = p.mul_add(r * r, r) + 1.0;
    // 2^n in two factors, so that results below the normal range come out rounded, not flushed.
    let n = shifted.to_bits() as i32 - MAGIC.to_bits() as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    y * power(half) * power(n - half)
}

/// The nearest code in -127..=127, ties to even; any for NaN.
#[inline(always)]
pub(crate) fn to_code(x: f32) -> i8 {
    let rounded = x.clamp(-127.0, 127.0) + MAGIC;
    (rounded.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32) as i8
}

/// The largest magnitude; NaN where there is a NaN or an infinity, so that it stays visible in what is scaled by it.
#[inline(always)]
pub(crate) fn magnitude(x: &[f32; GROUP]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut poison = [0.0f32; LANES];
    for x in x.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let magnitude = x[i].abs();
            lanes[i] = if magnitude > lanes[i] { magnitude } else { lanes[i] };
            poison[i] += x[i] * 0.0;
        }
    }
    let max = lanes.iter().fold(0.0f32, |m, &x| if x > m { x } else { m });
    max + poison.iter().fold(0.0f32, |a, &b| a + b)
}

/// `(sin x, cos x)` in f64, error below 1e-14 for |x| < 2^30: for rotary tables.
pub fn sin_cos(x: f64) -> (f64, f64) {
    // pi/2 in three parts of 33 bits: products with the quotient stay exact.
    const PARTS: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_7e-21];
    let quotient = (x * std::f64::consts::FRAC_2_PI).round();
    let r = ((x - quotient * PARTS[0]) - quotient * PARTS[1]) - quotient * PARTS[2];
    let r2 = r * r;
    let (mut sin, mut cos) = (0.0, 0.0);
    for k in (0..9).rev() {
        let k = f64::from(k);
        sin = 1.0 - sin * r2 / ((2.0 * k + 2.0) * (2.0 * k + 3.0));
        cos = 1.0 - cos * r2 / ((2.0 * k + 1.0) * (2.0 * k + 2.0));
    }
    let sin = sin * r;
    match quotient as i64 & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// Sum in sixteen lanes, then the lanes in the order of [`Isa::sum`].
#[inline(always)]
pub(crate) fn sum<I: Isa>(isa: I, x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            lanes[i] += x[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x;
    }
    isa.sum(isa.load(&lanes))
}

/// `out = x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich, arXiv 1910.07467).
#[inline(always)]
pub(crate) fn rms_norm<I: Isa>(isa: I, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = crate::float::dot(isa, x, x) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}

/// The logistic function.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `silu(gate) * up` (Shazeer, arXiv 2002.05202).
#[inline(always)]
pub(crate) fn swiglu(gate: f32, up: f32) -> f32 {
    gate * sigmoid(gate) * up
}

/// Softmax in place.
#[inline(always)]
pub(crate) fn softmax<I: Isa>(isa: I, x: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
    for x in x.iter_mut() {
        *x = exp(*x - max);
    }
    let scale = 1.0 / sum(isa, x);
    for x in x.iter_mut() {
        *x *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        let mut worst = 0.0f64;
        for i in 0..2_000_000 {
            let x = -104.0 + i as f32 * (192.7 / 2_000_000.0);
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            let ulp = f64::from(f32::EPSILON) * want.max(f64::from(f32::MIN_POSITIVE));
            worst = worst.max((got - want).abs() / ulp);
        }
        assert!(worst < 2.0, "exp is off by {worst} units in the last place");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sine_and_cosine_are_close() {
        for i in 0..100_000 {
            let x = f64::from(i) * 12.345_678_9 + f64::from(i % 97) * 1e-3;
            let (s, c) = sin_cos(x);
            assert!(
                (s - x.sin()).abs() < 1e-13 * x.max(1.0) && (c - x.cos()).abs() < 1e-13 * x.max(1.0),
                "{x}"
            );
        }
    }
}
