//! The metric of a block's errors when all of its codes stand, for going over them again.
//!
//! A pass in order chooses an octet's codes as if those after it were free to make up for it. When all are chosen they
//! are not, and choosing each octet again given all others (coordinate descent; CDQuant, arXiv 2406.17542, for single
//! weights) lowers the loss further. To an octet among others that stand its part of the block's metric is what its part
//! of the factor is in order, and what the others pull it by is as if it had been fed in.

use super::{Columns, absorb};
use crate::encode::lanes::{LANES, Lanes};
use crate::encode::octet::Octet;
use crate::encode::split::OCTET;
use kizami_kernels::dispatch::Op;
use kizami_kernels::isa::Isa;

/// The metric of a block, `L D Lᵀ`, later blocks making up for what this one does.
pub(super) struct Whole {
    n: usize,
    /// Of columns `8 g .. 8 g + 8` all rows, for one `g` after the other.
    pub(super) columns: Vec<[f32; OCTET]>,
    /// Its octets on the diagonal.
    pub(super) octets: Vec<Octet>,
}

/// Makes that of the `n` columns of a panel that begin with `at`. An operation of its own: it is the same for all formats.
pub(super) struct Make<'a> {
    pub(super) panel: &'a Columns<'a>,
    pub(super) at: usize,
    pub(super) n: usize,
}

impl Op for Make<'_> {
    type Out = Whole;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Whole {
        let Make { panel, at, n } = self;
        let pivots = panel.pivots(at, n);
        // L by columns, sixteen rows side by side, and L D by rows, eight side by side.
        let mut tiles = vec![Lanes::ZERO; n / LANES * n];
        let mut rows = vec![[0.0; OCTET]; n / OCTET * n];
        for k in 0..n {
            for (i, u) in panel.u((at + k) / OCTET, at, at + k + 1).iter().enumerate() {
                let l = if i == k { 1.0 } else { u[k % OCTET] };
                tiles[i / LANES * n + k].0[i % LANES] = l;
                rows[i / OCTET * n + k][i % OCTET] = l * pivots[k];
            }
        }
        let mut columns = vec![[0.0; OCTET]; n / OCTET * n];
        for g in 0..n / OCTET {
            for t in OCTET * g / LANES..n / LANES {
                let (from, mut sums) = ((OCTET * g).max(LANES * t), [Lanes::ZERO; OCTET]);
                absorb(isa, &mut sums, &tiles[n * t + from..n * (t + 1)], &rows[n * g + from..n * (g + 1)]);
                for c in 0..OCTET {
                    for l in 0..LANES {
                        let (i, j) = (OCTET * g + c, LANES * t + l);
                        columns[n * g + j][c] = sums[c].0[l];
                        columns[n * (j / OCTET) + i][j % OCTET] = sums[c].0[l];
                    }
                }
            }
        }
        let mut octets = Vec::with_capacity(n / OCTET);
        for g in 0..n / OCTET {
            let least = pivots[OCTET * g..].first_chunk().expect("whole octets");
            octets.push(factored(columns[n * g + OCTET * g..].first_chunk().expect("whole octets"), least));
        }
        Whole { n, columns, octets }
    }
}

impl Whole {
    /// Octet `g` by itself.
    #[inline(always)]
    pub(super) fn octet(&self, g: usize) -> &Octet {
        &self.octets[g]
    }

    /// What the errors of all other octets pull octet `g` by.
    #[inline(always)]
    pub(super) fn pull<I: Isa>(&self, isa: I, g: usize, e: &[Lanes]) -> [Lanes; OCTET] {
        let (rows, before, behind) = (&self.columns[self.n * g..][..self.n], OCTET * g, OCTET * (g + 1));
        let mut pull = [Lanes::ZERO; OCTET];
        absorb(isa, &mut pull, &e[..before], &rows[..before]);
        absorb(isa, &mut pull, &e[behind..], &rows[behind..]);
        pull
    }
}

/// Eight columns of a metric by themselves. What others could make up for only lowers pivots, so those of the whole are
/// the least.
fn factored(m: &[[f32; OCTET]; OCTET], least: &[f32; OCTET]) -> Octet {
    let (mut a, mut u, mut d) = ([[0.0; OCTET]; OCTET], [[0.0; OCTET]; OCTET], [0.0; OCTET]);
    for i in 0..OCTET {
        for j in 0..OCTET {
            a[i][j] = f64::from(m[i][j]);
        }
    }
    for k in (0..OCTET).rev() {
        let pivot = if a[k][k] > f64::from(least[k]) { a[k][k] } else { f64::from(least[k]) };
        d[k] = pivot as f32;
        for i in 0..k {
            let share = a[i][k] / pivot;
            u[i][k] = share as f32;
            for j in 0..k {
                a[i][j] -= share * a[k][j];
            }
        }
    }
    Octet::new(&u, &d)
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
