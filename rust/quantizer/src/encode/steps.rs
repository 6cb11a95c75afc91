//! The scales of a super-block of 256: `d` times an odd number per sub-block of 32 or 16 weights.
//!
//! Codes depend on the scale and the best scale on the codes. So the codes are chosen under several
//! trial scales; each choice of a group leaves two numbers, `<x, q>` and `<q, q>`, which say what
//! that choice would cost under *any* scale. Their lower envelope prices odd numbers under sixteen
//! `d` at once without another search. Choosing codes at the winner to refine the envelope, and
//! again, was worth less than 0.1 % of the error.

use super::lanes::{LANES, Lanes, dot3, opaque};
use super::split::{Line, Scales};
use super::target::{Frame, Target};

/// Groups of eight in a super-block; each sub-block has an equal part of them.
pub(super) const GROUPS: usize = 32;
/// Lanes' worth of groups in a super-block.
pub(super) const BATCHES: usize = GROUPS / LANES;

/// Scales smaller than this, in a frame where the largest weight is 1 to 2, are as good as zero.
pub(super) const LEAST: f32 = 1e-9;

/// Sixteen groups of eight that can choose their codes.
pub(super) trait Batch {
    /// `<x, q>` and `<q, q>`, weighted, of each group's best codes under its scale. `variant` is
    /// what else the sub-block stores: IQ1_S has two, which differ in a shift of all its codes.
    fn sums(&self, scale: Lanes, variant: usize) -> (Lanes, Lanes);
}

/// `d`, and what each sub-block stores.
#[derive(Clone, Copy)]
pub(super) struct Steps<const STEPS: usize> {
    /// What the file stores as `d`: `unit` times ours.
    pub(super) bits: [u8; 2],
    pub(super) unit: f32,
    pub(super) d: f32,
    /// The scale is `d * (2 * step + 1)`.
    pub(super) step: [u8; STEPS],
    /// As in [`Batch::sums`].
    pub(super) variant: [u8; STEPS],
}

impl<const STEPS: usize> Scales for Steps<STEPS> {
    #[inline(always)]
    fn line(&self, octet: usize) -> Line {
        let s = octet * STEPS / GROUPS;
        let scale = self.d * f32::from(2 * self.step[s] + 1);
        Line { scale, start: 0.0, variant: self.variant[s] }
    }

    #[inline(always)]
    fn refit(&mut self, frame: &Frame, factor: f32) {
        let d;
        (self.bits, d) = frame.store(self.d * self.unit * factor);
        self.d = d / self.unit;
    }
}

/// The scale of each of a batch's groups, and the variant.
#[inline(always)]
pub(super) fn scales_of(scales: &impl Scales, batch: usize) -> (Lanes, Lanes) {
    let (mut scale, mut variant) = (Lanes::ZERO, Lanes::ZERO);
    for l in 0..LANES {
        let line = scales.line(LANES * batch + l);
        (scale.0[l], variant.0[l]) = (line.scale, f32::from(line.variant));
    }
    (scale.max(Lanes::splat(LEAST)), variant)
}

/// The best scales found. `STEPS` is the number of sub-blocks, `V` that of variants, `trials` are scales for a
/// sub-block whose root mean square is one, `last` is the largest sub-scale that can be stored, `unit` what the file
/// multiplies ours by.
#[inline(always)]
pub(super) fn choose_scales<B: Batch, const STEPS: usize, const V: usize, const K: usize>(
    target: &Target<256>,
    batches: &[B; BATCHES],
    trials: &[f32; K],
    last: f32,
    unit: f32,
) -> Steps<STEPS> {
    let mut rms = [Lanes::ZERO; BATCHES];
    for b in 0..STEPS {
        let (mut ww, mut wxx) = (0f32, 0f32);
        for i in 256 / STEPS * b..256 / STEPS * (b + 1) {
            ww += target.w[i];
            wxx += target.w[i] * target.x[i] * target.x[i];
        }
        for g in part::<STEPS>(b) {
            rms[g / LANES].0[g % LANES] = (wxx / ww).sqrt();
        }
    }
    let mut envelopes = [const { Envelope::<K>::new() }; V];
    for (k, trial) in trials.iter().enumerate() {
        for (b, batch) in batches.iter().enumerate() {
            let scales = (rms[b] * Lanes::splat(*trial)).max(Lanes::splat(LEAST));
            for (v, envelope) in envelopes.iter_mut().enumerate() {
                let (xq, qq) = batch.sums(scales, v);
                envelope.0[k].xq[b] = xq;
                envelope.0[k].qq[b] = qq;
            }
        }
    }
    let mut steps = best_steps::<STEPS, V, K>(&envelopes, last);
    steps.unit = unit;
    steps.refit(&target.frame, 1.0);
    steps
}

/// Weighted sums of one choice of codes for every group: what they cost under any scale.
#[derive(Clone, Copy)]
struct Choice {
    /// `<x, q>`
    xq: [Lanes; BATCHES],
    /// `<q, q>`
    qq: [Lanes; BATCHES],
}

/// The groups of sub-block `b`.
#[inline(always)]
fn part<const STEPS: usize>(b: usize) -> std::ops::Range<usize> {
    b * (GROUPS / STEPS)..(b + 1) * (GROUPS / STEPS)
}

/// One choice per trial scale.
struct Envelope<const K: usize>([Choice; K]);

impl<const K: usize> Envelope<K> {
    const fn new() -> Self {
        Self([Choice { xq: [Lanes::ZERO; BATCHES], qq: [Lanes::ZERO; BATCHES] }; K])
    }

    /// The scale that suits sub-block `b` best, and how much of the weights it explains.
    #[inline(always)]
    fn free_scale<const STEPS: usize>(&self, b: usize) -> (f32, f32) {
        let (mut most, mut scale) = (0f32, LEAST);
        for choice in opaque(&self.0) {
            let (mut xq, mut qq) = (0f32, 0f32);
            for g in part::<STEPS>(b) {
                xq += choice.xq[g / LANES].0[g % LANES];
                qq += choice.qq[g / LANES].0[g % LANES];
            }
            let explained = xq * xq / qq;
            (most, scale) = if explained > most && xq > 0.0 { (explained, xq / qq) } else { (most, scale) };
        }
        (if scale > LEAST { scale } else { LEAST }, most)
    }

    /// Cost of sub-block `b` under sixteen scales, relative to encoding zeros.
    #[inline(always)]
    fn cost<const STEPS: usize>(&self, b: usize, scale: Lanes) -> Lanes {
        let mut total = Lanes::ZERO;
        for g in part::<STEPS>(b) {
            let mut least = Lanes::splat(f32::MAX);
            for choice in opaque(&self.0) {
                let (xq, qq) = (choice.xq[g / LANES].0[g % LANES], choice.qq[g / LANES].0[g % LANES]);
                least = (Lanes::splat(qq) * scale - Lanes::splat(2.0 * xq)).min(least);
            }
            total = total + least;
        }
        total * scale
    }

    /// `<x, q>` and `<q, q>` of sub-block `b` with the choices that are cheapest under each scale.
    #[inline(always)]
    fn sums<const STEPS: usize>(&self, b: usize, scale: Lanes) -> (Lanes, Lanes) {
        let (mut sum_xq, mut sum_qq) = (Lanes::ZERO, Lanes::ZERO);
        for g in part::<STEPS>(b) {
            let (mut least, mut best_xq, mut best_qq) = (Lanes::splat(f32::MAX), Lanes::ZERO, Lanes::ZERO);
            for choice in opaque(&self.0) {
                let (xq, qq) = (choice.xq[g / LANES].0[g % LANES], choice.qq[g / LANES].0[g % LANES]);
                let cost = Lanes::splat(qq) * scale - Lanes::splat(2.0 * xq);
                best_xq = cost.where_less(least, Lanes::splat(xq), best_xq);
                best_qq = cost.where_less(least, Lanes::splat(qq), best_qq);
                least = cost.min(least);
            }
            sum_xq = sum_xq + best_xq;
            sum_qq = sum_qq + best_qq;
        }
        (sum_xq, sum_qq)
    }
}

/// Sixteen `d`, with what sub-blocks would choose under each.
struct Trials<const STEPS: usize> {
    multiple: [Lanes; STEPS],
    variant: [Lanes; STEPS],
    cost: Lanes,
    /// The `d` that would suit these choices best.
    refit: Lanes,
}

/// For sixteen `d`, the best multiples around the free scales.
#[inline(always)]
fn price<const STEPS: usize, const V: usize, const K: usize>(
    envelopes: &[Envelope<K>; V],
    free: &[[f32; STEPS]; V],
    d: Lanes,
    last: f32,
) -> Trials<STEPS> {
    let none = [Lanes::ZERO; STEPS];
    let mut trials = Trials { multiple: none, variant: none, cost: Lanes::ZERO, refit: Lanes::ZERO };
    let (mut sum_xq, mut sum_qq) = (Lanes::ZERO, Lanes::ZERO);
    for b in 0..STEPS {
        let (mut least, mut variant) = (Lanes::splat(f32::MAX), Lanes::ZERO);
        let (mut multiple, mut xq, mut qq) = (Lanes::ZERO, Lanes::ZERO, Lanes::ZERO);
        for v in 0..V {
            let exact = Lanes::splat(free[v][b]) / d - Lanes::splat(1.0);
            let nearest = (exact * Lanes::splat(0.5)).code(0.0, last);
            let (mut here, mut best) = (Lanes::splat(f32::MAX), Lanes::ZERO);
            for around in [0.0, -1.0, 1.0] {
                let step = (nearest + Lanes::splat(around)).code(0.0, last);
                let multiple = step + step + Lanes::splat(1.0);
                let cost = envelopes[v].cost::<STEPS>(b, multiple * d);
                best = cost.where_less(here, multiple, best);
                here = cost.min(here);
            }
            let (here_xq, here_qq) = envelopes[v].sums::<STEPS>(b, best * d);
            xq = here.where_less(least, here_xq, xq);
            qq = here.where_less(least, here_qq, qq);
            multiple = here.where_less(least, best, multiple);
            variant = here.where_less(least, Lanes::splat(v as f32), variant);
            least = here.min(least);
        }
        sum_xq = sum_xq + multiple * xq;
        sum_qq = sum_qq + multiple * multiple * qq;
        trials.multiple[b] = multiple;
        trials.variant[b] = variant;
        trials.cost = trials.cost + least;
    }
    trials.refit = (sum_xq / sum_qq).max(Lanes::splat(LEAST));
    trials
}

/// The best `d` and multiples: sixteen `d` from where the largest scale is `2 last + 3` of them to
/// where it is half of that, each refitted once.
#[inline(always)]
fn best_steps<const STEPS: usize, const V: usize, const K: usize>(
    envelopes: &[Envelope<K>; V],
    last: f32,
) -> Steps<STEPS> {
    let mut free = [[0.0; STEPS]; V];
    let mut largest = 0f32;
    for b in 0..STEPS {
        let (mut most, mut scale) = (-1f32, 0f32);
        for v in 0..V {
            let explained;
            (free[v][b], explained) = envelopes[v].free_scale::<STEPS>(b);
            (most, scale) = if explained > most { (explained, free[v][b]) } else { (most, scale) };
        }
        largest = if scale > largest { scale } else { largest };
    }
    let most = 2.0 * last + 3.0;
    let multiples = Lanes::splat(most) - Lanes::IOTA * Lanes::splat(most / 32.0);
    let mut d = (Lanes::splat(largest) / multiples).max(Lanes::splat(LEAST));
    let mut best = Steps { bits: [0; 2], unit: 1.0, d: LEAST, step: [0; STEPS], variant: [0; STEPS] };
    let mut least = f32::MAX;
    for _ in 0..2 {
        let trials = price(envelopes, &free, d, last);
        let l = trials.cost.argmin();
        if trials.cost.0[l] < least {
            least = trials.cost.0[l];
            best.d = d.0[l];
            for b in 0..STEPS {
                best.step[b] = (trials.multiple[b].0[l] * 0.5) as u8;
                best.variant[b] = trials.variant[b].0[l] as u8;
            }
        }
        d = trials.refit;
    }
    best
}

/// The largest factor of [`unbiased`]: where codes resemble the weights so little that more would be
/// needed, undoing the shrinkage would add more error than it takes away.
const MOST: f32 = 1.5;

/// The factor on `d` that makes `<x, ŵ>` equal `<x, x>`: codes that leave the smallest error shrink
/// a tensor's output, and products of shrunken tensors fade. `1 - rho²` is indifferent to it; the
/// divergence of two small models at 1.6 bits was 1 % higher and 10 % lower than with half of it.
#[inline(always)]
pub(super) fn unbiased<const N: usize>(target: &Target<N>, decoded: &[f32; N]) -> f32 {
    let factor = dot3(&target.h, &target.x, &target.x) / dot3(&target.h, &target.x, decoded);
    if factor > 1.0 { factor.min(MOST) } else { 1.0 }
}
