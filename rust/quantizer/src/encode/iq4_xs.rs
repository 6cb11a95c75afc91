//! IQ4_XS: eight signed sub-scales of six bits under one f16, over the levels of IQ4_NL.
//!
//! Each group first finds its own best scale; the largest sets `d`; then every group tries sixteen neighbouring
//! integer scales under the stored `d` with codes re-chosen.

use super::Encode;
use super::iq4_nl::{choose_code, choose_scale, nearest};
use super::lanes::{Lanes, code};
use super::signed::inverses;
use super::target::{Target, inverse};
use bytemuck::Zeroable;
use kizami_kernels::formats::iq4_xs::{BlockIq4Xs, Iq4Xs};

/// Where the largest sub-scale lands, of 31: its neighbours can be stored too.
const TOP: f32 = 30.0;

impl Encode<256> for Iq4Xs {
    type Block = BlockIq4Xs;

    #[inline(always)]
    fn encode(target: &Target<256>) -> BlockIq4Xs {
        let mut block = BlockIq4Xs::zeroed();
        if target.empty {
            return block;
        }
        let (mut free, mut most) = ([0.0; 8], 0f32);
        for g in 0..8 {
            let (x, w) = (part(&target.x, g), part(&target.w, g));
            free[g] = choose_scale(x, w);
            most = if free[g].abs() > most { free[g].abs() } else { most };
        }
        let (bits, d) = target.frame.store(most / TOP);
        block.d = bits;
        let mut high = 0u16;
        for g in 0..8 {
            let (x, w) = (part(&target.x, g), part(&target.w, g));
            let scale = integer_scale(x, w, d, free[g]);
            let stored = (scale + 32.0) as u8;
            block.scales_l[g / 2] |= (stored & 15) << (4 * (g % 2));
            high |= u16::from(stored >> 4) << (2 * g);
            let id = inverse(d * scale);
            for i in 0..16 {
                block.qs[16 * g + i] = choose_code(id, x[i]) | choose_code(id, x[16 + i]) << 4;
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
fn integer_scale(x: &[f32; 32], w: &[f32; 32], d: f32, t: f32) -> f32 {
    let middle = code(t * inverse(d), -24.0, 24.0);
    let s = Lanes::IOTA + Lanes::splat(middle - 8.0);
    let scale = s * Lanes::splat(d);
    let id = inverses(scale);
    let mut error = Lanes::ZERO;
    for (x, w) in x.iter().zip(w) {
        let x = Lanes::splat(*x);
        let e = x - nearest(x * id) * scale;
        error = error + Lanes::splat(*w) * e * e;
    }
    s.0[error.argmin()]
}
