//! IQ1_S: eight neighbours become one of 2,048 ternary entries; all codes of a sub-block of 32 are
//! shifted by an eighth up or down, whichever suits them.

use super::codebook::{Book, Found, Groups, Tables, half_values, halves, squares, sums, whole_costs};
use super::lanes::{LANES, Lanes, codes, opaque};
use super::octet::{Octet, Row};
use super::scalar::{Nearest, in_order};
use super::split::{OCTET, Scales, Search, Split};
use super::steps::{Batch, LEAST, Steps, choose_scales, free_scales, scales_of};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq1_s::{BlockIq1S, GRID, Iq1S};
use kizami_kernels::isa::Isa;

/// Room for the distinct halves: four ternary digits.
pub(super) const HALVES: usize = 128;

pub(super) static BOOK: Book<2048, HALVES> = Book::new(&halves(&GRID, &[-1, 0, 1]));

/// The two shifts, in units of a ternary step; the second is stored as a set bit.
pub(super) const SHIFTS: [f32; 2] = [0.125, -0.125];

/// Trial scales of a sub-block whose root mean square is one, while any three values will do.
pub(super) const TRIALS: [f32; 4] = [0.8, 1.0, 1.2, 1.4];
/// What those lead to times this is the scale under which entries are searched to choose scales again. Under .83 or .95
/// the error was less than .3 % higher; entries under three or four scales in place of one cost four times as much and
/// left .3 % more, too.
pub(super) const NEAR: [f32; 1] = [0.87];
/// The largest sub-scale.
pub(super) const LAST: f32 = 7.0;

/// The scales of a block; for a draft those that would suit any three values.
#[inline(always)]
fn scales<I: Isa>(isa: I, target: &Target<256>, draft: bool) -> Steps<8> {
    let free = [Free::new(target, 0), Free::new(target, 1)];
    let scales = free_scales::<_, _, 8, 2, _>(isa, target, &free, &TRIALS);
    if draft {
        return choose_scales(isa, target, &free, &scales, &[1.0], LAST, 1.0, &mut ());
    }
    let entries = [Entries(&free[0].0), Entries(&free[1].0)];
    let mut room = [[Lanes::ZERO; HALVES]; 4];
    choose_scales(isa, target, &entries, &scales, &NEAR, LAST, 1.0, &mut room)
}

impl Split<256> for Iq1S {
    type Block = BlockIq1S;
    type Scales = Steps<8>;
    type Search = Ternary;

    #[inline(always)]
    fn choose_scales<I: Isa>(isa: I, target: &Target<256>) -> Steps<8> {
        scales(isa, target, false)
    }

    #[inline(always)]
    fn draft_scales<I: Isa>(isa: I, target: &Target<256>) -> Steps<8> {
        scales(isa, target, true)
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
    const DRAFTS_HAVE_CODES: bool = false;

    #[inline(always)]
    fn choose_plain<I: Isa, const N: usize>(
        isa: I,
        target: &Target<N>,
        scales: &impl Scales,
        codes: &mut [Code],
    ) {
        let mut room = [[Lanes::ZERO; HALVES]; 4];
        for (b, codes) in codes.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let (scale, variant) = scales_of(scales, b);
            let found = choose_codes(isa, &Free::new(target, b).0, scale, shifts(variant), &mut room);
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
    fn choose_whole<I: Isa>(
        isa: I,
        octet: &Octet,
        row: &Row,
        draft: bool,
        codes: &mut [Code; LANES],
    ) -> [Lanes; OCTET] {
        if draft {
            return any_values(isa, octet, row, shifts(row.variant));
        }
        let (entries, _) = nearest_whole(isa, octet, row, [shifts(row.variant)]);
        for l in 0..LANES {
            codes[l] = Code { entry: entries[l], shift: row.variant.0[l] as u8 };
        }
        values_of(codes)
    }
}

/// What eight weights become, one after the other, if any three values will do: a draft, in no time.
#[inline(always)]
pub(super) fn any_values<I: Isa>(isa: I, octet: &Octet, row: &Row, shifts: Lanes) -> [Lanes; OCTET] {
    let shifted = Row { start: row.scale * shifts, ..*row };
    let mut values = in_order::<I, Digit>(isa, octet, &shifted);
    for value in &mut values {
        *value = *value + shifts;
    }
    values
}

/// The nearest of minus one, zero and one.
struct Digit;

impl Nearest for Digit {
    #[inline(always)]
    fn nearest<I: Isa>(isa: I, x: I::F) -> I::F {
        codes(isa, x, -1.0, 1.0)
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

/// The best entries under a whole metric, exhaustively, each with the best of `V` shifts, and which shifts those are.
#[inline(always)]
pub(super) fn nearest_whole<I: Isa, const V: usize>(
    isa: I,
    octet: &Octet,
    row: &Row,
    shifts: [Lanes; V],
) -> ([u16; LANES], [u8; LANES]) {
    let inverse = Lanes::splat(1.0) / row.scale.max(Lanes::splat(LEAST));
    let pull = octet.pull(&octet.residual(&row.w, &row.fed), 0, OCTET);
    let mut whole = [[[Lanes::ZERO; 4]; 4]; 3];
    for i in 0..4 {
        for j in 0..4 {
            whole[0][i][j] = Lanes::splat(octet.m[i][j]);
            whole[1][i][j] = Lanes::splat(octet.m[4 + i][4 + j]);
            whole[2][i][j] = Lanes::splat(octet.m[i][4 + j]);
        }
    }
    let mut costs = [[[Lanes::ZERO; HALVES]; V]; 2];
    for v in 0..opaque(V) {
        let (mut z, mut constant) = ([[Lanes::ZERO; 4]; 2], Lanes::ZERO);
        for i in 0..OCTET {
            let mut shifted = Lanes::ZERO;
            for m in octet.m[i] {
                shifted = shifted + shifts[v] * Lanes::splat(m);
            }
            let free = pull[i] * inverse;
            z[i / 4][i % 4] = free - shifted;
            constant = constant + shifts[v] * (shifted - free - free);
        }
        for h in 0..opaque(2) {
            whole_costs::<I, 4, HALVES, 9>(isa, &VALUES, &whole[h], &z[h], &mut costs[h][v]);
        }
        if V > 1 {
            for cost in &mut costs[0][v] {
                *cost = Lanes::of(isa, isa.plus(cost.f(isa), constant.f(isa)));
            }
        }
    }
    BOOK.nearest_whole::<I, 4, 9, V>(isa, &VALUES, &costs[0], &costs[1], &whole[2])
}

/// Sixteen groups of eight, for each weight of which any of three values will do, whatever its neighbours have. So
/// scales are found at a hundredth of what a search of all entries costs.
pub(super) struct Free(pub(super) Groups<8>);

impl Free {
    #[inline(always)]
    pub(super) fn new<const N: usize>(target: &Target<N>, batch: usize) -> Free {
        Free(Groups::new(&target.x[128 * batch..][..128], &target.w[128 * batch..][..128]))
    }
}

impl Batch for Free {
    type Room = ();

    #[inline(always)]
    fn sums<I: Isa>(&self, isa: I, t: Lanes, variant: usize, (): &mut ()) -> (Lanes, Lanes) {
        let (inverse, shift) = ((Lanes::splat(1.0) / t).f(isa), isa.splat(SHIFTS[variant]));
        let (mut xq, mut qq) = (isa.splat(0.0), isa.splat(0.0));
        for i in 0..OCTET {
            let (x, w) = (self.0.x[i].f(isa), self.0.w[i].f(isa));
            let digit = codes(isa, isa.minus(isa.mul(x, inverse), shift), -1.0, 1.0);
            let q = isa.plus(digit, shift);
            let wq = isa.mul(w, q);
            xq = isa.fma(wq, x, xq);
            qq = isa.fma(wq, q, qq);
        }
        (Lanes::of(isa, xq), Lanes::of(isa, qq))
    }
}

/// The codes of sixteen groups given their scales and shifts: the cheapest entries.
#[inline(always)]
pub(super) fn choose_codes<I: Isa>(
    isa: I,
    groups: &Groups<8>,
    t: Lanes,
    shifts: Lanes,
    [first, second, ..]: &mut Tables<HALVES>,
) -> Found {
    let mut costs = [[Lanes::ZERO; 3]; 8];
    let (t, shifts) = (t.f(isa), shifts.f(isa));
    for i in 0..opaque(OCTET) {
        let (x, w) = (groups.x[i].f(isa), groups.w[i].f(isa));
        for level in 0..3 {
            let q = isa.mul(isa.plus(isa.splat(level as f32 - 1.0), shifts), t);
            costs[i][level] = Lanes::of(isa, isa.mul(isa.mul(w, q), isa.fma(isa.splat(-2.0), x, q)));
        }
    }
    half_sums(isa, &costs, 0, first);
    half_sums(isa, &costs, 4, second);
    BOOK.nearest(isa, first, second)
}

/// Sixteen groups of eight that choose entries.
pub(super) struct Entries<'a>(pub(super) &'a Groups<8>);

impl Batch for Entries<'_> {
    type Room = Tables<HALVES>;

    /// The cost of what is found is `t² <q, q> - 2 t <x, q>`.
    #[inline(always)]
    fn sums<I: Isa>(&self, isa: I, t: Lanes, variant: usize, room: &mut Tables<HALVES>) -> (Lanes, Lanes) {
        let found = choose_codes(isa, self.0, t, Lanes::splat(SHIFTS[variant]), room);
        let mut rows = [[0.0; OCTET]; LANES];
        for l in 0..opaque(LANES) {
            let [first, second] = BOOK.values(&VALUES, &found, l);
            for i in 0..OCTET / 2 {
                rows[l][i] = first[i] + SHIFTS[variant];
                rows[l][OCTET / 2 + i] = second[i] + SHIFTS[variant];
            }
        }
        let qq = squares(isa, self.0, &rows);
        ((t * t * qq - found.cost) / (t + t), qq)
    }
}

/// Sums over every half of four digits, first digit most significant.
#[inline(always)]
fn half_sums<I: Isa>(isa: I, digits: &[[Lanes; 3]; 8], at: usize, out: &mut [Lanes; HALVES]) {
    let (mut high, mut low) = ([Lanes::ZERO; 9], [Lanes::ZERO; 9]);
    sums(isa, &digits[at], &digits[at + 1], &mut high);
    sums(isa, &digits[at + 2], &digits[at + 3], &mut low);
    sums(isa, &high, &low, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use kizami_kernels::isa::scalar::Scalar;

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
            let groups = Free::new(&target, batch).0;
            for (t, shift) in [(0.1, SHIFTS[0]), (0.5, SHIFTS[1]), (1.5, SHIFTS[0])] {
                let found = {
                    let room = &mut [[Lanes::ZERO; HALVES]; 4];
                    choose_codes(Scalar, &groups, Lanes::splat(t), Lanes::splat(shift), room)
                };
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
