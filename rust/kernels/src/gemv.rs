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
            for chunk in 0..chunks {
                let a = &acts[chunk * all + column];
                acc = match F::FAMILY {
                    Family::Super => supers::<I, F>(isa, w, first, count, chunk, a, acc),
                    Family::Grouped => grouped::<I, F>(isa, w, first, count, chunk, a, acc),
                };
            }
            let mut lanes = [0.0; LANES];
            isa.store(acc, &mut lanes);
            out.copy_from_slice(&lanes[..count]);
        }
    }
}

#[inline(always)]
fn supers<I: Isa, F: Format>(
    isa: I,
    w: &Matrix<'_>,
    first: usize,
    count: usize,
    chunk: usize,
    a: &ActChunk,
    acc: I::F,
) -> I::F {
    let (mut d, mut dmin) = ([0; LANES], [0; LANES]);
    let (mut sums, mut mins) = ([isa.no_lanes(); LANES], [isa.no_lanes(); LANES]);
    // A short last panel computes its last row more than once.
    for r in 0..LANES {
        let weights = w.decode::<I, F>(isa, first + r.min(count - 1), chunk);
        (d[r], dmin[r]) = (weights.d, weights.dmin);
        sums[r] = if F::SIGNED {
            isa.dot_super::<true>(&weights.codes, &weights.scales, a)
        } else {
            isa.dot_super::<false>(&weights.codes, &weights.scales, a)
        };
        if F::HAS_MIN {
            mins[r] = isa.dot_mins(&weights.mins, a);
        }
    }
    let scale = a.scales[0];
    let d = isa.mul(isa.load_half(&d), isa.splat(F::D_FACTOR));
    let sum = isa.to_float(isa.sum_rows(&sums));
    let acc = isa.fma(isa.mul(d, isa.splat(scale)), sum, acc);
    if !F::HAS_MIN {
        return acc;
    }
    let sum = isa.to_float(isa.sum_rows(&mins));
    isa.fma(isa.mul(isa.load_half(&dmin), isa.splat(-scale)), sum, acc)
}

#[inline(always)]
fn grouped<I: Isa, F: Format>(
    isa: I,
    w: &Matrix<'_>,
    first: usize,
    count: usize,
    chunk: usize,
    a: &ActChunk,
    mut acc: I::F,
) -> I::F {
    let mut d = [[0.0; 8]; LANES];
    let mut sums = [isa.no_units(); LANES];
    // A short last panel computes its last row more than once.
    for r in 0..LANES {
        let weights = w.decode::<I, F>(isa, first + r.min(count - 1), chunk);
        d[r] = weights.group_d;
        sums[r] = isa.dot_units(&weights.codes, a);
    }
    let d = isa.transpose_groups(&d);
    let sums = isa.sum_units(&sums, a);
    for g in 0..8 {
        acc = isa.fma(isa.mul(d[g], isa.splat(a.scales[g])), isa.to_float(sums[g]), acc);
    }
    acc
}
