//! One file per block format; floats share one. Each holds the block as it lies in the file, a
//! picture of its bits and its decoder.

use crate::convert::{bf16_to_f32, e4m3_to_f32, f16_to_f32};
use crate::format::FloatFormat;

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
    ($($name:ident $block:ty, $value:expr, $doc:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Debug, Clone, Copy)]
        pub struct $name;
        impl FloatFormat for $name {
            type Block = $block;
            #[inline(always)]
            fn value(stored: $block) -> f32 {
                $value(stored)
            }
        }
    )*};
}

float_formats! {
    F32 [u8; 4], f32::from_le_bytes, "IEEE single precision.";
    F16 [u8; 2], |b| f16_to_f32(u16::from_le_bytes(b)), "IEEE half precision.";
    BF16 [u8; 2], |b| bf16_to_f32(u16::from_le_bytes(b)), "The upper half of an f32.";
    F8E4M3 u8, e4m3_to_f32, "FP8 E4M3; the 128 x 128 block scale is the matrix's.";
}
