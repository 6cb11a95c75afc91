//! IQ1_S: eight neighbours become one of 2,048 ternary entries; all codes of a sub-block of 32 are
//! shifted by an eighth up or down, whichever suits them.

use super::codebook::{Book, Found, Groups, half_values, halves, pairs, sums, whole_costs};
use super::lanes::{LANES, Lanes, opaque};
use super::octet::{Octet, Row};
use super::split::{OCTET, Scales, Search, Split};
use super::steps::{Batch, LEAST, Steps, choose_scales, scales_of};
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

impl Split<256> for Iq1S {
    type Block = BlockIq1S;
    type Scales = Steps<8>;
    type Search = Ternary;

    #[inline(always)]
    fn choose_scales(target: &Target<256>) -> Steps<8> {
        let batches = [Groups8::new(target, 0), Groups8::new(target, 1)];
        choose_scales::<_, 8, 2, _>(target, &batches, &TRIALS, LAST, 1.0)
    }

    #[inline(always)]
    fn pack(steps: &Steps<8>, codes: &[Code]) -> BlockIq1S {
        let mut block = BlockIq1S::zeroed();
        block.d = steps.bits;
        let words: &mut [[u8; 2]; 8] = bytemuck::cast_mut(&mut block.qh);
        for (g, code) in codes.iter().enumerate() {
            let (sub, j) = (g / 4, g % 4);
            block.qs[g] = code.entry as u8;
            let mut word = u16::from_le_bytes(words[sub]) | code.entry >> 8 << (3 * j);
            word |= u16::from(steps.step[sub]) << 12 | u16::from(steps.variant[sub]) << 15;
            words[sub] = word.to_le_bytes();
        }
        block
    }
}

/// An entry and which of the shifts goes with it.
#[derive(Clone, Copy, Default)]
pub(super) struct Code {
    pub(super) entry: u16,
    pub(super) shift: u8,
}

impl Code {
    /// What it stands for.
    #[inline(always)]
    pub(super) fn values(self) -> [f32; OCTET] {
        let mut values = [0.0; OCTET];
        for i in 0..OCTET {
            values[i] = f32::from(GRID[usize::from(self.entry)][i]) + SHIFTS[usize::from(self.shift & 1)];
        }
        values
    }
}

/// The search where the sub-block says which shift it is.
pub(super) struct Ternary;

impl Search for Ternary {
    type Code = Code;
    const COARSE: bool = true;

    #[inline(always)]
    fn choose_plain<const N: usize>(target: &Target<N>, scales: &impl Scales, codes: &mut [Code]) {
        for (b, codes) in codes.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let (scale, variant) = scales_of(scales, b);
            let found = Groups8::new(target, b).choose_codes(scale, shifts(variant));
            for l in 0..opaque(LANES) {
                codes[l] = Code { entry: BOOK.number(&found, l), shift: variant.0[l] as u8 };
            }
        }
    }

    #[inline(always)]
    fn values(code: Code) -> [f32; OCTET] {
        code.values()
    }

    #[inline(always)]
    fn choose_whole(octet: &Octet, row: &Row, codes: &mut [Code; LANES]) -> [Lanes; OCTET] {
        let (_, entries) = nearest_whole(octet, row, shifts(row.variant));
        for l in 0..LANES {
            codes[l] = Code { entry: entries[l], shift: row.variant.0[l] as u8 };
        }
        values_of(codes)
    }
}

/// What sixteen rows' codes stand for.
#[inline(always)]
pub(super) fn values_of(codes: &[Code; LANES]) -> [Lanes; OCTET] {
    let mut values = [Lanes::ZERO; OCTET];
    for l in 0..LANES {
        for (i, value) in codes[l].values().into_iter().enumerate() {
            values[i].0[l] = value;
        }
    }
    values
}

/// The shift of each of sixteen groups.
#[inline(always)]
fn shifts(variant: Lanes) -> Lanes {
    variant.where_less(Lanes::splat(0.5), Lanes::splat(SHIFTS[0]), Lanes::splat(SHIFTS[1]))
}

static VALUES: [[f32; 4]; HALVES] = half_values(&[-1, 0, 1]);

/// The best entries under a whole metric, exhaustively, and what they cost in units of the squared scale, up to a
/// constant that the shift does not change.
#[inline(always)]
pub(super) fn nearest_whole(octet: &Octet, row: &Row, shifts: Lanes) -> (Lanes, [u16; LANES]) {
    let inverse = Lanes::splat(1.0) / row.scale.max(Lanes::splat(LEAST));
    let pull = octet.pull(&octet.residual(&row.w, &row.fed), 0, OCTET);
    let (mut z, mut constant) = ([[Lanes::ZERO; 4]; 2], Lanes::ZERO);
    for i in 0..OCTET {
        let mut shifted = Lanes::ZERO;
        for m in octet.m[i] {
            shifted = shifted + shifts * Lanes::splat(m);
        }
        let free = pull[i] * inverse;
        z[i / 4][i % 4] = free - shifted;
        constant = constant + shifts * (shifted - free - free);
    }
    let mut whole = [[[Lanes::ZERO; 4]; 4]; 3];
    for i in 0..4 {
        for j in 0..4 {
            whole[0][i][j] = Lanes::splat(octet.m[i][j]);
            whole[1][i][j] = Lanes::splat(octet.m[4 + i][4 + j]);
            whole[2][i][j] = Lanes::splat(octet.m[i][4 + j]);
        }
    }
    let mut costs = [[Lanes::ZERO; HALVES]; 2];
    for h in 0..opaque(2) {
        whole_costs::<4, HALVES, 9>(&VALUES, &whole[h], &z[h], &mut costs[h]);
    }
    let (cost, entries) = BOOK.nearest_whole::<4, 9>(&VALUES, &costs[0], &costs[1], &whole[2]);
    (cost + constant, entries)
}

/// Sixteen groups of eight.
pub(super) struct Groups8 {
    groups: Groups<8>,
    /// `<q, q>` of the halves under either shift.
    squares: [[[Lanes; HALVES]; 2]; 2],
}

impl Groups8 {
    #[inline(always)]
    pub(super) fn new<const N: usize>(target: &Target<N>, batch: usize) -> Groups8 {
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
