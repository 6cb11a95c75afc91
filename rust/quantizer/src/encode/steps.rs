//! The scales of a super-block of 256: `d` times an odd number per 32 weights.
//!
//! Codes depend on the scale and the best scale on the codes. So the codes are chosen under several
//! trial scales; each choice of a group leaves two numbers, `<x, q>` and `<q, q>`, which say what
//! that choice would cost under *any* scale. Their lower envelope prices odd numbers under sixteen
//! `d` at once without another search; the codes are then chosen anew at the winner, which refines
//! the envelope around it.

use super::lanes::Lanes;

/// Groups that share a sub-scale.
pub(super) const PER_STEP: usize = 4;
/// Groups of eight in a super-block.
pub(super) const GROUPS: usize = 32;
/// Sub-scales in a super-block.
pub(super) const STEPS: usize = 8;

/// Scales smaller than this, in a frame where the largest weight is 1 to 2, are as good as zero.
pub(super) const LEAST: f32 = 1e-9;

/// Weighted sums of one choice of codes for every group: what they cost under any scale.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    /// `<x, q>`
    pub(super) xq: [f32; GROUPS],
    /// `<q, q>`
    pub(super) qq: [f32; GROUPS],
}

/// Up to `K` choices.
pub(super) struct Envelope<const K: usize> {
    choices: [Choice; K],
    used: usize,
}

impl<const K: usize> Envelope<K> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { choices: [Choice { xq: [0.0; GROUPS], qq: [0.0; GROUPS] }; K], used: 0 }
    }

    #[inline(always)]
    pub(super) fn push(&mut self, choice: Choice) {
        self.choices[self.used] = choice;
        self.used += 1;
    }

    /// The scale that suits sub-block `b` best, and its cost relative to encoding zeros.
    #[inline(always)]
    pub(super) fn free_scale(&self, b: usize) -> (f32, f32) {
        let (mut most, mut scale) = (0f32, LEAST);
        for choice in &self.choices[..self.used] {
            let (mut xq, mut qq) = (0f32, 0f32);
            for g in PER_STEP * b..PER_STEP * (b + 1) {
                xq += choice.xq[g];
                qq += choice.qq[g];
            }
            let explained = xq * xq / qq;
            (most, scale) = if explained > most && xq > 0.0 { (explained, xq / qq) } else { (most, scale) };
        }
        (if scale > LEAST { scale } else { LEAST }, -most)
    }

    /// Cost of sub-block `b` under sixteen scales, relative to encoding zeros.
    #[inline(always)]
    pub(super) fn cost(&self, b: usize, scale: Lanes) -> Lanes {
        let mut total = Lanes::ZERO;
        for g in PER_STEP * b..PER_STEP * (b + 1) {
            let mut least = Lanes::splat(f32::MAX);
            for choice in &self.choices[..self.used] {
                let cost = Lanes::splat(choice.qq[g]) * scale - Lanes::splat(2.0 * choice.xq[g]);
                least = cost.min(least);
            }
            total = total + least;
        }
        total * scale
    }

    /// `<x, q>` and `<q, q>` of sub-block `b` with the choices that are cheapest under each scale.
    #[inline(always)]
    pub(super) fn sums(&self, b: usize, scale: Lanes) -> (Lanes, Lanes) {
        let (mut xq, mut qq) = (Lanes::ZERO, Lanes::ZERO);
        for g in PER_STEP * b..PER_STEP * (b + 1) {
            let (mut least, mut best_xq, mut best_qq) = (Lanes::splat(f32::MAX), Lanes::ZERO, Lanes::ZERO);
            for choice in &self.choices[..self.used] {
                let cost = Lanes::splat(choice.qq[g]) * scale - Lanes::splat(2.0 * choice.xq[g]);
                best_xq = cost.where_less(least, Lanes::splat(choice.xq[g]), best_xq);
                best_qq = cost.where_less(least, Lanes::splat(choice.qq[g]), best_qq);
                least = cost.min(least);
            }
            xq = xq + best_xq;
            qq = qq + best_qq;
        }
        (xq, qq)
    }
}

/// A `d` and the odd multiples of it.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) d: f32,
    /// The scale is `d * (2 * step + 1)`.
    pub(super) step: [u8; STEPS],
}

impl Steps {
    #[inline(always)]
    pub(super) fn scale(&self, b: usize) -> f32 {
        let scale = self.d * f32::from(2 * self.step[b] + 1);
        if scale > LEAST { scale } else { LEAST }
    }
}

/// Sixteen `d` with their multiples.
struct Trials {
    multiple: [Lanes; STEPS],
    cost: Lanes,
    /// The `d` that would suit these multiples best.
    refit: Lanes,
}

/// For sixteen `d`, the best multiples around the free scales.
#[inline(always)]
fn price<const K: usize>(envelope: &Envelope<K>, free: &[f32; STEPS], d: Lanes, last: f32) -> Trials {
    let mut trials = Trials { multiple: [Lanes::ZERO; STEPS], cost: Lanes::ZERO, refit: Lanes::ZERO };
    let (mut xq, mut qq) = (Lanes::ZERO, Lanes::ZERO);
    for b in 0..STEPS {
        let exact = Lanes::splat(free[b]) / d - Lanes::splat(1.0);
        let nearest = (exact * Lanes::splat(0.5)).code(0.0, last);
        let (mut least, mut best) = (Lanes::splat(f32::MAX), Lanes::ZERO);
        for around in [0.0, -1.0, 1.0] {
            let step = (nearest + Lanes::splat(around)).code(0.0, last);
            let multiple = step + step + Lanes::splat(1.0);
            let cost = envelope.cost(b, multiple * d);
            best = cost.where_less(least, multiple, best);
            least = cost.min(least);
        }
        let (bxq, bqq) = envelope.sums(b, best * d);
        xq = xq + best * bxq;
        qq = qq + best * best * bqq;
        trials.multiple[b] = best;
        trials.cost = trials.cost + least;
    }
    trials.refit = (xq / qq).max(Lanes::splat(LEAST));
    trials
}

/// The best `d` and multiples: sixteen `d` from where the largest scale is `2 last + 3` of them to
/// where it is half of that, each refitted once.
#[inline(always)]
pub(super) fn best_steps<const K: usize>(envelope: &Envelope<K>, last: f32) -> Steps {
    let mut free = [0.0; STEPS];
    let mut largest = 0f32;
    for b in 0..STEPS {
        free[b] = envelope.free_scale(b).0;
        largest = if free[b] > largest { free[b] } else { largest };
    }
    let most = 2.0 * last + 3.0;
    let multiples = Lanes::splat(most) - Lanes::IOTA * Lanes::splat(most / 32.0);
    let mut d = (Lanes::splat(largest) / multiples).max(Lanes::splat(LEAST));
    let mut best = Steps { d: LEAST, step: [0; STEPS] };
    let mut least = f32::MAX;
    for _ in 0..2 {
        let trials = price(envelope, &free, d, last);
        let l = trials.cost.argmin();
        if trials.cost.0[l] < least {
            least = trials.cost.0[l];
            best.d = d.0[l];
            for b in 0..STEPS {
                best.step[b] = (trials.multiple[b].0[l] * 0.5) as u8;
            }
        }
        d = trials.refit;
    }
    best
}

/// The factor on `d` that makes `<x, ŵ>` equal `<x, x>`: codes that leave the smallest error shrink
/// a tensor's output, and products of shrunken tensors fade. `1 - rho²` is indifferent to it.
#[inline(always)]
pub(super) fn unbiased(xx: f32, xq: f32) -> f32 {
    let factor = xx / xq;
    if factor > 1.0 && factor < 2.0 { factor } else { 1.0 }
}
