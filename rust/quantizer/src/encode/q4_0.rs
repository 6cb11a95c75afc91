//! Q4_0: one signed scale for 32 weights (`signed.rs`).

use super::scalar::{Levels, Scaled};
use super::signed::fine_scale;
use super::split::Split;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q4_0::{BlockQ4_0, Q4_0};
use kizami_kernels::isa::Isa;

const LOW: i32 = -8;
const HIGH: i32 = 7;

impl Split<32> for Q4_0 {
    type Block = BlockQ4_0;
    type Scales = Scaled<1>;
    type Search = Levels<LOW, HIGH>;

    #[inline(always)]
    fn choose_scales<I: Isa>(_: I, target: &Target<32>) -> Scaled<1> {
        Scaled::single(target, fine_scale(&target.x, &target.w, LOW as f32, HIGH as f32))
    }

    #[inline(always)]
    fn pack(scales: &Scaled<1>, codes: &[[u8; 8]]) -> BlockQ4_0 {
        let codes = codes.as_flattened();
        let mut block = BlockQ4_0::zeroed();
        block.d = scales.bits;
        for i in 0..16 {
            block.qs[i] = codes[i] | codes[16 + i] << 4;
        }
        block
    }
}
