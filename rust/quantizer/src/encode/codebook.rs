//! Nearest codebook entry, exhaustively, for sixteen groups at once.
//!
//! An entry is a pair of halves, and there are few distinct halves (81 of four ternary digits for
//! 256 or 2,048 entries). The cost of an entry is a sum over its halves, so tables of half costs,
//! one lane per group, reduce an entry to one vector minimum. Lanes are independent groups: those of
//! one block here; where they come from is the caller's business.

use super::lanes::{LANES, Lanes, opaque};

/// More than any cost.
const WORST: f32 = f32::MAX;

/// The entries of a codebook, ordered by their first half.
pub(super) struct Book<const ENTRIES: usize, const HALVES: usize> {
    /// Second half of each entry.
    seconds: [u8; ENTRIES],
    /// The entry's number in the file.
    numbers: [u16; ENTRIES],
    /// Where the entries of each first half begin and end.
    runs: [(u16, u16); HALVES],
}

impl<const ENTRIES: usize, const HALVES: usize> Book<ENTRIES, HALVES> {
    /// Orders entries given as pairs of half numbers.
    pub(super) const fn new(halves: &[(u8, u8); ENTRIES]) -> Self {
        let mut book = Self { seconds: [0; ENTRIES], numbers: [0; ENTRIES], runs: [(0, 0); HALVES] };
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
        book
    }

    #[inline(always)]
    fn run(&self, first: usize) -> &[u8] {
        let (begin, end) = self.runs[first];
        &self.seconds[usize::from(begin)..usize::from(end)]
    }

    /// The cheapest entry of each lane, given what each half costs.
    #[inline(always)]
    pub(super) fn nearest(&self, first: &[Lanes; HALVES], second: &[Lanes; HALVES]) -> Found {
        let (mut cost, mut halves) = (Lanes::splat(WORST), Lanes::ZERO);
        for h in 0..HALVES {
            let (mut even, mut odd) = (Lanes::splat(WORST), Lanes::splat(WORST));
            let (pairs, rest) = self.run(h).as_chunks::<2>();
            for [a, b] in pairs {
                even = even.min(second[usize::from(*a)]);
                odd = odd.min(second[usize::from(*b)]);
            }
            if let [a] = rest {
                even = even.min(second[usize::from(*a)]);
            }
            let total = first[h] + even.min(odd);
            halves = total.where_less(cost, Lanes::splat(h as f32), halves);
            cost = total.min(cost);
        }
        let mut found = Found { cost, place: [0; LANES], first: [0; LANES] };
        for l in 0..LANES {
            let h = halves.0[l] as usize;
            let (mut best, mut at) = (WORST, 0);
            for (i, half) in self.run(h).iter().enumerate() {
                let cost = second[usize::from(*half)].0[l];
                (best, at) = if cost < best { (cost, i) } else { (best, at) };
            }
            found.first[l] = h as u8;
            found.place[l] = self.runs[h].0 + at as u16;
        }
        found
    }

    /// The cheapest entry of each lane where one of its weights must take the wrong sign; the
    /// `flipped` tables hold what each half costs with its cheapest sign flipped.
    #[inline(always)]
    pub(super) fn nearest_flipped(
        &self,
        first: &[Lanes; HALVES],
        second: &[Lanes; HALVES],
        first_flipped: &[Lanes; HALVES],
        second_flipped: &[Lanes; HALVES],
    ) -> Found {
        let (mut cost, mut halves) = (Lanes::splat(WORST), Lanes::ZERO);
        for h in 0..HALVES {
            let (mut plain, mut flipped) = (Lanes::splat(WORST), Lanes::splat(WORST));
            for half in self.run(h) {
                plain = plain.min(second[usize::from(*half)]);
                flipped = flipped.min(second_flipped[usize::from(*half)]);
            }
            let total = (first_flipped[h] + plain).min(first[h] + flipped);
            halves = total.where_less(cost, Lanes::splat(h as f32), halves);
            cost = total.min(cost);
        }
        let mut found = Found { cost, place: [0; LANES], first: [0; LANES] };
        for l in 0..LANES {
            let h = halves.0[l] as usize;
            let (mut best, mut at) = (WORST, 0);
            for (i, half) in self.run(h).iter().enumerate() {
                let half = usize::from(*half);
                let a = first_flipped[h].0[l] + second[half].0[l];
                let b = first[h].0[l] + second_flipped[half].0[l];
                let cost = if a < b { a } else { b };
                (best, at) = if cost < best { (cost, i) } else { (best, at) };
            }
            found.first[l] = h as u8;
            found.place[l] = self.runs[h].0 + at as u16;
        }
        found
    }

    /// The cheapest entry of each lane, given what each half costs and `2 values(first) cross values(second)` on top.
    /// Halves have two parts of `PARTS` kinds, as in [`whole_costs`].
    #[inline(always)]
    pub(super) fn nearest_whole<const LEN: usize, const PARTS: usize>(
        &self,
        values: &[[f32; LEN]; HALVES],
        first: &[Lanes; HALVES],
        second: &[Lanes; HALVES],
        cross: &[[Lanes; LEN]; LEN],
    ) -> (Lanes, [u16; LANES]) {
        let mut slopes = [[[Lanes::ZERO; LEN]; PARTS]; 2];
        for p in 0..opaque(PARTS) {
            for (side, slopes) in slopes.iter_mut().enumerate() {
                for i in 0..LEN / 2 {
                    let value = Lanes::splat(2.0 * values[p][LEN / 2 + i]);
                    for k in 0..LEN {
                        slopes[p][k] = slopes[p][k] + value * cross[side * LEN / 2 + i][k];
                    }
                }
            }
        }
        let (mut cost, mut places) = (Lanes::splat(WORST), Lanes::ZERO);
        for h in 0..opaque(HALVES) {
            let (begin, end) = self.runs[h];
            let mut slope = [Lanes::ZERO; LEN];
            for k in 0..LEN {
                slope[k] = slopes[0][h / PARTS][k] + slopes[1][h % PARTS][k];
            }
            for place in opaque(begin)..end {
                let half = usize::from(self.seconds[usize::from(place)]);
                let mut total = first[h] + second[half];
                for k in 0..LEN {
                    total = total + slope[k] * Lanes::splat(values[half][k]);
                }
                places = total.where_less(cost, Lanes::splat(f32::from(place)), places);
                cost = total.min(cost);
            }
        }
        let mut numbers = [0; LANES];
        for l in 0..opaque(LANES) {
            numbers[l] = self.numbers[places.0[l] as usize];
        }
        (cost, numbers)
    }

    /// Per lane, the sum of two tables at the halves of what was found there.
    #[inline(always)]
    pub(super) fn sum_at(&self, found: &Found, first: &[Lanes; HALVES], second: &[Lanes; HALVES]) -> Lanes {
        let mut sum = Lanes::ZERO;
        for l in 0..opaque(LANES) {
            let half = usize::from(self.seconds[usize::from(found.place[l])]);
            sum.0[l] = first[usize::from(found.first[l])].0[l] + second[half].0[l];
        }
        sum
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

/// What every half costs under a whole metric, `q m qᵀ - 2 q z`. A half is again two parts of `PARTS` kinds each, in
/// the same order, so most of a cost is a sum over those.
#[inline(always)]
pub(super) fn whole_costs<const LEN: usize, const HALVES: usize, const PARTS: usize>(
    values: &[[f32; LEN]; HALVES],
    m: &[[Lanes; LEN]; LEN],
    z: &[Lanes; LEN],
    out: &mut [Lanes; HALVES],
) {
    let middle = LEN / 2;
    let mut parts = [[Lanes::ZERO; PARTS]; 2];
    for p in 0..opaque(PARTS) {
        for (side, parts) in parts.iter_mut().enumerate() {
            for i in 0..middle {
                let mut slope = Lanes::splat(values[p][middle + i]) * m[side * middle + i][side * middle + i]
                    - (z[side * middle + i] + z[side * middle + i]);
                for j in 0..i {
                    slope = slope
                        + Lanes::splat(2.0 * values[p][middle + j]) * m[side * middle + i][side * middle + j];
                }
                parts[p] = parts[p] + Lanes::splat(values[p][middle + i]) * slope;
            }
        }
    }
    for p in 0..opaque(PARTS) {
        let mut slope = [Lanes::ZERO; LEN];
        for k in 0..middle {
            for i in 0..middle {
                slope[k] = slope[k] + Lanes::splat(2.0 * values[p][middle + i]) * m[i][middle + k];
            }
        }
        for q in 0..opaque(PARTS) {
            let mut sum = parts[0][p] + parts[1][q];
            for k in 0..middle {
                sum = sum + slope[k] * Lanes::splat(values[q][middle + k]);
            }
            out[PARTS * p + q] = sum;
        }
    }
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

/// `(i, j)` at place `i * seconds + j`.
pub(super) const fn pairs<const N: usize>(seconds: usize) -> [(u8, u8); N] {
    let mut pairs = [(0, 0); N];
    let mut n = 0;
    while n < N {
        pairs[n] = ((n / seconds) as u8, (n % seconds) as u8);
        n += 1;
    }
    pairs
}

/// Sums over pairs. (Tables are filled in place: returned by value they are copied.)
#[inline(always)]
pub(super) fn sums<const A: usize, const B: usize, const N: usize>(
    pairs: &[(u8, u8); N],
    a: &[Lanes; A],
    b: &[Lanes; B],
    out: &mut [Lanes; N],
) {
    for (out, &(i, j)) in out.iter_mut().zip(opaque(pairs)) {
        *out = a[usize::from(i)] + b[usize::from(j)];
    }
}

/// Minima over pairs.
#[inline(always)]
pub(super) fn minima<const A: usize, const B: usize, const N: usize>(
    pairs: &[(u8, u8); N],
    a: &[Lanes; A],
    b: &[Lanes; B],
    out: &mut [Lanes; N],
) {
    for (out, &(i, j)) in out.iter_mut().zip(opaque(pairs)) {
        *out = a[usize::from(i)].min(b[usize::from(j)]);
    }
}

/// Costs with the cheapest sign flipped, from costs without and prices of pairs.
#[inline(always)]
pub(super) fn flips<const A: usize, const B: usize, const N: usize>(
    pairs: &[(u8, u8); N],
    plain: &[Lanes; N],
    a: &[Lanes; A],
    b: &[Lanes; B],
    out: &mut [Lanes; N],
) {
    for ((out, plain), &(i, j)) in out.iter_mut().zip(plain).zip(opaque(pairs)) {
        *out = *plain + a[usize::from(i)].min(b[usize::from(j)]);
    }
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
