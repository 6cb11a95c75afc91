//! IQ3_S: four neighbours become one of 512 entries of eight magnitudes; every sign is free.

use super::Encode;
use super::codebook::{Book, Found, Groups, halves, pairs, sums};
use super::lanes::{LANES, Lanes, opaque};
use super::steps::{Batch, choose_scales, unbiased};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq3_s::{BlockIq3S, GRID, Iq3S, MAGNITUDES};

/// Distinct halves: two magnitudes of eight levels.
const HALVES: usize = 64;

static BOOK: Book<512, HALVES> = Book::new(&halves(&GRID, &MAGNITUDES));

/// Trial scales of a sub-block whose root mean square is one.
const TRIALS: [f32; 6] = [0.12, 0.14, 0.165, 0.195, 0.235, 0.29];
/// The largest sub-scale.
const LAST: f32 = 15.0;

impl Encode<256> for Iq3S {
    type Block = BlockIq3S;

    #[inline(always)]
    fn encode(target: &Target<256>) -> BlockIq3S {
        let mut block = BlockIq3S::zeroed();
        if target.empty {
            return block;
        }
        let batches = [Quads::new(target, 0), Quads::new(target, 1)];
        let mut steps = choose_scales::<_, 8, 1, _>(target, &batches, &TRIALS, LAST);
        steps.d = target.frame.store(steps.d).1;
        let mut decoded = [0.0; 256];
        for (b, batch) in batches.iter().enumerate() {
            let scales = steps.scales(b);
            let found = batch.choose_codes(scales);
            for l in 0..opaque(LANES) {
                let g = LANES * b + l;
                for h in 0..2 {
                    let (entry, j) = (BOOK.number(&found[h], l), 2 * g + h);
                    block.qs[j] = entry as u8;
                    block.qh[j / 8] |= ((entry >> 8) as u8) << (j % 8);
                    for i in 0..4 {
                        let (at, magnitude) =
                            (4 * j + i, f32::from(GRID[usize::from(entry)][i]) * scales.0[l]);
                        let negative = target.x[at] < 0.0;
                        block.signs[g] |= u8::from(negative) << (4 * h + i);
                        decoded[at] = if negative { -magnitude } else { magnitude };
                    }
                }
            }
        }
        for s in 0..8 {
            block.scales[s / 2] |= steps.step[s] << (4 * (s % 2));
        }
        block.d = target.frame.store(steps.d * unbiased(target, &decoded)).0;
        block
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
    fn new(target: &Target<256>, batch: usize) -> Quads {
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
