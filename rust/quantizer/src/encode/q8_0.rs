//! Q8_0: sixteen scales are tried, each with its own rounding.
//!
//! With 255 levels any scale near `largest / 127` is as good as another on average; which of them
//! happens to suit the 32 weights at hand is worth a fifth of the error.

use super::lanes::Lanes;
use super::scalar::{Levels, Scaled};
use super::split::Split;
use super::target::Target;
use bytemuck::Zeroable;
use kizami_kernels::formats::q8_0::{BlockQ8_0, Q8_0};
use kizami_kernels::isa::Isa;

/// Trial scales, relative to the one that maps the largest weight to 127: the first maps it to
/// 127.4, which still rounds to 127; beyond the last the coarser step costs more than luck gains.
const FIRST: f32 = 127.0 / 127.4;
const STEP: f32 = 0.0013;

impl Split<32> for Q8_0 {
    type Block = BlockQ8_0;
    type Scales = Scaled<1>;
    type Search = Levels<-127, 127>;

    #[inline(always)]
    fn choose_scales<I: Isa>(_: I, target: &Target<32>) -> Scaled<1> {
        Scaled::single(target, choose_scale(target))
    }

    #[inline(always)]
    fn pack(scales: &Scaled<1>, codes: &[[u8; 8]]) -> BlockQ8_0 {
        let mut block = BlockQ8_0::zeroed();
        block.d = scales.bits;
        for (q, code) in block.qs.iter_mut().zip(codes.as_flattened()) {
            *q = (i16::from(*code) - 127) as i8;
        }
        block
    }
}

/// The scale with the smallest weighted error after rounding.
#[inline(always)]
fn choose_scale(target: &Target<32>) -> f32 {
    let mut most = 0f32;
    for x in target.x {
        most = if x.abs() > most { x.abs() } else { most };
    }
    let mut d = (Lanes::IOTA * Lanes::splat(STEP) + Lanes::splat(FIRST)) * Lanes::splat(most / 127.0);
    for d in &mut d.0 {
        // To eleven significant bits, so that what is tried is what an f16 can hold.
        *d = f32::from_bits(d.to_bits() & !0x1fff);
    }
    let id = Lanes::splat(1.0) / d;
    let mut error = Lanes::ZERO;
    for (x, w) in target.x.iter().zip(&target.w) {
        let x = Lanes::splat(*x);
        let e = x - (x * id).code(-127.0, 127.0) * d;
        error = error + Lanes::splat(*w) * e * e;
    }
    d.0[error.argmin()]
}
