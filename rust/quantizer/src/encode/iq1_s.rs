//! IQ1_S: eight neighbours become one of 2,048 ternary entries; all codes of a sub-block of 32 are
//! shifted by an eighth up or down, whichever suits them.

use super::Encode;
use super::codebook::{Book, Found, Groups, halves, pairs, sums};
use super::lanes::{LANES, Lanes, opaque};
use super::steps::{Batch, Steps, choose_scales, unbiased};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq1_s::{BlockIq1S, GRID, Iq1S};

/// Distinct halves: four ternary digits.
const HALVES: usize = 81;

pub(super) static BOOK: Book<2048, HALVES> = Book::new(&halves(&GRID, &[-1, 0, 1]));

/// The two shifts, in units of a ternary step; the second is stored as a set bit.
pub(super) const SHIFTS: [f32; 2] = [0.125, -0.125];

/// Trial scales of a sub-block whose root mean square is one.
pub(super) const TRIALS: [f32; 4] = [0.95, 1.2, 1.5, 2.0];
/// The largest sub-scale.
pub(super) const LAST: f32 = 7.0;

impl Encode<256> for Iq1S {
    type Block = BlockIq1S;

    #[inline(always)]
    fn encode(target: &Target<256>) -> BlockIq1S {
        let mut block = BlockIq1S::zeroed();
        if target.empty {
            return block;
        }
        let batches = [Groups8::new(target, 0), Groups8::new(target, 1)];
        let mut steps = choose_scales::<_, 8, 2, _>(target, &batches, &TRIALS, LAST);
        steps.d = target.frame.store(steps.d).1;
        let mut decoded = [0.0; 256];
        let words: &mut [[u8; 2]; 8] = bytemuck::cast_mut(&mut block.qh);
        for (b, batch) in batches.iter().enumerate() {
            let (scales, shifts) = (steps.scales(b), shifts(&steps, b));
            let found = batch.choose_codes(scales, shifts);
            for l in 0..opaque(LANES) {
                let g = LANES * b + l;
                let entry = BOOK.number(&found, l);
                let (sub, j) = (g / 4, g % 4);
                block.qs[g] = entry as u8;
                let mut word = u16::from_le_bytes(words[sub]) | entry >> 8 << (3 * j);
                word |= u16::from(steps.step[sub]) << 12 | u16::from(steps.variant[sub]) << 15;
                words[sub] = word.to_le_bytes();
                for i in 0..8 {
                    decoded[8 * g + i] = (f32::from(GRID[usize::from(entry)][i]) + shifts.0[l]) * scales.0[l];
                }
            }
        }
        block.d = target.frame.store(steps.d * unbiased(target, &decoded)).0;
        block
    }
}

/// The shift of each of a batch's groups.
#[inline(always)]
fn shifts(steps: &Steps<8>, batch: usize) -> Lanes {
    let mut shifts = Lanes::ZERO;
    for l in 0..LANES {
        shifts.0[l] = SHIFTS[usize::from(steps.variant[(LANES * batch + l) / 4] & 1)];
    }
    shifts
}

/// Sixteen groups of eight.
pub(super) struct Groups8 {
    groups: Groups<8>,
    /// `<q, q>` of the halves under either shift.
    squares: [[[Lanes; HALVES]; 2]; 2],
}

impl Groups8 {
    #[inline(always)]
    pub(super) fn new(target: &Target<256>, batch: usize) -> Groups8 {
        let groups = Groups::<8>::new(&target.x[128 * batch..][..128], &target.w[128 * batch..][..128]);
        let mut new = Groups8 { groups, squares: [[[Lanes::ZERO; HALVES]; 2]; 2] };
        for (shift, [first, second]) in SHIFTS.iter().zip(&mut new.squares) {
            let mut digits = [[Lanes::ZERO; 3]; 8];
            for &(i, level) in opaque(&DIGITS) {
                let q = f32::from(level) - 1.0 + shift;
                digits[usize::from(i)][usize::from(level)] =
                    new.groups.w[usize::from(i)] * Lanes::splat(q * q);
            }
            half_sums(&digits, 0, first);
            half_sums(&digits, 4, second);
        }
        new
    }

    /// The codes of sixteen groups given their scales and shifts: the cheapest entries.
    #[inline(always)]
    pub(super) fn choose_codes(&self, t: Lanes, shifts: Lanes) -> Found {
        let mut costs = [[Lanes::ZERO; 3]; 8];
        for &(i, level) in opaque(&DIGITS) {
            let (i, level) = (usize::from(i), usize::from(level));
            let q = (Lanes::splat(level as f32 - 1.0) + shifts) * t;
            let (x, w) = (self.groups.x[i], self.groups.w[i]);
            costs[i][level] = w * q * (q - x - x);
        }
        let (mut first, mut second) = ([Lanes::ZERO; HALVES], [Lanes::ZERO; HALVES]);
        half_sums(&costs, 0, &mut first);
        half_sums(&costs, 4, &mut second);
        BOOK.nearest(&first, &second)
    }
}

impl Batch for Groups8 {
    /// The cost of what is found is `t² <q, q> - 2 t <x, q>`.
    #[inline(always)]
    fn sums(&self, t: Lanes, variant: usize) -> (Lanes, Lanes) {
        let found = self.choose_codes(t, Lanes::splat(SHIFTS[variant]));
        let [first, second] = &self.squares[variant];
        let qq = BOOK.sum_at(&found, first, second);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The naive twin of the search: every entry.
    fn naive(x: &[f32], w: &[f32], t: f32, shift: f32) -> f64 {
        let cost = |entry: &[i8; 8]| {
            let term = |i: usize| {
                let q = f64::from(t) * (f64::from(entry[i]) + f64::from(shift));
                f64::from(w[i]) * (q * q - 2.0 * q * f64::from(x[i]))
            };
            (0..8).map(term).sum::<f64>()
        };
        GRID.iter().map(cost).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn the_search_finds_what_every_entry_would() {
        let (weights, importance) = crate::encode::tests::block(14);
        let target = Target::new(&weights, Some(&importance));
        for batch in 0..2 {
            let groups = Groups8::new(&target, batch);
            for (t, shift) in [(0.1, SHIFTS[0]), (0.5, SHIFTS[1]), (1.5, SHIFTS[0])] {
                let found = groups.choose_codes(Lanes::splat(t), Lanes::splat(shift));
                for l in 0..LANES {
                    let at = 128 * batch + 8 * l;
                    let expected = naive(&target.x[at..at + 8], &target.w[at..at + 8], t, shift);
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
