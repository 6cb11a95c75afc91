//! The signs of eight codes under a whole metric: which one, or which two together, had better be the other way round.

use super::lanes::{LANES, Lanes};
use super::octet::{Octet, Row};
use super::split::OCTET;
use super::steps::LEAST;

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
        let (mut signs, mut given) = ([Lanes::ZERO; OCTET], [Lanes::ZERO; OCTET]);
        for j in 0..OCTET {
            z[j] = z[j] * inverse;
            given[j] = row.fed[j];
            for i in 0..j {
                given[j] = given[j] - given[i] * Lanes::splat(octet.u[i][j]);
            }
            signs[j] = (row.w[j] + given[j]).where_less(Lanes::ZERO, Lanes::splat(-1.0), Lanes::splat(1.0));
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
    pub(super) fn flip(&mut self, parity: bool) {
        let (q, m) = (self.values(), &self.octet.m);
        let mut single = [Lanes::ZERO; OCTET];
        let mut product = Lanes::splat(1.0);
        for i in 0..OCTET {
            let mut pull = self.z[i];
            for j in 0..OCTET {
                pull = pull - q[j] * Lanes::splat(m[i][j]);
            }
            let q4 = q[i] * Lanes::splat(4.0);
            single[i] = q4 * (pull + q[i] * Lanes::splat(m[i][i]));
            product = product * self.signs[i];
        }
        let odd = if parity { product } else { Lanes::ZERO };
        // Nothing is flipped unless it lowers the cost, but where it must be.
        let mut least = odd.where_less(Lanes::ZERO, Lanes::splat(f32::MAX), Lanes::ZERO);
        let mut best = Lanes::splat(-1.0);
        for i in 0..OCTET {
            // One sign: not where the parity is right already.
            let cost = Lanes::ZERO.where_less(odd, Lanes::splat(f32::MAX), single[i]);
            best = cost.where_less(least, Lanes::splat((OCTET * i + i) as f32), best);
            least = cost.min(least);
            for j in 0..i {
                let both = q[i] * q[j] * Lanes::splat(8.0 * m[i][j]) + single[i] + single[j];
                let cost = odd.where_less(Lanes::ZERO, Lanes::splat(f32::MAX), both);
                best = cost.where_less(least, Lanes::splat((OCTET * i + j) as f32), best);
                least = cost.min(least);
            }
        }
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
