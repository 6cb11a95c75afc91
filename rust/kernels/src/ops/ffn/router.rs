//! Choosing experts for tokens (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
//!
//! Scores are a sigmoid or a softmax of `W_r h`; selection uses scores plus a bias, first among groups of
//! experts, then among the experts of the chosen groups; the weights are the chosen scores without the bias,
//! normalized if asked, times a scale.

use crate::dispatch::{Op, dispatch};
use crate::error::{Error, expect_len};
use crate::isa::Isa;
use crate::math;
use crate::matmul::{Columns, matmul};
use crate::matrix::Matrix;

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

/// For every token, its experts and their weights, in order of selection.
pub(super) struct Chosen {
    pub(super) experts: Vec<u32>,
    pub(super) weights: Vec<f32>,
    pub(super) used: usize,
}

impl Router<'_> {
    pub(super) fn choose(&self, x: &Columns<'_>, experts: usize) -> Result<Chosen, Error> {
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
