//! Eight neighbours as a codebook entry of three magnitudes, and their signs (IQ2_XXS, IQ2_XS, IQ2_S).
//!
//! Where seven signs are stored the eighth makes the number of negative weights even, so where the weights disagree
//! the cheapest sign is given up. The price of that is part of every entry's cost.

use super::codebook::{Book, Found, Groups, flips, half_values, minima, pairs, sums, whole_costs};
use super::lanes::{LANES, Lanes, opaque};
use super::octet::{Octet, Row};
use super::signs::Signed;
use super::split::{OCTET, Scales, Search};
use super::steps::{BATCHES, Batch, Steps, choose_scales, scales_of};
use super::target::Target;
use kizami_kernels::formats::iq2_xxs::MAGNITUDES;

/// Distinct halves: four magnitudes of three levels.
pub(super) const HALVES: usize = 81;

/// Trial scales of a sub-block whose root mean square is one.
pub(super) const TRIALS: [f32; 5] = [0.035, 0.042, 0.05, 0.06, 0.073];
/// The largest sub-scale.
pub(super) const LAST: f32 = 15.0;

/// Sixteen groups of eight and a codebook of `ENTRIES`; `PARITY` says that the eighth sign is not free.
pub(super) struct Octets<const ENTRIES: usize, const PARITY: bool> {
    book: &'static Book<ENTRIES, HALVES>,
    groups: Groups<8>,
    /// `w * |x|`
    wx: [Lanes; 8],
    /// 1 where an odd number of weights is negative, else 0.
    odd: Lanes,
    /// `<q, q>` of the halves.
    squares: [[Lanes; HALVES]; 2],
}

impl<const ENTRIES: usize, const PARITY: bool> Octets<ENTRIES, PARITY> {
    /// The groups of one of two batches.
    #[inline(always)]
    pub(super) fn new<const N: usize>(
        book: &'static Book<ENTRIES, HALVES>,
        target: &Target<N>,
        batch: usize,
    ) -> Self {
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
        let mut batch = Self { book, groups, wx, odd, squares: [[Lanes::ZERO; HALVES]; 2] };
        half_sums(&digits, 0, &mut batch.squares[0]);
        half_sums(&digits, 4, &mut batch.squares[1]);
        batch
    }

    /// The codes of sixteen groups given their scales: the cheapest entries, signs included.
    #[inline(always)]
    pub(super) fn choose_codes(&self, t: Lanes) -> Found {
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
        if !PARITY {
            return self.book.nearest(first, second);
        }
        half_flips(first, &prices, 0, first_flipped);
        half_flips(second, &prices, 4, second_flipped);
        self.book.nearest_flipped(first, second, first_flipped, second_flipped)
    }

    /// The eight signs of one group (bits set where minus), an even number of them if they must be.
    #[inline(always)]
    pub(super) fn signs(&self, lane: usize, magnitudes: &[i8; 8]) -> u8 {
        let mut signs = 0u8;
        let (mut least, mut cheapest) = (f32::MAX, 0);
        for i in 0..8 {
            signs |= u8::from(self.groups.x[i].0[lane] < 0.0) << i;
            let price = self.wx[i].0[lane] * f32::from(magnitudes[i]);
            (least, cheapest) = if price < least { (price, i) } else { (least, cheapest) };
        }
        if PARITY { signs ^ (signs.count_ones() as u8 & 1) << cheapest } else { signs }
    }
}

impl<const ENTRIES: usize, const PARITY: bool> Batch for Octets<ENTRIES, PARITY> {
    /// The cost of what is found is `t² <q, q> - 2 t <x, q>`.
    #[inline(always)]
    fn sums(&self, t: Lanes, _: usize) -> (Lanes, Lanes) {
        let found = self.choose_codes(t);
        let qq = self.book.sum_at(&found, &self.squares[0], &self.squares[1]);
        ((t * t * qq - found.cost) / (t + t), qq)
    }
}

/// The codebook of a format.
pub(super) trait Codebook<const ENTRIES: usize> {
    const GRID: &'static [[i8; OCTET]; ENTRIES];
    fn book() -> &'static Book<ENTRIES, HALVES>;
}

/// The scales of a block; the file's `d` is eight times ours.
#[inline(always)]
pub(super) fn octet_scales<
    F: Codebook<ENTRIES>,
    const ENTRIES: usize,
    const PARITY: bool,
    const STEPS: usize,
>(
    target: &Target<256>,
) -> Steps<STEPS> {
    let batches: [Octets<ENTRIES, PARITY>; BATCHES] =
        [Octets::new(F::book(), target, 0), Octets::new(F::book(), target, 1)];
    choose_scales::<_, STEPS, 1, _>(target, &batches, &TRIALS, LAST, 8.0)
}

/// An entry and eight signs, bits set where minus.
#[derive(Clone, Copy, Default)]
pub(super) struct Code {
    pub(super) entry: u16,
    pub(super) signs: u8,
}

/// The search in the codebook of `F`.
pub(super) struct OctetSearch<F, const ENTRIES: usize, const PARITY: bool>(std::marker::PhantomData<F>);

impl<F: Codebook<ENTRIES>, const ENTRIES: usize, const PARITY: bool> Search
    for OctetSearch<F, ENTRIES, PARITY>
{
    type Code = Code;
    const COARSE: bool = true;

    #[inline(always)]
    fn choose_plain<const N: usize>(target: &Target<N>, scales: &impl Scales, codes: &mut [Code]) {
        for (b, codes) in codes.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let batch = Octets::<ENTRIES, PARITY>::new(F::book(), target, b);
            let found = batch.choose_codes(scales_of(scales, b).0);
            for l in 0..opaque(LANES) {
                let entry = F::book().number(&found, l);
                codes[l] = Code { entry, signs: batch.signs(l, &F::GRID[usize::from(entry)]) };
            }
        }
    }

    #[inline(always)]
    fn values(code: Code) -> [f32; OCTET] {
        let mut values = [0.0; OCTET];
        for i in 0..OCTET {
            let magnitude = f32::from(F::GRID[usize::from(code.entry)][i]);
            values[i] = if code.signs >> i & 1 == 1 { -magnitude } else { magnitude };
        }
        values
    }

    /// Magnitudes given signs, exhaustively, and signs given magnitudes, by turns: neither can raise the cost.
    #[inline(always)]
    fn choose_whole(octet: &Octet, row: &Row, codes: &mut [Code; LANES]) -> [Lanes; OCTET] {
        let mut signed = Signed::new(octet, row);
        let mut entries = [0; LANES];
        for turn in 0..opaque(TURNS) {
            if turn > 0 {
                signed.flip(PARITY);
            }
            entries = nearest_whole(F::book(), &signed);
            signed.set(0, F::GRID, &entries);
        }
        for l in 0..LANES {
            codes[l] = Code { entry: entries[l], signs: signed.bits(l) };
        }
        signed.values()
    }
}

/// How often magnitudes are chosen. A third time changed the loss by at most 2 %, either way.
const TURNS: usize = 2;

static VALUES: [[f32; 4]; HALVES] = half_values(&MAGNITUDES);

/// The best entries for given signs.
#[inline(always)]
fn nearest_whole<const ENTRIES: usize>(book: &Book<ENTRIES, HALVES>, signed: &Signed) -> [u16; LANES] {
    let (signs, m) = (&signed.signs, &signed.octet.m);
    let (mut whole, mut z) = ([[[Lanes::ZERO; 4]; 4]; 3], [[Lanes::ZERO; 4]; 2]);
    for i in 0..4 {
        z[0][i] = signed.z[i] * signs[i];
        z[1][i] = signed.z[4 + i] * signs[4 + i];
        for j in 0..4 {
            whole[0][i][j] = signs[i] * signs[j] * Lanes::splat(m[i][j]);
            whole[1][i][j] = signs[4 + i] * signs[4 + j] * Lanes::splat(m[4 + i][4 + j]);
            whole[2][i][j] = signs[i] * signs[4 + j] * Lanes::splat(m[i][4 + j]);
        }
    }
    let mut costs = [[Lanes::ZERO; HALVES]; 2];
    for h in 0..opaque(2) {
        whole_costs::<4, HALVES, 9>(&VALUES, &whole[h], &z[h], &mut costs[h]);
    }
    book.nearest_whole::<4, 9>(&VALUES, &costs[0], &costs[1], &whole[2]).1
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
    use kizami_kernels::formats::{iq2_s, iq2_xxs};

    static XXS: Book<256, HALVES> = Book::new(&crate::encode::codebook::halves(&iq2_xxs::GRID, &MAGNITUDES));
    static S: Book<1024, HALVES> = Book::new(&crate::encode::codebook::halves(&iq2_s::GRID, &MAGNITUDES));

    /// The naive twin of the search: every entry, every choice of the sign to give up.
    fn naive(grid: &[[i8; 8]], parity: bool, x: &[f32], w: &[f32], t: f32) -> f64 {
        let mut least = f64::INFINITY;
        for entry in grid {
            for flip in 0..9 {
                let mut cost = 0.0;
                let mut minus = 0;
                for i in 0..8 {
                    let negative = (x[i] < 0.0) != (flip == i);
                    minus += u32::from(negative);
                    let q = f64::from(entry[i]) * f64::from(t) * if negative { -1.0 } else { 1.0 };
                    cost += f64::from(w[i]) * (q * q - 2.0 * q * f64::from(x[i]));
                }
                if (!parity || minus % 2 == 0) && cost < least {
                    least = cost;
                }
            }
        }
        least
    }

    fn check<const N: usize, const PARITY: bool>(book: &'static Book<N, HALVES>, grid: &[[i8; 8]; N]) {
        let (weights, importance) = crate::encode::tests::block(12);
        let target = Target::new(&weights, Some(&importance));
        for batch in 0..2 {
            let groups = Octets::<N, PARITY>::new(book, &target, batch);
            for t in [0.005, 0.02, 0.05] {
                let found = groups.choose_codes(Lanes::splat(t));
                for l in 0..LANES {
                    let at = 128 * batch + 8 * l;
                    let (x, w) = (&target.x[at..at + 8], &target.w[at..at + 8]);
                    let expected = naive(grid, PARITY, x, w, t);
                    let cost = f64::from(found.cost.0[l]);
                    assert!(
                        (cost - expected).abs() <= 1e-5 * expected.abs() + 1e-6,
                        "{cost} against {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_search_finds_what_every_entry_would() {
        check::<256, true>(&XXS, &iq2_xxs::GRID);
        check::<1024, false>(&S, &iq2_s::GRID);
    }
}
