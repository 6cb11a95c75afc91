//! Q1_0: signs under one scale for 128 weights, which least squares give.

use super::Encode;
use super::lanes::dot3;
use super::target::Target;
use super::ternary::unbiased;
use bytemuck::Zeroable;
use kizami_kernels::formats::q1_0::{BlockQ1_0, Q1_0};
use kizami_kernels::isa::Isa;

impl Encode<128> for Q1_0 {
    type Block = BlockQ1_0;

    #[inline(always)]
    fn encode<I: Isa>(_: I, target: &Target<128>) -> BlockQ1_0 {
        let mut block = BlockQ1_0::zeroed();
        if target.empty {
            return block;
        }
        let mut signs = [1.0; 128];
        for i in 0..128 {
            let negative = target.x[i] < 0.0;
            block.qs[i / 8] |= u8::from(!negative) << (i % 8);
            signs[i] = if negative { -1.0 } else { 1.0 };
        }
        let d = dot3(&target.w, &target.x, &signs) / dot3(&target.w, &signs, &signs);
        let mut decoded = signs;
        for x in &mut decoded {
            *x *= d;
        }
        block.d = target.frame.store(d * unbiased(target, &decoded)).0;
        block
    }
}
