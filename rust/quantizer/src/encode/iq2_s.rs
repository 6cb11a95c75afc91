//! IQ2_S: eight neighbours become one of 1,024 entries and eight signs, two of them share a sub-scale (`octets.rs`).

use super::Encode;
use super::codebook::{Book, halves};
use super::lanes::{LANES, opaque};
use super::octets::{HALVES, LAST, Octets, TRIALS};
use super::steps::{choose_scales, unbiased};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq2_s::{BlockIq2S, GRID, Iq2S, MAGNITUDES};

static BOOK: Book<1024, HALVES> = Book::new(&halves(&GRID, &MAGNITUDES));

impl Encode<256> for Iq2S {
    type Block = BlockIq2S;

    #[inline(always)]
    fn encode(target: &Target<256>) -> BlockIq2S {
        let mut block = BlockIq2S::zeroed();
        if target.empty {
            return block;
        }
        let batches: [Octets<1024, false>; 2] =
            [Octets::new(&BOOK, target, 0), Octets::new(&BOOK, target, 1)];
        let mut steps = choose_scales::<_, 16, 1, _>(target, &batches, &TRIALS, LAST);
        // The file's d is eight times ours.
        steps.d = target.frame.store(steps.d * 8.0).1 / 8.0;
        let mut decoded = [0.0; 256];
        for (b, batch) in batches.iter().enumerate() {
            let scales = steps.scales(b);
            let found = batch.choose_codes(scales);
            for l in 0..opaque(LANES) {
                let g = LANES * b + l;
                let entry = BOOK.number(&found, l);
                let magnitudes = &GRID[usize::from(entry)];
                let signs = batch.signs(l, magnitudes);
                block.qs[g] = entry as u8;
                block.qh[g / 4] |= ((entry >> 8) as u8) << (2 * (g % 4));
                block.signs[g] = signs;
                for i in 0..8 {
                    let magnitude = f32::from(magnitudes[i]) * scales.0[l];
                    decoded[8 * g + i] = if signs >> i & 1 == 1 { -magnitude } else { magnitude };
                }
            }
        }
        for s in 0..16 {
            block.scales[s / 2] |= steps.step[s] << (4 * (s % 2));
        }
        block.d = target.frame.store(steps.d * 8.0 * unbiased(target, &decoded)).0;
        block
    }
}
