//! IQ4_NL: thirty-two scales of either sign are tried, since the levels are not symmetric.

use super::lanes::{LANES, Lanes};
use super::octet::{Octet, Row};
use super::scalar::{Nearest, Scaled, in_order};
use super::split::{OCTET, Scales, Search, Split};
use super::target::{Target, inverse};
use bytemuck::Zeroable;
use kizami_kernels::formats::iq4_nl::{BlockIq4Nl, Iq4Nl, LEVELS};
use kizami_kernels::isa::Isa;

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

impl Split<32> for Iq4Nl {
    type Block = BlockIq4Nl;
    type Scales = Scaled<1>;
    type Search = Uneven;

    #[inline(always)]
    fn choose_scales<I: Isa>(isa: I, target: &Target<32>) -> Scaled<1> {
        Scaled::single(target, choose_scale(isa, &target.x, &target.w))
    }

    #[inline(always)]
    fn pack(scales: &Scaled<1>, codes: &[[u8; 8]]) -> BlockIq4Nl {
        let codes = codes.as_flattened();
        let mut block = BlockIq4Nl::zeroed();
        block.d = scales.bits;
        for i in 0..16 {
            block.qs[i] = codes[i] | codes[16 + i] << 4;
        }
        block
    }
}

/// Sixteen levels at uneven distances.
pub(super) struct Uneven;

impl Nearest for Uneven {
    #[inline(always)]
    fn nearest<I: Isa>(isa: I, v: I::F) -> I::F {
        nearest(isa, v)
    }
}

impl Search for Uneven {
    type Code = [u8; OCTET];
    const COARSE: bool = false;
    const DRAFTS_HAVE_CODES: bool = true;

    #[inline(always)]
    fn choose_plain<I: Isa, const N: usize>(
        _: I,
        target: &Target<N>,
        scales: &impl Scales,
        codes: &mut [[u8; OCTET]],
    ) {
        for (g, (x, codes)) in target.x.as_chunks::<OCTET>().0.iter().zip(codes).enumerate() {
            let id = inverse(scales.line(g).scale);
            for i in 0..OCTET {
                codes[i] = choose_code(x[i] * id);
            }
        }
    }

    #[inline(always)]
    fn values(codes: [u8; OCTET]) -> [f32; OCTET] {
        let mut values = [0.0; OCTET];
        for i in 0..OCTET {
            values[i] = f32::from(LEVELS[usize::from(codes[i])]);
        }
        values
    }

    #[inline(always)]
    fn choose_whole<I: Isa>(
        isa: I,
        octet: &Octet,
        row: &Row,
        _: bool,
        codes: &mut [[u8; OCTET]; LANES],
    ) -> [Lanes; OCTET] {
        let values = in_order::<I, Self>(isa, octet, row);
        for i in 0..OCTET {
            for l in 0..LANES {
                codes[l][i] = choose_code(values[i].0[l]);
            }
        }
        values
    }
}

/// The scale with the smallest error; zero where all weights are.
#[inline(always)]
pub(super) fn choose_scale<I: Isa>(isa: I, x: &[f32; 32], w: &[f32; 32]) -> f32 {
    let mut peak = 0f32;
    for &x in x {
        peak = if x.abs() > peak.abs() { x } else { peak };
    }
    let mut ends = Lanes::ZERO;
    for l in 0..LANES / 2 {
        ends.0[l] = FIRST + STEP * l as f32;
        ends.0[8 + l] = -(FIRST + STEP * l as f32);
    }
    let coarse = least_squares(isa, x, w, ends * Lanes::splat(inverse(peak)));
    let around = Lanes::splat(1.0) + (Lanes::IOTA - Lanes::splat(7.5)) * Lanes::splat(FINE);
    least_squares(isa, x, w, around * Lanes::splat(inverse(coarse)))
}

/// Of sixteen inverse scales, the one whose codes leave the smallest error under their own best
/// scale, which is returned.
#[inline(always)]
fn least_squares<I: Isa>(isa: I, x: &[f32; 32], w: &[f32; 32], id: Lanes) -> f32 {
    let (mut xq, mut qq, id) = (isa.splat(0.0), isa.splat(0.0), id.f(isa));
    for (x, w) in x.iter().zip(w) {
        let q = nearest(isa, isa.mul(isa.splat(*x), id));
        let wq = isa.mul(isa.splat(*w), q);
        xq = isa.fma(wq, isa.splat(*x), xq);
        qq = isa.fma(wq, q, qq);
    }
    let (xq, qq) = (Lanes::of(isa, xq), Lanes::of(isa, qq));
    // qq cannot be zero: no level is.
    let best = (Lanes::ZERO - xq * xq / qq).argmin();
    xq.0[best] / qq.0[best]
}

/// The nearest level.
#[inline(always)]
pub(super) fn nearest<I: Isa>(isa: I, v: I::F) -> I::F {
    let mut level = isa.splat(f32::from(LEVELS[0]));
    for k in 0..15 {
        level = isa.where_less(isa.splat(MIDDLES[k]), v, isa.splat(f32::from(LEVELS[k + 1])), level);
    }
    level
}

/// The number of the nearest level.
#[inline(always)]
fn choose_code(x: f32) -> u8 {
    let mut code = 0;
    for middle in MIDDLES {
        code += u8::from(middle < x);
    }
    code
}
