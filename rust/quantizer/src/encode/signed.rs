//! Signed sub-scales under one f16 (Q3_K, Q6_K), and the one scale of a few weights (Q4_0, Q5_0).
//!
//! Each sub-block first finds its own best scale; the largest of them sets `d`; then every
//! sub-block tries sixteen neighbouring integer scales under the stored `d` with codes re-chosen. The codes say which
//! `d` would have suited them better, and the sub-blocks choose again under that one.

use super::lanes::{LANES, Lanes, code};
use super::scalar::Scaled;
use super::target::{Target, inverse};

/// What tells the formats apart.
pub(super) struct Shape {
    /// The smallest and the largest code.
    pub(super) low: f32,
    pub(super) high: f32,
    /// Where the largest sub-scale lands, so that its neighbours can be stored too.
    pub(super) top: f32,
    /// The smallest and the largest sub-scale.
    pub(super) scales: (f32, f32),
}

#[inline(always)]
fn part(values: &[f32; 256], s: usize) -> &[f32; 16] {
    &values.as_chunks::<16>().0[s]
}

/// The best scales found.
#[inline(always)]
pub(super) fn choose_scales(target: &Target<256>, shape: &Shape) -> Scaled<16> {
    let (mut free, mut most) = ([0.0; 16], 0f32);
    for s in 0..16 {
        free[s] = free_scale(part(&target.x, s), part(&target.w, s), shape.low, shape.high);
        most = if free[s].abs() > most { free[s].abs() } else { most };
    }
    let (mut best, mut least) = (Scaled { bits: [0; 2], d: 0.0, sub: [0.0; 16] }, f32::MAX);
    let mut wanted = most / shape.top;
    for _ in 0..ROUNDS {
        let (bits, d) = target.frame.store(wanted);
        let (mut sub, mut sum_xq, mut sum_qq) = ([0.0; 16], 0f32, 0f32);
        for s in 0..16 {
            let (x, w) = (part(&target.x, s), part(&target.w, s));
            let (scale, xq, qq) = integer_scale(x, w, d, free[s], shape);
            sub[s] = scale;
            sum_xq += scale * xq;
            sum_qq += scale * scale * qq;
        }
        let cost = (d * sum_qq - 2.0 * sum_xq) * d;
        if cost < least {
            (best, least) = (Scaled { bits, d, sub }, cost);
        }
        wanted = sum_xq * inverse(sum_qq);
    }
    best
}

/// How often `d` is chosen: once from the largest scale, then from the codes.
const ROUNDS: usize = 3;

/// The scale of some weights if it were free, for codes `low..=high`: of sixteen mappings of the largest magnitude to
/// one end of the codes, the best.
#[inline(always)]
fn free_scale<const N: usize>(x: &[f32; N], w: &[f32; N], low: f32, high: f32) -> f32 {
    let mut peak = 0f32;
    for &x in x {
        peak = if x.abs() > peak.abs() { x } else { peak };
    }
    let mut id = Lanes::ZERO;
    for l in 0..LANES / 2 {
        let clipped = 1.01 - clipping(low, high) * l as f32;
        id.0[l] = (low - 0.4) * clipped;
        id.0[8 + l] = (high + 0.4) * clipped;
    }
    least_squares(x, w, id * Lanes::splat(inverse(peak)), low, high)
}

/// By how much neighbouring mappings differ: the fewer codes, the more it can pay to clip.
#[inline(always)]
fn clipping(low: f32, high: f32) -> f32 {
    0.01 + 0.5 / (high - low + 1.0)
}

/// As [`free_scale`], and the best of sixteen scales around it.
#[inline(always)]
pub(super) fn fine_scale<const N: usize>(x: &[f32; N], w: &[f32; N], low: f32, high: f32) -> f32 {
    let coarse = free_scale(x, w, low, high);
    let step = clipping(low, high) / 12.0;
    let around = Lanes::splat(1.0) + (Lanes::IOTA - Lanes::splat(7.5)) * Lanes::splat(step);
    least_squares(x, w, around * Lanes::splat(inverse(coarse)), low, high)
}

/// Of sixteen inverse scales, the one whose codes leave the smallest error under their own best scale, which is
/// returned.
#[inline(always)]
pub(super) fn least_squares<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    id: Lanes,
    low: f32,
    high: f32,
) -> f32 {
    let (mut xq, mut qq) = (Lanes::ZERO, Lanes::ZERO);
    for (x, w) in x.iter().zip(w) {
        let q = (Lanes::splat(*x) * id).code(low, high);
        let wq = Lanes::splat(*w) * q;
        xq = xq + wq * Lanes::splat(*x);
        qq = qq + wq * q;
    }
    let best = (Lanes::ZERO - xq * xq * inverses(qq)).argmin();
    xq.0[best] * inverse(qq.0[best])
}

/// The inverses, or zeros where there are none.
#[inline(always)]
pub(super) fn inverses(mut x: Lanes) -> Lanes {
    for x in &mut x.0 {
        *x = inverse(*x);
    }
    x
}

/// The best of sixteen integers around `t / d`, with `<x, q>` and `<q, q>` of its codes.
#[inline(always)]
fn integer_scale(x: &[f32; 16], w: &[f32; 16], d: f32, t: f32, shape: &Shape) -> (f32, f32, f32) {
    let (least, most) = shape.scales;
    let middle = code(t * inverse(d), least + 8.0, most - 7.0);
    let s = Lanes::IOTA + Lanes::splat(middle - 8.0);
    let scale = s * Lanes::splat(d);
    let id = inverses(scale);
    let (mut xq, mut qq) = (Lanes::ZERO, Lanes::ZERO);
    for (x, w) in x.iter().zip(w) {
        let q = (Lanes::splat(*x) * id).code(shape.low, shape.high);
        let wq = Lanes::splat(*w) * q;
        xq = xq + wq * Lanes::splat(*x);
        qq = qq + wq * q;
    }
    let best = ((qq * scale - xq - xq) * scale).argmin();
    (s.0[best], xq.0[best], qq.0[best])
}
