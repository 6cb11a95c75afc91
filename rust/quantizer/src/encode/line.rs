//! The straight line through a few weights that suits them best, anywhere (Q4_1, Q5_1).
//!
//! The range of the weights is mapped to sixteen ranges of codes, then, around the best of those lines, sixteen
//! slopes and starts are tried; each choice of codes is judged by its own least-squares line.

use super::lanes::{Lanes, code};
use super::split::{Line, Scales};
use super::target::{Frame, Target, inverse};

/// Trial slopes map the range of the weights to this many times the largest code, and by steps to more: from clipping
/// a tenth of it to leaving a level unused.
const FIRST: f32 = 13.6 / 15.0;
const STEP: f32 = 0.25 / 15.0;

/// A line as the file stores it.
#[derive(Clone, Copy)]
pub(super) struct Stored {
    pub(super) slope: [u8; 2],
    pub(super) start: [u8; 2],
    /// What they stand for.
    d: f32,
    at: f32,
}

impl Scales for Stored {
    #[inline(always)]
    fn line(&self, _: usize) -> Line {
        Line { scale: self.d, start: self.at, variant: 0 }
    }

    #[inline(always)]
    fn refit(&mut self, frame: &Frame, factor: f32) {
        (self.slope, self.d) = frame.store(self.d * factor);
        (self.start, self.at) = frame.store(self.at * factor);
    }
}

/// The best line for codes `0..=last`, its start fitted to the slope that the file can hold.
#[inline(always)]
pub(super) fn choose_line<const N: usize>(target: &Target<N>, last: f32) -> Stored {
    let (slope, start) = free_line(&target.x, &target.w, last);
    let (slope_bits, d) = target.frame.store_up(slope);
    let id = inverse(d);
    // Rounding the slope must not move the middle of the line.
    let start = start + 0.5 * last * (slope - d);
    let (mut w1, mut rest) = (0f32, 0f32);
    for (x, w) in target.x.iter().zip(&target.w) {
        w1 += w;
        rest += w * (x - d * code((x - start) * id, 0.0, last));
    }
    let (start_bits, at) = target.frame.store(rest / w1);
    Stored { slope: slope_bits, start: start_bits, d, at }
}

/// Slope and start of `x = slope * code + start` for codes `0..=last`.
#[inline(always)]
fn free_line<const N: usize>(x: &[f32; N], w: &[f32; N], last: f32) -> (f32, f32) {
    let (mut low, mut high) = (x[0], x[0]);
    for &x in x {
        low = if x < low { x } else { low };
        high = if x > high { x } else { high };
    }
    if low == high {
        return (0.0, low);
    }
    let levels = Lanes::splat(last * FIRST) + Lanes::IOTA * Lanes::splat(last * STEP);
    let id = levels * Lanes::splat(inverse(high - low));
    // What is clipped is clipped at both ends.
    let middle = Lanes::splat(0.5 * last) - id * Lanes::splat(0.5 * (low + high));
    let (slope, start) = fit_line(x, w, last, id, middle);
    let (mut tilt, mut shift) = (Lanes::ZERO, Lanes::ZERO);
    for l in 0..16 {
        tilt.0[l] = 1.0 + 0.025 * ((l % 4) as f32 - 1.5);
        shift.0[l] = 0.3 * ((l / 4) as f32 - 1.5);
    }
    let id = tilt * Lanes::splat(inverse(slope));
    fit_line(x, w, last, id, shift - id * Lanes::splat(start))
}

/// Of sixteen ways to choose codes, `x * id + offset` rounded, the one that leaves the smallest error under its own
/// best line, which is returned.
#[inline(always)]
fn fit_line<const N: usize>(x: &[f32; N], w: &[f32; N], last: f32, id: Lanes, offset: Lanes) -> (f32, f32) {
    let (mut q1, mut qq, mut xq) = (Lanes::ZERO, Lanes::ZERO, Lanes::ZERO);
    let (mut w1, mut x1) = (0f32, 0f32);
    for (x, w) in x.iter().zip(w) {
        let q = (Lanes::splat(*x) * id + offset).code(0.0, last);
        let wq = Lanes::splat(*w) * q;
        q1 = q1 + wq;
        qq = qq + wq * q;
        xq = xq + wq * Lanes::splat(*x);
        w1 += *w;
        x1 += *w * *x;
    }
    let (mut best, mut most) = ((0.0, x1 / w1), x1 * x1 / w1);
    for l in 0..16 {
        let (q1, qq, xq) = (q1.0[l], qq.0[l], xq.0[l]);
        let determinant = w1 * qq - q1 * q1;
        let (slope, start) = ((w1 * xq - x1 * q1) / determinant, (qq * x1 - q1 * xq) / determinant);
        let explained = slope * xq + start * x1;
        if explained > most && slope > 0.0 && slope.is_finite() && start.is_finite() {
            (best, most) = ((slope, start), explained);
        }
    }
    best
}
