//! Q4_1: a straight line through 32 weights, its slope and start in f16 (`line.rs`).

use super::Encode;
use super::line::choose_line;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q4_1::{BlockQ4_1, Q4_1};

const LAST: f32 = 15.0;

impl Encode<32> for Q4_1 {
    type Block = BlockQ4_1;

    #[inline(always)]
    fn encode(target: &Target<32>) -> BlockQ4_1 {
        let mut block = BlockQ4_1::zeroed();
        if target.empty {
            return block;
        }
        let line = choose_line(target, LAST);
        (block.d, block.m) = (line.slope, line.start);
        for i in 0..16 {
            block.qs[i] = line.choose_code(target.x[i]) | line.choose_code(target.x[16 + i]) << 4;
        }
        block
    }
}
