//! E2M1 codes (MXFP4, NVFP4): signs and eight magnitudes, under scales of one byte.

use super::lanes::Lanes;
use kizami_kernels::formats::mxfp4::E2M1;

/// Half way between neighbouring magnitudes.
const MIDDLES: [f32; 7] = {
    let mut middles = [0.0; 7];
    let mut i = 0;
    while i < 7 {
        middles[i] = (E2M1[i] as f32 + E2M1[i + 1] as f32) * 0.5;
        i += 1;
    }
    middles
};

/// Weighted squared error of `x` under sixteen scales, each with its own codes.
#[inline(always)]
pub(super) fn errors<const N: usize>(x: &[f32; N], w: &[f32; N], scales: Lanes, inverses: Lanes) -> Lanes {
    let mut error = Lanes::ZERO;
    for (x, w) in x.iter().zip(w) {
        let x = Lanes::splat(x.abs());
        let v = x * inverses;
        let mut level = Lanes::ZERO;
        for k in 0..7 {
            level = Lanes::splat(MIDDLES[k]).where_less(v, Lanes::splat(f32::from(E2M1[k + 1])), level);
        }
        let e = x - level * scales;
        error = error + Lanes::splat(*w) * e * e;
    }
    error
}

/// The number of the nearest code; it does not depend on what errors cost.
#[inline(always)]
pub(super) fn choose_code(inverse: f32, x: f32) -> u8 {
    let v = x * inverse;
    let mut code = 0;
    for middle in MIDDLES {
        code += u8::from(middle < v.abs());
    }
    if v < 0.0 { code | 8 } else { code }
}
