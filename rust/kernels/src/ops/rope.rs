//! Rotary position embedding, with YaRN scaling.
//!
//! Su et al., arXiv 2104.09864; Peng et al., arXiv 2309.00071.

use crate::math::sin_cos;
use crate::par;

/// Which two numbers of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// `2i` and `2i + 1`: DeepSeek checkpoints and `deepseek2` files.
    Adjacent,
    /// `i` and `i + dims / 2`, the order of GPT-NeoX: Qwen2 and most others.
    Halves,
}

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
    pairs: Pairs,
}

impl Rope {
    /// Frequencies of `dims / 2` pairs: `base^(-2i / dims)`, stretched by YaRN if given.
    pub fn new(pairs: Pairs, dims: usize, base: f32, yarn: Option<Yarn>) -> Self {
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
        let inverse_frequencies = (0..dims / 2)
            .map(|i| yarn.as_ref().map_or_else(|| frequency(i), |y| stretched(i, y)) as f32)
            .collect();
        Self { inverse_frequencies, magnitude: yarn.map_or(1.0, |y| y.magnitude), pairs }
    }

    /// Rotated dimensions.
    pub fn dims(&self) -> usize {
        self.inverse_frequencies.len() * 2
    }

    /// Cosine and sine of every pair at each position: `dims / 2` of them per position.
    pub(crate) fn tables(&self, positions: &[usize]) -> Vec<(f32, f32)> {
        let pairs = self.inverse_frequencies.len();
        let mut out = vec![(0.0, 0.0); positions.len() * pairs];
        par::for_chunks(&mut out, TOGETHER * pairs, |task, out| {
            for (out, &position) in out.chunks_exact_mut(pairs).zip(&positions[task * TOGETHER..]) {
                for (out, &f) in out.iter_mut().zip(&self.inverse_frequencies) {
                    let (sin, cos) = sin_cos(position as f64 * f64::from(f));
                    *out = (cos as f32 * self.magnitude, sin as f32 * self.magnitude);
                }
            }
        });
        out
    }

    /// Rotates numbers `at..at + dims` of every head of tokens of `heads` heads of `width` numbers, by the
    /// angles of [`Rope::tables`].
    pub(crate) fn rotate_heads(
        &self,
        x: &mut [f32],
        (heads, width, at): (usize, usize, usize),
        tables: &[(f32, f32)],
    ) {
        let pairs = self.inverse_frequencies.len();
        if pairs == 0 {
            return;
        }
        par::for_chunks(x, TOGETHER * heads * width, |task, x| {
            let tables = tables[task * TOGETHER * pairs..].chunks_exact(pairs);
            for (x, table) in x.chunks_exact_mut(heads * width).zip(tables) {
                x.chunks_exact_mut(width).for_each(|x| self.rotate(&mut x[at..], table));
            }
        });
    }

    /// Rotates the first [`Rope::dims`] numbers by the angles of one position.
    pub(crate) fn rotate(&self, x: &mut [f32], table: &[(f32, f32)]) {
        let turn = |a: f32, b: f32, (cos, sin): (f32, f32)| (a * cos - b * sin, a * sin + b * cos);
        match self.pairs {
            Pairs::Adjacent => {
                for (pair, &angle) in x.as_chunks_mut::<2>().0.iter_mut().zip(table) {
                    *pair = turn(pair[0], pair[1], angle).into();
                }
            }
            Pairs::Halves => {
                let (first, second) = x.split_at_mut(table.len());
                for ((a, b), &angle) in first.iter_mut().zip(second).zip(table) {
                    (*a, *b) = turn(*a, *b, angle);
                }
            }
        }
    }
}

/// Tokens that one task computes.
const TOGETHER: usize = 16;
