//! Exact conversions between stored floats and f32, branch-free so that loops over them vectorize.
//! The same function everywhere: `half`'s own conversion asks for CPU features at every call.

/// f16 bits to f32, exact.
#[inline(always)]
pub fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let magnitude = u32::from(h & 0x7fff) << 13;
    // The exponent field is that of f16 (bias 15): the product moves it to bias 127, subnormals included.
    let finite = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let special = magnitude | 0x7f80_0000; // infinity, or NaN with its payload
    let bits = if magnitude >= 0x0f80_0000 { special } else { finite.to_bits() };
    f32::from_bits(bits | sign)
}

/// f32 to f16 bits, round to nearest even.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    half::f16::from_f32_const(x).to_bits()
}

/// bf16 bits to f32, exact.
#[inline(always)]
pub fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits(u32::from(h) << 16)
}

/// f32 to bf16 bits, round to nearest even; NaN stays NaN.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    half::bf16::from_f32(x).to_bits()
}

/// FP8 E4M3 (OCP "FN": no infinities, 0x7f is NaN) to f32, exact.
#[inline(always)]
pub fn e4m3_to_f32(x: u8) -> f32 {
    let sign = u32::from(x & 0x80) << 24;
    let magnitude = u32::from(x & 0x7f);
    let finite = f32::from_bits(magnitude << 20) * f32::from_bits((127 + 120) << 23);
    let bits = if magnitude == 0x7f { 0x7fc0_0000 } else { finite.to_bits() };
    f32::from_bits(bits | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }

    #[test]
    fn every_half_converts_exactly() {
        for h in 0..=u16::MAX {
            assert!(same(f16_to_f32(h), half::f16::from_bits(h).to_f32()), "f16 {h:#06x}");
            assert!(same(bf16_to_f32(h), half::bf16::from_bits(h).to_f32()), "bf16 {h:#06x}");
        }
    }

    #[test]
    fn every_e4m3_code_has_its_value() {
        for x in 0..=u8::MAX {
            let (s, e, m) = (x >> 7, i32::from(x >> 3 & 15), f32::from(x & 7));
            let magnitude = match (e, x & 7) {
                (15, 7) => f32::NAN,
                (0, _) => m / 8.0 * 2f32.powi(-6),
                _ => (1.0 + m / 8.0) * 2f32.powi(e - 7),
            };
            let expected = if s == 1 { -magnitude } else { magnitude };
            assert!(same(e4m3_to_f32(x), expected), "e4m3 {x:#04x}");
        }
    }
}
