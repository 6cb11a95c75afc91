//! What one block of weights should become: values, what an error costs, and the range of f16.
//!
//! Values are brought to a largest magnitude of 1..2 by an exact power of two, so that squares
//! neither overflow nor vanish whatever the tensor's scale, and the search sees the same numbers
//! for `w` and for `1024 w`. [`Frame`] brings scales back and rounds them to the f16 of the file.
//!
//! An error costs `importance * sqrt(2 * mean square of the block + w²)`. Why large weights deserve more
//! than their importance is not known (Kawrakow: "no science"), but without the root the divergence
//! of two small models at 1.6 and 2.1 bits was 3 to 15 % higher, although `1 - rho²` was lower.

use super::lanes::sum;
use kizami_kernels::convert::{f16_to_f32, f32_to_f16};

/// Importance below this share of the block's largest counts as this share: a column that the
/// calibration text never touched must still be rounded sensibly.
const LEAST_IMPORTANCE: f32 = 1.0 / (1 << 20) as f32;

/// The largest finite f16.
const F16_MAX: f32 = 65504.0;

/// Positive f16 below this are subnormal.
const SUBNORMALS: u16 = 0x0400;

/// An exact power of two and its inverse.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    /// File to search: multiplies weights.
    normalize: f32,
    /// Search to file.
    restore: f32,
}

impl Frame {
    /// Brings magnitudes up to `largest` below 2 (below 4 at the very end of the range).
    #[inline(always)]
    pub(crate) fn of(largest: f32) -> Frame {
        let exponent = (largest.to_bits() >> 23).clamp(1, 253);
        Frame { normalize: f32::from_bits((254 - exponent) << 23), restore: f32::from_bits(exponent << 23) }
    }

    /// A number of the search's frame in the file's.
    #[inline(always)]
    pub(crate) fn restored(&self, x: f32) -> f32 {
        x * self.restore
    }

    /// A number of the file in the search's frame.
    #[inline(always)]
    pub(crate) fn normalized(&self, x: f32) -> f32 {
        x * self.normalize
    }

    /// The scale as the file stores it, and the value that the stored bits have here. Beyond f16's
    /// range it saturates; what is too small becomes zero.
    #[inline(always)]
    pub(crate) fn store(&self, d: f32) -> ([u8; 2], f32) {
        self.stored(f32_to_f16((d * self.restore).clamp(-F16_MAX, F16_MAX)))
    }

    /// As [`Frame::store`] for a positive scale, but up where f16 becomes coarse: codes under too small a scale do
    /// not reach the weights.
    #[inline(always)]
    pub(crate) fn store_up(&self, d: f32) -> ([u8; 2], f32) {
        let bits = f32_to_f16((d * self.restore).clamp(0.0, F16_MAX));
        let short = bits < SUBNORMALS && f16_to_f32(bits) * self.normalize < d;
        self.stored(bits + u16::from(short))
    }

    /// What the stored bits of a scale stand for here.
    #[inline(always)]
    pub(crate) fn value(&self, bits: [u8; 2]) -> f32 {
        f16_to_f32(u16::from_le_bytes(bits)) * self.normalize
    }

    #[inline(always)]
    fn stored(&self, bits: u16) -> ([u8; 2], f32) {
        (bits.to_le_bytes(), f16_to_f32(bits) * self.normalize)
    }
}

/// The inverse, or zero where there is none: a scale that rounded to zero encodes zeros.
#[inline(always)]
pub(crate) fn inverse(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// One block to encode.
#[derive(Debug, Clone)]
pub(crate) struct Target<const N: usize> {
    /// Weights, normalized.
    pub(crate) x: [f32; N],
    /// What the search minimizes: cost of a squared error.
    pub(crate) w: [f32; N],
    /// Expected squared activation per weight, normalized: what gain is measured under.
    pub(crate) h: [f32; N],
    /// The normalization of `x`.
    pub(crate) frame: Frame,
    /// Whether there is anything but zeros.
    pub(crate) empty: bool,
}

#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for part in x.as_chunks::<16>().0 {
        for l in 0..16 {
            let a = part[l].abs();
            lanes[l] = if a > lanes[l] { a } else { lanes[l] };
        }
    }
    let mut largest = 0.0;
    for a in lanes {
        largest = if a > largest { a } else { largest };
    }
    largest
}

impl<const N: usize> Target<N> {
    /// Weights of one block; `importance` is the mean squared activation per column, or flat.
    #[inline(always)]
    pub(crate) fn new(weights: &[f32; N], importance: Option<&[f32; N]>) -> Target<N> {
        let amax = largest(weights);
        let frame = Frame::of(amax);
        let mut x = [0.0; N];
        for i in 0..N {
            x[i] = weights[i] * frame.normalize;
        }
        let mut h = [1.0; N];
        if let Some(importance) = importance {
            let most = largest(importance);
            if most > 0.0 {
                let scale = Frame::of(most).normalize;
                for i in 0..N {
                    let value = importance[i] * scale;
                    h[i] = if value > LEAST_IMPORTANCE { value } else { LEAST_IMPORTANCE };
                }
            }
        }
        let mut squares = [0.0; N];
        for i in 0..N {
            squares[i] = x[i] * x[i];
        }
        let mean = 2.0 * sum(&squares) / N as f32;
        let mut w = [0.0; N];
        for i in 0..N {
            w[i] = h[i] * (mean + squares[i]).sqrt();
        }
        Target { x, w, h, frame, empty: amax == 0.0 }
    }
}
