//! Q4_1: a straight line through 32 weights, its slope and start in f16 (`line.rs`).

use super::line::{Stored, choose_line};
use super::scalar::Levels;
use super::split::Split;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q4_1::{BlockQ4_1, Q4_1};
use kizami_kernels::isa::Isa;

const LAST: i32 = 15;

impl Split<32> for Q4_1 {
    type Block = BlockQ4_1;
    type Scales = Stored;
    type Search = Levels<0, LAST>;

    #[inline(always)]
    fn choose_scales<I: Isa>(_: I, target: &Target<32>) -> Stored {
        choose_line(target, LAST as f32)
    }

    #[inline(always)]
    fn pack(line: &Stored, codes: &[[u8; 8]]) -> BlockQ4_1 {
        let codes = codes.as_flattened();
        let mut block = BlockQ4_1::zeroed();
        (block.d, block.m) = (line.slope, line.start);
        for i in 0..16 {
            block.qs[i] = codes[i] | codes[16 + i] << 4;
        }
        block
    }
}
