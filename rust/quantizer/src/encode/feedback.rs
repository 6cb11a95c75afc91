//! Error feedback on two levels: what one block did wrong the next ones make up for, and inside a block every eight
//! weights make up for those before them.
//!
//! Sixteen rows run side by side, one per lane, and several such sets share what they read of the factor. A block's
//! scales come from the plain search, on the weights that would be best if they were free; then codes are chosen in
//! order, once as a draft and once for good. After the draft `d` is fitted under the whole metric; coarse codes, whose
//! errors make weights after them larger, have all scales chosen again, for the weights that the draft met. The method is
//! block LDL rounding (QuIP#, arXiv 2402.04396; GPTQ, 2210.17323) around the file's own scales. Last, codes are gone
//! over again, each octet given all others of its block.
//!
//! With `w` the weights, `q` what codes stand for, `e = w - q`, `L` the block's part of `I + U` and `f` what earlier
//! blocks feed in, the loss is `sum of d * r²` with `r = e L + f = (w L + f) - q L`. So the residuals of a pass also
//! tell `q L`, and with it the best factor on all scales.

mod block;
#[cfg(test)]
mod tests;
mod whole;

use super::Job;
use super::lanes::{LANES, Lanes};
use super::octet::Octet;
use super::split::{MOST_OCTETS, OCTET, Split};
use super::target::{Frame, largest};
use crate::curvature::Curvature;
use block::Block;
use kizami_kernels::dispatch::Op;
use kizami_kernels::isa::Isa;
use std::marker::PhantomData;
use whole::Whole;

/// Columns whose errors are fed on together: no block is longer.
const PANEL: usize = MOST_OCTETS * OCTET;
/// Sets of sixteen rows that pass over the factor together.
const SETS: usize = 4;

/// Encodes rows of one format under a curvature.
pub(super) struct Rows<'a, F, const N: usize> {
    pub(super) job: Job<'a>,
    pub(super) curvature: &'a Curvature,
    pub(super) format: PhantomData<F>,
}

impl<F: Split<N>, const N: usize> Op for Rows<'_, F, N> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Job { rows, cols, out, .. } = self.job;
        let row_bytes = cols / N * size_of::<F::Block>();
        let (group, group_bytes) = (SETS * LANES * cols, SETS * LANES * row_bytes);
        for (rows, out) in rows.chunks(group).zip(out.chunks_mut(group_bytes)) {
            let sets = rows.chunks(LANES * cols).map(|rows| Set::new(rows, cols)).collect();
            Group { curvature: self.curvature, sets, out, row_bytes }.all::<I, F, N>(isa);
        }
    }
}

/// Sixteen rows; where there are fewer the rest are zeros.
struct Set {
    count: usize,
    frames: [Frame; LANES],
    /// Weights, each row brought to a largest magnitude of one to two.
    w: Vec<Lanes>,
    /// Their errors, as far as they are rounded.
    e: Vec<Lanes>,
    /// What earlier panels feed into the columns of this one.
    fed: Vec<Lanes>,
    /// What is fed into all columns before anything is rounded: what inputs differ by from those whose outputs are
    /// wanted. Nothing where they do not.
    drift: Vec<Lanes>,
}

impl Set {
    #[inline(always)]
    fn new(rows: &[f32], cols: usize) -> Set {
        let mut w = vec![Lanes::ZERO; cols];
        let mut frames = [Frame::of(0.0); LANES];
        for (l, row) in rows.chunks_exact(cols).enumerate() {
            frames[l] = Frame::of(largest_of(row));
            for (w, &x) in w.iter_mut().zip(row) {
                w.0[l] = frames[l].normalized(x);
            }
        }
        let (e, fed) = (vec![Lanes::ZERO; cols], vec![Lanes::ZERO; PANEL]);
        Set { count: rows.len() / cols, frames, w, e, fed, drift: Vec::new() }
    }
}

/// The largest magnitude, of any number of weights.
#[inline(always)]
fn largest_of(row: &[f32]) -> f32 {
    row.chunks(16).map(largest).fold(0.0, |a, b| if b > a { b } else { a })
}

/// Rows that pass over the factor together.
struct Group<'a> {
    curvature: &'a Curvature,
    sets: Vec<Set>,
    out: &'a mut [u8],
    row_bytes: usize,
}

impl Group<'_> {
    #[inline(always)]
    fn all<I: Isa, F: Split<N>, const N: usize>(&mut self, isa: I) {
        let cols = self.curvature.cols();
        for g in 0..cols / OCTET {
            let Some(drift) = self.curvature.drift(g) else { break };
            for set in &mut self.sets {
                let mut sums = [Lanes::ZERO; OCTET];
                absorb(isa, &mut sums, &set.w, drift);
                set.drift.extend(sums);
            }
        }
        for start in (0..cols).step_by(PANEL) {
            self.panel::<I, F, N>(isa, start, PANEL.min(cols - start));
        }
    }

    /// Encodes columns `start .. start + width` of all rows.
    #[inline(always)]
    fn panel<I: Isa, F: Split<N>, const N: usize>(&mut self, isa: I, start: usize, width: usize) {
        let (curvature, first) = (self.curvature, start / OCTET);
        for set in &mut self.sets {
            set.fed.fill(Lanes::ZERO);
            if let Some(drift) = set.drift.get(start..start + width) {
                set.fed[..width].copy_from_slice(drift);
            }
        }
        for from in (0..start).step_by(PANEL) {
            for g in 0..width / OCTET {
                let u = &curvature.octet(first + g)[from..from + PANEL];
                for set in &mut self.sets {
                    absorb(isa, octet_mut(&mut set.fed, g), &set.e[from..from + PANEL], u);
                }
            }
        }
        let columns = Columns::new(curvature, start, width);
        for at in (0..width).step_by(N) {
            let whole = Whole::new(curvature.block(start + at, N));
            for (set, out) in self.sets.iter_mut().zip(self.out.chunks_mut(LANES * self.row_bytes)) {
                let mut block = Block::<N>::new(isa, set, &columns, at);
                block.encode::<I, F>(isa, &whole, |row, block| {
                    let bytes = bytemuck::bytes_of(&block);
                    out[row * self.row_bytes + (start + at) / N * bytes.len()..][..bytes.len()]
                        .copy_from_slice(bytes);
                });
            }
        }
    }
}

/// `sums += e * u`: what errors feed into eight columns, in ascending order.
#[inline(always)]
fn absorb<I: Isa>(isa: I, sums: &mut [Lanes; OCTET], e: &[Lanes], u: &[[f32; OCTET]]) {
    let mut acc = [isa.splat(0.0); OCTET];
    for c in 0..OCTET {
        acc[c] = isa.load(&sums[c].0);
    }
    for (e, u) in e.iter().zip(u) {
        let e = isa.load(&e.0);
        for c in 0..OCTET {
            acc[c] = isa.fma(e, isa.splat(u[c]), acc[c]);
        }
    }
    for c in 0..OCTET {
        isa.store(acc[c], &mut sums[c].0);
    }
}

#[inline(always)]
fn octet_of(lanes: &[Lanes], g: usize) -> &[Lanes; OCTET] {
    &lanes.as_chunks::<OCTET>().0[g]
}

#[inline(always)]
fn octet_mut(lanes: &mut [Lanes], g: usize) -> &mut [Lanes; OCTET] {
    &mut lanes.as_chunks_mut::<OCTET>().0[g]
}

/// A panel's part of the curvature.
struct Columns<'a> {
    curvature: &'a Curvature,
    start: usize,
    octets: Vec<Octet>,
}

impl<'a> Columns<'a> {
    fn new(curvature: &'a Curvature, start: usize, width: usize) -> Self {
        let pivots = curvature.pivots().as_chunks::<OCTET>().0;
        let octet = |g: usize| {
            let u = curvature.octet(g).last_chunk().expect("rows above and eight of its own");
            Octet::new(u, &pivots[g])
        };
        let octets = (start / OCTET..(start + width) / OCTET).map(octet).collect();
        Columns { curvature, start, octets }
    }

    /// Rows `from..to` of the eight columns of octet `g` of `U`; all counted from the panel's start.
    #[inline(always)]
    fn u(&self, g: usize, from: usize, to: usize) -> &[[f32; OCTET]] {
        &self.curvature.octet(self.start / OCTET + g)[self.start + from..self.start + to]
    }

    /// `D` of a block.
    fn pivots(&self, at: usize, n: usize) -> &[f32] {
        &self.curvature.pivots()[self.start + at..][..n]
    }

    /// The diagonal of the metric of a block: what a squared error costs if later blocks make up for it.
    fn diagonal<const N: usize>(&self, at: usize) -> [f32; N] {
        let pivots = self.pivots(at, N);
        let mut sums: [f32; N] = pivots.try_into().expect("a whole block");
        for g in 0..N / OCTET {
            let from = at / OCTET + g;
            for (sum, u) in sums.iter_mut().zip(self.u(from, at, at + OCTET * (g + 1))) {
                for c in 0..OCTET {
                    *sum += u[c] * u[c] * pivots[OCTET * g + c];
                }
            }
        }
        sums
    }
}
