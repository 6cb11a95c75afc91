//! IQ3_XXS: four neighbours become a codebook entry; eight share seven signs, the eighth making
//! their number even. Where the weights disagree one of eight signs is given up, in the first or
//! the second entry, whichever is cheaper with that entry re-chosen.

use super::codebook::{Book, Found, Groups, flips, half_values, halves, pairs, sums};
use super::lanes::{LANES, Lanes, opaque};
use super::octet::{Octet, Row};
use super::quads::{self, Code, Codebook, HALVES};
use super::split::{OCTET, Scales, Search, Split};
use super::steps::{Batch, Steps, choose_scales, scales_of};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq3_xxs::{BlockIq3Xxs, GRID, Iq3Xxs, MAGNITUDES};

static BOOK: Book<256, HALVES> = Book::new(&halves(&GRID, &MAGNITUDES));
static VALUES: [[f32; 2]; HALVES] = half_values(&MAGNITUDES);

impl Codebook<256> for Iq3Xxs {
    const GRID: &'static [[i8; 4]; 256] = &GRID;
    const VALUES: &'static [[f32; 2]; HALVES] = &VALUES;

    #[inline(always)]
    fn book() -> &'static Book<256, HALVES> {
        &BOOK
    }
}

/// Trial scales of a sub-block whose root mean square is one.
const TRIALS: [f32; 6] = [0.029, 0.034, 0.041, 0.049, 0.06, 0.074];
/// The largest sub-scale.
const LAST: f32 = 15.0;

impl Split<256> for Iq3Xxs {
    type Block = BlockIq3Xxs;
    type Scales = Steps<8>;
    type Search = EvenQuadSearch;

    #[inline(always)]
    fn choose_scales(target: &Target<256>) -> Steps<8> {
        let batches = [Groups8::new(target, 0), Groups8::new(target, 1)];
        // The file's d is four times ours.
        choose_scales::<_, 8, 1, _>(target, &batches, &TRIALS, LAST, 4.0)
    }

    #[inline(always)]
    fn pack(steps: &Steps<8>, codes: &[Code]) -> BlockIq3Xxs {
        let mut block = BlockIq3Xxs::zeroed();
        block.d = steps.bits;
        let words: &mut [[u8; 4]; 8] = bytemuck::cast_mut(&mut block.signs_scales);
        for (g, code) in codes.iter().enumerate() {
            let (sub, j) = (g / 4, g % 4);
            block.qs[2 * g] = code.entries[0] as u8;
            block.qs[2 * g + 1] = code.entries[1] as u8;
            let mut word = u32::from_le_bytes(words[sub]);
            word |= u32::from(code.signs & 127) << (7 * j) | u32::from(steps.step[sub]) << 28;
            words[sub] = word.to_le_bytes();
        }
        block
    }
}

/// The search with an even number of minus signs.
pub(super) struct EvenQuadSearch;

impl Search for EvenQuadSearch {
    type Code = Code;
    const COARSE: bool = true;

    #[inline(always)]
    fn choose_plain<const N: usize>(target: &Target<N>, scales: &impl Scales, codes: &mut [Code]) {
        for (b, codes) in codes.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let batch = Groups8::new(target, b);
            let found = batch.choose_codes(scales_of(scales, b).0);
            for l in 0..opaque(LANES) {
                let entries = found.entries(l);
                let magnitudes: [i8; 8] = bytemuck::cast(entries.map(|e| GRID[usize::from(e)]));
                codes[l] = Code { entries, signs: batch.signs(l, &magnitudes) };
            }
        }
    }

    #[inline(always)]
    fn values(code: Code) -> [f32; OCTET] {
        code.values(&GRID)
    }

    #[inline(always)]
    fn choose_whole(octet: &Octet, row: &Row, codes: &mut [Code; LANES]) -> [Lanes; OCTET] {
        quads::choose_whole::<Iq3Xxs, 256, true>(octet, row, codes)
    }
}

/// Two entries per lane.
struct Pair {
    /// The cheapest entries with all signs right.
    plain: [Found; 2],
    /// The cheapest entries with one sign wrong.
    flipped: [Found; 2],
    /// Which of the entries take a wrong sign.
    wrong: [[bool; LANES]; 2],
}

impl Pair {
    /// What the chosen entries cost together.
    #[inline(always)]
    fn cost(&self) -> Lanes {
        let mut cost = Lanes::ZERO;
        for h in 0..2 {
            for l in 0..LANES {
                cost.0[l] +=
                    if self.wrong[h][l] { self.flipped[h].cost.0[l] } else { self.plain[h].cost.0[l] };
            }
        }
        cost
    }

    #[inline(always)]
    fn entries(&self, lane: usize) -> [u16; 2] {
        let mut entries = [0; 2];
        for h in 0..2 {
            let found = if self.wrong[h][lane] { &self.flipped[h] } else { &self.plain[h] };
            entries[h] = BOOK.number(found, lane);
        }
        entries
    }
}

/// Sixteen groups of eight.
struct Groups8 {
    groups: Groups<8>,
    /// `w * |x|`
    wx: [Lanes; 8],
    /// Whether an odd number of weights is negative.
    odd: [bool; LANES],
    /// `<q, q>` of the halves of either entry.
    squares: [[[Lanes; HALVES]; 2]; 2],
}

impl Groups8 {
    #[inline(always)]
    fn new<const N: usize>(target: &Target<N>, batch: usize) -> Groups8 {
        let groups = Groups::<8>::new(&target.x[128 * batch..][..128], &target.w[128 * batch..][..128]);
        let mut wx = [Lanes::ZERO; 8];
        let mut odd = [false; LANES];
        for i in 0..8 {
            wx[i] = groups.w[i] * groups.x[i].abs();
            for l in 0..LANES {
                odd[l] ^= groups.x[i].0[l] < 0.0;
            }
        }
        let mut digits = [[Lanes::ZERO; 8]; 8];
        for &(i, level) in opaque(&DIGITS) {
            let q = f32::from(MAGNITUDES[usize::from(level)]);
            digits[usize::from(i)][usize::from(level)] = groups.w[usize::from(i)] * Lanes::splat(q * q);
        }
        let mut new = Groups8 { groups, wx, odd, squares: [[[Lanes::ZERO; HALVES]; 2]; 2] };
        for (h, [first, second]) in new.squares.iter_mut().enumerate() {
            sums(&DIGITS, &digits[4 * h], &digits[4 * h + 1], first);
            sums(&DIGITS, &digits[4 * h + 2], &digits[4 * h + 3], second);
        }
        new
    }

    /// The codes of sixteen groups given their scales: the cheapest entries, signs included.
    #[inline(always)]
    fn choose_codes(&self, t: Lanes) -> Pair {
        let mut costs = [[Lanes::ZERO; 8]; 8];
        let mut prices = [[Lanes::ZERO; 8]; 8];
        for &(i, level) in opaque(&DIGITS) {
            let (i, level) = (usize::from(i), usize::from(level));
            let q = t * Lanes::splat(f32::from(MAGNITUDES[level]));
            let twice = self.wx[i] * q * Lanes::splat(2.0);
            costs[i][level] = self.groups.w[i] * q * q - twice;
            prices[i][level] = twice + twice;
        }
        let mut pair =
            Pair { plain: [Found::NONE; 2], flipped: [Found::NONE; 2], wrong: [[false; LANES]; 2] };
        for &h in opaque(&[0usize, 1]) {
            let mut tables = [[Lanes::ZERO; HALVES]; 4];
            let [first, second, first_flipped, second_flipped] = &mut tables;
            sums(&DIGITS, &costs[4 * h], &costs[4 * h + 1], first);
            sums(&DIGITS, &costs[4 * h + 2], &costs[4 * h + 3], second);
            flips(&DIGITS, first, &prices[4 * h], &prices[4 * h + 1], first_flipped);
            flips(&DIGITS, second, &prices[4 * h + 2], &prices[4 * h + 3], second_flipped);
            pair.plain[h] = BOOK.nearest(first, second);
            pair.flipped[h] = BOOK.nearest_flipped(first, second, first_flipped, second_flipped);
        }
        for l in 0..LANES {
            let first_wrong = pair.flipped[0].cost.0[l] + pair.plain[1].cost.0[l];
            let second_wrong = pair.plain[0].cost.0[l] + pair.flipped[1].cost.0[l];
            pair.wrong[0][l] = self.odd[l] && first_wrong <= second_wrong;
            pair.wrong[1][l] = self.odd[l] && first_wrong > second_wrong;
        }
        pair
    }

    /// The eight signs of one group, an even number of them minus (bits set).
    #[inline(always)]
    fn signs(&self, lane: usize, magnitudes: &[i8; 8]) -> u8 {
        let mut signs = 0u8;
        let (mut least, mut cheapest) = (f32::MAX, 0);
        for i in 0..8 {
            signs |= u8::from(self.groups.x[i].0[lane] < 0.0) << i;
            let price = self.wx[i].0[lane] * f32::from(magnitudes[i]);
            (least, cheapest) = if price < least { (price, i) } else { (least, cheapest) };
        }
        signs ^ (signs.count_ones() as u8 & 1) << cheapest
    }
}

impl Batch for Groups8 {
    /// The cost of what is found is `t² <q, q> - 2 t <x, q>`.
    #[inline(always)]
    fn sums(&self, t: Lanes, _: usize) -> (Lanes, Lanes) {
        let found = self.choose_codes(t);
        let mut qq = Lanes::ZERO;
        for h in 0..2 {
            let [first, second] = &self.squares[h];
            let plain = BOOK.sum_at(&found.plain[h], first, second);
            let flipped = BOOK.sum_at(&found.flipped[h], first, second);
            for l in 0..LANES {
                qq.0[l] += if found.wrong[h][l] { flipped.0[l] } else { plain.0[l] };
            }
        }
        ((t * t * qq - found.cost()) / (t + t), qq)
    }
}

static DIGITS: [(u8, u8); HALVES] = pairs(8);

#[cfg(test)]
mod tests {
    use super::*;

    /// The naive twin of the search: each entry's best with and without each sign given up.
    fn naive(x: &[f32], w: &[f32], t: f32) -> f64 {
        let best = |half: usize, flip: usize| {
            let cost = |entry: &[i8; 4]| {
                let term = |i: usize| {
                    let (x, w) = (f64::from(x[4 * half + i]), f64::from(w[4 * half + i]));
                    let negative = (x < 0.0) != (flip == 4 * half + i);
                    let q = f64::from(entry[i]) * f64::from(t) * if negative { -1.0 } else { 1.0 };
                    w * (q * q - 2.0 * q * x)
                };
                (0..4).map(term).sum::<f64>()
            };
            GRID.iter().map(cost).fold(f64::INFINITY, f64::min)
        };
        if x.iter().filter(|x| **x < 0.0).count() % 2 == 0 {
            return best(0, 8) + best(1, 8);
        }
        (0..8).map(|flip| best(0, flip) + best(1, flip)).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn the_search_finds_what_every_entry_would() {
        let (weights, importance) = crate::encode::tests::block(13);
        let target = Target::new(&weights, Some(&importance));
        for batch in 0..2 {
            let groups = Groups8::new(&target, batch);
            for t in [0.005, 0.02, 0.05] {
                let cost = groups.choose_codes(Lanes::splat(t)).cost();
                for l in 0..LANES {
                    let at = 128 * batch + 8 * l;
                    let expected = naive(&target.x[at..at + 8], &target.w[at..at + 8], t);
                    let cost = f64::from(cost.0[l]);
                    assert!(
                        (cost - expected).abs() <= 1e-5 * expected.abs() + 1e-6,
                        "{cost} against {expected}"
                    );
                }
            }
        }
    }
}
