//! IQ2_XXS: eight neighbours become one of 256 entries and seven signs, four of them share a sub-scale (`octets.rs`).

use super::Encode;
use super::codebook::{Book, halves};
use super::lanes::{LANES, opaque};
use super::octets::{HALVES, LAST, Octets, TRIALS};
use super::steps::{choose_scales, unbiased};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq2_xxs::{BlockIq2Xxs, GRID, Iq2Xxs, MAGNITUDES};

static BOOK: Book<256, HALVES> = Book::new(&halves(&GRID, &MAGNITUDES));

impl Encode<256> for Iq2Xxs {
    type Block = BlockIq2Xxs;

    #[inline(always)]
    fn encode(target: &Target<256>) -> BlockIq2Xxs {
        let mut block = BlockIq2Xxs::zeroed();
        if target.empty {
            return block;
        }
        let batches: [Octets<256, true>; 2] = [Octets::new(&BOOK, target, 0), Octets::new(&BOOK, target, 1)];
        let mut steps = choose_scales::<_, 8, 1, _>(target, &batches, &TRIALS, LAST);
        // The file's d is eight times ours.
        steps.d = target.frame.store(steps.d * 8.0).1 / 8.0;
        let mut decoded = [0.0; 256];
        let words: &mut [[u8; 8]; 8] = bytemuck::cast_mut(&mut block.qs);
        for (b, batch) in batches.iter().enumerate() {
            let scales = steps.scales(b);
            let found = batch.choose_codes(scales);
            for l in 0..opaque(LANES) {
                let g = LANES * b + l;
                let entry = BOOK.number(&found, l);
                let magnitudes = &GRID[usize::from(entry)];
                let signs = batch.signs(l, magnitudes);
                let (sub, j) = (g / 4, g % 4);
                let mut word = u64::from_le_bytes(words[sub]);
                word |= u64::from(entry) << (8 * j) | u64::from(signs & 127) << (32 + 7 * j);
                word |= u64::from(steps.step[sub]) << 60;
                words[sub] = word.to_le_bytes();
                for i in 0..8 {
                    let magnitude = f32::from(magnitudes[i]) * scales.0[l];
                    decoded[8 * g + i] = if signs >> i & 1 == 1 { -magnitude } else { magnitude };
                }
            }
        }
        block.d = target.frame.store(steps.d * 8.0 * unbiased(target, &decoded)).0;
        block
    }
}
