//! Q2_K: sixteen pairs of scale and minimum, four bits each, under two f16 (`lines.rs`).

use super::Encode;
use super::lines::{Shape, choose_scales};
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q2_k::{BlockQ2K, Q2K};

const SHAPE: Shape = Shape { code: 3.0, scale: 15.0, tops: [(15.0, 15.0), (12.0, 13.0)] };

impl Encode<256> for Q2K {
    type Block = BlockQ2K;

    #[inline(always)]
    fn encode(target: &Target<256>) -> BlockQ2K {
        let mut block = BlockQ2K::zeroed();
        if target.empty {
            return block;
        }
        let scales = choose_scales::<16, 16>(target, &SHAPE);
        (block.d, block.dmin) = (scales.d, scales.dmin);
        for s in 0..16 {
            block.scales[s] = scales.scale[s] as u8 | (scales.min[s] as u8) << 4;
        }
        let codes = scales.codes::<16>(target, &SHAPE);
        for (codes, qs) in codes.as_chunks::<128>().0.iter().zip(block.qs.as_chunks_mut::<32>().0) {
            for i in 0..32 {
                qs[i] = codes[i] | codes[32 + i] << 2 | codes[64 + i] << 4 | codes[96 + i] << 6;
            }
        }
        block
    }
}
