//! IQ1_M: as IQ1_S, but every eight weights choose their shift, and sixteen share a sub-scale.

use super::Encode;
use super::codebook::Found;
use super::iq1_s::{BOOK, Groups8, LAST, SHIFTS, TRIALS};
use super::lanes::{LANES, Lanes, opaque};
use super::steps::{Batch, choose_scales, unbiased};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq1_m::{BlockIq1M, Iq1M};
use kizami_kernels::formats::iq1_s::GRID;

impl Encode<256> for Iq1M {
    type Block = BlockIq1M;

    #[inline(always)]
    fn encode(target: &Target<256>) -> BlockIq1M {
        let mut block = BlockIq1M::zeroed();
        if target.empty {
            return block;
        }
        let batches = [Either(Groups8::new(target, 0)), Either(Groups8::new(target, 1))];
        let mut steps = choose_scales::<_, 16, 1, _>(target, &batches, &TRIALS, LAST);
        steps.d = target.frame.store(steps.d).1;
        let mut decoded = [0.0; 256];
        for (b, batch) in batches.iter().enumerate() {
            let scales = steps.scales(b);
            let found = batch.choose_codes(scales);
            for l in 0..opaque(LANES) {
                let g = LANES * b + l;
                let down = usize::from(found[1].cost.0[l] < found[0].cost.0[l]);
                let entry = BOOK.number(&found[down], l);
                block.qs[g] = entry as u8;
                block.qh[g / 2] |= ((entry >> 8) as u8 | (down as u8) << 3) << (4 * (g % 2));
                for i in 0..8 {
                    let code = f32::from(GRID[usize::from(entry)][i]) + SHIFTS[down];
                    decoded[8 * g + i] = code * scales.0[l];
                }
            }
        }
        let d = u64::from(u16::from_le_bytes(target.frame.store(steps.d * unbiased(target, &decoded)).0));
        let mut words = (d & 0xf) << 12 | (d >> 4 & 0xf) << 28 | (d >> 8 & 0xf) << 44 | (d >> 12) << 60;
        for s in 0..16 {
            words |= u64::from(steps.step[s]) << (16 * (s / 4) + 3 * (s % 4));
        }
        block.scales = words.to_le_bytes();
        block
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
