//! Q4_K: eight pairs of scale and minimum, six bits each, under two f16.
//!
//! Each sub-block first finds the straight line through its weights that suits them best; the
//! steepest and the deepest set `d` and `dmin`; then each sub-block tries sixteen pairs of
//! neighbouring integers with codes re-chosen, `d` and `dmin` are fitted to what was chosen, and
//! again.

use super::Encode;
use super::lanes::{Lanes, code};
use super::target::{Target, inverse};
use bytemuck::Zeroable;
use kizami_kernels::formats::q4_k::{BlockQ4K, Q4K};

/// The scales of a block in the search's frame: weight = d * scale * code - dmin * min.
#[derive(Clone, Copy)]
struct Scales {
    d: [u8; 2],
    dmin: [u8; 2],
    scale: [f32; 8],
    min: [f32; 8],
    /// What `scale` and `min` stand for.
    line: [Line; 8],
    error: f32,
}

/// weight = slope * code - min
#[derive(Clone, Copy)]
struct Line {
    slope: f32,
    min: f32,
}

/// Where the first attempt puts the steepest slope and the deepest minimum, of 63.
const TOPS: [(f32, f32); 2] = [(61.0, 61.0), (53.0, 57.0)];
/// Fits of `d` and `dmin` per attempt.
const ROUNDS: usize = 2;

impl Encode<256> for Q4K {
    type Block = BlockQ4K;

    #[inline(always)]
    fn encode(target: &Target<256>) -> BlockQ4K {
        let mut block = BlockQ4K::zeroed();
        if target.empty {
            return block;
        }
        let scales = choose_scales(target);
        block.d = scales.d;
        block.dmin = scales.dmin;
        for s in 0..4 {
            let (low, high) = (scales.scale[s] as u8, scales.scale[s + 4] as u8);
            let (min_low, min_high) = (scales.min[s] as u8, scales.min[s + 4] as u8);
            block.scales[s] = low | high >> 4 << 6;
            block.scales[s + 4] = min_low | min_high >> 4 << 6;
            block.scales[s + 8] = high & 15 | (min_high & 15) << 4;
        }
        for (pair, qs) in block.qs.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (low, high) = (scales.line[2 * pair], scales.line[2 * pair + 1]);
            let (inverse_low, inverse_high) = (inverse(low.slope), inverse(high.slope));
            for i in 0..32 {
                let x = &target.x[64 * pair..][..64];
                let a = choose_code(inverse_low, low.min, x[i]) as u8;
                let b = choose_code(inverse_high, high.min, x[32 + i]) as u8;
                qs[i] = a | b << 4;
            }
        }
        block
    }
}

#[inline(always)]
fn part(values: &[f32; 256], s: usize) -> &[f32; 32] {
    &values.as_chunks::<32>().0[s]
}

#[inline(always)]
fn choose_scales(target: &Target<256>) -> Scales {
    let mut free = [Line { slope: 0.0, min: 0.0 }; 8];
    let (mut steepest, mut deepest) = (0f32, 0f32);
    for s in 0..8 {
        free[s] = free_line(part(&target.x, s), part(&target.w, s));
        steepest = if free[s].slope > steepest { free[s].slope } else { steepest };
        deepest = if free[s].min > deepest { free[s].min } else { deepest };
    }
    let mut best: Option<Scales> = None;
    for (top, min_top) in TOPS {
        let (mut d, mut dmin) = (steepest / top, deepest / min_top);
        let mut guess = free;
        for _ in 0..ROUNDS {
            let scales;
            (scales, d, dmin) = integer_lines(target, d, dmin, &guess);
            guess = scales.line;
            if best.is_none_or(|b| scales.error < b.error) {
                best = Some(scales);
            }
        }
    }
    best.expect("there is at least one attempt")
}

/// The line of thirty-two weights if it were free.
#[inline(always)]
fn free_line(x: &[f32; 32], w: &[f32; 32]) -> Line {
    let (mut low, mut high) = (0f32, 0f32);
    for &x in x {
        low = if x < low { x } else { low };
        high = if x > high { x } else { high };
    }
    // From clipping a tenth of the range to leaving a level unused.
    let levels = Lanes::splat(13.6) + Lanes::IOTA * Lanes::splat(0.25);
    let inverse_slope = levels * Lanes::splat(inverse(high - low));
    let coarse = fit_line(x, w, inverse_slope, Lanes::splat(-low));
    // Around it: four slopes times four minimums.
    let (mut tilt, mut shift) = (Lanes::ZERO, Lanes::ZERO);
    for l in 0..16 {
        tilt.0[l] = 1.0 + 0.025 * ((l % 4) as f32 - 1.5);
        shift.0[l] = 0.3 * ((l / 4) as f32 - 1.5);
    }
    let min = Lanes::splat(coarse.min) + shift * Lanes::splat(coarse.slope);
    fit_line(x, w, tilt * Lanes::splat(inverse(coarse.slope)), min.max(Lanes::ZERO))
}

/// Of sixteen lines, the one whose codes leave the smallest error under their own best line, which
/// is returned.
#[inline(always)]
fn fit_line(x: &[f32; 32], w: &[f32; 32], inverse_slope: Lanes, min: Lanes) -> Line {
    let offset = min * inverse_slope;
    let (mut q1, mut qq, mut xq) = (Lanes::ZERO, Lanes::ZERO, Lanes::ZERO);
    let (mut w1, mut x1) = (0f32, 0f32);
    for (x, w) in x.iter().zip(w) {
        let q = (Lanes::splat(*x) * inverse_slope + offset).code(0.0, 15.0);
        let wq = Lanes::splat(*w) * q;
        q1 = q1 + wq;
        qq = qq + wq * q;
        xq = xq + wq * Lanes::splat(*x);
        w1 += *w;
        x1 += *w * *x;
    }
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
fn integer_lines(target: &Target<256>, d: f32, dmin: f32, guess: &[Line; 8]) -> (Scales, f32, f32) {
    let (d_bits, d) = target.frame.store(d);
    let (dmin_bits, dmin) = target.frame.store(dmin);
    let mut scales =
        Scales { d: d_bits, dmin: dmin_bits, scale: [0.0; 8], min: [0.0; 8], line: *guess, error: 0.0 };
    let (mut ss, mut sm, mut mm, mut xs, mut xm) = (0f32, 0f32, 0f32, 0f32, 0f32);
    let (mut near, mut near_min) = (Lanes::ZERO, Lanes::ZERO);
    for l in 0..16 {
        near.0[l] = (l % 4) as f32 - 1.0;
        near_min.0[l] = (l / 4) as f32 - 1.0;
    }
    for s in 0..8 {
        let (x, w) = (part(&target.x, s), part(&target.w, s));
        // The two integers on either side, and one more.
        let scale = Lanes::splat(guess[s].slope * inverse(d) - 0.5) + near;
        let min = Lanes::splat(guess[s].min * inverse(dmin) - 0.5) + near_min;
        let (scale, min) = (scale.code(0.0, 63.0), min.code(0.0, 63.0));
        let (slope, depth) = (scale * Lanes::splat(d), min * Lanes::splat(dmin));
        let mut inverse_slope = slope;
        for l in 0..16 {
            inverse_slope.0[l] = inverse(slope.0[l]);
        }
        let mut error = Lanes::ZERO;
        for (x, w) in x.iter().zip(w) {
            let x = Lanes::splat(*x);
            let q = ((x + depth) * inverse_slope).code(0.0, 15.0);
            let e = x + depth - q * slope;
            error = error + Lanes::splat(*w) * e * e;
        }
        let best = error.argmin();
        scales.error += error.0[best];
        (scales.scale[s], scales.min[s]) = (scale.0[best], min.0[best]);
        let line = Line { slope: slope.0[best], min: depth.0[best] };
        scales.line[s] = line;
        let (inverse_slope, scale, min) = (inverse(line.slope), scale.0[best], min.0[best]);
        for i in 0..32 {
            let (a, b) = (scale * choose_code(inverse_slope, line.min, x[i]), min);
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

/// The nearest code; it does not depend on what errors cost.
#[inline(always)]
fn choose_code(inverse_slope: f32, min: f32, x: f32) -> f32 {
    code((x + min) * inverse_slope, 0.0, 15.0)
}
