//! MXFP4: of sixteen powers of two the one that leaves 32 weights the smallest error.

use super::Encode;
use super::e2m1::{choose_code, errors};
use super::lanes::Lanes;
use super::target::{Target, inverse};
use bytemuck::Zeroable;
use kizami_kernels::formats::mxfp4::{BlockMxfp4, Mxfp4, scale};
use kizami_kernels::isa::Isa;

impl Encode<32> for Mxfp4 {
    type Block = BlockMxfp4;

    #[inline(always)]
    fn encode<I: Isa>(_: I, target: &Target<32>) -> BlockMxfp4 {
        let mut block = BlockMxfp4::zeroed();
        if target.empty {
            return block;
        }
        // The largest magnitude is 1 to 2 here, the largest code 12: from scales far too large to far too small.
        let (mut scales, mut inverses) = (Lanes::ZERO, Lanes::ZERO);
        for l in 0..16 {
            let d = target.frame.restored(1.0 / (1 << (l + 1)) as f32);
            block.e = exponent(d);
            scales.0[l] = target.frame.normalized(scale(block.e));
            inverses.0[l] = inverse(scales.0[l]);
        }
        let best = errors(&target.x, &target.w, scales, inverses).argmin();
        block.e = exponent(target.frame.restored(1.0 / (1 << (best + 1)) as f32));
        let id = inverses.0[best];
        for i in 0..16 {
            block.qs[i] = choose_code(id, target.x[i]) | choose_code(id, target.x[16 + i]) << 4;
        }
        block
    }
}

/// The largest exponent under which every code is finite.
const LAST: u32 = 252;

/// The byte whose scale is `d`, a power of two, or the nearest there is.
#[inline(always)]
fn exponent(d: f32) -> u8 {
    // Bits 23.. of an f32 are its exponent plus 127, the byte's is plus 128; zero and one stand for subnormals.
    match d.to_bits() {
        bits @ 0..0x0080_0000 => u8::from(bits > 0x0020_0000),
        bits => ((bits >> 23) + 1).min(LAST) as u8,
    }
}
