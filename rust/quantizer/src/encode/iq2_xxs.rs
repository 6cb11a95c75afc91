//! IQ2_XXS: eight neighbours become one of 256 entries and seven signs, four of them share a sub-scale (`octets.rs`).

use super::codebook::{Book, halves};
use super::octets::{Code, Codebook, HALVES, OctetSearch, octet_scales};
use super::split::Split;
use super::steps::Steps;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq2_xxs::{BlockIq2Xxs, GRID, Iq2Xxs, MAGNITUDES};
use kizami_kernels::isa::Isa;

static BOOK: Book<256, HALVES> = Book::new(&halves(&GRID, &MAGNITUDES));

impl Codebook<256> for Iq2Xxs {
    const GRID: &'static [[i8; 8]; 256] = &GRID;

    #[inline(always)]
    fn book() -> &'static Book<256, HALVES> {
        &BOOK
    }
}

impl Split<256> for Iq2Xxs {
    type Block = BlockIq2Xxs;
    type Scales = Steps<8>;
    type Search = OctetSearch<Iq2Xxs, 256, true>;

    #[inline(always)]
    fn choose_scales<I: Isa>(isa: I, target: &Target<256>) -> Steps<8> {
        octet_scales::<Iq2Xxs, 256, true, 8, I>(isa, target)
    }

    #[inline(always)]
    fn pack(steps: &Steps<8>, codes: &[Code]) -> BlockIq2Xxs {
        let mut block = BlockIq2Xxs::zeroed();
        block.d = steps.bits;
        let words: &mut [[u8; 8]; 8] = bytemuck::cast_mut(&mut block.qs);
        for (g, code) in codes.iter().enumerate() {
            let (sub, j) = (g / 4, g % 4);
            let mut word = u64::from_le_bytes(words[sub]);
            word |= u64::from(code.entry) << (8 * j) | u64::from(code.signs & 127) << (32 + 7 * j);
            word |= u64::from(steps.step[sub]) << 60;
            words[sub] = word.to_le_bytes();
        }
        block
    }
}
