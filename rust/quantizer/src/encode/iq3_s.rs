//! IQ3_S: four neighbours become one of 512 entries of eight magnitudes; every sign is free.

use super::codebook::{Book, Found, Groups, Tables, half_values, halves, squares, sums};
use super::lanes::{LANES, Lanes, codes, opaque};
use super::octet::{Octet, Row};
use super::quads::{self, Code, Codebook, HALVES};
use super::scalar::Nearest;
use super::split::{OCTET, Scales, Search, Split};
use super::steps::{Batch, Free, Steps, choose_scales, free_scales, scales_of};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq3_s::{BlockIq3S, GRID, Iq3S, MAGNITUDES};
use kizami_kernels::isa::Isa;
use std::marker::PhantomData;

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

/// Trial scales of a sub-block whose root mean square is one, while any magnitudes will do; the first as in
/// `octets.rs`.
const TRIALS: [f32; 7] = [0.068, 0.09, 0.12, 0.145, 0.175, 0.21, 0.265];
/// What those lead to times these are the scales under which entries are searched to choose scales again.
const NEAR: [f32; 3] = [0.8, 0.95, 1.12];
/// The largest sub-scale.
const LAST: f32 = 15.0;

impl Split<256> for Iq3S {
    type Block = BlockIq3S;
    type Scales = Steps<8>;
    type Search = QuadSearch;

    #[inline(always)]
    fn choose_scales<I: Isa>(isa: I, target: &Target<256>) -> Steps<8> {
        let batches = [Quads::new(target, 0), Quads::new(target, 1)];
        let free = [Free::<Eight>(&batches[0].groups, PhantomData), Free(&batches[1].groups, PhantomData)];
        let scales = free_scales::<_, _, 8, 1, _>(isa, target, &free, &TRIALS);
        let mut room = [[Lanes::ZERO; HALVES]; 4];
        choose_scales(isa, target, &batches, &scales, &NEAR, LAST, 1.0, &mut room)
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
            let found = Quads::new(target, b).choose_codes(isa, scales_of(scales, b).0, &mut room);
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
    fn choose_whole<I: Isa>(
        isa: I,
        octet: &Octet,
        row: &Row,
        draft: bool,
        codes: &mut [Code; LANES],
    ) -> [Lanes; OCTET] {
        quads::choose_whole::<I, Iq3S, 512, false>(isa, octet, row, draft, codes)
    }
}

/// Sixteen groups of eight: two entries each.
struct Quads {
    groups: Groups<8>,
}

impl Quads {
    #[inline(always)]
    fn new<const N: usize>(target: &Target<N>, batch: usize) -> Quads {
        let groups = Groups::<8>::new(&target.x[128 * batch..][..128], &target.w[128 * batch..][..128]);
        Quads { groups }
    }

    /// The codes of sixteen groups given their scales: the cheapest entries of either half.
    #[inline(always)]
    fn choose_codes<I: Isa>(&self, isa: I, t: Lanes, room: &mut Tables<HALVES>) -> [Found; 2] {
        let mut costs = [[Lanes::ZERO; 8]; 8];
        let t = t.f(isa);
        for i in 0..opaque(OCTET) {
            let (twice, w) = (self.groups.x[i].abs() * Lanes::splat(-2.0), self.groups.w[i].f(isa));
            let twice = twice.f(isa);
            for level in 0..8 {
                let q = isa.mul(t, isa.splat(f32::from(MAGNITUDES[level])));
                costs[i][level] = Lanes::of(isa, isa.mul(isa.mul(w, q), isa.plus(q, twice)));
            }
        }
        let mut found = [Found::NONE; 2];
        for &h in opaque(&[0usize, 1]) {
            let [first, second, ..] = &mut *room;
            sums(isa, &costs[4 * h], &costs[4 * h + 1], first);
            sums(isa, &costs[4 * h + 2], &costs[4 * h + 3], second);
            found[h] = BOOK.nearest(isa, first, second);
        }
        found
    }
}

/// The eight magnitudes.
struct Eight;

impl Nearest for Eight {
    #[inline(always)]
    fn nearest<I: Isa>(isa: I, x: I::F) -> I::F {
        isa.fma(
            codes(isa, isa.fma(x, isa.splat(0.5), isa.splat(-0.5)), 0.0, 7.0),
            isa.splat(2.0),
            isa.splat(1.0),
        )
    }
}

impl Batch for Quads {
    type Room = Tables<HALVES>;

    /// The cost of what is found is `t² <q, q> - 2 t <x, q>`.
    #[inline(always)]
    fn sums<I: Isa>(&self, isa: I, t: Lanes, _: usize, room: &mut Tables<HALVES>) -> (Lanes, Lanes) {
        let found = self.choose_codes(isa, t, room);
        let mut rows = [[0.0; OCTET]; LANES];
        for l in 0..opaque(LANES) {
            let first = BOOK.values(&VALUES, &found[0], l);
            rows[l] = bytemuck::cast([first, BOOK.values(&VALUES, &found[1], l)]);
        }
        let (qq, cost) = (squares(isa, &self.groups, &rows), found[0].cost + found[1].cost);
        ((t * t * qq - cost) / (t + t), qq)
    }
}
