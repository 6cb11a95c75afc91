//! Second moments of a linear layer's inputs, `sum of x xᵀ` over tokens: what error feedback has to know of them; and
//! how they go together with what they differ by from others, `sum of (y - x) xᵀ`.
//!
//! Tokens are collected until there are [`TOKENS`] of them; products are then added up in f32, one chain of fused
//! multiply-adds per entry, and the chains in f64. So the sums depend neither on threads nor on instruction sets nor
//! on how many tokens come at a time.

use kizami_kernels::dispatch::{Op, dispatch};
use kizami_kernels::isa::{Isa, LANES};
use kizami_kernels::par;

#[cfg(test)]
mod tests;

/// Tokens of one f32 chain.
const TOKENS: usize = 256;
/// Columns that lie side by side while they are multiplied.
const PANEL: usize = 2 * LANES;

/// Sums over the inputs of one matrix.
#[derive(Debug, Clone)]
pub struct Moments {
    cols: usize,
    tokens: u64,
    /// `[cols][cols]`, or nothing as long as all are zero; only entries at or right of the diagonal's panel are kept.
    sums: Vec<f64>,
    /// Inputs not yet in the sums, fewer than [`TOKENS`].
    pending: Vec<f32>,
}

impl Moments {
    /// Nothing seen yet of inputs of `cols` features.
    pub fn new(cols: usize) -> Self {
        Self { cols, tokens: 0, sums: Vec::new(), pending: Vec::new() }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Inputs seen.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Adds inputs of `cols` floats, one after the other; of those only the picked ones, where `pick` says which.
    pub fn add(&mut self, x: &[f32], pick: Option<&[u32]>) {
        let cols = self.cols;
        let row = |i: usize| &x[i * cols..][..cols];
        let n = pick.map_or(x.len() / self.cols, <[u32]>::len);
        for i in 0..n {
            self.pending.extend_from_slice(row(pick.map_or(i, |pick| pick[i] as usize)));
            if self.pending.len() == TOKENS * self.cols {
                self.flush();
            }
        }
        self.tokens += n as u64;
    }

    fn flush(&mut self) {
        self.sums.resize(self.cols * self.cols, 0.0);
        if !self.pending.is_empty() {
            let panels = panels(&self.pending, self.cols);
            multiply(&mut self.sums, &panels, None, self.cols);
            self.pending.clear();
        }
    }

    /// The symmetric `[cols][cols]` matrix of sums over all inputs so far, which are forgotten: it is large.
    pub fn take(&mut self) -> Vec<f64> {
        self.flush();
        self.pending = Vec::new();
        let mut sums = std::mem::take(&mut self.sums);
        for i in 0..self.cols {
            for j in 0..i {
                sums[i * self.cols + j] = sums[j * self.cols + i];
            }
        }
        self.tokens = 0;
        sums
    }
}

/// Sums over pairs of inputs of one matrix: what those of one pass differ by from those of another, times the latter.
#[derive(Debug, Clone)]
pub struct Drift {
    cols: usize,
    pairs: u64,
    /// `[cols][cols]`, or nothing as long as all are zero.
    sums: Vec<f64>,
    /// Differences and inputs not yet in the sums, fewer than [`TOKENS`].
    differences: Vec<f32>,
    inputs: Vec<f32>,
}

impl Drift {
    /// Nothing seen yet of inputs of `cols` features.
    pub fn new(cols: usize) -> Self {
        Self { cols, pairs: 0, sums: Vec::new(), differences: Vec::new(), inputs: Vec::new() }
    }

    /// Pairs seen.
    pub fn pairs(&self) -> u64 {
        self.pairs
    }

    /// Adds a pair: an input, and what it was in the pass that is to be followed.
    pub fn add(&mut self, x: &[f32], followed: &[f32]) {
        self.differences.extend(followed.iter().zip(x).map(|(y, x)| y - x));
        self.inputs.extend_from_slice(x);
        if self.inputs.len() == TOKENS * self.cols {
            self.flush();
        }
        self.pairs += 1;
    }

    fn flush(&mut self) {
        self.sums.resize(self.cols * self.cols, 0.0);
        if !self.inputs.is_empty() {
            let (left, right) = (panels(&self.differences, self.cols), panels(&self.inputs, self.cols));
            multiply(&mut self.sums, &left, Some(&right), self.cols);
            self.differences.clear();
            self.inputs.clear();
        }
    }

    /// The `[cols][cols]` matrix of sums over all pairs so far, a row for each feature of the differences; they are
    /// forgotten.
    pub fn take(&mut self) -> Vec<f64> {
        self.flush();
        (self.differences, self.inputs) = (Vec::new(), Vec::new());
        self.pairs = 0;
        std::mem::take(&mut self.sums)
    }
}

/// Columns of `x`, a token a row, panel by panel.
fn panels(x: &[f32], cols: usize) -> Vec<[f32; PANEL]> {
    let tokens = x.len() / cols;
    let mut panels = vec![[0.0; PANEL]; cols.div_ceil(PANEL) * tokens];
    par::for_chunks(&mut panels, tokens, |p, panel| {
        for (packed, row) in panel.iter_mut().zip(x.chunks_exact(cols)) {
            let row = &row[p * PANEL..];
            let n = row.len().min(PANEL);
            packed[..n].copy_from_slice(&row[..n]);
        }
    });
    panels
}

/// Adds the products of all columns on the left with all on the right; without a right side with those on the left
/// that are not in panels before theirs.
fn multiply(sums: &mut [f64], left: &[[f32; PANEL]], right: Option<&[[f32; PANEL]]>, cols: usize) {
    let tokens = left.len() / cols.div_ceil(PANEL);
    par::for_chunks(sums, PANEL * cols, |band, sums| {
        let skip = if right.is_none() { band } else { 0 };
        let (left, right) = (&left[band * tokens..][..tokens], right.unwrap_or(left));
        dispatch(Band { sums, left, right, tokens, cols, skip });
    });
}

/// Rows of sums that belong to one panel.
struct Band<'a> {
    sums: &'a mut [f64],
    left: &'a [[f32; PANEL]],
    right: &'a [[f32; PANEL]],
    tokens: usize,
    cols: usize,
    /// Panels on the right that do not count.
    skip: usize,
}

impl Op for Band<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        if I::WIDE { self.rows::<I, 8>(isa) } else { self.rows::<I, 2>(isa) }
    }
}

impl Band<'_> {
    #[inline(always)]
    fn rows<I: Isa, const R: usize>(&mut self, isa: I) {
        let rows = self.sums.len() / self.cols;
        let left = self.left;
        for (p, right) in self.right.chunks_exact(self.tokens).enumerate().skip(self.skip) {
            for first in (0..PANEL).step_by(R) {
                let products = tile::<I, R>(isa, left, right, first);
                let n = (self.cols - p * PANEL).min(PANEL);
                for (i, products) in products.iter().enumerate().take(rows.saturating_sub(first)) {
                    let sums = &mut self.sums[(first + i) * self.cols + p * PANEL..][..n];
                    for (sum, &product) in sums.iter_mut().zip(products.as_flattened()) {
                        *sum += f64::from(product);
                    }
                }
            }
        }
    }
}

/// Products of `R` columns of `left`, from `first` on, with all of `right`, summed over tokens.
#[inline(always)]
fn tile<I: Isa, const R: usize>(
    isa: I,
    left: &[[f32; PANEL]],
    right: &[[f32; PANEL]],
    first: usize,
) -> [[[f32; LANES]; 2]; R] {
    let mut sums = [[isa.splat(0.0); 2]; R];
    for (a, b) in left.iter().zip(right) {
        let (b, _) = b.as_chunks::<LANES>();
        let b = [isa.load(&b[0]), isa.load(&b[1])];
        for i in 0..R {
            let a = isa.splat(a[first + i]);
            sums[i] = [isa.fma(a, b[0], sums[i][0]), isa.fma(a, b[1], sums[i][1])];
        }
    }
    let mut out = [[[0.0; LANES]; 2]; R];
    for i in 0..R {
        isa.store(sums[i][0], &mut out[i][0]);
        isa.store(sums[i][1], &mut out[i][1]);
    }
    out
}
