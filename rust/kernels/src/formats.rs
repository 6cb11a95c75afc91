//! One file per block format; floats share one. Each holds the block as it lies in the file, a
//! picture of its bits and its decoder.

use crate::format::FloatFormat;
use crate::isa::{Isa, LANES};

mod grids;
pub mod iq1_s;
pub mod iq2_xxs;
pub mod iq3_xxs;
pub mod iq4_nl;
pub mod q4_k;
pub mod q6_k;
pub mod q8_0;

pub use iq1_s::Iq1S;
pub use iq2_xxs::Iq2Xxs;
pub use iq3_xxs::Iq3Xxs;
pub use iq4_nl::Iq4Nl;
pub use q4_k::Q4K;
pub use q6_k::Q6K;
pub use q8_0::Q8_0;

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
