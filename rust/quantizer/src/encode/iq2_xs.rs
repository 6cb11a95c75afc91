//! IQ2_XS: eight neighbours become one of 512 entries and seven signs, two of them share a sub-scale (`octets.rs`).

use super::codebook::{Book, halves};
use super::octets::{Code, Codebook, HALVES, OctetSearch, octet_scales};
use super::split::Split;
use super::steps::Steps;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::iq2_xs::{BlockIq2Xs, GRID, Iq2Xs, MAGNITUDES};
use kizami_kernels::isa::Isa;

static BOOK: Book<512, HALVES> = Book::new(&halves(&GRID, &MAGNITUDES));

impl Codebook<512> for Iq2Xs {
    const GRID: &'static [[i8; 8]; 512] = &GRID;

    #[inline(always)]
    fn book() -> &'static Book<512, HALVES> {
        &BOOK
    }
}

impl Split<256> for Iq2Xs {
    type Block = BlockIq2Xs;
    type Scales = Steps<16>;
    type Search = OctetSearch<Iq2Xs, 512, true>;

    #[inline(always)]
    fn choose_scales<I: Isa>(isa: I, target: &Target<256>) -> Steps<16> {
        octet_scales::<Iq2Xs, 512, true, 16, I>(isa, target)
    }

    #[inline(always)]
    fn pack(steps: &Steps<16>, codes: &[Code]) -> BlockIq2Xs {
        let mut block = BlockIq2Xs::zeroed();
        block.d = steps.bits;
        for (code, word) in codes.iter().zip(block.qs.as_chunks_mut::<2>().0) {
            *word = (code.entry | u16::from(code.signs & 127) << 9).to_le_bytes();
        }
        for s in 0..16 {
            block.scales[s / 2] |= steps.step[s] << (4 * (s % 2));
        }
        block
    }
}
