//! Q5_1: a straight line through 32 weights, its slope and start in f16 (`line.rs`).

use super::Encode;
use super::line::choose_line;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q5_1::{BlockQ5_1, Q5_1};

const LAST: f32 = 31.0;

impl Encode<32> for Q5_1 {
    type Block = BlockQ5_1;

    #[inline(always)]
    fn encode(target: &Target<32>) -> BlockQ5_1 {
        let mut block = BlockQ5_1::zeroed();
        if target.empty {
            return block;
        }
        let line = choose_line(target, LAST);
        (block.d, block.m) = (line.slope, line.start);
        for i in 0..16 {
            let (a, b) = (line.choose_code(target.x[i]), line.choose_code(target.x[16 + i]));
            block.qs[i] = a & 15 | (b & 15) << 4;
            block.qh[i / 8] |= a >> 4 << (i % 8);
            block.qh[2 + i / 8] |= b >> 4 << (i % 8);
        }
        block
    }
}
