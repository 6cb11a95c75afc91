//! The signs of eight codes under a whole metric: which one, or which two together, had better be the other way round.

use super::lanes::{LANES, Lanes};
use super::octet::{Octet, Row};
use super::split::OCTET;
use super::steps::LEAST;
use kizami_kernels::isa::Isa;

/// How often magnitudes are chosen: a second time for signs that had to be given up to parity, but for a draft. Where all
/// signs are free it made no difference to blocks whose codes are gone over again; where they are not it did, the less
/// inputs go together the more. A third time changed the loss by at most 2 %, either way.
#[inline(always)]
pub(super) const fn turns(draft: bool, parity: bool) -> usize {
    if draft || !parity { 1 } else { 2 }
}

/// Eight columns of sixteen rows in units of their scale, where codes with free signs stand for `value`.
pub(super) struct Signed<'a> {
    pub(super) octet: &'a Octet,
    /// The inverse of the scale.
    pub(super) inverse: Lanes,
    /// `z` of [`Octet`], in those units.
    pub(super) z: [Lanes; OCTET],
    /// Minus or plus one.
    pub(super) signs: [Lanes; OCTET],
    /// What codes stand for, without signs.
    pub(super) magnitudes: [Lanes; OCTET],
}

impl<'a> Signed<'a> {
    /// Signs as the free weights have them, each making up for the ones before it.
    #[inline(always)]
    pub(super) fn new(octet: &'a Octet, row: &Row) -> Self {
        let inverse = Lanes::splat(1.0) / row.scale.max(Lanes::splat(LEAST));
        let mut z = octet.pull(&octet.residual(&row.w, &row.fed), 0, OCTET);
        let given = octet.given(&row.fed);
        let mut signs = [Lanes::ZERO; OCTET];
        for j in 0..OCTET {
            z[j] = z[j] * inverse;
            signs[j] = (row.w[j] - given[j]).where_less(Lanes::ZERO, Lanes::splat(-1.0), Lanes::splat(1.0));
        }
        Signed { octet, inverse, z, signs, magnitudes: [Lanes::ZERO; OCTET] }
    }

    /// Sets the magnitudes of four columns, or eight, from the entries of a codebook.
    #[inline(always)]
    pub(super) fn set<const LEN: usize>(&mut self, at: usize, grid: &[[i8; LEN]], entries: &[u16; LANES]) {
        for l in 0..LANES {
            let entry = &grid[usize::from(entries[l])];
            for i in 0..LEN {
                self.magnitudes[at + i].0[l] = f32::from(entry[i]);
            }
        }
    }

    /// What codes stand for.
    #[inline(always)]
    pub(super) fn values(&self) -> [Lanes; OCTET] {
        let mut q = [Lanes::ZERO; OCTET];
        for i in 0..OCTET {
            q[i] = self.signs[i] * self.magnitudes[i];
        }
        q
    }

    /// Flips the one sign or the two signs that lower the cost most. Where `parity` asks for an even number of minus
    /// signs, two are flipped, or, where their number is odd, the one that costs least.
    #[inline(always)]
    pub(super) fn flip<I: Isa>(&mut self, isa: I, parity: bool) {
        let m = &self.octet.m;
        let zero = isa.splat(0.0);
        let (mut q, mut single) = ([zero; OCTET], [zero; OCTET]);
        let mut product = isa.splat(1.0);
        for i in 0..OCTET {
            q[i] = isa.mul(self.signs[i].f(isa), self.magnitudes[i].f(isa));
            product = isa.mul(product, self.signs[i].f(isa));
        }
        for i in 0..OCTET {
            let mut pull = self.z[i].f(isa);
            for j in 0..OCTET {
                if j != i {
                    pull = isa.fma(q[j], isa.splat(-m[i][j]), pull);
                }
            }
            single[i] = isa.mul(isa.mul(q[i], isa.splat(4.0)), pull);
        }
        // Nothing is flipped unless it lowers the cost, but where it must be: where the number of minus signs is odd.
        let odd = if parity { product } else { zero };
        let worst = isa.splat(f32::MAX);
        let mut least = isa.where_less(odd, zero, worst, zero);
        let mut best = isa.splat(-1.0);
        for i in 0..OCTET {
            // One sign: not where the parity is right already.
            let cost = isa.where_less(zero, odd, worst, single[i]);
            best = isa.where_less(cost, least, isa.splat((OCTET * i + i) as f32), best);
            least = isa.least(cost, least);
            for j in 0..i {
                let both =
                    isa.fma(isa.mul(q[i], q[j]), isa.splat(8.0 * m[i][j]), isa.plus(single[i], single[j]));
                let cost = isa.where_less(odd, zero, worst, both);
                best = isa.where_less(cost, least, isa.splat((OCTET * i + j) as f32), best);
                least = isa.least(cost, least);
            }
        }
        let best = Lanes::of(isa, best);
        for l in 0..LANES {
            if best.0[l] >= 0.0 {
                let (i, j) = (best.0[l] as usize / OCTET, best.0[l] as usize % OCTET);
                self.signs[i].0[l] = -self.signs[i].0[l];
                if i != j {
                    self.signs[j].0[l] = -self.signs[j].0[l];
                }
            }
        }
    }

    /// The signs of one row, bits set where minus.
    #[inline(always)]
    pub(super) fn bits(&self, lane: usize) -> u8 {
        let mut bits = 0;
        for i in 0..OCTET {
            bits |= u8::from(self.signs[i].0[lane] < 0.0) << i;
        }
        bits
    }
}
