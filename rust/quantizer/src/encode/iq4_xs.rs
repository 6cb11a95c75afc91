//! IQ4_XS: eight signed sub-scales of six bits under one f16, over the levels of IQ4_NL.
//!
//! Each group first finds its own best scale; the largest sets `d`; then every group tries sixteen neighbouring
//! integer scales under the stored `d` with codes re-chosen.

use super::iq4_nl::{Uneven, choose_scale, nearest};
use super::lanes::{Lanes, code};
use super::scalar::Scaled;
use super::signed::inverses;
use super::split::Split;
use super::target::{Target, inverse};
use bytemuck::Zeroable;
use kizami_kernels::formats::iq4_xs::{BlockIq4Xs, Iq4Xs};
use kizami_kernels::isa::Isa;

/// Where the largest sub-scale lands, of 31: its neighbours can be stored too.
const TOP: f32 = 30.0;

impl Split<256> for Iq4Xs {
    type Block = BlockIq4Xs;
    type Scales = Scaled<8>;
    type Search = Uneven;

    #[inline(always)]
    fn choose_scales<I: Isa>(isa: I, target: &Target<256>) -> Scaled<8> {
        let (mut free, mut most) = ([0.0; 8], 0f32);
        for g in 0..8 {
            free[g] = choose_scale(isa, part(&target.x, g), part(&target.w, g));
            most = if free[g].abs() > most { free[g].abs() } else { most };
        }
        let (bits, d) = target.frame.store(most / TOP);
        let mut scales = Scaled { bits, d, sub: [0.0; 8] };
        for g in 0..8 {
            scales.sub[g] = integer_scale(isa, part(&target.x, g), part(&target.w, g), d, free[g]);
        }
        scales
    }

    #[inline(always)]
    fn pack(scales: &Scaled<8>, codes: &[[u8; 8]]) -> BlockIq4Xs {
        let codes = codes.as_flattened();
        let mut block = BlockIq4Xs::zeroed();
        block.d = scales.bits;
        let mut high = 0u16;
        for g in 0..8 {
            let stored = (scales.sub[g] + 32.0) as u8;
            block.scales_l[g / 2] |= (stored & 15) << (4 * (g % 2));
            high |= u16::from(stored >> 4) << (2 * g);
            for i in 0..16 {
                block.qs[16 * g + i] = codes[32 * g + i] | codes[32 * g + 16 + i] << 4;
            }
        }
        block.scales_h = high.to_le_bytes();
        block
    }
}

#[inline(always)]
fn part(values: &[f32; 256], g: usize) -> &[f32; 32] {
    &values.as_chunks::<32>().0[g]
}

/// The best of sixteen integers around `t / d`.
#[inline(always)]
fn integer_scale<I: Isa>(isa: I, x: &[f32; 32], w: &[f32; 32], d: f32, t: f32) -> f32 {
    let middle = code(t * inverse(d), -24.0, 24.0);
    let s = Lanes::IOTA + Lanes::splat(middle - 8.0);
    let scale = s * Lanes::splat(d);
    let (id, down) = (inverses(scale).f(isa), (Lanes::ZERO - scale).f(isa));
    let mut error = isa.splat(0.0);
    for (x, w) in x.iter().zip(w) {
        let x = isa.splat(*x);
        let e = isa.fma(nearest(isa, isa.mul(x, id)), down, x);
        error = isa.fma(isa.mul(isa.splat(*w), e), e, error);
    }
    s.0[Lanes::of(isa, error).argmin()]
}
