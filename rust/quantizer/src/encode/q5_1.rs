//! Q5_1: a straight line through 32 weights, its slope and start in f16 (`line.rs`).

use super::line::{Stored, choose_line};
use super::scalar::Levels;
use super::split::Split;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q5_1::{BlockQ5_1, Q5_1};
use kizami_kernels::isa::Isa;

const LAST: i32 = 31;

impl Split<32> for Q5_1 {
    type Block = BlockQ5_1;
    type Scales = Stored;
    type Search = Levels<0, LAST>;

    #[inline(always)]
    fn choose_scales<I: Isa>(_: I, target: &Target<32>) -> Stored {
        choose_line(target, LAST as f32)
    }

    #[inline(always)]
    fn pack(line: &Stored, codes: &[[u8; 8]]) -> BlockQ5_1 {
        let codes = codes.as_flattened();
        let mut block = BlockQ5_1::zeroed();
        (block.d, block.m) = (line.slope, line.start);
        for i in 0..16 {
            let (a, b) = (codes[i], codes[16 + i]);
            block.qs[i] = a & 15 | (b & 15) << 4;
            block.qh[i / 8] |= a >> 4 << (i % 8);
            block.qh[2 + i / 8] |= b >> 4 << (i % 8);
        }
        block
    }
}
