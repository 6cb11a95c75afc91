//! IQ2_XXS: eight neighbours become a codebook entry and seven signs; the eighth sign makes their
//! number even, so where the weights disagree the cheapest sign is given up. The price of that is
//! part of every entry's cost.

use super::Encode;
use super::codebook::{Book, Found, Groups, flips, minima, pairs, sums};
use super::lanes::{LANES, Lanes, opaque};
use super::steps::{Choice, Envelope, GROUPS, LEAST, PER_STEP, STEPS, Steps, best_steps, unbiased};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq2_xxs::{BlockIq2Xxs, GRID, Iq2Xxs, MAGNITUDES};

/// Distinct halves: four magnitudes of three levels.
const HALVES: usize = 81;

static BOOK: Book<256, HALVES> = Book::new(&halves());

const fn halves() -> [(u8, u8); 256] {
    let mut halves = [(0, 0); 256];
    let mut e = 0;
    while e < 256 {
        let mut digits = [0u8; 2];
        let mut i = 0;
        while i < 8 {
            let mut level = 0;
            while MAGNITUDES[level] != GRID[e][i] {
                level += 1;
            }
            digits[i / 4] = digits[i / 4] * 3 + level as u8;
            i += 1;
        }
        halves[e] = (digits[0], digits[1]);
        e += 1;
    }
    halves
}

/// Trial scales relative to a sub-block's root mean square.
const TRIALS: [f32; 7] = [0.034, 0.040, 0.046, 0.052, 0.059, 0.067, 0.077];
/// Rounds of choosing codes at the scales found.
const ROUNDS: usize = 2;
/// The largest sub-scale.
const LAST: f32 = 15.0;

impl Encode<256> for Iq2Xxs {
    type Block = BlockIq2Xxs;

    #[inline(always)]
    fn encode(target: &Target<256>) -> BlockIq2Xxs {
        let mut block = BlockIq2Xxs::zeroed();
        if target.empty {
            return block;
        }
        let batches = [Batch::new(target, 0), Batch::new(target, 1)];
        let steps = choose_scales(target, &batches);
        // The file's d is eight times ours.
        let d = target.frame.store(steps.d * 8.0).1;
        let steps = Steps { d: d / 8.0, ..steps };
        let (mut xq, mut xx) = (0f32, 0f32);
        let words: &mut [[u8; 8]; 8] = bytemuck::cast_mut(&mut block.qs);
        for (b, batch) in batches.iter().enumerate() {
            let found = batch.choose_codes(scales(&steps, b));
            for l in 0..opaque(LANES) {
                let g = LANES * b + l;
                let entry = BOOK.number(&found, l);
                let magnitudes = &GRID[usize::from(entry)];
                let signs = batch.signs(l, magnitudes);
                let (sub, j) = (g / PER_STEP, g % PER_STEP);
                let mut word = u64::from_le_bytes(words[sub]);
                word |= u64::from(entry) << (8 * j) | u64::from(signs & 127) << (32 + 7 * j);
                word |= u64::from(steps.step[sub]) << 60;
                words[sub] = word.to_le_bytes();
                let scale = steps.scale(sub);
                for i in 0..8 {
                    let magnitude = f32::from(magnitudes[i]) * scale;
                    let q = if signs >> i & 1 == 1 { -magnitude } else { magnitude };
                    let (h, x) = (target.h[8 * g + i], target.x[8 * g + i]);
                    xq += h * x * q;
                    xx += h * x * x;
                }
            }
        }
        block.d = target.frame.store(d * unbiased(xx, xq)).0;
        block
    }
}

/// The scale of each of sixteen groups.
#[inline(always)]
fn scales(steps: &Steps, batch: usize) -> Lanes {
    let mut t = Lanes::ZERO;
    for l in 0..LANES {
        t.0[l] = steps.scale((LANES * batch + l) / PER_STEP);
    }
    t
}

#[inline(always)]
fn choose_scales(target: &Target<256>, batches: &[Batch; 2]) -> Steps {
    const K: usize = TRIALS.len() + ROUNDS;
    let mut rms = [0f32; STEPS];
    for b in 0..STEPS {
        let (mut ww, mut wxx) = (0f32, 0f32);
        for i in 32 * b..32 * b + 32 {
            ww += target.w[i];
            wxx += target.w[i] * target.x[i] * target.x[i];
        }
        rms[b] = (wxx / ww).sqrt();
    }
    let mut envelope = Envelope::<K>::new();
    let mut best = Steps { d: 0.0, step: [0; STEPS] };
    for k in 0..K {
        let mut choice = Choice { xq: [0.0; GROUPS], qq: [0.0; GROUPS] };
        for (b, batch) in batches.iter().enumerate() {
            let mut t = scales(&best, b);
            if k < TRIALS.len() {
                for l in 0..LANES {
                    t.0[l] = rms[(LANES * b + l) / PER_STEP] * TRIALS[k];
                }
                t = t.max(Lanes::splat(LEAST));
            }
            let found = batch.choose_codes(t);
            let (xq, qq) = batch.sums(&found, t);
            choice.xq[LANES * b..][..LANES].copy_from_slice(&xq.0);
            choice.qq[LANES * b..][..LANES].copy_from_slice(&qq.0);
        }
        envelope.push(choice);
        if k + 1 >= TRIALS.len() {
            best = best_steps(&envelope, LAST);
        }
    }
    best
}

/// Sixteen groups of eight.
struct Batch {
    groups: Groups<8>,
    /// `w * |x|`
    wx: [Lanes; 8],
    /// 1 where an odd number of weights is negative, else 0.
    odd: Lanes,
    /// `<q, q>` of the halves.
    squares: [[Lanes; HALVES]; 2],
}

impl Batch {
    #[inline(always)]
    fn new(target: &Target<256>, batch: usize) -> Batch {
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
        let mut batch = Batch { groups, wx, odd, squares: [[Lanes::ZERO; HALVES]; 2] };
        half_sums(&digits, 0, &mut batch.squares[0]);
        half_sums(&digits, 4, &mut batch.squares[1]);
        batch
    }

    /// The codes of sixteen groups given their scales: the cheapest entries, signs included.
    #[inline(always)]
    fn choose_codes(&self, t: Lanes) -> Found {
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
        half_flips(first, &prices, 0, first_flipped);
        half_flips(second, &prices, 4, second_flipped);
        BOOK.nearest_flipped(first, second, first_flipped, second_flipped)
    }

    /// `<x, q>` and `<q, q>` of what was found under `t`: its cost is `t² <q, q> - 2 t <x, q>`.
    #[inline(always)]
    fn sums(&self, found: &Found, t: Lanes) -> (Lanes, Lanes) {
        let qq = BOOK.sum_at(found, &self.squares[0], &self.squares[1]);
        ((t * t * qq - found.cost) / (t + t), qq)
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
