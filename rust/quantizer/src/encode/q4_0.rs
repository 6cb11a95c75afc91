//! Q4_0: one signed scale for 32 weights (`signed.rs`).

use super::Encode;
use super::lanes::code;
use super::signed::fine_scale;
use super::target::{Target, inverse};
use bytemuck::Zeroable;
use kizami_kernels::formats::q4_0::{BlockQ4_0, Q4_0};

const LOW: f32 = -8.0;
const HIGH: f32 = 7.0;

impl Encode<32> for Q4_0 {
    type Block = BlockQ4_0;

    #[inline(always)]
    fn encode(target: &Target<32>) -> BlockQ4_0 {
        let mut block = BlockQ4_0::zeroed();
        if target.empty {
            return block;
        }
        let (bits, d) = target.frame.store(fine_scale(&target.x, &target.w, LOW, HIGH));
        block.d = bits;
        let id = inverse(d);
        for i in 0..16 {
            block.qs[i] = choose_code(id, target.x[i]) | choose_code(id, target.x[16 + i]) << 4;
        }
        block
    }
}

/// The nearest code, from zero; it does not depend on what errors cost.
#[inline(always)]
fn choose_code(id: f32, x: f32) -> u8 {
    (code(x * id, LOW, HIGH) - LOW) as u8
}
