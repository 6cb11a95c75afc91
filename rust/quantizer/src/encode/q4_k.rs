//! Q4_K: eight pairs of scale and minimum, six bits each, under two f16 (`lines.rs`).

use super::lines::{Scales, Shape, choose_scales};
use super::scalar::Levels;
use super::split::Split;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q4_k::{BlockQ4K, Q4K};
use kizami_kernels::isa::Isa;

const SHAPE: Shape = Shape { code: 15.0, scale: 63.0, tops: [(61.0, 61.0), (53.0, 57.0)] };

impl Split<256> for Q4K {
    type Block = BlockQ4K;
    type Scales = Scales<8>;
    type Search = Levels<0, 15>;

    #[inline(always)]
    fn choose_scales<I: Isa>(isa: I, target: &Target<256>) -> Scales<8> {
        choose_scales::<I, 32, 8>(isa, target, &SHAPE)
    }

    #[inline(always)]
    fn pack(scales: &Scales<8>, codes: &[[u8; 8]]) -> BlockQ4K {
        let codes = codes.as_flattened();
        let mut block = BlockQ4K::zeroed();
        (block.d, block.dmin, block.scales) = (scales.d, scales.dmin, pack_scales(scales));
        for (codes, qs) in codes.as_chunks::<64>().0.iter().zip(block.qs.as_chunks_mut::<32>().0) {
            for i in 0..32 {
                qs[i] = codes[i] | codes[32 + i] << 4;
            }
        }
        block
    }
}

/// Eight scales and minimums in six bits each, as Q4_K and Q5_K store them.
#[inline(always)]
pub(super) fn pack_scales(scales: &Scales<8>) -> [u8; 12] {
    let mut packed = [0; 12];
    for s in 0..4 {
        let (low, high) = (scales.scale[s] as u8, scales.scale[s + 4] as u8);
        let (min_low, min_high) = (scales.min[s] as u8, scales.min[s + 4] as u8);
        packed[s] = low | high >> 4 << 6;
        packed[s + 4] = min_low | min_high >> 4 << 6;
        packed[s + 8] = high & 15 | (min_high & 15) << 4;
    }
    packed
}
