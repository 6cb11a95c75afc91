//! IQ4_NL: thirty-two scales of either sign are tried, since the levels are not symmetric.

use super::Encode;
use super::lanes::{LANES, Lanes};
use super::target::{Target, inverse};
use bytemuck::Zeroable;
use kizami_kernels::formats::iq4_nl::{BlockIq4Nl, Iq4Nl, LEVELS};

/// Half way between neighbouring levels.
const MIDDLES: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = (LEVELS[i] as f32 + LEVELS[i + 1] as f32) * 0.5;
        i += 1;
    }
    middles
};

/// Where the first round maps the largest magnitude: eight levels for either sign.
const FIRST: f32 = 82.0;
const STEP: f32 = 8.0;
/// The second round looks this far around the best of the first.
const FINE: f32 = 0.01;

impl Encode<32> for Iq4Nl {
    type Block = BlockIq4Nl;

    #[inline(always)]
    fn encode(target: &Target<32>) -> BlockIq4Nl {
        let mut block = BlockIq4Nl::zeroed();
        if target.empty {
            return block;
        }
        let (bits, d) = target.frame.store(choose_scale(&target.x, &target.w));
        block.d = bits;
        let id = inverse(d);
        for i in 0..16 {
            block.qs[i] = choose_code(id, target.x[i]) | choose_code(id, target.x[16 + i]) << 4;
        }
        block
    }
}

/// The scale with the smallest error; zero where all weights are.
#[inline(always)]
pub(super) fn choose_scale(x: &[f32; 32], w: &[f32; 32]) -> f32 {
    let mut peak = 0f32;
    for &x in x {
        peak = if x.abs() > peak.abs() { x } else { peak };
    }
    let mut ends = Lanes::ZERO;
    for l in 0..LANES / 2 {
        ends.0[l] = FIRST + STEP * l as f32;
        ends.0[8 + l] = -(FIRST + STEP * l as f32);
    }
    let coarse = least_squares(x, w, ends * Lanes::splat(inverse(peak)));
    let around = Lanes::splat(1.0) + (Lanes::IOTA - Lanes::splat(7.5)) * Lanes::splat(FINE);
    least_squares(x, w, around * Lanes::splat(inverse(coarse)))
}

/// Of sixteen inverse scales, the one whose codes leave the smallest error under their own best
/// scale, which is returned.
#[inline(always)]
fn least_squares(x: &[f32; 32], w: &[f32; 32], id: Lanes) -> f32 {
    let (mut xq, mut qq) = (Lanes::ZERO, Lanes::ZERO);
    for (x, w) in x.iter().zip(w) {
        let q = nearest(Lanes::splat(*x) * id);
        let wq = Lanes::splat(*w) * q;
        xq = xq + wq * Lanes::splat(*x);
        qq = qq + wq * q;
    }
    // qq cannot be zero: no level is.
    let best = (Lanes::ZERO - xq * xq / qq).argmin();
    xq.0[best] / qq.0[best]
}

/// The nearest level.
#[inline(always)]
pub(super) fn nearest(v: Lanes) -> Lanes {
    let mut level = Lanes::splat(f32::from(LEVELS[0]));
    for k in 0..15 {
        level = Lanes::splat(MIDDLES[k]).where_less(v, Lanes::splat(f32::from(LEVELS[k + 1])), level);
    }
    level
}

/// The number of the nearest level; it does not depend on what errors cost.
#[inline(always)]
pub(super) fn choose_code(id: f32, x: f32) -> u8 {
    let mut code = 0;
    for middle in MIDDLES {
        code += u8::from(middle < x * id);
    }
    code
}
