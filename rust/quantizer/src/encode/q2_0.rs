//! Q2_0: -1, 0, 1 and 2 under one signed scale for 64 weights (`ternary.rs`).

use super::Encode;
use super::target::Target;
use super::ternary::{choose_code, choose_scale, unbiased};
use bytemuck::Zeroable;
use kizami_kernels::formats::q2_0::{BlockQ2_0, Q2_0};
use kizami_kernels::isa::Isa;

impl Encode<64> for Q2_0 {
    type Block = BlockQ2_0;

    #[inline(always)]
    fn encode<I: Isa>(_: I, target: &Target<64>) -> BlockQ2_0 {
        let mut block = BlockQ2_0::zeroed();
        if target.empty {
            return block;
        }
        let d = target.frame.store(choose_scale(target, -1.0, 2.0)).1;
        let mut decoded = [0.0; 64];
        for i in 0..64 {
            let (code, value) = choose_code(d, target.x[i], -1.0, 2.0);
            block.qs[i / 4] |= code << (2 * (i % 4));
            decoded[i] = value;
        }
        block.d = target.frame.store(d * unbiased(target, &decoded)).0;
        block
    }
}
