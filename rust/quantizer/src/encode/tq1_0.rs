//! TQ1_0: -1, 0 and 1 under one scale for 256 weights (`ternary.rs`).

use super::Encode;
use super::target::Target;
use super::ternary::{choose_code, choose_scale, unbiased};
use bytemuck::Zeroable;
use kizami_kernels::formats::tq1_0::{BlockTq1_0, Tq1_0};
use kizami_kernels::isa::Isa;

impl Encode<256> for Tq1_0 {
    type Block = BlockTq1_0;

    #[inline(always)]
    fn encode<I: Isa>(_: I, target: &Target<256>) -> BlockTq1_0 {
        let mut block = BlockTq1_0::zeroed();
        if target.empty {
            return block;
        }
        let d = target.frame.store(choose_scale(target, -1.0, 1.0)).1;
        let (mut codes, mut decoded) = ([0; 256], [0.0; 256]);
        for i in 0..256 {
            (codes[i], decoded[i]) = choose_code(d, target.x[i], -1.0, 1.0);
        }
        block.d = target.frame.store(d * unbiased(target, &decoded)).0;
        let digits = |first: usize, stride: usize, count: usize| {
            let mut n = 0u32;
            for k in 0..count {
                n = 3 * n + u32::from(codes[first + stride * k]);
            }
            n
        };
        for i in 0..32 {
            block.qs[i] = packed(digits(i, 32, 5));
        }
        for i in 0..16 {
            block.qs[32 + i] = packed(digits(160 + i, 16, 5));
        }
        for i in 0..4 {
            block.qh[i] = packed(3 * digits(240 + i, 4, 4));
        }
        block
    }
}

/// Five digits base 3 as the byte whose products give them back: the number as a fraction of 243, rounded up.
#[inline(always)]
fn packed(n: u32) -> u8 {
    (n * 256).div_ceil(243) as u8
}
