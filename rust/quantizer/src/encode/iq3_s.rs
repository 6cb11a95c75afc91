//! IQ3_S: four neighbours become one of 512 entries of eight magnitudes; every sign is free.

use super::codebook::{Book, Found, Groups, half_values, halves, pairs, sums};
use super::lanes::{LANES, Lanes, opaque};
use super::octet::{Octet, Row};
use super::quads::{self, Code, Codebook, HALVES};
use super::split::{OCTET, Scales, Search, Split};
use super::steps::{Batch, Steps, choose_scales, scales_of};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq3_s::{BlockIq3S, GRID, Iq3S, MAGNITUDES};

static BOOK: Book<512, HALVES> = Book::new(&halves(&GRID, &MAGNITUDES));
static VALUES: [[f32; 2]; HALVES] = half_values(&MAGNITUDES);

impl Codebook<512> for Iq3S {
    const GRID: &'static [[i8; 4]; 512] = &GRID;
    const VALUES: &'static [[f32; 2]; HALVES] = &VALUES;

    #[inline(always)]
    fn book() -> &'static Book<512, HALVES> {
        &BOOK
    }
}

/// Trial scales of a sub-block whose root mean square is one.
const TRIALS: [f32; 6] = [0.12, 0.14, 0.165, 0.195, 0.235, 0.29];
/// The largest sub-scale.
const LAST: f32 = 15.0;

impl Split<256> for Iq3S {
    type Block = BlockIq3S;
    type Scales = Steps<8>;
    type Search = QuadSearch;

    #[inline(always)]
    fn choose_scales(target: &Target<256>) -> Steps<8> {
        let batches = [Quads::new(target, 0), Quads::new(target, 1)];
        choose_scales::<_, 8, 1, _>(target, &batches, &TRIALS, LAST, 1.0)
    }

    #[inline(always)]
    fn pack(steps: &Steps<8>, codes: &[Code]) -> BlockIq3S {
        let mut block = BlockIq3S::zeroed();
        block.d = steps.bits;
        for (g, code) in codes.iter().enumerate() {
            block.signs[g] = code.signs;
            for (h, entry) in code.entries.into_iter().enumerate() {
                let j = 2 * g + h;
                block.qs[j] = entry as u8;
                block.qh[j / 8] |= ((entry >> 8) as u8) << (j % 8);
            }
        }
        for s in 0..8 {
            block.scales[s / 2] |= steps.step[s] << (4 * (s % 2));
        }
        block
    }
}

/// The search with free signs.
pub(super) struct QuadSearch;

impl Search for QuadSearch {
    type Code = Code;
    const COARSE: bool = true;

    #[inline(always)]
    fn choose_plain<const N: usize>(target: &Target<N>, scales: &impl Scales, codes: &mut [Code]) {
        for (b, codes) in codes.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let found = Quads::new(target, b).choose_codes(scales_of(scales, b).0);
            for l in 0..opaque(LANES) {
                let mut signs = 0;
                for i in 0..OCTET {
                    signs |= u8::from(target.x[OCTET * (LANES * b + l) + i] < 0.0) << i;
                }
                codes[l] = Code { entries: [BOOK.number(&found[0], l), BOOK.number(&found[1], l)], signs };
            }
        }
    }

    #[inline(always)]
    fn values(code: Code) -> [f32; OCTET] {
        code.values(&GRID)
    }

    #[inline(always)]
    fn choose_whole(octet: &Octet, row: &Row, codes: &mut [Code; LANES]) -> [Lanes; OCTET] {
        quads::choose_whole::<Iq3S, 512, false>(octet, row, codes)
    }
}

/// Sixteen groups of eight: two entries each.
struct Quads {
    groups: Groups<8>,
    /// `<q, q>` of the halves of either entry.
    squares: [[[Lanes; HALVES]; 2]; 2],
}

static DIGITS: [(u8, u8); 64] = pairs(8);

impl Quads {
    #[inline(always)]
    fn new<const N: usize>(target: &Target<N>, batch: usize) -> Quads {
        let groups = Groups::<8>::new(&target.x[128 * batch..][..128], &target.w[128 * batch..][..128]);
        let mut digits = [[Lanes::ZERO; 8]; 8];
        for &(i, level) in opaque(&DIGITS) {
            let q = f32::from(MAGNITUDES[usize::from(level)]);
            digits[usize::from(i)][usize::from(level)] = groups.w[usize::from(i)] * Lanes::splat(q * q);
        }
        let mut new = Quads { groups, squares: [[[Lanes::ZERO; HALVES]; 2]; 2] };
        for (h, [first, second]) in new.squares.iter_mut().enumerate() {
            sums(&DIGITS, &digits[4 * h], &digits[4 * h + 1], first);
            sums(&DIGITS, &digits[4 * h + 2], &digits[4 * h + 3], second);
        }
        new
    }

    /// The codes of sixteen groups given their scales: the cheapest entries of either half.
    #[inline(always)]
    fn choose_codes(&self, t: Lanes) -> [Found; 2] {
        let mut costs = [[Lanes::ZERO; 8]; 8];
        for &(i, level) in opaque(&DIGITS) {
            let (i, level) = (usize::from(i), usize::from(level));
            let q = t * Lanes::splat(f32::from(MAGNITUDES[level]));
            let (x, w) = (self.groups.x[i].abs(), self.groups.w[i]);
            costs[i][level] = w * q * (q - x - x);
        }
        let mut found = [Found::NONE; 2];
        for &h in opaque(&[0usize, 1]) {
            let (mut first, mut second) = ([Lanes::ZERO; HALVES], [Lanes::ZERO; HALVES]);
            sums(&DIGITS, &costs[4 * h], &costs[4 * h + 1], &mut first);
            sums(&DIGITS, &costs[4 * h + 2], &costs[4 * h + 3], &mut second);
            found[h] = BOOK.nearest(&first, &second);
        }
        found
    }
}

impl Batch for Quads {
    /// The cost of what is found is `t² <q, q> - 2 t <x, q>`.
    #[inline(always)]
    fn sums(&self, t: Lanes, _: usize) -> (Lanes, Lanes) {
        let found = self.choose_codes(t);
        let (mut qq, mut cost) = (Lanes::ZERO, Lanes::ZERO);
        for h in 0..2 {
            qq = qq + BOOK.sum_at(&found[h], &self.squares[h][0], &self.squares[h][1]);
            cost = cost + found[h].cost;
        }
        ((t * t * qq - cost) / (t + t), qq)
    }
}
