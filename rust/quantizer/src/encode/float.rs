//! Plain floats: rounded to nearest even; finite values beyond the range become the largest finite.

use bytemuck::cast_slice_mut;
use kizami_kernels::Type;
use kizami_kernels::convert::{f32_to_bf16, f32_to_f16};

/// The largest finite f16 and bf16.
const F16_MAX: f32 = 65504.0;
const BF16_MAX: f32 = f32::from_bits(0x7f7f_0000);

/// `ty` is F32, F16 or BF16; `out` has the matching length.
pub(super) fn encode(ty: Type, rows: &[f32], out: &mut [u8]) {
    match ty {
        Type::F16 => {
            for (x, out) in rows.iter().zip(cast_slice_mut::<u8, [u8; 2]>(out)) {
                *out = f32_to_f16(x.clamp(-F16_MAX, F16_MAX)).to_le_bytes();
            }
        }
        Type::BF16 => {
            for (x, out) in rows.iter().zip(cast_slice_mut::<u8, [u8; 2]>(out)) {
                *out = f32_to_bf16(x.clamp(-BF16_MAX, BF16_MAX)).to_le_bytes();
            }
        }
        _ => {
            for (x, out) in rows.iter().zip(cast_slice_mut::<u8, [u8; 4]>(out)) {
                *out = x.to_le_bytes();
            }
        }
    }
}
