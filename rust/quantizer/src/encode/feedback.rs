//! Error feedback on two levels: what one block did wrong the next ones make up for, and inside a block every eight
//! weights make up for those before them.
//!
//! Sixteen rows run side by side, one per lane, and several such sets share what they read of the factor. A block's
//! scales come from the plain search, on the weights that would be best if they were free; then codes are chosen in
//! order, `d` is fitted to them under the whole metric, and they are chosen again. The method is block LDL rounding
//! (QuIP#, arXiv 2402.04396; GPTQ, 2210.17323) around the file's own scales.
//!
//! With `w` the weights, `q` what codes stand for, `e = w - q`, `L` the block's part of `I + U` and `f` what earlier
//! blocks feed in, the loss is `sum of d * r²` with `r = e L + f = (w L + f) - q L`. So the residuals of a pass also
//! tell `q L`, and with it the best factor on all scales.

use super::Job;
use super::lanes::{LANES, Lanes};
use super::octet::{Octet, Row};
use super::split::{Line, MOST_OCTETS, OCTET, Scales, Search, Split};
use super::target::{Frame, Target, largest};
use crate::curvature::Curvature;
use bytemuck::Zeroable;
use kizami_kernels::dispatch::Op;
use kizami_kernels::isa::Isa;
use std::marker::PhantomData;

/// Columns whose errors are fed on together: no block is longer.
const PANEL: usize = MOST_OCTETS * OCTET;
/// Sets of sixteen rows that pass over the factor together.
const SETS: usize = 4;
/// Fits of `d` per block, each followed by choosing codes anew.
const ROUNDS: usize = 2;
/// Bounds on the factor of a fit; beyond them the fit is of something degenerate.
const FACTORS: (f32, f32) = (0.5, 2.0);

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
        Set { count: rows.len() / cols, frames, w, e: vec![Lanes::ZERO; cols], fed: vec![Lanes::ZERO; PANEL] }
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
        for start in (0..cols).step_by(PANEL) {
            self.panel::<I, F, N>(isa, start, PANEL.min(cols - start));
        }
    }

    /// Encodes columns `start .. start + width` of all rows.
    #[inline(always)]
    fn panel<I: Isa, F: Split<N>, const N: usize>(&mut self, isa: I, start: usize, width: usize) {
        let (curvature, first) = (self.curvature, start / OCTET);
        self.sets.iter_mut().for_each(|set| set.fed.fill(Lanes::ZERO));
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
            for (set, out) in self.sets.iter_mut().zip(self.out.chunks_mut(LANES * self.row_bytes)) {
                let mut block = Block::<N>::new(isa, set, &columns, at);
                block.encode::<I, F>(isa, |row, block| {
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

    /// The diagonal of the metric of a block: what a squared error costs if later blocks make up for it.
    fn diagonal<const N: usize>(&self, at: usize) -> [f32; N] {
        let pivots = &self.curvature.pivots()[self.start + at..][..N];
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

/// One block of sixteen rows.
struct Block<'a, const N: usize> {
    columns: &'a Columns<'a>,
    /// Its first column in the panel.
    at: usize,
    count: usize,
    frames: &'a [Frame; LANES],
    w: &'a [Lanes],
    e: &'a mut [Lanes],
    /// What earlier blocks feed in.
    fed: [Lanes; N],
    /// `w L + f`: residuals if all codes stood for zero.
    whole: [Lanes; N],
    /// The weights that would leave no residuals.
    free: [Lanes; N],
}

impl<'a, const N: usize> Block<'a, N> {
    #[inline(always)]
    fn new<I: Isa>(isa: I, set: &'a mut Set, columns: &'a Columns<'a>, at: usize) -> Self {
        let begin = columns.start + at;
        let (before, e) = set.e.split_at_mut(begin);
        let (w, e) = (&set.w[begin..begin + N], &mut e[..N]);
        let mut fed: [Lanes; N] = set.fed[at..at + N].try_into().expect("a whole block");
        let (mut whole, mut free, mut given) = ([Lanes::ZERO; N], [Lanes::ZERO; N], [Lanes::ZERO; N]);
        for g in 0..N / OCTET {
            let (here, octet) = (at / OCTET + g, &columns.octets[at / OCTET + g]);
            let fed = octet_mut(&mut fed, g);
            absorb(isa, fed, &before[columns.start..], columns.u(here, 0, at));
            let above = columns.u(here, at, at + OCTET * g);
            let mut sums = *fed;
            absorb(isa, &mut sums, &w[..OCTET * g], above);
            *octet_mut(&mut whole, g) = octet.residual(octet_of(w, g), &sums);
            let mut sums = *fed;
            absorb(isa, &mut sums, &given[..OCTET * g], above);
            for j in 0..OCTET {
                let mut more = sums[j];
                for i in 0..j {
                    more = more + given[OCTET * g + i] * Lanes::splat(octet.u[i][j]);
                }
                given[OCTET * g + j] = Lanes::ZERO - more;
                free[OCTET * g + j] = w[OCTET * g + j] + more;
            }
        }
        Block { columns, at, count: set.count, frames: &set.frames, w, e, fed, whole, free }
    }

    #[inline(always)]
    fn encode<I: Isa, F: Split<N>>(&mut self, isa: I, mut put: impl FnMut(usize, F::Block)) {
        let importance = self.columns.diagonal::<N>(self.at);
        let (mut scales, mut frames) = ([None; LANES], [Frame::of(0.0); LANES]);
        for l in 0..self.count {
            let mut weights = [0.0; N];
            for i in 0..N {
                // Where feedback outgrows f32 the largest number will do; no number becomes the smallest.
                let x = self.frames[l].restored(self.free[i].0[l]);
                weights[i] = if x > f32::MIN { x.min(f32::MAX) } else { f32::MIN };
            }
            let target = Target::new(&weights, Some(&importance));
            frames[l] = target.frame;
            scales[l] = (!target.empty).then(|| F::choose_scales(&target));
        }
        let mut codes = [[<F::Search as Search>::Code::default(); LANES]; MOST_OCTETS];
        let mut values = [Lanes::ZERO; N];
        for _ in 0..=ROUNDS {
            let (mut cross, mut square) = (Lanes::ZERO, Lanes::ZERO);
            for g in 0..N / OCTET {
                let (here, octet) = (self.at / OCTET + g, &self.columns.octets[self.at / OCTET + g]);
                let (w, mut row) = (*octet_of(self.w, g), self.row(&scales, &frames, g));
                absorb(
                    isa,
                    &mut row.fed,
                    &self.e[..OCTET * g],
                    self.columns.u(here, self.at, self.at + OCTET * g),
                );
                let found = F::Search::choose_whole(octet, &row, &mut codes[g]);
                *octet_mut(&mut values, g) = found;
                let mut e = [Lanes::ZERO; OCTET];
                for j in 0..OCTET {
                    e[j] = w[j] - (found[j] * row.scale + row.start);
                }
                *octet_mut(self.e, g) = e;
                let residual = octet.residual(&e, &row.fed);
                for j in 0..OCTET {
                    let whole = self.whole[OCTET * g + j];
                    let (q, d) = (whole - residual[j], Lanes::splat(octet.d[j]));
                    cross = cross + d * whole * q;
                    square = square + d * q * q;
                }
            }
            for l in 0..self.count {
                if let Some(scales) = &mut scales[l] {
                    let factor = cross.0[l] / square.0[l];
                    if factor > FACTORS.0 && factor < FACTORS.1 {
                        scales.refit(&frames[l], factor);
                    }
                }
            }
        }
        for g in 0..N / OCTET {
            let row = self.row(&scales, &frames, g);
            for j in OCTET * g..OCTET * (g + 1) {
                self.e[j] = self.w[j] - (values[j] * row.scale + row.start);
            }
        }
        for l in 0..self.count {
            let Some(scales) = &scales[l] else {
                put(l, F::Block::zeroed());
                continue;
            };
            let mut row = [<F::Search as Search>::Code::default(); MOST_OCTETS];
            for g in 0..N / OCTET {
                row[g] = codes[g][l];
            }
            put(l, F::pack(scales, &row[..N / OCTET]));
        }
    }

    /// An octet's weights and scales, in the frames of the rows.
    #[inline(always)]
    fn row<S: Scales>(&self, scales: &[Option<S>; LANES], frames: &[Frame; LANES], g: usize) -> Row {
        let zero = Lanes::ZERO;
        let mut row = Row {
            w: *octet_of(self.w, g),
            fed: *octet_of(&self.fed, g),
            scale: zero,
            start: zero,
            variant: zero,
        };
        for l in 0..LANES {
            if let Some(scales) = &scales[l] {
                let Line { scale, start, variant } = scales.line(g);
                row.scale.0[l] = self.frames[l].normalized(frames[l].restored(scale));
                row.start.0[l] = self.frames[l].normalized(frames[l].restored(start));
                row.variant.0[l] = f32::from(variant);
            }
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::tests::{decode, gaussian, moments};
    use kizami_kernels::formats::{Iq1S, Iq2Xxs, Iq3Xxs, Iq4Nl, Q4_1, Q4K, Q6K};
    use kizami_kernels::{Type, dispatch};

    /// Encodes sixteen rows and returns their errors as the search knows them, row by row.
    struct Errors<'a, F, const N: usize>(Rows<'a, F, N>);

    impl<F: Split<N>, const N: usize> Op for Errors<'_, F, N> {
        type Out = Vec<f32>;
        fn run<I: Isa>(self, isa: I) -> Vec<f32> {
            let Job { rows, cols, out, .. } = self.0.job;
            let row_bytes = cols / N * size_of::<F::Block>();
            let mut group =
                Group { curvature: self.0.curvature, sets: vec![Set::new(rows, cols)], out, row_bytes };
            group.all::<I, F, N>(isa);
            let set = &group.sets[0];
            (0..LANES).flat_map(|l| set.e.iter().map(move |e| set.frames[l].restored(e.0[l]))).collect()
        }
    }

    fn check<F: Split<N>, const N: usize>(ty: Type) {
        let cols = 512;
        let rows: Vec<f32> = gaussian(50, LANES * cols).iter().map(|x| 0.03 * x).collect();
        let curvature = Curvature::new(&moments(51, cols, 60), cols, 0.01).unwrap();
        let mut out = vec![0; LANES * ty.row_bytes(cols).unwrap()];
        let job = Job { rows: &rows, cols, importance: None, curvature: None, out: &mut out };
        let errors = dispatch(Errors(Rows::<F, N> { job, curvature: &curvature, format: PhantomData }));
        let back = decode(ty, &out, cols);
        for i in 0..rows.len() {
            let error = rows[i] - back[i];
            assert!((errors[i] - error).abs() < 1e-6, "{ty:?}: {i}: {} against {error}", errors[i]);
        }
    }

    #[test]
    fn what_is_fed_on_is_the_error_of_what_was_written() {
        check::<Q4_1, 32>(Type::Q4_1);
        check::<Iq4Nl, 32>(Type::Iq4Nl);
        check::<Q4K, 256>(Type::Q4K);
        check::<Q6K, 256>(Type::Q6K);
        check::<Iq3Xxs, 256>(Type::Iq3Xxs);
        check::<Iq2Xxs, 256>(Type::Iq2Xxs);
        check::<Iq1S, 256>(Type::Iq1S);
    }
}
