//! A block's codes gone over again.
//!
//! A pass in order chooses an octet's codes as if those after it were free to make up for it. When all are chosen they
//! are not, and choosing each octet again given all others (coordinate descent; CDQuant, arXiv 2406.17542, for single
//! weights) lowers the loss further. To an octet among others that stand its part of the block's metric is what its part
//! of the factor is in order, and what the others pull it by is as if it had been fed in.

use super::absorb;
use crate::curvature::BlockMetric;
use crate::encode::lanes::Lanes;
use crate::encode::octet::Octet;
use crate::encode::split::OCTET;
use kizami_kernels::isa::Isa;

/// The metric of a block, for sixteen rows after sixteen rows.
pub(super) struct Whole<'a> {
    metric: &'a BlockMetric,
    /// Its octets on the diagonal.
    octets: Vec<Octet>,
}

impl Whole<'_> {
    pub(super) fn new(metric: &BlockMetric) -> Whole<'_> {
        Whole { metric, octets: metric.octets.iter().map(|(u, d)| Octet::new(u, d)).collect() }
    }

    /// Octet `g` by itself.
    #[inline(always)]
    pub(super) fn octet(&self, g: usize) -> &Octet {
        &self.octets[g]
    }

    /// What the errors of all other octets pull octet `g` by.
    #[inline(always)]
    pub(super) fn pull<I: Isa>(&self, isa: I, g: usize, e: &[Lanes]) -> [Lanes; OCTET] {
        let (rows, before, behind) = (self.metric.octet(g), OCTET * g, OCTET * (g + 1));
        let mut pull = [Lanes::ZERO; OCTET];
        absorb(isa, &mut pull, &e[..before], &rows[..before]);
        absorb(isa, &mut pull, &e[behind..], &rows[behind..]);
        pull
    }
}

/// The part of the loss that depends on an octet's errors: `e m eᵀ + 2 e pull`.
#[inline(always)]
pub(super) fn cost<I: Isa>(isa: I, octet: &Octet, e: &[Lanes; OCTET], pull: &[Lanes; OCTET]) -> Lanes {
    let mut sum = isa.splat(0.0);
    for i in 0..OCTET {
        let pull = pull[i].f(isa);
        let mut slope = isa.plus(pull, pull);
        for j in 0..OCTET {
            slope = isa.fma(e[j].f(isa), isa.splat(octet.m[i][j]), slope);
        }
        sum = isa.fma(e[i].f(isa), slope, sum);
    }
    Lanes::of(isa, sum)
}
