//! One file per block format; floats share one. Each holds the block as it lies in the file, a
//! picture of its bits and its decoder.

use crate::format::FloatFormat;
use crate::isa::{Isa, LANES};

mod bits;
mod grids;
pub mod iq1_m;
pub mod iq1_s;
pub mod iq2_s;
pub mod iq2_xs;
pub mod iq2_xxs;
pub mod iq3_s;
pub mod iq3_xxs;
pub mod iq4_nl;
pub mod iq4_xs;
pub mod mxfp4;
pub mod nvfp4;
pub mod q1_0;
pub mod q2_0;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
pub mod tq1_0;
pub mod tq2_0;

pub use iq1_m::Iq1M;
pub use iq1_s::Iq1S;
pub use iq2_s::Iq2S;
pub use iq2_xs::Iq2Xs;
pub use iq2_xxs::Iq2Xxs;
pub use iq3_s::Iq3S;
pub use iq3_xxs::Iq3Xxs;
pub use iq4_nl::Iq4Nl;
pub use iq4_xs::Iq4Xs;
pub use mxfp4::Mxfp4;
pub use nvfp4::Nvfp4;
pub use q1_0::Q1_0;
pub use q2_0::Q2_0;
pub use q2_k::Q2K;
pub use q3_k::Q3K;
pub use q4_0::Q4_0;
pub use q4_1::Q4_1;
pub use q4_k::Q4K;
pub use q5_0::Q5_0;
pub use q5_1::Q5_1;
pub use q5_k::Q5K;
pub use q6_k::Q6K;
pub use q8_0::Q8_0;
pub use tq1_0::Tq1_0;
pub use tq2_0::Tq2_0;

macro_rules! float_formats {
    ($($name:ident $block:ty, $scaled:literal, ($isa:ident, $stored:ident) => $lanes:expr, $doc:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Debug, Clone, Copy)]
        pub struct $name;
        impl FloatFormat for $name {
            type Block = $block;
            const SCALED: bool = $scaled;
            #[inline(always)]
            fn lanes<I: Isa>($isa: I, $stored: &[$block; LANES]) -> I::F {
                $lanes
            }
        }
    )*};
}

/// Little-endian words as numbers. A loop: calls through `map` would not be inlined.
#[inline(always)]
fn words(stored: &[[u8; 4]; LANES]) -> [u32; LANES] {
    let mut out: [u32; LANES] = bytemuck::cast(*stored);
    for x in &mut out {
        *x = u32::from_le(*x);
    }
    out
}

/// Little-endian halves of words as numbers.
#[inline(always)]
pub(crate) fn halves(stored: &[[u8; 2]; LANES]) -> [u16; LANES] {
    let mut out: [u16; LANES] = bytemuck::cast(*stored);
    for x in &mut out {
        *x = u16::from_le(*x);
    }
    out
}

float_formats! {
    F32 [u8; 4], false, (isa, x) => isa.load(&bytemuck::cast(words(x))), "IEEE single precision.";
    F16 [u8; 2], false, (isa, x) => isa.load_half(&halves(x)), "IEEE half precision.";
    BF16 [u8; 2], false, (isa, x) => isa.load_brain(&halves(x)), "The upper half of an f32.";
    F8E4M3 u8, true, (isa, x) => isa.load_e4m3(x), "FP8 E4M3; the 128 x 128 block scale is the matrix's.";
}
