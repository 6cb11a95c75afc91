//! The scales of a super-block of 256: `d` times an odd number per 32 weights.
//!
//! Codes depend on the scale and the best scale on the codes. So the codes are chosen under several
//! trial scales; each choice of a group leaves two numbers, `<x, q>` and `<q, q>`, which say what
//! that choice would cost under *any* scale. Their lower envelope prices odd numbers under sixteen
//! `d` at once without another search; the codes are then chosen anew at the winner, which refines
//! the envelope around it.

use super::lanes::{LANES, Lanes};
use super::target::Target;

/// Groups of eight weights that share a sub-scale.
pub(super) const PER_STEP: usize = 4;
/// Groups of eight in a super-block.
const GROUPS: usize = 32;
/// Sub-scales in a super-block.
const STEPS: usize = 8;
/// Lanes' worth of groups in a super-block.
pub(super) const BATCHES: usize = GROUPS / LANES;
/// Choices an envelope has room for.
const ROOM: usize = 12;

/// Scales smaller than this, in a frame where the largest weight is 1 to 2, are as good as zero.
const LEAST: f32 = 1e-9;

/// Sixteen groups of eight that can choose their codes.
pub(super) trait Batch {
    /// `<x, q>` and `<q, q>`, weighted, of each group's best codes under its scale. `variant` is
    /// what else the sub-block stores: IQ1_S has two, which differ in a shift of all its codes.
    fn sums(&self, scale: Lanes, variant: usize) -> (Lanes, Lanes);
}

/// How a format's scales are searched.
pub(super) struct Plan<'a> {
    /// Trial scales relative to a sub-block's root mean square.
    pub(super) trials: &'a [f32],
    /// Rounds of choosing codes at the scales found.
    pub(super) rounds: usize,
    /// The largest sub-scale that can be stored.
    pub(super) last: f32,
}

/// `d`, and what each sub-block stores.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) d: f32,
    /// The scale is `d * (2 * step + 1)`.
    pub(super) step: [u8; STEPS],
    /// As in [`Batch::sums`].
    pub(super) variant: [u8; STEPS],
}

impl Steps {
    /// The scale of each of a batch's groups.
    #[inline(always)]
    pub(super) fn scales(&self, batch: usize) -> Lanes {
        let mut scales = Lanes::ZERO;
        for l in 0..LANES {
            scales.0[l] = self.d * f32::from(2 * self.step[(LANES * batch + l) / PER_STEP] + 1);
        }
        scales.max(Lanes::splat(LEAST))
    }
}

/// The best scales found. `V` is the number of variants.
#[inline(always)]
pub(super) fn choose_scales<B: Batch, const V: usize>(
    target: &Target<256>,
    batches: &[B; BATCHES],
    plan: &Plan<'_>,
) -> Steps {
    let (tr, ro) = dbg_plan();
    let plan = &Plan { trials: if tr.is_empty() { plan.trials } else { tr }, rounds: ro.unwrap_or(plan.rounds), last: plan.last };
    let mut rms = [0f32; STEPS];
    for b in 0..STEPS {
        let (mut ww, mut wxx) = (0f32, 0f32);
        for i in 32 * b..32 * b + 32 {
            ww += target.w[i];
            wxx += target.w[i] * target.x[i] * target.x[i];
        }
        rms[b] = (wxx / ww).sqrt();
    }
    let mut envelopes = [const { Envelope::new() }; V];
    let mut best = Steps { d: LEAST, step: [0; STEPS], variant: [0; STEPS] };
    for k in 0..plan.trials.len() + plan.rounds {
        for (b, batch) in batches.iter().enumerate() {
            let mut scales = best.scales(b);
            if let Some(trial) = plan.trials.get(k) {
                for l in 0..LANES {
                    scales.0[l] = rms[(LANES * b + l) / PER_STEP] * trial;
                }
                scales = scales.max(Lanes::splat(LEAST));
            }
            for (v, envelope) in envelopes.iter_mut().enumerate() {
                let (xq, qq) = batch.sums(scales, v);
                envelope.choices[k].xq[b] = xq;
                envelope.choices[k].qq[b] = qq;
                envelope.used = k + 1;
            }
        }
        if k + 1 >= plan.trials.len() {
            best = best_steps(&envelopes, plan.last);
        }
    }
    best
}

/// Weighted sums of one choice of codes for every group: what they cost under any scale.
#[derive(Clone, Copy)]
struct Choice {
    /// `<x, q>`
    xq: [Lanes; BATCHES],
    /// `<q, q>`
    qq: [Lanes; BATCHES],
}

struct Envelope {
    choices: [Choice; ROOM],
    used: usize,
}

impl Envelope {
    const fn new() -> Self {
        Self { choices: [Choice { xq: [Lanes::ZERO; BATCHES], qq: [Lanes::ZERO; BATCHES] }; ROOM], used: 0 }
    }

    /// The scale that suits sub-block `b` best, and how much of the weights it explains.
    #[inline(always)]
    fn free_scale(&self, b: usize) -> (f32, f32) {
        let (mut most, mut scale) = (0f32, LEAST);
        for choice in &self.choices[..self.used] {
            let (mut xq, mut qq) = (0f32, 0f32);
            for g in PER_STEP * b..PER_STEP * (b + 1) {
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
    fn cost(&self, b: usize, scale: Lanes) -> Lanes {
        let mut total = Lanes::ZERO;
        for g in PER_STEP * b..PER_STEP * (b + 1) {
            let mut least = Lanes::splat(f32::MAX);
            for choice in &self.choices[..self.used] {
                let (xq, qq) = (choice.xq[g / LANES].0[g % LANES], choice.qq[g / LANES].0[g % LANES]);
                least = (Lanes::splat(qq) * scale - Lanes::splat(2.0 * xq)).min(least);
            }
            total = total + least;
        }
        total * scale
    }

    /// `<x, q>` and `<q, q>` of sub-block `b` with the choices that are cheapest under each scale.
    #[inline(always)]
    fn sums(&self, b: usize, scale: Lanes) -> (Lanes, Lanes) {
        let (mut sum_xq, mut sum_qq) = (Lanes::ZERO, Lanes::ZERO);
        for g in PER_STEP * b..PER_STEP * (b + 1) {
            let (mut least, mut best_xq, mut best_qq) = (Lanes::splat(f32::MAX), Lanes::ZERO, Lanes::ZERO);
            for choice in &self.choices[..self.used] {
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
struct Trials {
    multiple: [Lanes; STEPS],
    variant: [Lanes; STEPS],
    cost: Lanes,
    /// The `d` that would suit these choices best.
    refit: Lanes,
}

/// For sixteen `d`, the best multiples around the free scales.
#[inline(always)]
fn price<const V: usize>(envelopes: &[Envelope; V], free: &[[f32; STEPS]; V], d: Lanes, last: f32) -> Trials {
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
                let cost = envelopes[v].cost(b, multiple * d);
                best = cost.where_less(here, multiple, best);
                here = cost.min(here);
            }
            let (here_xq, here_qq) = envelopes[v].sums(b, best * d);
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
fn best_steps<const V: usize>(envelopes: &[Envelope; V], last: f32) -> Steps {
    let mut free = [[0.0; STEPS]; V];
    let mut largest = 0f32;
    for b in 0..STEPS {
        let (mut most, mut scale) = (-1f32, 0f32);
        for v in 0..V {
            let explained;
            (free[v][b], explained) = envelopes[v].free_scale(b);
            (most, scale) = if explained > most { (explained, free[v][b]) } else { (most, scale) };
        }
        largest = if scale > largest { scale } else { largest };
    }
    let most = 2.0 * last + 3.0;
    let multiples = Lanes::splat(most) - Lanes::IOTA * Lanes::splat(most / 32.0);
    let mut d = (Lanes::splat(largest) / multiples).max(Lanes::splat(LEAST));
    let mut best = Steps { d: LEAST, step: [0; STEPS], variant: [0; STEPS] };
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

/// The factor on `d` that makes `<x, ŵ>` equal `<x, x>`: codes that leave the smallest error shrink
/// a tensor's output, and products of shrunken tensors fade. `1 - rho²` is indifferent to it.
#[inline(always)]
pub(super) fn unbiased(target: &Target<256>, decoded: &[f32; 256]) -> f32 {
    let factor = super::lanes::dot3(&target.h, &target.x, &target.x)
        / super::lanes::dot3(&target.h, &target.x, decoded);
    if factor > 1.0 && factor < 2.0 { factor } else { 1.0 }
}

fn dbg_plan() -> (&'static [f32], Option<usize>) { use std::sync::OnceLock; static P: OnceLock<(Vec<f32>,Option<usize>)> = OnceLock::new(); let p = P.get_or_init(|| (std::env::var("KT").ok().map(|s| s.split(',').map(|x| x.parse().unwrap()).collect()).unwrap_or_default(), std::env::var("KR").ok().map(|x| x.parse().unwrap()))); (&p.0, p.1) }
