//! Feed-forward blocks: dense, and mixture of experts with shared experts.
//!
//! ```text
//! h = norm(x)
//! ffn(h) = W_down (silu(W_gate h) * W_up h)
//! dense  x += ffn(h)
//! MoE    x += sum over the chosen e of weight_e * ffn_e(h)  +  ffn_shared(h)
//! ```
//!
//! Routing (DeepSeek-V3, arXiv 2412.19437, section 2.1.2): scores are a sigmoid or a softmax of
//! `W_r h`; selection uses scores plus a bias, first among groups of experts, then among the experts
//! of the chosen groups; the weights are the chosen scores without the bias, normalized if asked,
//! times a scale. Tokens are sorted by expert, so each expert's weights are decoded once for all of them.

use super::{Norm, Observation, Observer, add, expect_shape};
use crate::dispatch::{Op, dispatch};
use crate::error::{Error, expect_len};
use crate::isa::{Isa, LANES};
use crate::math;
use crate::matmul::{Columns, Job, Precision, matmul, read_column, run};
use crate::matrix::Matrix;
use crate::par;

/// Gate, up and down projections of one feed-forward network.
#[derive(Clone, Copy)]
pub struct Ffn<'a> {
    /// `ff` x `d`.
    pub gate: Matrix<'a>,
    /// `ff` x `d`.
    pub up: Matrix<'a>,
    /// `d` x `ff`.
    pub down: Matrix<'a>,
}

/// How a router turns logits into scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// DeepSeek-V2.
    Softmax,
    /// DeepSeek-V3.
    Sigmoid,
}

/// How a group of experts is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScore {
    /// By its best expert (DeepSeek-V2's `group_limited_greedy`).
    Max,
    /// By the sum of its best two (DeepSeek-V3's `noaux_tc`).
    TopTwo,
}

/// Chooses experts for tokens.
#[derive(Clone, Copy)]
pub struct Router<'a> {
    /// `experts` x `d`.
    pub weight: Matrix<'a>,
    /// Added to scores for selection only; empty when absent.
    pub bias: &'a [f32],
    /// How logits become scores.
    pub scoring: Scoring,
    /// How groups are scored.
    pub group_score: GroupScore,
    /// Groups of equal size.
    pub groups: usize,
    /// Groups a token may use.
    pub groups_used: usize,
    /// Experts a token uses.
    pub used: usize,
    /// Whether the chosen weights are made to sum to one.
    pub normalize: bool,
    /// Factor on the weights.
    pub scale: f32,
}

/// A feed-forward block.
pub struct FfnBlock<'a> {
    /// Norm of the block's input.
    pub norm: Norm<'a>,
    /// The network every token passes: the dense one, or the shared experts.
    pub shared: Option<Ffn<'a>>,
    /// Router and routed experts.
    pub routed: Option<(Router<'a>, Vec<Ffn<'a>>)>,
}

impl FfnBlock<'_> {
    /// Adds the block's result for every token to `x`.
    pub fn forward(
        &self,
        x: &mut [f32],
        precision: Precision,
        mut observer: Option<&mut Observer<'_>>,
    ) -> Result<(), Error> {
        let d = self.norm.weight.len();
        let h = self.norm.apply(x, d);
        let columns = Columns::new(&h, d, precision)?;
        let shared_roles = match self.routed {
            Some(_) => ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"],
            None => ["ffn_gate", "ffn_up", "ffn_down"],
        };
        if let Some((router, experts)) = &self.routed {
            let chosen = router.choose(&columns, experts.len())?;
            experts_forward(experts, &columns, &h, &chosen, x, precision, &mut observer)?;
        }
        if let Some(ffn) = self.shared {
            ffn.check(d)?;
            let mut see = |i: usize, cols: usize, x: &[f32]| {
                if let Some(observer) = observer.as_mut() {
                    observer(Observation { role: shared_roles[i], index: 0, count: 1, cols, x, pick: None });
                }
            };
            see(0, d, &h);
            see(1, d, &h);
            let (n, ff) = (columns.len(), ffn.gate.rows());
            let (mut gate, mut up) = (vec![0.0; n * ff], vec![0.0; n * ff]);
            run(vec![
                Job { w: ffn.gate, x: &columns, pick: None, out: &mut gate },
                Job { w: ffn.up, x: &columns, pick: None, out: &mut up },
            ]);
            let hidden = swiglu_slabs(&gate, &up, ff, &[n]);
            see(2, ff, &hidden);
            let mut out = vec![0.0; n * d];
            matmul(&ffn.down, &Columns::new(&hidden, ff, precision)?, &mut out)?;
            add(x, &out);
        }
        Ok(())
    }
}

impl Ffn<'_> {
    fn check(&self, d: usize) -> Result<(), Error> {
        expect_shape("ffn_gate", &self.gate, self.gate.rows(), d)?;
        expect_shape("ffn_up", &self.up, self.gate.rows(), d)?;
        expect_shape("ffn_down", &self.down, d, self.gate.rows())
    }
}

/// For every token, its experts and their weights, in order of selection.
struct Chosen {
    experts: Vec<u32>,
    weights: Vec<f32>,
    used: usize,
}

impl Router<'_> {
    fn choose(&self, x: &Columns<'_>, experts: usize) -> Result<Chosen, Error> {
        expect_len("rows of ffn_gate_inp", self.weight.rows(), experts)?;
        if !self.bias.is_empty() {
            expect_len("exp_probs_b", self.bias.len(), experts)?;
        }
        let groups_fit = self.groups > 0
            && experts.is_multiple_of(self.groups)
            && (1..=self.groups).contains(&self.groups_used);
        if !groups_fit {
            return Err(Error::Range {
                what: "expert groups",
                found: self.groups,
                expected: "a divisor of the expert count, of which some are used",
            });
        }
        if self.used == 0 || self.used > experts / self.groups * self.groups_used {
            return Err(Error::Range {
                what: "experts used per token",
                found: self.used,
                expected: "at least one, at most those of the groups used",
            });
        }
        let mut logits = vec![0.0; x.len() * experts];
        matmul(&self.weight, x, &mut logits)?;
        let (mut chosen, mut weights) = (Vec::new(), Vec::new());
        for logits in logits.chunks_exact_mut(experts) {
            dispatch(Score { scoring: self.scoring, logits });
            self.select(logits, &mut chosen, &mut weights);
        }
        Ok(Chosen { experts: chosen, weights, used: self.used })
    }

    fn select(&self, scores: &[f32], chosen: &mut Vec<u32>, weights: &mut Vec<f32>) {
        let size = scores.len() / self.groups;
        let mut selection: Vec<f32> =
            scores.iter().enumerate().map(|(e, s)| s + self.bias.get(e).copied().unwrap_or(0.0)).collect();
        if self.groups_used < self.groups {
            let group_scores: Vec<f32> = selection.chunks_exact(size).map(|g| self.group_score(g)).collect();
            let kept = top(&group_scores, self.groups_used);
            for (g, selection) in selection.chunks_exact_mut(size).enumerate() {
                if !kept.contains(&g) {
                    selection.fill(f32::NEG_INFINITY);
                }
            }
        }
        let first = weights.len();
        for e in top(&selection, self.used) {
            chosen.push(e as u32);
            weights.push(scores[e]);
        }
        let weights = &mut weights[first..];
        let mut scale = self.scale;
        if self.normalize {
            // The floor is the smallest normal half: an all-zero router must not divide by zero.
            scale /= weights.iter().sum::<f32>().max(6.103_515_6e-5);
        }
        weights.iter_mut().for_each(|w| *w *= scale);
    }

    fn group_score(&self, group: &[f32]) -> f32 {
        match self.group_score {
            GroupScore::Max => group.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x)),
            GroupScore::TopTwo => top(group, 2).into_iter().map(|i| group[i]).sum(),
        }
    }
}

/// Indices of the `k` largest values, largest first, the lower index first among equals.
fn top(values: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(k);
    order
}

struct Score<'a> {
    scoring: Scoring,
    logits: &'a mut [f32],
}

impl Op for Score<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.scoring {
            Scoring::Softmax => math::softmax(isa, self.logits),
            Scoring::Sigmoid => self.logits.iter_mut().for_each(|x| *x = math::sigmoid(*x)),
        }
    }
}

fn experts_forward(
    experts: &[Ffn<'_>],
    columns: &Columns<'_>,
    h: &[f32],
    chosen: &Chosen,
    x: &mut [f32],
    precision: Precision,
    observer: &mut Option<&mut Observer<'_>>,
) -> Result<(), Error> {
    let (n, d) = (columns.len(), h.len() / columns.len().max(1));
    let ff = experts.first().map_or(0, |e| e.gate.rows());
    let count = experts.len();
    for e in experts {
        expect_shape("ffn_gate_exps", &e.gate, ff, d)?;
        expect_shape("ffn_up_exps", &e.up, ff, d)?;
        expect_shape("ffn_down_exps", &e.down, d, ff)?;
    }

    // Slots: the (token, choice) pairs, sorted by expert, tokens ascending within one.
    let mut tokens_of: Vec<Vec<u32>> = vec![Vec::new(); count];
    let mut place = Vec::with_capacity(chosen.experts.len());
    for (i, &e) in chosen.experts.iter().enumerate() {
        place.push((e, tokens_of[e as usize].len()));
        tokens_of[e as usize].push((i / chosen.used) as u32);
    }
    let counts: Vec<usize> = tokens_of.iter().map(Vec::len).collect();
    let starts: Vec<usize> = counts
        .iter()
        .scan(0, |sum, c| {
            *sum += c;
            Some(*sum - c)
        })
        .collect();
    let slots = chosen.experts.len();

    if let Some(observer) = observer {
        for (index, tokens) in tokens_of.iter().enumerate() {
            for role in ["ffn_gate_exps", "ffn_up_exps"] {
                observer(Observation { role, index, count, cols: d, x: h, pick: Some(tokens) });
            }
        }
    }
    let (mut gate, mut up) = (vec![0.0; slots * ff], vec![0.0; slots * ff]);
    let mut jobs = Vec::with_capacity(2 * count);
    for (out, part) in [(&mut gate, 0), (&mut up, 1)] {
        let mut rest = out.as_mut_slice();
        for (e, tokens) in experts.iter().zip(&tokens_of) {
            let (out, more) = rest.split_at_mut(tokens.len() * ff);
            rest = more;
            jobs.push(Job { w: [e.gate, e.up][part], x: columns, pick: Some(tokens), out });
        }
    }
    run(jobs);
    let hidden = swiglu_slabs(&gate, &up, ff, &counts);

    let picks: Vec<Vec<u32>> =
        (0..count).map(|e| (starts[e]..starts[e] + counts[e]).map(|s| s as u32).collect()).collect();
    if let Some(observer) = observer {
        for (index, pick) in picks.iter().enumerate() {
            let role = "ffn_down_exps";
            observer(Observation { role, index, count, cols: ff, x: &hidden, pick: Some(pick) });
        }
    }
    let columns = Columns::new(&hidden, ff, precision)?;
    let mut down = vec![0.0; slots * d];
    let mut rest = down.as_mut_slice();
    let mut jobs = Vec::with_capacity(count);
    for (e, pick) in experts.iter().zip(&picks) {
        let (out, more) = rest.split_at_mut(pick.len() * d);
        rest = more;
        jobs.push(Job { w: e.down, x: &columns, pick: Some(pick), out });
    }
    run(jobs);

    // Each token gathers its experts in order of selection.
    debug_assert_eq!(x.len(), n * d);
    par::for_chunks(x, d, |token, x| {
        let choices = token * chosen.used..(token + 1) * chosen.used;
        let (mut sum, mut row) = (vec![0.0; d], vec![0.0; d]);
        for (&(e, column), &weight) in place[choices.clone()].iter().zip(&chosen.weights[choices]) {
            let (start, count) = (starts[e as usize] * d, counts[e as usize]);
            read_column(&down[start..start + count * d], count, column, &mut row);
            for (sum, x) in sum.iter_mut().zip(&row) {
                *sum += weight * x;
            }
        }
        add(x, &sum);
    });
    Ok(())
}

/// `silu(gate) * up` over slabs of panels (see [`Job`]); the result is `[slots][ff]`.
fn swiglu_slabs(gate: &[f32], up: &[f32], ff: usize, counts: &[usize]) -> Vec<f32> {
    let mut out = vec![0.0; gate.len()];
    let mut tasks = Vec::new();
    let (mut rest, mut start) = (out.as_mut_slice(), 0);
    for &count in counts {
        let (slab, more) = rest.split_at_mut(count * ff);
        rest = more;
        for (i, part) in slab.chunks_mut(16 * ff).enumerate() {
            let range = start..start + count * ff;
            tasks.push(Swiglu {
                gate: &gate[range.clone()],
                up: &up[range],
                count,
                first: i * 16,
                ff,
                out: part,
            });
        }
        start += count * ff;
    }
    // An exponential takes about as long as a dozen multiply-adds.
    par::for_each(tasks, 16 * gate.len(), dispatch);
    out
}

struct Swiglu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    count: usize,
    first: usize,
    ff: usize,
    out: &'a mut [f32],
}

impl Op for Swiglu<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for (column, out) in self.out.chunks_exact_mut(self.ff).enumerate() {
            for (panel, out) in out.chunks_mut(LANES).enumerate() {
                let at = panel * LANES * self.count + (self.first + column) * out.len();
                for (i, out) in out.iter_mut().enumerate() {
                    *out = math::swiglu(self.gate[at + i], self.up[at + i]);
                }
            }
        }
    }
}
