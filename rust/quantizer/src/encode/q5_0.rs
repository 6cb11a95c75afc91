//! Q5_0: one signed scale for 32 weights (`signed.rs`).

use super::Encode;
use super::lanes::code;
use super::signed::fine_scale;
use super::target::{Target, inverse};
use bytemuck::Zeroable;
use kizami_kernels::formats::q5_0::{BlockQ5_0, Q5_0};

const LOW: f32 = -16.0;
const HIGH: f32 = 15.0;

impl Encode<32> for Q5_0 {
    type Block = BlockQ5_0;

    #[inline(always)]
    fn encode(target: &Target<32>) -> BlockQ5_0 {
        let mut block = BlockQ5_0::zeroed();
        if target.empty {
            return block;
        }
        let (bits, d) = target.frame.store(fine_scale(&target.x, &target.w, LOW, HIGH));
        block.d = bits;
        let id = inverse(d);
        for i in 0..16 {
            let (a, b) = (choose_code(id, target.x[i]), choose_code(id, target.x[16 + i]));
            block.qs[i] = a & 15 | (b & 15) << 4;
            block.qh[i / 8] |= a >> 4 << (i % 8);
            block.qh[2 + i / 8] |= b >> 4 << (i % 8);
        }
        block
    }
}

/// The nearest code, from zero; it does not depend on what errors cost.
#[inline(always)]
fn choose_code(id: f32, x: f32) -> u8 {
    (code(x * id, LOW, HIGH) - LOW) as u8
}
