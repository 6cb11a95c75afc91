//! Q2_K: sixteen pairs of scale and minimum, four bits each, under two f16 (`lines.rs`).

use super::lines::{Scales, Shape, choose_scales};
use super::scalar::Levels;
use super::split::Split;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q2_k::{BlockQ2K, Q2K};
use kizami_kernels::isa::Isa;

const SHAPE: Shape = Shape { code: 3.0, scale: 15.0, tops: [(15.0, 15.0), (12.0, 13.0)] };

impl Split<256> for Q2K {
    type Block = BlockQ2K;
    type Scales = Scales<16>;
    type Search = Levels<0, 3>;

    #[inline(always)]
    fn choose_scales<I: Isa>(isa: I, target: &Target<256>) -> Scales<16> {
        choose_scales::<I, 16, 16>(isa, target, &SHAPE)
    }

    #[inline(always)]
    fn pack(scales: &Scales<16>, codes: &[[u8; 8]]) -> BlockQ2K {
        let codes = codes.as_flattened();
        let mut block = BlockQ2K::zeroed();
        (block.d, block.dmin) = (scales.d, scales.dmin);
        for s in 0..16 {
            block.scales[s] = scales.scale[s] as u8 | (scales.min[s] as u8) << 4;
        }
        for (codes, qs) in codes.as_chunks::<128>().0.iter().zip(block.qs.as_chunks_mut::<32>().0) {
            for i in 0..32 {
                qs[i] = codes[i] | codes[32 + i] << 2 | codes[64 + i] << 4 | codes[96 + i] << 6;
            }
        }
        block
    }
}
