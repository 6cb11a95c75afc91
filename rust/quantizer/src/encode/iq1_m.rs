//! IQ1_M: as IQ1_S, but every eight weights choose their shift, and sixteen share a sub-scale.

use super::iq1_s::{
    BOOK, Code, Entries, Free, HALVES, LAST, SHIFTS, TRIALS, any_values, choose_codes, nearest_whole,
    values_of,
};
use super::lanes::{LANES, Lanes, opaque};
use super::octet::{Octet, Row};
use super::split::{OCTET, Scales, Search, Split};
use super::steps::{Batch, Steps, choose_scales, free_scales, scales_of};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq1_m::{BlockIq1M, Iq1M};
use kizami_kernels::isa::Isa;

/// As in `iq1_s.rs`. Under both .82 and 1 the plain error was .3 % lower, with feedback it was not, and encoding took half as
/// long again.
const NEAR: [f32; 1] = [0.9];

/// The scales of a block; for a draft those that would suit any three values.
#[inline(always)]
fn scales<I: Isa>(isa: I, target: &Target<256>, draft: bool) -> Steps<16> {
    let free = [Free::new(target, 0), Free::new(target, 1)];
    let either = [Either(&free[0]), Either(&free[1])];
    let scales = free_scales::<_, _, 16, 1, _>(isa, target, &either, &TRIALS);
    if draft {
        return choose_scales(isa, target, &either, &scales, &[1.0], LAST, 1.0, &mut ());
    }
    let entries = [Entries(&free[0].0), Entries(&free[1].0)];
    let either = [Either(&entries[0]), Either(&entries[1])];
    let mut room = [[Lanes::ZERO; HALVES]; 4];
    choose_scales(isa, target, &either, &scales, &NEAR, LAST, 1.0, &mut room)
}

impl Split<256> for Iq1M {
    type Block = BlockIq1M;
    type Scales = Steps<16>;
    type Search = Shifting;

    #[inline(always)]
    fn choose_scales<I: Isa>(isa: I, target: &Target<256>) -> Steps<16> {
        scales(isa, target, false)
    }

    #[inline(always)]
    fn draft_scales<I: Isa>(isa: I, target: &Target<256>) -> Steps<16> {
        scales(isa, target, true)
    }

    #[inline(always)]
    fn pack(steps: &Steps<16>, codes: &[Code]) -> BlockIq1M {
        let mut block = BlockIq1M::zeroed();
        for (g, code) in codes.iter().enumerate() {
            block.qs[g] = code.entry as u8;
            block.qh[g / 2] |= ((code.entry >> 8) as u8 | code.shift << 3) << (4 * (g % 2));
        }
        let d = u64::from(u16::from_le_bytes(steps.bits));
        let mut words = (d & 0xf) << 12 | (d >> 4 & 0xf) << 28 | (d >> 8 & 0xf) << 44 | (d >> 12) << 60;
        for s in 0..16 {
            words |= u64::from(steps.step[s]) << (16 * (s / 4) + 3 * (s % 4));
        }
        block.scales = words.to_le_bytes();
        block
    }
}

/// The search where every entry has a shift of its own.
pub(super) struct Shifting;

impl Search for Shifting {
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
            let (groups, scale) = (Free::new(target, b).0, scales_of(scales, b).0);
            let found = [
                choose_codes(isa, &groups, scale, Lanes::splat(SHIFTS[0]), &mut room),
                choose_codes(isa, &groups, scale, Lanes::splat(SHIFTS[1]), &mut room),
            ];
            for l in 0..opaque(LANES) {
                let down = usize::from(found[1].cost.0[l] < found[0].cost.0[l]);
                codes[l] = Code { entry: BOOK.number(&found[down], l), shift: down as u8 };
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
            return any_values(isa, octet, row, Lanes::ZERO);
        }
        let (entries, shifts) =
            nearest_whole(isa, octet, row, [Lanes::splat(SHIFTS[0]), Lanes::splat(SHIFTS[1])]);
        for l in 0..LANES {
            codes[l] = Code { entry: entries[l], shift: shifts[l] };
        }
        values_of(codes)
    }
}

/// Sixteen groups of eight that may shift up or down.
struct Either<'a, B>(&'a B);

impl<B: Batch> Batch for Either<'_, B> {
    type Room = B::Room;

    #[inline(always)]
    fn sums<I: Isa>(&self, isa: I, t: Lanes, _: usize, room: &mut B::Room) -> (Lanes, Lanes) {
        let (up_xq, up_qq) = self.0.sums(isa, t, 0, room);
        let (down_xq, down_qq) = self.0.sums(isa, t, 1, room);
        let (up, down) = (t * up_qq - (up_xq + up_xq), t * down_qq - (down_xq + down_xq));
        (down.where_less(up, down_xq, up_xq), down.where_less(up, down_qq, up_qq))
    }
}
