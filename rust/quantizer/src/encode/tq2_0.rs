//! TQ2_0: -1, 0 and 1 under one scale for 256 weights (`ternary.rs`).

use super::Encode;
use super::target::Target;
use super::ternary::{choose_code, choose_scale, unbiased};
use bytemuck::Zeroable;
use kizami_kernels::formats::tq2_0::{BlockTq2_0, Tq2_0};
use kizami_kernels::isa::Isa;

impl Encode<256> for Tq2_0 {
    type Block = BlockTq2_0;

    #[inline(always)]
    fn encode<I: Isa>(_: I, target: &Target<256>) -> BlockTq2_0 {
        let mut block = BlockTq2_0::zeroed();
        if target.empty {
            return block;
        }
        let d = target.frame.store(choose_scale(target, -1.0, 1.0)).1;
        let (mut codes, mut decoded) = ([0; 256], [0.0; 256]);
        for i in 0..256 {
            (codes[i], decoded[i]) = choose_code(d, target.x[i], -1.0, 1.0);
        }
        block.d = target.frame.store(d * unbiased(target, &decoded)).0;
        for (i, code) in codes.iter().enumerate() {
            block.qs[32 * (i / 128) + i % 32] |= code << (2 * (i / 32 % 4));
        }
        block
    }
}
