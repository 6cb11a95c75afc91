//! Q5_K: eight pairs of scale and minimum, six bits each, under two f16 (`lines.rs`).

use super::lines::{Scales, Shape, choose_scales};
use super::q4_k::pack_scales;
use super::scalar::Levels;
use super::split::Split;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q5_k::{BlockQ5K, Q5K};
use kizami_kernels::isa::Isa;

const SHAPE: Shape = Shape { code: 31.0, scale: 63.0, tops: [(61.0, 61.0), (53.0, 57.0)] };

impl Split<256> for Q5K {
    type Block = BlockQ5K;
    type Scales = Scales<8>;
    type Search = Levels<0, 31>;

    #[inline(always)]
    fn choose_scales<I: Isa>(isa: I, target: &Target<256>) -> Scales<8> {
        choose_scales::<I, 32, 8>(isa, target, &SHAPE)
    }

    #[inline(always)]
    fn pack(scales: &Scales<8>, codes: &[[u8; 8]]) -> BlockQ5K {
        let codes = codes.as_flattened();
        let mut block = BlockQ5K::zeroed();
        (block.d, block.dmin, block.scales) = (scales.d, scales.dmin, pack_scales(scales));
        for (j, (codes, qs)) in
            codes.as_chunks::<64>().0.iter().zip(block.qs.as_chunks_mut::<32>().0).enumerate()
        {
            for i in 0..32 {
                qs[i] = codes[i] & 15 | (codes[32 + i] & 15) << 4;
                block.qh[i] |= codes[i] >> 4 << (2 * j) | codes[32 + i] >> 4 << (2 * j + 1);
            }
        }
        block
    }
}
