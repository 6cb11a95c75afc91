//! One column: each chunk of a row is decoded into registers and multiplied at once.
//!
//! Sixteen rows go together, so that their lane sums are added up and scaled sixteen at a time.
//!
//! ```text
//! chunk of row r --decode--> codes, scales --dot--> lanes r      r = 0..16
//! lanes 0..16 --sum_rows--> 16 exact sums --> acc = fma(d * a, sum, acc)
//! ```

use crate::chunk::ActChunk;
use crate::dispatch::Op;
use crate::format::{Family, Format};
use crate::isa::{Isa, LANES};
use crate::matrix::Matrix;
use std::marker::PhantomData;

/// Rows from `start`, as many as `out` has room for, times column `column` of `[chunks][all columns]`. A
/// function of its own for every format: together they would share constants and spill them.
pub(crate) struct Gemv<'a, F> {
    pub(crate) w: &'a Matrix<'a>,
    pub(crate) acts: &'a [ActChunk],
    pub(crate) column: usize,
    pub(crate) start: usize,
    pub(crate) out: &'a mut [f32],
    pub(crate) format: PhantomData<F>,
}

impl<F: Format> Op for Gemv<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { w, acts, column, start, out, .. } = self;
        let chunks = w.chunks();
        let all = acts.len() / chunks;
        for (panel, out) in out.chunks_mut(LANES).enumerate() {
            let first = start + panel * LANES;
            let count = out.len();
            let mut acc = isa.splat(0.0);
            for from in (0..chunks).step_by(TOGETHER) {
                let span = Span { first, count, from, to: chunks.min(from + TOGETHER), acts, all, column };
                acc = match F::FAMILY {
                    Family::Super => supers::<I, F>(isa, w, span, acc),
                    Family::Grouped => grouped::<I, F>(isa, w, span, acc),
                };
            }
            let mut lanes = [0.0; LANES];
            isa.store(acc, &mut lanes);
            out.copy_from_slice(&lanes[..count]);
        }
    }
}

/// Chunks of a row that are read one after the other, before the next row: memory likes that.
const TOGETHER: usize = 8;

/// Chunks `from..to` of `count` rows from `first`, and the activations they meet.
#[derive(Clone, Copy)]
struct Span<'a> {
    first: usize,
    count: usize,
    from: usize,
    to: usize,
    acts: &'a [ActChunk],
    all: usize,
    column: usize,
}

impl<'a> Span<'a> {
    #[inline(always)]
    fn act(&self, chunk: usize) -> &'a ActChunk {
        &self.acts[(self.from + chunk) * self.all + self.column]
    }

    /// A short last panel computes its last row more than once.
    #[inline(always)]
    fn row(&self, r: usize) -> usize {
        self.first + r.min(self.count - 1)
    }
}

#[inline(always)]
fn supers<I: Isa, F: Format>(isa: I, w: &Matrix<'_>, span: Span<'_>, mut acc: I::F) -> I::F {
    let (mut d, mut dmin) = ([[0; LANES]; TOGETHER], [[0; LANES]; TOGETHER]);
    let mut sums = [[isa.no_lanes(); LANES]; TOGETHER];
    let mut mins = [[isa.no_lanes(); LANES]; TOGETHER];
    for r in 0..LANES {
        for c in 0..span.to - span.from {
            let weights = w.decode::<I, F>(isa, span.row(r), span.from + c);
            let a = span.act(c);
            (d[c][r], dmin[c][r]) = (weights.d, weights.dmin);
            sums[c][r] = if F::SIGNED {
                isa.dot_super::<true>(&weights.codes, &weights.scales, a)
            } else {
                isa.dot_super::<false>(&weights.codes, &weights.scales, a)
            };
            if F::HAS_MIN {
                mins[c][r] = isa.dot_mins(&weights.mins, a);
            }
        }
    }
    for c in 0..span.to - span.from {
        let scale = span.act(c).scales[0];
        let d = isa.mul(isa.load_half(&d[c]), isa.splat(F::D_FACTOR));
        let sum = isa.to_float(isa.sum_rows(&sums[c]));
        acc = isa.fma(isa.mul(d, isa.splat(scale)), sum, acc);
        if F::HAS_MIN {
            let sum = isa.to_float(isa.sum_rows(&mins[c]));
            acc = isa.fma(isa.mul(isa.load_half(&dmin[c]), isa.splat(-scale)), sum, acc);
        }
    }
    acc
}

#[inline(always)]
fn grouped<I: Isa, F: Format>(isa: I, w: &Matrix<'_>, span: Span<'_>, mut acc: I::F) -> I::F {
    let mut d = [[[0.0; 8]; LANES]; TOGETHER];
    let mut sums = [[isa.no_units(); LANES]; TOGETHER];
    for r in 0..LANES {
        for c in 0..span.to - span.from {
            let weights = w.decode::<I, F>(isa, span.row(r), span.from + c);
            d[c][r] = weights.group_d;
            sums[c][r] = isa.dot_units(&weights.codes, span.act(c));
        }
    }
    for c in 0..span.to - span.from {
        let a = span.act(c);
        let d = isa.transpose_groups(&d[c]);
        let sums = isa.sum_units(&sums[c], a);
        for g in 0..8 {
            acc = isa.fma(isa.mul(d[g], isa.splat(a.scales[g])), isa.to_float(sums[g]), acc);
        }
    }
    acc
}
