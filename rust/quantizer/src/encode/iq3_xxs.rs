//! IQ3_XXS: four neighbours become a codebook entry; eight share seven signs, the eighth making
//! their number even. Where the weights disagree one of eight signs is given up, in the first or
//! the second entry, whichever is cheaper with that entry re-chosen.

use super::codebook::{Book, Found, Groups, Tables, flips, half_values, halves, squares, sums};
use super::lanes::{LANES, Lanes, codes, opaque};
use super::octet::{Octet, Row};
use super::quads::{self, Code, Codebook, HALVES};
use super::scalar::Nearest;
use super::split::{OCTET, Scales, Search, Split};
use super::steps::{Batch, Free, Steps, choose_scales, free_scales, scales_of};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq3_xxs::{BlockIq3Xxs, GRID, Iq3Xxs, MAGNITUDES};
use kizami_kernels::isa::Isa;
use std::marker::PhantomData;

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

/// Trial scales of a sub-block whose root mean square is one, while any magnitudes will do; the first as in
/// `octets.rs`.
const TRIALS: [f32; 7] = [0.0165, 0.022, 0.029, 0.035, 0.042, 0.051, 0.064];
/// What those lead to times these are the scales under which entries are searched to choose scales again.
const NEAR: [f32; 3] = [0.75, 0.92, 1.12];
/// The largest sub-scale.
const LAST: f32 = 15.0;

impl Split<256> for Iq3Xxs {
    type Block = BlockIq3Xxs;
    type Scales = Steps<8>;
    type Search = EvenQuadSearch;

    #[inline(always)]
    fn choose_scales<I: Isa>(isa: I, target: &Target<256>) -> Steps<8> {
        let batches = [Groups8::new(target, 0), Groups8::new(target, 1)];
        let free = [Free::<Eight>(&batches[0].groups, PhantomData), Free(&batches[1].groups, PhantomData)];
        // The file's d is four times ours.
        let scales = free_scales::<_, _, 8, 1, _>(isa, target, &free, &TRIALS);
        let mut room = [[Lanes::ZERO; HALVES]; 4];
        choose_scales(isa, target, &batches, &scales, &NEAR, LAST, 4.0, &mut room)
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
            let batch = Groups8::new(target, b);
            let found = batch.choose_codes(isa, scales_of(scales, b).0, &mut room);
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
    fn choose_whole<I: Isa>(
        isa: I,
        octet: &Octet,
        row: &Row,
        draft: bool,
        codes: &mut [Code; LANES],
    ) -> [Lanes; OCTET] {
        quads::choose_whole::<I, Iq3Xxs, 256, true>(isa, octet, row, draft, codes)
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

    /// The table of finds that has the entry of a half.
    #[inline(always)]
    fn entry(&self, half: usize, lane: usize) -> &Found {
        if self.wrong[half][lane] { &self.flipped[half] } else { &self.plain[half] }
    }

    #[inline(always)]
    fn entries(&self, lane: usize) -> [u16; 2] {
        [BOOK.number(self.entry(0, lane), lane), BOOK.number(self.entry(1, lane), lane)]
    }
}

/// Sixteen groups of eight.
struct Groups8 {
    groups: Groups<8>,
    /// `w * |x|`
    wx: [Lanes; 8],
    /// Whether an odd number of weights is negative.
    odd: [bool; LANES],
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
        Groups8 { groups, wx, odd }
    }

    /// The codes of sixteen groups given their scales: the cheapest entries, signs included.
    #[inline(always)]
    fn choose_codes<I: Isa>(&self, isa: I, t: Lanes, room: &mut Tables<HALVES>) -> Pair {
        let mut costs = [[Lanes::ZERO; 8]; 8];
        let mut prices = [[Lanes::ZERO; 8]; 8];
        let t = t.f(isa);
        for i in 0..opaque(OCTET) {
            let (w, wx) = (self.groups.w[i].f(isa), self.wx[i].f(isa));
            let (twice, price) = (isa.mul(wx, isa.splat(-2.0)), isa.mul(wx, isa.splat(4.0)));
            for level in 0..8 {
                let q = isa.mul(t, isa.splat(f32::from(MAGNITUDES[level])));
                costs[i][level] = Lanes::of(isa, isa.mul(q, isa.fma(w, q, twice)));
                prices[i][level] = Lanes::of(isa, isa.mul(price, q));
            }
        }
        let mut pair =
            Pair { plain: [Found::NONE; 2], flipped: [Found::NONE; 2], wrong: [[false; LANES]; 2] };
        for &h in opaque(&[0usize, 1]) {
            let [first, second, first_flipped, second_flipped] = &mut *room;
            sums(isa, &costs[4 * h], &costs[4 * h + 1], first);
            sums(isa, &costs[4 * h + 2], &costs[4 * h + 3], second);
            flips(isa, first, &prices[4 * h], &prices[4 * h + 1], first_flipped);
            flips(isa, second, &prices[4 * h + 2], &prices[4 * h + 3], second_flipped);
            pair.plain[h] = BOOK.nearest(isa, first, second);
            pair.flipped[h] = BOOK.nearest_flipped(isa, first, second, first_flipped, second_flipped);
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

/// The eight magnitudes.
struct Eight;

impl Nearest for Eight {
    #[inline(always)]
    fn nearest<I: Isa>(isa: I, x: I::F) -> I::F {
        let q = codes(isa, isa.fma(x, isa.splat(0.125), isa.splat(-0.5)), 0.0, 7.0);
        let q = isa.fma(q, isa.splat(8.0), isa.splat(4.0));
        // The last is not 60.
        isa.where_less(isa.splat(59.0), q, isa.splat(62.0), q)
    }
}

impl Batch for Groups8 {
    type Room = Tables<HALVES>;

    /// The cost of what is found is `t² <q, q> - 2 t <x, q>`.
    #[inline(always)]
    fn sums<I: Isa>(&self, isa: I, t: Lanes, _: usize, room: &mut Tables<HALVES>) -> (Lanes, Lanes) {
        let found = self.choose_codes(isa, t, room);
        let mut rows = [[0.0; OCTET]; LANES];
        for l in 0..opaque(LANES) {
            let first = BOOK.values(&VALUES, found.entry(0, l), l);
            rows[l] = bytemuck::cast([first, BOOK.values(&VALUES, found.entry(1, l), l)]);
        }
        let qq = squares(isa, &self.groups, &rows);
        ((t * t * qq - found.cost()) / (t + t), qq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kizami_kernels::isa::scalar::Scalar;

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
                let cost =
                    groups.choose_codes(Scalar, Lanes::splat(t), &mut [[Lanes::ZERO; HALVES]; 4]).cost();
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
