//! Q3_K: sixteen signed sub-scales of six bits under one f16 (`signed.rs`).

use super::scalar::{Levels, Scaled};
use super::signed::{Shape, choose_scales};
use super::split::Split;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q3_k::{BlockQ3K, Q3K};
use kizami_kernels::isa::Isa;

const SHAPE: Shape = Shape { low: -4.0, high: 3.0, top: 30.0, scales: (-32.0, 31.0) };

impl Split<256> for Q3K {
    type Block = BlockQ3K;
    type Scales = Scaled<16>;
    type Search = Levels<-4, 3>;

    #[inline(always)]
    fn choose_scales<I: Isa>(_: I, target: &Target<256>) -> Scaled<16> {
        choose_scales(target, &SHAPE)
    }

    #[inline(always)]
    fn pack(scales: &Scaled<16>, codes: &[[u8; 8]]) -> BlockQ3K {
        let codes = codes.as_flattened();
        let mut block = BlockQ3K::zeroed();
        block.d = scales.bits;
        for s in 0..16 {
            let scale = (scales.sub[s] + 32.0) as u8;
            block.scales[s % 8] |= (scale & 15) << (4 * (s / 8));
            block.scales[8 + s % 4] |= scale >> 4 << (2 * (s / 4));
        }
        for (i, code) in codes.iter().enumerate() {
            let (half, plane, byte) = (i / 128, i / 32 % 4, i % 32);
            block.qs[32 * half + byte] |= (code & 3) << (2 * plane);
            block.hmask[byte] |= code >> 2 << (i / 32);
        }
        block
    }
}
