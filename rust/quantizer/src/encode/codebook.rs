//! Nearest codebook entry, exhaustively, for sixteen groups at once.
//!
//! An entry is a pair of halves, and there are few distinct halves (81 of four ternary digits for
//! 256 or 2,048 entries). The cost of an entry is a sum over its halves, so tables of half costs,
//! one lane per group, reduce an entry to one vector minimum. Lanes are independent groups: those of
//! one block here; where they come from is the caller's business.

mod whole;

use super::lanes::{LANES, Lanes, opaque};
use kizami_kernels::isa::Isa;
pub(super) use whole::whole_costs;

/// More than any cost.
const WORST: f32 = f32::MAX;

/// Room for tables of what halves cost, which all searches in a block share: to zero it anew takes as long as to fill it.
pub(super) type Tables<const HALVES: usize> = [[Lanes; HALVES]; 4];

/// The entries of a codebook, ordered by their first half. `HALVES` is a power of two, so that a half's number modulo it
/// is in the tables without being asked; those beyond the distinct halves have no entries.
pub(super) struct Book<const ENTRIES: usize, const HALVES: usize> {
    /// Second half of each entry.
    seconds: [u8; ENTRIES],
    /// The entry's number in the file.
    numbers: [u16; ENTRIES],
    /// Where the entries of each first half begin and end.
    runs: [(u16, u16); HALVES],
    /// First halves from many entries to few: where neighbours have as many, CPUs foresee the ends of loops over them.
    order: [u8; HALVES],
    /// Of those, how many have any.
    used: usize,
}

impl<const ENTRIES: usize, const HALVES: usize> Book<ENTRIES, HALVES> {
    /// Orders entries given as pairs of half numbers.
    pub(super) const fn new(halves: &[(u8, u8); ENTRIES]) -> Self {
        assert!(HALVES.is_power_of_two());
        let mut book = Self {
            seconds: [0; ENTRIES],
            numbers: [0; ENTRIES],
            runs: [(0, 0); HALVES],
            order: [0; HALVES],
            used: 0,
        };
        let (mut first, mut place) = (0, 0);
        while first < HALVES {
            book.runs[first].0 = place as u16;
            let mut entry = 0;
            while entry < ENTRIES {
                if halves[entry].0 as usize == first {
                    book.seconds[place] = halves[entry].1;
                    book.numbers[place] = entry as u16;
                    place += 1;
                }
                entry += 1;
            }
            book.runs[first].1 = place as u16;
            first += 1;
        }
        let mut length = ENTRIES;
        while length > 0 {
            let mut h = 0;
            while h < HALVES {
                if (book.runs[h].1 - book.runs[h].0) as usize == length {
                    book.order[book.used] = h as u8;
                    book.used += 1;
                }
                h += 1;
            }
            length -= 1;
        }
        book
    }

    /// First halves that have entries.
    #[inline(always)]
    fn firsts(&self) -> &[u8] {
        &self.order[..self.used]
    }

    #[inline(always)]
    fn run(&self, first: usize) -> &[u8] {
        let (begin, end) = self.runs[first];
        &self.seconds[usize::from(begin)..usize::from(end)]
    }

    /// The cheapest entry of each lane, given what each half costs.
    #[inline(always)]
    pub(super) fn nearest<I: Isa>(&self, isa: I, first: &[Lanes; HALVES], second: &[Lanes; HALVES]) -> Found {
        let worst = isa.splat(WORST);
        let (mut cost, mut rest, mut halves) = (worst, worst, isa.splat(0.0));
        for h in self.firsts() {
            let h = usize::from(*h) % HALVES;
            let (mut even, mut odd) = (worst, worst);
            let (pairs, last) = self.run(h).as_chunks::<2>();
            for [a, b] in pairs {
                even = isa.least(even, second[usize::from(*a) % HALVES].f(isa));
                odd = isa.least(odd, second[usize::from(*b) % HALVES].f(isa));
            }
            if let [a] = last {
                even = isa.least(even, second[usize::from(*a) % HALVES].f(isa));
            }
            even = isa.least(even, odd);
            let total = isa.plus(first[h].f(isa), even);
            halves = isa.where_less(total, cost, isa.splat(h as f32), halves);
            rest = isa.where_less(total, cost, even, rest);
            cost = isa.least(total, cost);
        }
        let (cost, rest, halves) = (Lanes::of(isa, cost), Lanes::of(isa, rest), Lanes::of(isa, halves));
        let mut found = Found { cost, place: [0; LANES], first: [0; LANES] };
        for l in 0..opaque(LANES) {
            let h = halves.0[l] as usize % HALVES;
            let mut place = self.runs[h].0;
            for half in self.run(h) {
                if second[usize::from(*half) % HALVES].0[l] == rest.0[l] {
                    break;
                }
                place += 1;
            }
            (found.first[l], found.place[l]) = (h as u8, place.min(ENTRIES as u16 - 1));
        }
        found
    }

    /// The cheapest entry of each lane where one of its weights must take the wrong sign; the
    /// `flipped` tables hold what each half costs with its cheapest sign flipped.
    #[inline(always)]
    pub(super) fn nearest_flipped<I: Isa>(
        &self,
        isa: I,
        first: &[Lanes; HALVES],
        second: &[Lanes; HALVES],
        first_flipped: &[Lanes; HALVES],
        second_flipped: &[Lanes; HALVES],
    ) -> Found {
        let worst = isa.splat(WORST);
        let (mut cost, mut halves) = (worst, isa.splat(0.0));
        for h in self.firsts() {
            let h = usize::from(*h) % HALVES;
            let (mut plain, mut flipped) = (worst, worst);
            for half in self.run(h) {
                plain = isa.least(plain, second[usize::from(*half) % HALVES].f(isa));
                flipped = isa.least(flipped, second_flipped[usize::from(*half) % HALVES].f(isa));
            }
            let total =
                isa.least(isa.plus(first_flipped[h].f(isa), plain), isa.plus(first[h].f(isa), flipped));
            halves = isa.where_less(total, cost, isa.splat(h as f32), halves);
            cost = isa.least(total, cost);
        }
        let (cost, halves) = (Lanes::of(isa, cost), Lanes::of(isa, halves));
        let mut found = Found { cost, place: [0; LANES], first: [0; LANES] };
        for l in 0..opaque(LANES) {
            let h = halves.0[l] as usize % HALVES;
            let (plain, flipped, least) = (first[h].0[l], first_flipped[h].0[l], cost.0[l]);
            let mut place = self.runs[h].0;
            for half in self.run(h) {
                let half = usize::from(*half) % HALVES;
                if flipped + second[half].0[l] == least || plain + second_flipped[half].0[l] == least {
                    break;
                }
                place += 1;
            }
            (found.first[l], found.place[l]) = (h as u8, place.min(ENTRIES as u16 - 1));
        }
        found
    }

    /// The values of what was found in a lane, half by half.
    #[inline(always)]
    pub(super) fn values<const LEN: usize>(
        &self,
        values: &[[f32; LEN]; HALVES],
        found: &Found,
        lane: usize,
    ) -> [[f32; LEN]; 2] {
        let second = self.seconds[usize::from(found.place[lane])];
        [values[usize::from(found.first[lane]) % HALVES], values[usize::from(second) % HALVES]]
    }

    /// The number in the file of what was found in a lane.
    #[inline(always)]
    pub(super) fn number(&self, found: &Found, lane: usize) -> u16 {
        self.numbers[usize::from(found.place[lane])]
    }
}

/// The halves of entries of `LEN` values: in each the numbers of its levels, the first the most significant.
pub(super) const fn halves<const LEN: usize, const ENTRIES: usize>(
    grid: &[[i8; LEN]; ENTRIES],
    levels: &[i8],
) -> [(u8, u8); ENTRIES] {
    let mut halves = [(0, 0); ENTRIES];
    let mut e = 0;
    while e < ENTRIES {
        let mut digits = [0u8; 2];
        let mut i = 0;
        while i < LEN {
            let mut level = 0;
            while levels[level] != grid[e][i] {
                level += 1;
            }
            let half = &mut digits[2 * i / LEN];
            *half = *half * levels.len() as u8 + level as u8;
            i += 1;
        }
        halves[e] = (digits[0], digits[1]);
        e += 1;
    }
    halves
}

/// The values of every half of `LEN` levels, numbered as in [`halves`].
pub(super) const fn half_values<const LEN: usize, const LEVELS: usize, const HALVES: usize>(
    levels: &[i8; LEVELS],
) -> [[f32; LEN]; HALVES] {
    let mut values = [[0.0; LEN]; HALVES];
    let mut h = 0;
    while h < HALVES {
        let (mut rest, mut i) = (h, LEN);
        while i > 0 {
            i -= 1;
            values[h][i] = levels[rest % LEVELS] as f32;
            rest /= LEVELS;
        }
        h += 1;
    }
    values
}

/// One entry per lane.
#[derive(Clone, Copy)]
pub(super) struct Found {
    /// What it costs.
    pub(super) cost: Lanes,
    /// Its place in the book.
    place: [u16; LANES],
    /// Its first half.
    first: [u8; LANES],
}

impl Found {
    /// Nothing yet.
    pub(super) const NONE: Found = Found { cost: Lanes::ZERO, place: [0; LANES], first: [0; LANES] };
}

/// Sums over pairs, at place `i * B + j`. (Tables are filled in place: returned by value they are copied.)
#[inline(always)]
pub(super) fn sums<I: Isa, const A: usize, const B: usize, const N: usize>(
    isa: I,
    a: &[Lanes; A],
    b: &[Lanes; B],
    out: &mut [Lanes; N],
) {
    for i in 0..opaque(A) {
        let a = a[i].f(isa);
        for (j, b) in b.iter().enumerate() {
            out[B * i + j] = Lanes::of(isa, isa.plus(a, b.f(isa)));
        }
    }
}

/// Minima over pairs.
#[inline(always)]
pub(super) fn minima<I: Isa, const A: usize, const B: usize, const N: usize>(
    isa: I,
    a: &[Lanes; A],
    b: &[Lanes; B],
    out: &mut [Lanes; N],
) {
    for i in 0..opaque(A) {
        let a = a[i].f(isa);
        for (j, b) in b.iter().enumerate() {
            out[B * i + j] = Lanes::of(isa, isa.least(a, b.f(isa)));
        }
    }
}

/// Costs with the cheapest sign flipped, from costs without and prices of pairs.
#[inline(always)]
pub(super) fn flips<I: Isa, const A: usize, const B: usize, const N: usize>(
    isa: I,
    plain: &[Lanes; N],
    a: &[Lanes; A],
    b: &[Lanes; B],
    out: &mut [Lanes; N],
) {
    for i in 0..opaque(A) {
        let a = a[i].f(isa);
        for (j, b) in b.iter().enumerate() {
            let price = isa.least(a, b.f(isa));
            out[B * i + j] = Lanes::of(isa, isa.plus(plain[B * i + j].f(isa), price));
        }
    }
}

/// `<q, q>` of sixteen groups, weighted, a row of values for each.
#[inline(always)]
pub(super) fn squares<I: Isa>(isa: I, groups: &Groups<8>, rows: &[[f32; 8]; LANES]) -> Lanes {
    let (mut sum, q) = (isa.splat(0.0), isa.transpose_groups(rows));
    for i in 0..8 {
        sum = isa.fma(isa.mul(groups.w[i].f(isa), q[i]), q[i], sum);
    }
    Lanes::of(isa, sum)
}

/// Weights and costs of sixteen groups of `W`, one lane per group.
pub(super) struct Groups<const W: usize> {
    pub(super) x: [Lanes; W],
    pub(super) w: [Lanes; W],
}

impl<const W: usize> Groups<W> {
    /// Sixteen consecutive groups.
    #[inline(always)]
    pub(super) fn new(x: &[f32], w: &[f32]) -> Self {
        let mut groups = Self { x: [Lanes::ZERO; W], w: [Lanes::ZERO; W] };
        for l in 0..LANES {
            for i in 0..W {
                groups.x[i].0[l] = x[l * W + i];
                groups.w[i].0[l] = w[l * W + i];
            }
        }
        groups
    }
}
