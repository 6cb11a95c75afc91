//! IQ2_XXS: eight neighbours become a codebook entry and seven signs; the eighth sign makes their
//! number even, so where the weights disagree the cheapest sign is given up. The price of that is
//! part of every entry's cost.

use super::Encode;
use super::codebook::{Book, Found, Groups, flips, minima, pairs, sums};
use super::lanes::{LANES, Lanes, opaque};
use super::steps::{Batch, PER_STEP, choose_scales, unbiased};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq2_xxs::{BlockIq2Xxs, GRID, Iq2Xxs, MAGNITUDES};

/// Distinct halves: four magnitudes of three levels.
const HALVES: usize = 81;

static BOOK: Book<256, HALVES> = Book::new(&halves());

const fn halves() -> [(u8, u8); 256] {
    let mut halves = [(0, 0); 256];
    let mut e = 0;
    while e < 256 {
        let mut digits = [0u8; 2];
        let mut i = 0;
        while i < 8 {
            let mut level = 0;
            while MAGNITUDES[level] != GRID[e][i] {
                level += 1;
            }
            digits[i / 4] = digits[i / 4] * 3 + level as u8;
            i += 1;
        }
        halves[e] = (digits[0], digits[1]);
        e += 1;
    }
    halves
}

/// Trial scales of a sub-block whose root mean square is one.
const TRIALS: [f32; 5] = [0.035, 0.042, 0.05, 0.06, 0.073];
/// The largest sub-scale.
const LAST: f32 = 15.0;

impl Encode<256> for Iq2Xxs {
    type Block = BlockIq2Xxs;

    #[inline(always)]
    fn encode(target: &Target<256>) -> BlockIq2Xxs {
        let mut block = BlockIq2Xxs::zeroed();
        if target.empty {
            return block;
        }
        let batches = [Groups8::new(target, 0), Groups8::new(target, 1)];
        let mut steps = choose_scales::<_, 1, _>(target, &batches, &TRIALS, LAST);
        // The file's d is eight times ours.
        steps.d = target.frame.store(steps.d * 8.0).1 / 8.0;
        let mut decoded = [0.0; 256];
        let words: &mut [[u8; 8]; 8] = bytemuck::cast_mut(&mut block.qs);
        for (b, batch) in batches.iter().enumerate() {
            let scales = steps.scales(b);
            let found = batch.choose_codes(scales);
            for l in 0..opaque(LANES) {
                let g = LANES * b + l;
                let entry = BOOK.number(&found, l);
                let magnitudes = &GRID[usize::from(entry)];
                let signs = batch.signs(l, magnitudes);
                let (sub, j) = (g / PER_STEP, g % PER_STEP);
                let mut word = u64::from_le_bytes(words[sub]);
                word |= u64::from(entry) << (8 * j) | u64::from(signs & 127) << (32 + 7 * j);
                word |= u64::from(steps.step[sub]) << 60;
                words[sub] = word.to_le_bytes();
                for i in 0..8 {
                    let magnitude = f32::from(magnitudes[i]) * scales.0[l];
                    decoded[8 * g + i] = if signs >> i & 1 == 1 { -magnitude } else { magnitude };
                }
            }
        }
        block.d = target.frame.store(steps.d * 8.0 * unbiased(target, &decoded)).0;
        block
    }
}

/// Sixteen groups of eight.
struct Groups8 {
    groups: Groups<8>,
    /// `w * |x|`
    wx: [Lanes; 8],
    /// 1 where an odd number of weights is negative, else 0.
    odd: Lanes,
    /// `<q, q>` of the halves.
    squares: [[Lanes; HALVES]; 2],
}

impl Groups8 {
    #[inline(always)]
    fn new(target: &Target<256>, batch: usize) -> Groups8 {
        let groups = Groups::<8>::new(&target.x[128 * batch..][..128], &target.w[128 * batch..][..128]);
        let mut wx = [Lanes::ZERO; 8];
        let mut odd = Lanes::ZERO;
        let mut digits = [[Lanes::ZERO; 3]; 8];
        for i in 0..8 {
            wx[i] = groups.w[i] * groups.x[i].abs();
            let negative = groups.x[i].where_less(Lanes::ZERO, Lanes::splat(1.0), Lanes::ZERO);
            odd = (odd - negative) * (odd - negative);
        }
        for &(i, level) in opaque(&DIGITS) {
            let q = f32::from(MAGNITUDES[usize::from(level)]);
            digits[usize::from(i)][usize::from(level)] = groups.w[usize::from(i)] * Lanes::splat(q * q);
        }
        let mut batch = Groups8 { groups, wx, odd, squares: [[Lanes::ZERO; HALVES]; 2] };
        half_sums(&digits, 0, &mut batch.squares[0]);
        half_sums(&digits, 4, &mut batch.squares[1]);
        batch
    }

    /// The codes of sixteen groups given their scales: the cheapest entries, signs included.
    #[inline(always)]
    fn choose_codes(&self, t: Lanes) -> Found {
        let mut costs = [[Lanes::ZERO; 3]; 8];
        let mut prices = [[Lanes::ZERO; 3]; 8];
        for (i, level) in opaque(&DIGITS).iter().map(|&(i, level)| (usize::from(i), usize::from(level))) {
            let q = t * Lanes::splat(f32::from(MAGNITUDES[level]));
            let twice = self.wx[i] * q * Lanes::splat(2.0);
            costs[i][level] = self.groups.w[i] * q * q - twice;
            prices[i][level] = self.odd * (twice + twice);
        }
        let mut tables = [[Lanes::ZERO; HALVES]; 4];
        let [first, second, first_flipped, second_flipped] = &mut tables;
        half_sums(&costs, 0, first);
        half_sums(&costs, 4, second);
        half_flips(first, &prices, 0, first_flipped);
        half_flips(second, &prices, 4, second_flipped);
        BOOK.nearest_flipped(first, second, first_flipped, second_flipped)
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
        let qq = BOOK.sum_at(&found, &self.squares[0], &self.squares[1]);
        ((t * t * qq - found.cost) / (t + t), qq)
    }
}

static DIGITS: [(u8, u8); 24] = pairs(3);
static NINE: [(u8, u8); 9] = pairs(3);
static ALL: [(u8, u8); HALVES] = pairs(9);

/// Sums over every half of four digits, first digit most significant.
#[inline(always)]
fn half_sums(digits: &[[Lanes; 3]; 8], at: usize, out: &mut [Lanes; HALVES]) {
    let (mut high, mut low) = ([Lanes::ZERO; 9], [Lanes::ZERO; 9]);
    sums(&NINE, &digits[at], &digits[at + 1], &mut high);
    sums(&NINE, &digits[at + 2], &digits[at + 3], &mut low);
    sums(&ALL, &high, &low, out);
}

/// Costs of every half with its cheapest sign flipped.
#[inline(always)]
fn half_flips(plain: &[Lanes; HALVES], prices: &[[Lanes; 3]; 8], at: usize, out: &mut [Lanes; HALVES]) {
    let (mut high, mut low) = ([Lanes::ZERO; 9], [Lanes::ZERO; 9]);
    minima(&NINE, &prices[at], &prices[at + 1], &mut high);
    minima(&NINE, &prices[at + 2], &prices[at + 3], &mut low);
    flips(&ALL, plain, &high, &low, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The naive twin of the search: every entry, every choice of the sign to give up.
    fn naive(x: &[f32], w: &[f32], t: f32) -> f64 {
        let mut least = f64::INFINITY;
        for entry in &GRID {
            for flip in 0..9 {
                let mut cost = 0.0;
                let mut minus = 0;
                for i in 0..8 {
                    let negative = (x[i] < 0.0) != (flip == i);
                    minus += u32::from(negative);
                    let q = f64::from(entry[i]) * f64::from(t) * if negative { -1.0 } else { 1.0 };
                    cost += f64::from(w[i]) * (q * q - 2.0 * q * f64::from(x[i]));
                }
                if minus % 2 == 0 && cost < least {
                    least = cost;
                }
            }
        }
        least
    }

    #[test]
    fn the_search_finds_what_every_entry_would() {
        let (weights, importance) = crate::encode::tests::block(12);
        let target = Target::new(&weights, Some(&importance));
        for batch in 0..2 {
            let groups = Groups8::new(&target, batch);
            for t in [0.005, 0.02, 0.05] {
                let found = groups.choose_codes(Lanes::splat(t));
                for l in 0..LANES {
                    let at = 128 * batch + 8 * l;
                    let expected = naive(&target.x[at..at + 8], &target.w[at..at + 8], t);
                    let cost = f64::from(found.cost.0[l]);
                    assert!(
                        (cost - expected).abs() <= 1e-5 * expected.abs() + 1e-6,
                        "{cost} against {expected}"
                    );
                }
            }
        }
    }
}
