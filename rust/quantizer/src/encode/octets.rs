//! Eight neighbours as a codebook entry of three magnitudes, and their signs (IQ2_XXS, IQ2_XS, IQ2_S).
//!
//! Where seven signs are stored the eighth makes the number of negative weights even, so where the weights disagree
//! the cheapest sign is given up. The price of that is part of every entry's cost.

use super::codebook::{Book, Found, Groups, Tables, flips, half_values, minima, squares, sums, whole_costs};
use super::lanes::{LANES, Lanes, opaque};
use super::octet::{Octet, Row};
use super::scalar::Nearest;
use super::signs::{Signed, turns};
use super::split::{OCTET, Scales, Search};
use super::steps::{BATCHES, Batch, Free, Steps, choose_scales, free_scales, scales_of};
use super::target::Target;
use kizami_kernels::formats::iq2_xxs::MAGNITUDES;
use kizami_kernels::isa::Isa;
use std::marker::PhantomData;

/// Room for the distinct halves: four magnitudes of three levels.
pub(super) const HALVES: usize = 128;

/// Trial scales of a sub-block whose root mean square is one, while any magnitudes will do. The first is for a weight that
/// counts more than all others together: it takes the largest magnitude, and the others have what is below.
pub(super) const TRIALS: [f32; 6] = [0.0235, 0.031, 0.041, 0.05, 0.06, 0.073];
/// What those lead to times these are the scales under which entries are searched to choose scales again.
const NEAR: [f32; 3] = [0.75, 0.92, 1.12];
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
        for i in 0..8 {
            wx[i] = groups.w[i] * groups.x[i].abs();
            let negative = groups.x[i].where_less(Lanes::ZERO, Lanes::splat(1.0), Lanes::ZERO);
            odd = (odd - negative) * (odd - negative);
        }
        Self { book, groups, wx, odd }
    }

    /// The codes of sixteen groups given their scales: the cheapest entries, signs included.
    #[inline(always)]
    pub(super) fn choose_codes<I: Isa>(&self, isa: I, t: Lanes, room: &mut Tables<HALVES>) -> Found {
        let mut costs = [[Lanes::ZERO; 3]; 8];
        let mut prices = [[Lanes::ZERO; 3]; 8];
        let (t, odd) = (t.f(isa), isa.mul(self.odd.f(isa), isa.splat(4.0)));
        for i in 0..opaque(8) {
            let (w, wx) = (self.groups.w[i].f(isa), self.wx[i].f(isa));
            let (twice, price) = (isa.mul(wx, isa.splat(-2.0)), isa.mul(wx, odd));
            for level in 0..3 {
                let q = isa.mul(t, isa.splat(f32::from(MAGNITUDES[level])));
                costs[i][level] = Lanes::of(isa, isa.mul(q, isa.fma(w, q, twice)));
                prices[i][level] = Lanes::of(isa, isa.mul(price, q));
            }
        }
        let [first, second, first_flipped, second_flipped] = room;
        half_sums(isa, &costs, 0, first);
        half_sums(isa, &costs, 4, second);
        if !PARITY {
            return self.book.nearest(isa, first, second);
        }
        half_flips(isa, first, &prices, 0, first_flipped);
        half_flips(isa, second, &prices, 4, second_flipped);
        self.book.nearest_flipped(isa, first, second, first_flipped, second_flipped)
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
    type Room = Tables<HALVES>;

    /// The cost of what is found is `t² <q, q> - 2 t <x, q>`.
    #[inline(always)]
    fn sums<I: Isa>(&self, isa: I, t: Lanes, _: usize, room: &mut Tables<HALVES>) -> (Lanes, Lanes) {
        let found = self.choose_codes(isa, t, room);
        let mut rows = [[0.0; OCTET]; LANES];
        for l in 0..opaque(LANES) {
            rows[l] = bytemuck::cast(self.book.values(&VALUES, &found, l));
        }
        let qq = squares(isa, &self.groups, &rows);
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
    I: Isa,
>(
    isa: I,
    target: &Target<256>,
) -> Steps<STEPS> {
    let octets: [Octets<ENTRIES, PARITY>; BATCHES] =
        [Octets::new(F::book(), target, 0), Octets::new(F::book(), target, 1)];
    let free = [Free::<Three>(&octets[0].groups, PhantomData), Free(&octets[1].groups, PhantomData)];
    let scales = free_scales::<_, _, STEPS, 1, _>(isa, target, &free, &TRIALS);
    let mut room = [[Lanes::ZERO; HALVES]; 4];
    choose_scales(isa, target, &octets, &scales, &NEAR, LAST, 8.0, &mut room)
}

/// The three magnitudes.
struct Three;

impl Nearest for Three {
    #[inline(always)]
    fn nearest<I: Isa>(isa: I, x: I::F) -> I::F {
        let level = |i: usize| f32::from(MAGNITUDES[i]);
        let upper = isa.where_less(
            x,
            isa.splat(0.5 * (level(1) + level(2))),
            isa.splat(level(1)),
            isa.splat(level(2)),
        );
        isa.where_less(x, isa.splat(0.5 * (level(0) + level(1))), isa.splat(level(0)), upper)
    }
}

/// An entry and eight signs, bits set where minus.
#[derive(Clone, Copy, Default)]
pub(super) struct Code {
    pub(super) entry: u16,
    pub(super) signs: u8,
}

/// The search in the codebook of `F`.
pub(super) struct OctetSearch<F, const ENTRIES: usize, const PARITY: bool>(PhantomData<F>);

impl<F: Codebook<ENTRIES>, const ENTRIES: usize, const PARITY: bool> Search
    for OctetSearch<F, ENTRIES, PARITY>
{
    type Code = Code;
    const COARSE: bool = true;
    const DRAFTS_HAVE_CODES: bool = true;

    #[inline(always)]
    fn choose_plain<I: Isa, const N: usize>(
        isa: I,
        target: &Target<N>,
        scales: &impl Scales,
        codes: &mut [Code],
    ) {
        let mut room = [[Lanes::ZERO; HALVES]; 4];
        for (b, codes) in codes.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let batch = Octets::<ENTRIES, PARITY>::new(F::book(), target, b);
            let found = batch.choose_codes(isa, scales_of(scales, b).0, &mut room);
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

    /// Magnitudes given signs, exhaustively, and signs given magnitudes, by turns: neither can raise the cost. Signs have
    /// to be a pattern that can be stored.
    #[inline(always)]
    fn choose_whole<I: Isa>(
        isa: I,
        octet: &Octet,
        row: &Row,
        draft: bool,
        codes: &mut [Code; LANES],
    ) -> [Lanes; OCTET] {
        let mut signed = Signed::new(octet, row);
        let mut entries = [0; LANES];
        let turns = turns(draft, PARITY);
        for turn in 0..opaque(turns) {
            if turn > 0 {
                signed.flip(isa, PARITY);
            }
            entries = nearest_whole(isa, F::book(), &signed);
            signed.set(0, F::GRID, &entries);
        }
        if turns == 1 {
            signed.flip(isa, PARITY);
        }
        for l in 0..LANES {
            codes[l] = Code { entry: entries[l], signs: signed.bits(l) };
        }
        signed.values()
    }
}

static VALUES: [[f32; 4]; HALVES] = half_values(&MAGNITUDES);

/// The best entries for given signs.
#[inline(always)]
fn nearest_whole<I: Isa, const ENTRIES: usize>(
    isa: I,
    book: &Book<ENTRIES, HALVES>,
    signed: &Signed,
) -> [u16; LANES] {
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
    let mut costs = [[[Lanes::ZERO; HALVES]]; 2];
    for h in 0..opaque(2) {
        whole_costs::<I, 4, HALVES, 9>(isa, &VALUES, &whole[h], &z[h], &mut costs[h][0]);
    }
    book.nearest_whole::<I, 4, 9, 1>(isa, &VALUES, &costs[0], &costs[1], &whole[2]).0
}

/// Sums over every half of four digits, first digit most significant.
#[inline(always)]
fn half_sums<I: Isa>(isa: I, digits: &[[Lanes; 3]; 8], at: usize, out: &mut [Lanes; HALVES]) {
    let (mut high, mut low) = ([Lanes::ZERO; 9], [Lanes::ZERO; 9]);
    sums(isa, &digits[at], &digits[at + 1], &mut high);
    sums(isa, &digits[at + 2], &digits[at + 3], &mut low);
    sums(isa, &high, &low, out);
}

/// Costs of every half with its cheapest sign flipped.
#[inline(always)]
fn half_flips<I: Isa>(
    isa: I,
    plain: &[Lanes; HALVES],
    prices: &[[Lanes; 3]; 8],
    at: usize,
    out: &mut [Lanes; HALVES],
) {
    let (mut high, mut low) = ([Lanes::ZERO; 9], [Lanes::ZERO; 9]);
    minima(isa, &prices[at], &prices[at + 1], &mut high);
    minima(isa, &prices[at + 2], &prices[at + 3], &mut low);
    flips(isa, plain, &high, &low, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use kizami_kernels::formats::{iq2_s, iq2_xxs};
    use kizami_kernels::isa::scalar::Scalar;

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
                let found = groups.choose_codes(Scalar, Lanes::splat(t), &mut [[Lanes::ZERO; HALVES]; 4]);
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
