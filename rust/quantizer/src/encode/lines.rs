//! Straight lines through sub-blocks: scale and minimum of each as integers under two f16 (Q2_K, Q4_K, Q5_K).
//!
//! Each sub-block first finds the straight line through its weights that suits them best; the
//! steepest and the deepest set `d` and `dmin`; then each sub-block tries sixteen pairs of
//! neighbouring integers with codes re-chosen, `d` and `dmin` are fitted to what was chosen, and
//! again.

use super::lanes::{Lanes, code, codes};
use super::target::{Frame, Target, inverse};
use kizami_kernels::isa::Isa;

/// What tells the formats apart.
pub(super) struct Shape {
    /// The largest code.
    pub(super) code: f32,
    /// The largest integer scale and minimum.
    pub(super) scale: f32,
    /// Where the first attempts put the steepest slope and the deepest minimum.
    pub(super) tops: [(f32, f32); 2],
}

/// The scales of a block in the search's frame: weight = d * scale * code - dmin * min.
#[derive(Clone, Copy)]
pub(super) struct Scales<const COUNT: usize> {
    pub(super) d: [u8; 2],
    pub(super) dmin: [u8; 2],
    pub(super) scale: [f32; COUNT],
    pub(super) min: [f32; COUNT],
    /// What `scale` and `min` stand for.
    pub(super) line: [Line; COUNT],
    error: f32,
}

/// weight = slope * code - min
#[derive(Clone, Copy)]
pub(super) struct Line {
    slope: f32,
    min: f32,
}

/// Trial slopes map the range of the weights to this many times the largest code, and by steps to more: from clipping
/// a tenth of it to leaving a level unused.
const FIRST: f32 = 13.6 / 15.0;
const STEP: f32 = 0.25 / 15.0;
/// Fits of `d` and `dmin` per attempt.
const ROUNDS: usize = 2;

#[inline(always)]
fn part<const SUB: usize>(values: &[f32; 256], s: usize) -> &[f32; SUB] {
    &values.as_chunks::<SUB>().0[s]
}

/// The best scales found for `COUNT` sub-blocks of `SUB` weights.
#[inline(always)]
pub(super) fn choose_scales<I: Isa, const SUB: usize, const COUNT: usize>(
    isa: I,
    target: &Target<256>,
    shape: &Shape,
) -> Scales<COUNT> {
    let mut free = [Line { slope: 0.0, min: 0.0 }; COUNT];
    let (mut steepest, mut deepest) = (0f32, 0f32);
    for s in 0..COUNT {
        free[s] = free_line::<I, SUB>(isa, part(&target.x, s), part(&target.w, s), shape);
        steepest = if free[s].slope > steepest { free[s].slope } else { steepest };
        deepest = if free[s].min > deepest { free[s].min } else { deepest };
    }
    let mut best: Option<Scales<COUNT>> = None;
    for (top, min_top) in shape.tops {
        let (mut d, mut dmin) = (steepest / top, deepest / min_top);
        let mut guess = free;
        for _ in 0..ROUNDS {
            let scales;
            (scales, d, dmin) = integer_lines::<I, SUB, COUNT>(isa, target, d, dmin, &guess, shape);
            guess = scales.line;
            if best.is_none_or(|b| scales.error < b.error) {
                best = Some(scales);
            }
        }
    }
    best.expect("there is at least one attempt")
}

/// The line of a sub-block's weights if it were free.
#[inline(always)]
fn free_line<I: Isa, const SUB: usize>(isa: I, x: &[f32; SUB], w: &[f32; SUB], shape: &Shape) -> Line {
    let (mut low, mut high) = (0f32, 0f32);
    for &x in x {
        low = if x < low { x } else { low };
        high = if x > high { x } else { high };
    }
    let levels = Lanes::splat(shape.code * FIRST) + Lanes::IOTA * Lanes::splat(shape.code * STEP);
    let inverse_slope = levels * Lanes::splat(inverse(high - low));
    let coarse = fit_line(isa, x, w, inverse_slope, Lanes::splat(-low), shape);
    // Around it: four slopes times four minimums.
    let (mut tilt, mut shift) = (Lanes::ZERO, Lanes::ZERO);
    for l in 0..16 {
        tilt.0[l] = 1.0 + 0.025 * ((l % 4) as f32 - 1.5);
        shift.0[l] = 0.3 * ((l / 4) as f32 - 1.5);
    }
    let min = Lanes::splat(coarse.min) + shift * Lanes::splat(coarse.slope);
    fit_line(isa, x, w, tilt * Lanes::splat(inverse(coarse.slope)), min.max(Lanes::ZERO), shape)
}

/// Of sixteen lines, the one whose codes leave the smallest error under their own best line, which
/// is returned.
#[inline(always)]
fn fit_line<I: Isa, const SUB: usize>(
    isa: I,
    x: &[f32; SUB],
    w: &[f32; SUB],
    inverse_slope: Lanes,
    min: Lanes,
    shape: &Shape,
) -> Line {
    let (offset, inverse_slope) = ((min * inverse_slope).f(isa), inverse_slope.f(isa));
    let (mut q1, mut qq, mut xq) = (isa.splat(0.0), isa.splat(0.0), isa.splat(0.0));
    let (mut w1, mut x1) = (0f32, 0f32);
    for (x, w) in x.iter().zip(w) {
        let q = codes(isa, isa.fma(isa.splat(*x), inverse_slope, offset), 0.0, shape.code);
        let wq = isa.mul(isa.splat(*w), q);
        q1 = isa.plus(q1, wq);
        qq = isa.fma(wq, q, qq);
        xq = isa.fma(wq, isa.splat(*x), xq);
        w1 += *w;
        x1 += *w * *x;
    }
    let (q1, qq, xq) = (Lanes::of(isa, q1), Lanes::of(isa, qq), Lanes::of(isa, xq));
    let mut best = Line { slope: 0.0, min: 0.0 };
    let mut most = 0f32;
    for l in 0..16 {
        let (q1, qq, xq) = (q1.0[l], qq.0[l], xq.0[l]);
        let determinant = w1 * qq - q1 * q1;
        let (mut slope, mut min) = ((w1 * xq - x1 * q1) / determinant, (q1 * xq - qq * x1) / determinant);
        if determinant <= 0.0 || min < 0.0 {
            (slope, min) = (xq / qq, 0.0);
        }
        let explained = slope * xq - min * x1;
        if explained > most && slope > 0.0 && slope.is_finite() && min.is_finite() {
            (best, most) = (Line { slope, min }, explained);
        }
    }
    best
}

/// The best integers for every sub-block under `d` and `dmin` as stored, and the `d` and `dmin`
/// that would suit them best.
#[inline(always)]
fn integer_lines<I: Isa, const SUB: usize, const COUNT: usize>(
    isa: I,
    target: &Target<256>,
    d: f32,
    dmin: f32,
    guess: &[Line; COUNT],
    shape: &Shape,
) -> (Scales<COUNT>, f32, f32) {
    let (d_bits, d) = target.frame.store(d);
    let (dmin_bits, dmin) = target.frame.store(dmin);
    let none = [0.0; COUNT];
    let mut scales = Scales { d: d_bits, dmin: dmin_bits, scale: none, min: none, line: *guess, error: 0.0 };
    let (mut ss, mut sm, mut mm, mut xs, mut xm) = (0f32, 0f32, 0f32, 0f32, 0f32);
    let (mut near, mut near_min) = (Lanes::ZERO, Lanes::ZERO);
    for l in 0..16 {
        near.0[l] = (l % 4) as f32 - 1.0;
        near_min.0[l] = (l / 4) as f32 - 1.0;
    }
    for s in 0..COUNT {
        let (x, w) = (part::<SUB>(&target.x, s), part::<SUB>(&target.w, s));
        // The two integers on either side, and one more.
        let scale = Lanes::splat(guess[s].slope * inverse(d) - 0.5) + near;
        let deep = if d > 0.0 { guess[s].min } else { level(x, w) };
        let min = Lanes::splat(deep * inverse(dmin) - 0.5) + near_min;
        let (scale, min) = (scale.code(0.0, shape.scale), min.code(0.0, shape.scale));
        let (slope, depth) = (scale * Lanes::splat(d), min * Lanes::splat(dmin));
        let mut inverse_slope = slope;
        for l in 0..16 {
            inverse_slope.0[l] = inverse(slope.0[l]);
        }
        let mut error = isa.splat(0.0);
        let (down, deep, inverses) = ((Lanes::ZERO - slope).f(isa), depth.f(isa), inverse_slope.f(isa));
        for (x, w) in x.iter().zip(w) {
            let x = isa.plus(isa.splat(*x), deep);
            let q = codes(isa, isa.mul(x, inverses), 0.0, shape.code);
            let e = isa.fma(q, down, x);
            error = isa.fma(isa.mul(isa.splat(*w), e), e, error);
        }
        let error = Lanes::of(isa, error);
        let best = error.argmin();
        scales.error += error.0[best];
        (scales.scale[s], scales.min[s]) = (scale.0[best], min.0[best]);
        let line = Line { slope: slope.0[best], min: depth.0[best] };
        scales.line[s] = line;
        let (inverse_slope, scale, min) = (inverse(line.slope), scale.0[best], min.0[best]);
        for i in 0..SUB {
            let (a, b) = (scale * choose_code(inverse_slope, line.min, x[i], shape), min);
            ss += w[i] * a * a;
            sm += w[i] * a * b;
            mm += w[i] * b * b;
            xs += w[i] * a * x[i];
            xm += w[i] * b * x[i];
        }
    }
    // Least squares of x = d a - dmin b.
    let determinant = ss * mm - sm * sm;
    let (mut next, mut next_min) = ((xs * mm - xm * sm) / determinant, (xs * sm - xm * ss) / determinant);
    let sound = determinant > 0.0 && next > 0.0 && next_min >= 0.0;
    if !(sound && next.is_finite() && next_min.is_finite()) {
        (next, next_min) = (d, dmin);
    }
    (scales, next, next_min)
}

/// The best minimum where a slope is too small to be stored: all weights are one number then.
#[inline(always)]
fn level<const SUB: usize>(x: &[f32; SUB], w: &[f32; SUB]) -> f32 {
    let (mut w1, mut x1) = (0f32, 0f32);
    for (x, w) in x.iter().zip(w) {
        w1 += *w;
        x1 += *w * *x;
    }
    if x1 < 0.0 { -x1 / w1 } else { 0.0 }
}

/// The nearest code; it does not depend on what errors cost.
#[inline(always)]
fn choose_code(inverse_slope: f32, min: f32, x: f32, shape: &Shape) -> f32 {
    code((x + min) * inverse_slope, 0.0, shape.code)
}

impl<const COUNT: usize> super::split::Scales for Scales<COUNT> {
    #[inline(always)]
    fn line(&self, octet: usize) -> super::split::Line {
        let Line { slope, min } = self.line[octet * COUNT / 32];
        super::split::Line { scale: slope, start: -min, variant: 0 }
    }

    #[inline(always)]
    fn refit(&mut self, frame: &Frame, factor: f32) {
        let (d, dmin);
        (self.d, d) = frame.store(frame.value(self.d) * factor);
        (self.dmin, dmin) = frame.store(frame.value(self.dmin) * factor);
        for s in 0..COUNT {
            self.line[s] = Line { slope: self.scale[s] * d, min: self.min[s] * dmin };
        }
    }
}
