//! IQ2_S: eight neighbours become one of 1,024 entries and eight signs, two of them share a sub-scale (`octets.rs`).

use super::codebook::{Book, halves};
use super::octets::{Code, Codebook, HALVES, OctetSearch, octet_scales};
use super::split::Split;
use super::steps::Steps;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq2_s::{BlockIq2S, GRID, Iq2S, MAGNITUDES};
use kizami_kernels::isa::Isa;

static BOOK: Book<1024, HALVES> = Book::new(&halves(&GRID, &MAGNITUDES));

impl Codebook<1024> for Iq2S {
    const GRID: &'static [[i8; 8]; 1024] = &GRID;

    #[inline(always)]
    fn book() -> &'static Book<1024, HALVES> {
        &BOOK
    }
}

impl Split<256> for Iq2S {
    type Block = BlockIq2S;
    type Scales = Steps<16>;
    type Search = OctetSearch<Iq2S, 1024, false>;

    #[inline(always)]
    fn choose_scales<I: Isa>(isa: I, target: &Target<256>) -> Steps<16> {
        octet_scales::<Iq2S, 1024, false, 16, I>(isa, target)
    }

    #[inline(always)]
    fn pack(steps: &Steps<16>, codes: &[Code]) -> BlockIq2S {
        let mut block = BlockIq2S::zeroed();
        block.d = steps.bits;
        for (g, code) in codes.iter().enumerate() {
            block.qs[g] = code.entry as u8;
            block.qh[g / 4] |= ((code.entry >> 8) as u8) << (2 * (g % 4));
            block.signs[g] = code.signs;
        }
        for s in 0..16 {
            block.scales[s / 2] |= steps.step[s] << (4 * (s % 2));
        }
        block
    }
}
