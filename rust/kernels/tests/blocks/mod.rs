//! Writes the scales and minimums of blocks, so that tests can choose them: random bits elsewhere are ordinary
//! weights, here they would be huge or NaN.

use kizami_kernels::Type;
use kizami_kernels::convert::f16_to_f32;

/// Whether an f16 scales a block.
#[allow(dead_code, reason = "not every test binary asks")]
pub(crate) fn has_half(ty: Type) -> bool {
    ty == Type::Iq1M || !ty.halves().is_empty()
}

/// Writes what `next` yields, bits of f16, into the scales of a block.
pub(crate) fn set_scales(ty: Type, block: &mut [u8], mut next: impl FnMut() -> u16) {
    for &at in ty.halves() {
        block[at..at + 2].copy_from_slice(&next().to_le_bytes());
    }
    match ty {
        // The f16 lies in the upper nibbles of the last four words.
        Type::Iq1M => {
            let d = next();
            for w in 0..4 {
                let byte = &mut block[48 + 2 * w + 1];
                *byte = *byte & 15 | ((d >> (4 * w)) as u8 & 15) << 4;
            }
        }
        // An exponent: that of the f16, and as hostile as it is.
        Type::Mxfp4 => {
            block[0] = match next() {
                0x0000 | 0x8000 => 0,
                bits if bits & 0x7c00 == 0x7c00 => 255,
                bits => 110 + (bits >> 10 & 31) as u8,
            };
        }
        _ => {}
    }
}

/// The largest minimum in a block, as magnitude; zero for formats without.
#[allow(dead_code, reason = "not every test binary measures distances")]
pub(crate) fn largest_min(ty: Type, block: &[u8]) -> f32 {
    let factor = match ty {
        Type::Q4_1 | Type::Q5_1 => 1.0,
        Type::Q2K => 15.0,
        Type::Q4K | Type::Q5K => 63.0,
        _ => return 0.0,
    };
    let at = *ty.halves().last().expect("the minimums' scale");
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]])).abs() * factor
}
