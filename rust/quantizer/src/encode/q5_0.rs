//! Q5_0: one signed scale for 32 weights (`signed.rs`).

use super::scalar::{Levels, Scaled};
use super::signed::fine_scale;
use super::split::Split;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q5_0::{BlockQ5_0, Q5_0};
use kizami_kernels::isa::Isa;

const LOW: i32 = -16;
const HIGH: i32 = 15;

impl Split<32> for Q5_0 {
    type Block = BlockQ5_0;
    type Scales = Scaled<1>;
    type Search = Levels<LOW, HIGH>;

    #[inline(always)]
    fn choose_scales<I: Isa>(_: I, target: &Target<32>) -> Scaled<1> {
        Scaled::single(target, fine_scale(&target.x, &target.w, LOW as f32, HIGH as f32))
    }

    #[inline(always)]
    fn pack(scales: &Scaled<1>, codes: &[[u8; 8]]) -> BlockQ5_0 {
        let codes = codes.as_flattened();
        let mut block = BlockQ5_0::zeroed();
        block.d = scales.bits;
        for i in 0..16 {
            let (a, b) = (codes[i], codes[16 + i]);
            block.qs[i] = a & 15 | (b & 15) << 4;
            block.qh[i / 8] |= a >> 4 << (i % 8);
            block.qh[2 + i / 8] |= b >> 4 << (i % 8);
        }
        block
    }
}
