//! IQ1_M: as IQ1_S, but every eight weights choose their shift, and sixteen share a sub-scale.

use super::codebook::Found;
use super::iq1_s::{BOOK, Code, Groups8, LAST, SHIFTS, TRIALS, nearest_whole, values_of};
use super::lanes::{LANES, Lanes, opaque};
use super::octet::{Octet, Row};
use super::split::{OCTET, Scales, Search, Split};
use super::steps::{Batch, Steps, choose_scales, scales_of};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq1_m::{BlockIq1M, Iq1M};

impl Split<256> for Iq1M {
    type Block = BlockIq1M;
    type Scales = Steps<16>;
    type Search = Shifting;

    #[inline(always)]
    fn choose_scales(target: &Target<256>) -> Steps<16> {
        let batches = [Either(Groups8::new(target, 0)), Either(Groups8::new(target, 1))];
        choose_scales::<_, 16, 1, _>(target, &batches, &TRIALS, LAST, 1.0)
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

    #[inline(always)]
    fn choose_plain<const N: usize>(target: &Target<N>, scales: &impl Scales, codes: &mut [Code]) {
        for (b, codes) in codes.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let found = Either(Groups8::new(target, b)).choose_codes(scales_of(scales, b).0);
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
    fn choose_whole(octet: &Octet, row: &Row, codes: &mut [Code; LANES]) -> [Lanes; OCTET] {
        let mut least = Lanes::splat(f32::MAX);
        for shift in 0..opaque(SHIFTS.len()) {
            let (cost, entries) = nearest_whole(octet, row, Lanes::splat(SHIFTS[shift]));
            for l in 0..LANES {
                if cost.0[l] < least.0[l] {
                    codes[l] = Code { entry: entries[l], shift: shift as u8 };
                }
            }
            least = cost.min(least);
        }
        values_of(codes)
    }
}

/// Sixteen groups of eight that may shift up or down.
struct Either(Groups8);

impl Either {
    /// The cheapest entries under either shift.
    #[inline(always)]
    fn choose_codes(&self, t: Lanes) -> [Found; 2] {
        [self.0.choose_codes(t, Lanes::splat(SHIFTS[0])), self.0.choose_codes(t, Lanes::splat(SHIFTS[1]))]
    }
}

impl Batch for Either {
    #[inline(always)]
    fn sums(&self, t: Lanes, _: usize) -> (Lanes, Lanes) {
        let ((up_xq, up_qq), (down_xq, down_qq)) = (self.0.sums(t, 0), self.0.sums(t, 1));
        let cost = |xq: Lanes, qq: Lanes| t * qq - (xq + xq);
        let (up, down) = (cost(up_xq, up_qq), cost(down_xq, down_qq));
        (down.where_less(up, down_xq, up_xq), down.where_less(up, down_qq, up_qq))
    }
}
