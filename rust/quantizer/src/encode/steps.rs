//! The scales of a super-block of 256: `d` times an odd number per sub-block of 32 or 16 weights.
//!
//! Codes depend on the scale and the best scale on the codes. First each sub-block finds its best scale as if every
//! weight could take the nearest magnitude, whatever its neighbours have: that takes hardly any time. Then
//! entries are searched under a few scales near it; each choice of a group leaves two numbers, `<x, q>` and `<q, q>`,
//! which say what that choice would cost under *any* scale. Their lower envelope prices odd numbers under sixteen
//! `d` at once without another search. Choosing codes at the winner to refine the envelope, and
//! again, was worth less than 0.1 % of the error.

use super::codebook::Groups;
use super::lanes::{LANES, Lanes, codes, dot3, opaque};
use super::scalar::Nearest;
use super::split::{Line, Scales};
use super::target::{Frame, Target};
use kizami_kernels::isa::Isa;
use std::marker::PhantomData;

/// Groups of eight in a super-block; each sub-block has an equal part of them.
pub(super) const GROUPS: usize = 32;
/// Lanes' worth of groups in a super-block.
pub(super) const BATCHES: usize = GROUPS / LANES;

/// Scales smaller than this, in a frame where the largest weight is 1 to 2, are as good as zero.
pub(super) const LEAST: f32 = 1e-9;

/// Sixteen groups of eight that can choose their codes.
pub(super) trait Batch {
    /// Room to do so in.
    type Room;

    /// `<x, q>` and `<q, q>`, weighted, of each group's best codes under its scale. `variant` is
    /// what else the sub-block stores: IQ1_S has two, which differ in a shift of all its codes.
    fn sums<I: Isa>(&self, isa: I, scale: Lanes, variant: usize, room: &mut Self::Room) -> (Lanes, Lanes);
}

/// Sixteen groups of eight, each weight of which takes the nearest of all magnitudes `M`, whatever its neighbours have.
/// So scales are found at a fraction of what a search among the entries costs.
pub(super) struct Free<'a, M>(pub(super) &'a Groups<8>, pub(super) PhantomData<M>);

impl<M: Nearest> Batch for Free<'_, M> {
    type Room = ();

    #[inline(always)]
    fn sums<I: Isa>(&self, isa: I, scale: Lanes, _: usize, (): &mut ()) -> (Lanes, Lanes) {
        let inverse = (Lanes::splat(1.0) / scale).f(isa);
        let (mut xq, mut qq) = (isa.splat(0.0), isa.splat(0.0));
        for (x, w) in self.0.x.iter().zip(&self.0.w) {
            let x = x.abs().f(isa);
            let q = M::nearest(isa, isa.mul(x, inverse));
            let wq = isa.mul(w.f(isa), q);
            xq = isa.fma(wq, x, xq);
            qq = isa.fma(wq, q, qq);
        }
        (Lanes::of(isa, xq), Lanes::of(isa, qq))
    }
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

/// The best scale of each of `STEPS` sub-blocks if it were free, for each of `V` variants. `trials` are scales for a
/// sub-block whose root mean square is one.
#[inline(always)]
pub(super) fn free_scales<I: Isa, B: Batch<Room = ()>, const STEPS: usize, const V: usize, const K: usize>(
    isa: I,
    target: &Target<256>,
    batches: &[B; BATCHES],
    trials: &[f32; K],
) -> [[f32; STEPS]; V] {
    let mut rms = [[0.0; STEPS]; V];
    for b in 0..STEPS {
        let (mut ww, mut wxx) = (0f32, 0f32);
        for i in 256 / STEPS * b..256 / STEPS * (b + 1) {
            ww += target.w[i];
            wxx += target.w[i] * target.x[i] * target.x[i];
        }
        for rms in &mut rms {
            rms[b] = (wxx / ww).sqrt();
        }
    }
    let envelopes = envelopes(isa, batches, trials, &rms, &mut ());
    let mut free = [[0.0; STEPS]; V];
    for v in 0..V {
        for b in 0..STEPS {
            free[v][b] = envelopes[v].free_scale::<STEPS>(b).0;
        }
    }
    free
}

/// The best scales found, from those that would suit if they were free: codes are chosen under these times each of some
/// factors. `last` is the largest sub-scale that can be stored, `unit` what the file multiplies ours by.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "what scales are chosen from, for any format")]
pub(super) fn choose_scales<I: Isa, B: Batch, const STEPS: usize, const V: usize, const K: usize>(
    isa: I,
    target: &Target<256>,
    batches: &[B; BATCHES],
    free: &[[f32; STEPS]; V],
    factors: &[f32; K],
    last: f32,
    unit: f32,
    room: &mut B::Room,
) -> Steps<STEPS> {
    let envelopes = envelopes(isa, batches, factors, free, room);
    let mut steps = best_steps(isa, &envelopes, last);
    steps.unit = unit;
    steps.refit(&target.frame, 1.0);
    steps
}

/// What codes make of trial scales: each of some factors times the scale of a sub-block.
#[inline(always)]
fn envelopes<I: Isa, B: Batch, const STEPS: usize, const V: usize, const K: usize>(
    isa: I,
    batches: &[B; BATCHES],
    factors: &[f32; K],
    scales: &[[f32; STEPS]; V],
    room: &mut B::Room,
) -> [Envelope<K>; V] {
    let mut envelopes = [const { Envelope::<K>::new() }; V];
    for (v, envelope) in envelopes.iter_mut().enumerate() {
        for (b, batch) in batches.iter().enumerate() {
            let mut unit = Lanes::ZERO;
            for l in 0..LANES {
                unit.0[l] = scales[v][(LANES * b + l) * STEPS / GROUPS];
            }
            for k in 0..opaque(K) {
                let scale = (unit * Lanes::splat(factors[k])).max(Lanes::splat(LEAST));
                (envelope.0[k].xq[b], envelope.0[k].qq[b]) = batch.sums(isa, scale, v, room);
            }
        }
    }
    envelopes
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

    /// Costs of sub-block `b` under three times sixteen scales, relative to encoding zeros.
    #[inline(always)]
    fn costs<I: Isa, const STEPS: usize>(&self, isa: I, b: usize, scales: [I::F; 3]) -> [I::F; 3] {
        let mut totals = [isa.splat(0.0); 3];
        for g in part::<STEPS>(b) {
            let mut least = [isa.splat(f32::MAX); 3];
            for choice in opaque(&self.0) {
                let (xq, qq) = (choice.xq[g / LANES].0[g % LANES], choice.qq[g / LANES].0[g % LANES]);
                let (xq, qq) = (isa.splat(-2.0 * xq), isa.splat(qq));
                for i in 0..3 {
                    least[i] = isa.least(isa.fma(qq, scales[i], xq), least[i]);
                }
            }
            for i in 0..3 {
                totals[i] = isa.plus(totals[i], least[i]);
            }
        }
        for i in 0..3 {
            totals[i] = isa.mul(totals[i], scales[i]);
        }
        totals
    }

    /// `<x, q>` and `<q, q>` of sub-block `b` with the choices that are cheapest under each scale.
    #[inline(always)]
    fn sums<I: Isa, const STEPS: usize>(&self, isa: I, b: usize, scale: I::F) -> (I::F, I::F) {
        let none = isa.splat(0.0);
        let (mut sum_xq, mut sum_qq) = (none, none);
        for g in part::<STEPS>(b) {
            let (mut least, mut best_xq, mut best_qq) = (isa.splat(f32::MAX), none, none);
            for choice in opaque(&self.0) {
                let (xq, qq) = (choice.xq[g / LANES].0[g % LANES], choice.qq[g / LANES].0[g % LANES]);
                let cost = isa.fma(isa.splat(qq), scale, isa.splat(-2.0 * xq));
                best_xq = isa.where_less(cost, least, isa.splat(xq), best_xq);
                best_qq = isa.where_less(cost, least, isa.splat(qq), best_qq);
                least = isa.least(cost, least);
            }
            sum_xq = isa.plus(sum_xq, best_xq);
            sum_qq = isa.plus(sum_qq, best_qq);
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
fn price<I: Isa, const STEPS: usize, const V: usize, const K: usize>(
    isa: I,
    envelopes: &[Envelope<K>; V],
    free: &[[f32; STEPS]; V],
    d: Lanes,
    last: f32,
) -> Trials<STEPS> {
    let none = [Lanes::ZERO; STEPS];
    let mut trials = Trials { multiple: none, variant: none, cost: Lanes::ZERO, refit: Lanes::ZERO };
    let (inverse, d) = ((Lanes::splat(1.0) / d).f(isa), d.f(isa));
    let (zero, one, worst) = (isa.splat(0.0), isa.splat(1.0), isa.splat(f32::MAX));
    let (mut sum_xq, mut sum_qq, mut cost) = (zero, zero, zero);
    for b in 0..opaque(STEPS) {
        let (mut least, mut variant) = (worst, zero);
        let (mut multiple, mut xq, mut qq) = (zero, zero, zero);
        for v in 0..V {
            let exact = isa.fma(isa.splat(free[v][b]), inverse, isa.splat(-1.0));
            let nearest = codes(isa, isa.mul(exact, isa.splat(0.5)), 0.0, last);
            let (mut multiples, mut scales) = ([zero; 3], [zero; 3]);
            for (i, around) in [0.0, -1.0, 1.0].into_iter().enumerate() {
                let step = isa.most(isa.plus(nearest, isa.splat(around)), zero);
                let step = isa.least(step, isa.splat(last));
                multiples[i] = isa.plus(isa.plus(step, step), one);
                scales[i] = isa.mul(multiples[i], d);
            }
            let costs = envelopes[v].costs::<I, STEPS>(isa, b, scales);
            let (mut here, mut best) = (worst, zero);
            for i in 0..3 {
                best = isa.where_less(costs[i], here, multiples[i], best);
                here = isa.least(costs[i], here);
            }
            let (here_xq, here_qq) = envelopes[v].sums::<I, STEPS>(isa, b, isa.mul(best, d));
            xq = isa.where_less(here, least, here_xq, xq);
            qq = isa.where_less(here, least, here_qq, qq);
            multiple = isa.where_less(here, least, best, multiple);
            variant = isa.where_less(here, least, isa.splat(v as f32), variant);
            least = isa.least(here, least);
        }
        sum_xq = isa.fma(multiple, xq, sum_xq);
        sum_qq = isa.fma(isa.mul(multiple, multiple), qq, sum_qq);
        trials.multiple[b] = Lanes::of(isa, multiple);
        trials.variant[b] = Lanes::of(isa, variant);
        cost = isa.plus(cost, least);
    }
    trials.cost = Lanes::of(isa, cost);
    trials.refit = (Lanes::of(isa, sum_xq) / Lanes::of(isa, sum_qq)).max(Lanes::splat(LEAST));
    trials
}

/// The best `d` and multiples: sixteen `d` from where the largest scale is `2 last + 3` of them to
/// where it is half of that, each refitted once.
#[inline(always)]
fn best_steps<I: Isa, const STEPS: usize, const V: usize, const K: usize>(
    isa: I,
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
        let trials = price(isa, envelopes, &free, d, last);
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
