//! Q6_K: sixteen signed sub-scales of eight bits under one f16 (`signed.rs`).

use super::scalar::{Levels, Scaled};
use super::signed::{Shape, choose_scales};
use super::split::Split;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q6_k::{BlockQ6K, Q6K};
use kizami_kernels::isa::Isa;

const SHAPE: Shape = Shape { low: -32.0, high: 31.0, top: 121.0, scales: (-128.0, 127.0) };

impl Split<256> for Q6K {
    type Block = BlockQ6K;
    type Scales = Scaled<16>;
    type Search = Levels<-32, 31>;

    #[inline(always)]
    fn choose_scales<I: Isa>(_: I, target: &Target<256>) -> Scaled<16> {
        choose_scales(target, &SHAPE)
    }

    #[inline(always)]
    fn pack(scales: &Scaled<16>, codes: &[[u8; 8]]) -> BlockQ6K {
        let codes = codes.as_flattened();
        let mut block = BlockQ6K::zeroed();
        block.d = scales.bits;
        for s in 0..16 {
            block.scales[s] = scales.sub[s] as i8;
        }
        for half in 0..2 {
            let (codes, ql) = (&codes[128 * half..][..128], &mut block.ql[64 * half..][..64]);
            let qh = &mut block.qh[32 * half..][..32];
            for i in 0..32 {
                let (a, b, c, d) = (codes[i], codes[32 + i], codes[64 + i], codes[96 + i]);
                ql[i] = a & 15 | (c & 15) << 4;
                ql[32 + i] = b & 15 | (d & 15) << 4;
                qh[i] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6;
            }
        }
        block
    }
}
