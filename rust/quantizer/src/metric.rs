//! How far encoded weights are from what they should be, in f64.
//!
//! Below three bits a squared error alone misleads: codes that minimize it shrink a tensor's
//! output. So there are two numbers: *gain*, how much of the original is left in the encoded
//! weights, and `1 - rho²`, the part of them that no scale factor can repair.

/// Weighted sums over pairs of original and encoded weights; add as many rows as there are.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Metric {
    /// `<w, w>`
    pub original: f64,
    /// `<w, ŵ>`
    pub cross: f64,
    /// `<ŵ, ŵ>`
    pub encoded: f64,
}

impl Metric {
    /// Compares one row; `importance` is the mean squared activation per column, or flat. All
    /// slices have the row's length; what exceeds the shortest is ignored.
    pub fn of_row(original: &[f32], encoded: &[f32], importance: Option<&[f32]>) -> Metric {
        let mut sums = Metric::default();
        for (i, (&a, &b)) in original.iter().zip(encoded).enumerate() {
            let h = importance.map_or(1.0, |h| h.get(i).copied().map_or(0.0, f64::from));
            let (a, b) = (f64::from(a), f64::from(b));
            sums.original += h * a * a;
            sums.cross += h * a * b;
            sums.encoded += h * b * b;
        }
        sums
    }

    /// Compares one row by its layer's output: `moments` are the mean products of inputs, `[n][n]` for rows of `n`
    /// weights, so that the error is the mean squared error of the output. All three have matching lengths.
    pub fn of_row_under(original: &[f32], encoded: &[f32], moments: &[f32]) -> Metric {
        let mut sums = Metric::default();
        for (i, moments) in moments.chunks_exact(original.len().max(1)).enumerate() {
            let (mut of_original, mut of_encoded) = (0.0, 0.0);
            for ((&h, &a), &b) in moments.iter().zip(original).zip(encoded) {
                of_original += f64::from(h) * f64::from(a);
                of_encoded += f64::from(h) * f64::from(b);
            }
            sums.original += f64::from(original[i]) * of_original;
            sums.cross += f64::from(original[i]) * of_encoded;
            sums.encoded += f64::from(encoded[i]) * of_encoded;
        }
        sums
    }

    /// Adds another row's sums.
    pub fn add(&mut self, other: Metric) {
        self.original += other.original;
        self.cross += other.cross;
        self.encoded += other.encoded;
    }

    /// Weighted squared error.
    pub fn error(&self) -> f64 {
        (self.original - 2.0 * self.cross + self.encoded).max(0.0)
    }

    /// Weighted squared error per weighted square; zero where there is nothing to lose.
    pub fn relative_error(&self) -> f64 {
        ratio(self.error(), self.original, 0.0)
    }

    /// `<w, ŵ> / <w, w>`: 1 leaves the size of outputs alone, less shrinks them.
    pub fn gain(&self) -> f64 {
        ratio(self.cross, self.original, 1.0)
    }

    /// `1 - rho²`: the relative error left after the best common scale factor.
    pub fn incoherence(&self) -> f64 {
        (1.0 - ratio(self.cross * self.cross, self.original * self.encoded, 1.0)).max(0.0)
    }
}

fn ratio(a: f64, b: f64, otherwise: f64) -> f64 {
    if b > 0.0 { a / b } else { otherwise }
}
