//! Rotary position embedding over adjacent pairs, with YaRN scaling.
//!
//! Su et al., arXiv 2104.09864; Peng et al., arXiv 2309.00071. Pairs are (2i, 2i + 1), the order of
//! DeepSeek checkpoints and of `deepseek2` GGUF files.

use crate::math::sin_cos;

/// YaRN parameters as GGUF names them.
#[derive(Debug, Clone, Copy)]
pub struct Yarn {
    /// Context extension factor.
    pub factor: f32,
    /// Context length of the original training.
    pub original_context: f32,
    /// Rotations at the original length above which a dimension is left alone.
    pub beta_fast: f32,
    /// Rotations at the original length below which a dimension is fully interpolated.
    pub beta_slow: f32,
    /// Factor on cosine and sine.
    pub magnitude: f32,
}

/// The rotation table of one model.
#[derive(Debug, Clone)]
pub struct Rope {
    inverse_frequencies: Vec<f32>,
    magnitude: f32,
}

impl Rope {
    /// Frequencies of `dims / 2` pairs: `base^(-2i / dims)`, stretched by YaRN if given.
    pub fn new(dims: usize, base: f32, yarn: Option<Yarn>) -> Self {
        let pairs = dims / 2;
        let base = f64::from(base);
        let frequency = |i: usize| base.powf(-2.0 * i as f64 / dims as f64);
        let stretched = |i: usize, y: &Yarn| {
            // The pair that turns `rotations` times over the original context.
            let pair_of = |rotations: f32| {
                let length = f64::from(y.original_context) / (f64::from(rotations) * std::f64::consts::TAU);
                dims as f64 * length.ln() / (2.0 * base.ln())
            };
            let low = pair_of(y.beta_fast).floor().max(0.0);
            let high = pair_of(y.beta_slow).ceil().min(dims as f64 - 1.0);
            let ramp = ((i as f64 - low) / (high - low).max(1e-3)).clamp(0.0, 1.0);
            let f = frequency(i);
            f / f64::from(y.factor) * ramp + f * (1.0 - ramp)
        };
        let inverse_frequencies = (0..pairs)
            .map(|i| yarn.as_ref().map_or_else(|| frequency(i), |y| stretched(i, y)) as f32)
            .collect();
        Self { inverse_frequencies, magnitude: yarn.map_or(1.0, |y| y.magnitude) }
    }

    /// Rotated dimensions.
    pub fn dims(&self) -> usize {
        self.inverse_frequencies.len() * 2
    }

    /// Cosine and sine of every pair at one position.
    pub(crate) fn table(&self, position: usize) -> Vec<(f32, f32)> {
        let turn = |&f: &f32| {
            let (sin, cos) = sin_cos(position as f64 * f64::from(f));
            (cos as f32 * self.magnitude, sin as f32 * self.magnitude)
        };
        self.inverse_frequencies.iter().map(turn).collect()
    }
}

/// Rotates adjacent pairs in place.
pub(crate) fn rotate(x: &mut [f32], table: &[(f32, f32)]) {
    for (pair, &(cos, sin)) in x.as_chunks_mut::<2>().0.iter_mut().zip(table) {
        let [a, b] = *pair;
        *pair = [a * cos - b * sin, a * sin + b * cos];
    }
}
