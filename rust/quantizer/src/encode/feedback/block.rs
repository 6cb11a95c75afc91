//! One block of sixteen rows: scales for what would be best, a draft of codes in order, scales for what that met, codes,
//! and codes again.

use super::whole::{Whole, cost};
use super::{Columns, Set, absorb, octet_mut, octet_of};
use crate::encode::lanes::{LANES, Lanes, opaque};
use crate::encode::octet::{Octet, Row};
use crate::encode::split::{Line, MOST_OCTETS, OCTET, Scales, Search, Split};
use crate::encode::target::{Frame, Target};
use bytemuck::Zeroable;
use kizami_kernels::isa::Isa;

/// Bounds on the factor of a fit; beyond them the fit is of something degenerate.
const FACTORS: (f32, f32) = (0.5, 2.0);

/// Passes over a block in order: a draft, and codes.
const IN_ORDER: usize = 2;
/// How often all codes are chosen again after that. A second time lowered the loss by another 2 to 6 %, and took as long.
const SWEEPS: usize = 1;

/// How a pass goes over a block.
#[derive(Clone, Copy)]
pub(super) enum Way<'a> {
    /// Octet by octet, those behind it making up for it; a draft is for scales to be fitted to.
    InOrder { draft: bool },
    /// Octet by octet, given all others as they stand, under the metric of the whole block: codes change only where that
    /// lowers the loss.
    Again(&'a Whole<'a>),
}

/// One block of sixteen rows.
pub(super) struct Block<'a, const N: usize> {
    columns: &'a Columns<'a>,
    /// Its first column in the panel.
    at: usize,
    count: usize,
    frames: &'a [Frame; LANES],
    w: &'a [Lanes],
    pub(super) e: &'a mut [Lanes],
    /// What earlier blocks feed in.
    fed: [Lanes; N],
    /// `w L + f`: residuals if all codes stood for zero.
    bare: [Lanes; N],
    /// The weights that would leave no residuals.
    open: [Lanes; N],
    /// The same; of coarse codes, after a draft, given the errors of octets before.
    free: [Lanes; N],
}

impl<'a, const N: usize> Block<'a, N> {
    #[inline(always)]
    pub(super) fn new<I: Isa>(isa: I, set: &'a mut Set, columns: &'a Columns<'a>, at: usize) -> Self {
        let begin = columns.start + at;
        let (before, e) = set.e.split_at_mut(begin);
        let (w, e) = (&set.w[begin..begin + N], &mut e[..N]);
        let mut fed: [Lanes; N] = set.fed[at..at + N].try_into().expect("a whole block");
        let (mut bare, mut free, mut given) = ([Lanes::ZERO; N], [Lanes::ZERO; N], [Lanes::ZERO; N]);
        for g in 0..N / OCTET {
            let (here, octet) = (at / OCTET + g, &columns.octets[at / OCTET + g]);
            let fed = octet_mut(&mut fed, g);
            absorb(isa, fed, &before[columns.start..], columns.u(here, 0, at));
            let above = columns.u(here, at, at + OCTET * g);
            let mut sums = *fed;
            absorb(isa, &mut sums, &w[..OCTET * g], above);
            *octet_mut(&mut bare, g) = octet.residual(octet_of(w, g), &sums);
            let mut sums = *fed;
            absorb(isa, &mut sums, &given[..OCTET * g], above);
            *octet_mut(&mut given, g) = octet.given(&sums);
            for j in OCTET * g..OCTET * (g + 1) {
                free[j] = w[j] - given[j];
            }
        }
        Block { columns, at, count: set.count, frames: &set.frames, w, e, fed, bare, open: free, free }
    }

    /// Chooses scales and codes, leaves the errors in `e`, and hands each row's number and block to `put`.
    #[inline(always)]
    pub(super) fn encode<I: Isa, F: Split<N>>(
        &mut self,
        isa: I,
        whole: &Whole<'_>,
        mut put: impl FnMut(usize, F::Block),
    ) {
        let (mut scales, mut frames) = self.choose_scales::<I, F>(isa, true);
        let mut codes = [[<F::Search as Search>::Code::default(); LANES]; MOST_OCTETS];
        let mut values = [Lanes::ZERO; N];
        for pass in 0..opaque(IN_ORDER + SWEEPS) {
            let draft = pass == 0;
            let way = if pass < IN_ORDER { Way::InOrder { draft } } else { Way::Again(whole) };
            self.choose_codes::<I, F>(isa, way, &scales, &frames, &mut codes, &mut values);
            if draft && F::Search::COARSE {
                (scales, frames) = self.choose_scales::<I, F>(isa, false);
            } else {
                let fit = self.fit(isa, &scales, &frames, &values);
                self.refit(&mut scales, &frames, &fit);
            }
        }
        self.leave_errors(&scales, &frames, &values);
        for l in 0..self.count {
            let mut row = [<F::Search as Search>::Code::default(); MOST_OCTETS];
            for g in 0..N / OCTET {
                row[g] = codes[g][l];
            }
            let pack = |scales: &F::Scales| F::pack(scales, &row[..N / OCTET]);
            put(l, scales[l].as_ref().map_or_else(F::Block::zeroed, pack));
        }
    }

    /// The scales of each row by a plain search on its free weights, none where those are zeros, in which frames.
    #[inline(always)]
    pub(super) fn choose_scales<I: Isa, F: Split<N>>(
        &self,
        isa: I,
        draft: bool,
    ) -> ([Option<F::Scales>; LANES], [Frame; LANES]) {
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
            if !target.empty {
                let found =
                    if draft { F::draft_scales(isa, &target) } else { F::choose_scales(isa, &target) };
                scales[l] = Some(found);
            }
        }
        (scales, frames)
    }

    /// One pass over the block: codes, what they stand for, and their errors; when codes are chosen again, the errors of
    /// the open weights, which is all that the loss depends on.
    #[inline(always)]
    pub(super) fn choose_codes<I: Isa, F: Split<N>>(
        &mut self,
        isa: I,
        way: Way<'_>,
        scales: &[Option<F::Scales>; LANES],
        frames: &[Frame; LANES],
        codes: &mut [[<F::Search as Search>::Code; LANES]; MOST_OCTETS],
        values: &mut [Lanes; N],
    ) {
        let (again, draft) = match way {
            Way::InOrder { draft } => (None, draft),
            Way::Again(whole) => (Some(whole), false),
        };
        if again.is_some() {
            for j in 0..N {
                self.e[j] = self.e[j] + (self.open[j] - self.w[j]);
            }
        }
        for g in 0..N / OCTET {
            let (mut octet, mut row) =
                (&self.columns.octets[self.at / OCTET + g], self.row(scales, frames, g));
            let mut pull = [Lanes::ZERO; OCTET];
            if let Some(whole) = again {
                pull = whole.pull(isa, g, self.e);
                octet = whole.octet(g);
                (row.w, row.fed) = (*octet_of(&self.open, g), octet.pulled_by(&pull));
            } else {
                row.fed = self.fed_into(isa, g);
                if draft && F::Search::COARSE {
                    let given = octet.given(&row.fed);
                    for j in 0..OCTET {
                        self.free[OCTET * g + j] = row.w[j] - given[j];
                    }
                }
            }
            let mut found = [<F::Search as Search>::Code::default(); LANES];
            let rough = draft || again.is_none() && F::Search::DRAFTS_HAVE_CODES;
            let new = F::Search::choose_whole(isa, octet, &row, rough, &mut found);
            let mut e = [Lanes::ZERO; OCTET];
            for j in 0..OCTET {
                e[j] = row.w[j] - (new[j] * row.scale + row.start);
            }
            let (mut before, mut after) = (Lanes::splat(f32::MAX), Lanes::ZERO);
            if again.is_some() {
                before = cost(isa, octet, octet_of(self.e, g), &pull);
                after = cost(isa, octet, &e, &pull);
            }
            let (old, values) = (octet_mut(self.e, g), octet_mut(values, g));
            for j in 0..OCTET {
                old[j] = after.where_less(before, e[j], old[j]);
                values[j] = after.where_less(before, new[j], values[j]);
            }
            for l in 0..LANES {
                if after.0[l] < before.0[l] {
                    codes[g][l] = found[l];
                }
            }
        }
    }

    /// What is fed into an octet by all errors before it.
    #[inline(always)]
    fn fed_into<I: Isa>(&self, isa: I, g: usize) -> [Lanes; OCTET] {
        let (above, mut fed) = (OCTET * g, *octet_of(&self.fed, g));
        absorb(
            isa,
            &mut fed,
            &self.e[..above],
            self.columns.u(self.at / OCTET + g, self.at, self.at + above),
        );
        fed
    }

    /// What codes that stand tell; leaves their errors in `e`.
    #[inline(always)]
    fn fit<I: Isa>(
        &mut self,
        isa: I,
        scales: &[Option<impl Scales>; LANES],
        frames: &[Frame; LANES],
        values: &[Lanes; N],
    ) -> Fit {
        self.leave_errors(scales, frames, values);
        let mut fit = Fit::NONE;
        for g in 0..N / OCTET {
            let octet = &self.columns.octets[self.at / OCTET + g];
            let residual = octet.residual(octet_of(self.e, g), &self.fed_into(isa, g));
            fit.add(octet, octet_of(&self.bare, g), &residual);
        }
        fit
    }

    /// Leaves in `e` what codes differ from the weights by.
    #[inline(always)]
    pub(super) fn leave_errors(
        &mut self,
        scales: &[Option<impl Scales>; LANES],
        frames: &[Frame; LANES],
        values: &[Lanes; N],
    ) {
        for g in 0..N / OCTET {
            let row = self.row(scales, frames, g);
            for j in OCTET * g..OCTET * (g + 1) {
                self.e[j] = self.w[j] - (values[j] * row.scale + row.start);
            }
        }
    }

    /// Fits the scales of each row to its codes, as far as the fit makes sense.
    #[inline(always)]
    fn refit(&self, scales: &mut [Option<impl Scales>; LANES], frames: &[Frame; LANES], fit: &Fit) {
        for l in 0..self.count {
            if let Some(scales) = &mut scales[l] {
                let factor = fit.factor(l);
                if factor > FACTORS.0 && factor < FACTORS.1 {
                    scales.refit(&frames[l], factor);
                }
            }
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

/// What a pass tells of free weights `t` and codes' values `q`, under the block's metric.
struct Fit {
    /// `<t, q>`
    cross: Lanes,
    /// `<q, q>`
    square: Lanes,
}

impl Fit {
    const NONE: Fit = Fit { cross: Lanes::ZERO, square: Lanes::ZERO };

    /// Adds an octet's part: its residuals if all codes stood for zero, and as they are.
    #[inline(always)]
    fn add(&mut self, octet: &Octet, bare: &[Lanes; OCTET], residual: &[Lanes; OCTET]) {
        for j in 0..OCTET {
            let (t, d) = (bare[j], Lanes::splat(octet.d[j]));
            let q = t - residual[j];
            self.cross = self.cross + d * t * q;
            self.square = self.square + d * q * q;
        }
    }

    /// The factor on one row's scales, by least squares.
    #[inline(always)]
    fn factor(&self, lane: usize) -> f32 {
        self.cross.0[lane] / self.square.0[lane]
    }
}
