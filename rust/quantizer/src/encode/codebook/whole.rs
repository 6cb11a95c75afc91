//! Nearest entries under a whole metric: what entries cost is a quadratic form of all their values, so that halves do not
//! simply add up.

use super::{Book, WORST};
use crate::encode::lanes::{LANES, Lanes, opaque};
use kizami_kernels::isa::Isa;

/// Room for the kinds of parts, a power of two.
const ROOM: usize = 16;

impl<const ENTRIES: usize, const HALVES: usize> Book<ENTRIES, HALVES> {
    /// Whether so many entries share a first half that what their parts put on top is better summed once for all.
    const MANY: bool = ENTRIES >= 1024;

    /// The cheapest entry of each lane, given what each half costs and `2 values(first) cross values(second)` on top, and
    /// under which of `V` variants; halves' costs differ between variants, what is on top does not. Halves have two parts
    /// of `PARTS` kinds, as in [`whole_costs`].
    #[inline(always)]
    pub(in crate::encode) fn nearest_whole<I: Isa, const LEN: usize, const PARTS: usize, const V: usize>(
        &self,
        isa: I,
        values: &[[f32; LEN]; HALVES],
        first: &[[Lanes; HALVES]; V],
        second: &[[Lanes; HALVES]; V],
        cross: &[[Lanes; LEN]; LEN],
    ) -> ([u16; LANES], [u8; LANES]) {
        let mut slopes = [[[Lanes::ZERO; LEN]; PARTS]; 2];
        for p in 0..opaque(PARTS) {
            for (side, slopes) in slopes.iter_mut().enumerate() {
                for k in 0..LEN {
                    let mut slope = isa.splat(0.0);
                    for i in 0..LEN / 2 {
                        let value = isa.splat(2.0 * values[p][LEN / 2 + i]);
                        slope = isa.fma(value, cross[side * LEN / 2 + i][k].f(isa), slope);
                    }
                    slopes[p][k] = Lanes::of(isa, slope);
                }
            }
        }
        let (mut cost, mut places, mut halves) = (isa.splat(WORST), isa.splat(0.0), isa.splat(0.0));
        let one = isa.splat(1.0);
        // What each part of a second half puts on top, and the first of them with the first half.
        let (mut tops, mut begun) = ([[Lanes::ZERO; ROOM]; 2], [[Lanes::ZERO; ROOM]; V]);
        for h in self.firsts() {
            let h = usize::from(*h) % HALVES;
            let (before, mut slope) = (cost, [cost; LEN]);
            for k in 0..LEN {
                slope[k] = isa.plus(slopes[0][h / PARTS][k].f(isa), slopes[1][h % PARTS][k].f(isa));
            }
            if Self::MANY {
                part_sums::<I, LEN, PARTS>(isa, values, &slope, &mut tops);
                for v in 0..V {
                    for p in 0..PARTS {
                        begun[v][p] = Lanes::of(isa, isa.plus(first[v][h].f(isa), tops[0][p].f(isa)));
                    }
                }
            }
            let mut firsts = [cost; V];
            for v in 0..V {
                firsts[v] = first[v][h].f(isa);
            }
            let mut place = isa.splat(f32::from(self.runs[h].0));
            for half in self.run(h) {
                let half = usize::from(*half) % HALVES;
                let (p, q) = (half / PARTS % ROOM, half % PARTS % ROOM);
                let begin = |v: usize| if Self::MANY { begun[v][p].f(isa) } else { firsts[v] };
                let mut total = isa.plus(begin(0), second[0][half].f(isa));
                for v in 1..V {
                    total = isa.least(total, isa.plus(begin(v), second[v][half].f(isa)));
                }
                if Self::MANY {
                    total = isa.plus(total, tops[1][q].f(isa));
                } else {
                    for k in 0..LEN {
                        total = isa.fma(slope[k], isa.splat(values[half][k]), total);
                    }
                }
                places = isa.where_less(total, cost, place, places);
                cost = isa.least(total, cost);
                place = isa.plus(place, one);
            }
            if V > 1 {
                halves = isa.where_less(cost, before, isa.splat(h as f32), halves);
            }
        }
        let (places, halves) = (Lanes::of(isa, places), Lanes::of(isa, halves));
        let (mut numbers, mut variants) = ([0; LANES], [0; LANES]);
        for l in 0..opaque(LANES) {
            let (place, h) = (places.0[l] as usize, halves.0[l] as usize % HALVES);
            numbers[l] = self.numbers[place];
            let half = usize::from(self.seconds[place]) % HALVES;
            // What came on top of these sums was the same for all variants; where they all but tie, either will do.
            let sum = |v: usize| first[v][h].0[l] + second[v][half].0[l];
            for v in 1..V {
                variants[l] = if sum(v) < sum(usize::from(variants[l])) { v as u8 } else { variants[l] };
            }
        }
        (numbers, variants)
    }
}

/// What every part of a second half puts on top of a first half that has these slopes.
#[inline(always)]
fn part_sums<I: Isa, const LEN: usize, const PARTS: usize>(
    isa: I,
    values: &[[f32; LEN]],
    slope: &[I::F; LEN],
    out: &mut [[Lanes; ROOM]; 2],
) {
    const { assert!(PARTS <= ROOM) };
    assert!(LEN == 4, "parts of two values");
    let levels = PARTS.isqrt();
    for (side, out) in out.iter_mut().enumerate() {
        let mut products = [[isa.splat(0.0); ROOM]; 2];
        for (i, products) in products.iter_mut().enumerate() {
            for level in 0..levels {
                // The last value of the parts that begin with the first level.
                products[level] = isa.mul(slope[2 * side + i], isa.splat(values[level][LEN - 1]));
            }
        }
        for p in 0..PARTS {
            out[p] = Lanes::of(isa, isa.plus(products[0][p / levels], products[1][p % levels]));
        }
    }
}

/// What every half costs under a whole metric, `q m qᵀ - 2 q z`. A half is again two parts of `PARTS` kinds each, in
/// the same order, so most of a cost is a sum over those.
#[inline(always)]
pub(in crate::encode) fn whole_costs<I: Isa, const LEN: usize, const HALVES: usize, const PARTS: usize>(
    isa: I,
    values: &[[f32; LEN]; HALVES],
    m: &[[Lanes; LEN]; LEN],
    z: &[Lanes; LEN],
    out: &mut [Lanes; HALVES],
) {
    let middle = LEN / 2;
    let mut parts = [[Lanes::ZERO; PARTS]; 2];
    for p in 0..opaque(PARTS) {
        for (side, parts) in parts.iter_mut().enumerate() {
            let mut sum = isa.splat(0.0);
            for i in 0..middle {
                let (at, value) = (side * middle + i, isa.splat(values[p][middle + i]));
                let mut slope = isa.fma(isa.splat(-2.0), z[at].f(isa), isa.mul(value, m[at][at].f(isa)));
                for j in 0..i {
                    let other = isa.splat(2.0 * values[p][middle + j]);
                    slope = isa.fma(other, m[at][side * middle + j].f(isa), slope);
                }
                sum = isa.fma(value, slope, sum);
            }
            parts[p] = Lanes::of(isa, sum);
        }
    }
    for p in 0..opaque(PARTS) {
        let mut slope = [isa.splat(0.0); LEN];
        for k in 0..middle {
            for i in 0..middle {
                slope[k] = isa.fma(isa.splat(2.0 * values[p][middle + i]), m[i][middle + k].f(isa), slope[k]);
            }
        }
        for q in 0..opaque(PARTS) {
            let mut sum = isa.plus(parts[0][p].f(isa), parts[1][q].f(isa));
            for k in 0..middle {
                sum = isa.fma(slope[k], isa.splat(values[q][middle + k]), sum);
            }
            out[PARTS * p + q] = Lanes::of(isa, sum);
        }
    }
}
