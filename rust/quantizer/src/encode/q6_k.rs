//! Q6_K: sixteen signed sub-scales under one f16.
//!
//! Each sub-block first finds its own best scale; the largest of them sets `d`; then every
//! sub-block tries sixteen neighbouring integer scales under the stored `d` with codes re-chosen.

use super::Encode;
use super::lanes::{LANES, Lanes, code};
use super::target::{Target, inverse};
use bytemuck::Zeroable;
use kizami_kernels::formats::q6_k::{BlockQ6K, Q6K};

/// The scales of a block in the search's frame.
struct Scales {
    bits: [u8; 2],
    d: f32,
    sub: [f32; 16],
}

/// Where the largest sub-scale lands: headroom for its neighbours below 127.
const TOP: f32 = 121.0;

impl Encode<256> for Q6K {
    type Block = BlockQ6K;

    #[inline(always)]
    fn encode(target: &Target<256>) -> BlockQ6K {
        let mut block = BlockQ6K::zeroed();
        if target.empty {
            return block;
        }
        let scales = choose_scales(target);
        block.d = scales.bits;
        let mut codes = [0u8; 256];
        for s in 0..16 {
            block.scales[s] = scales.sub[s] as i8;
            let it = inverse(scales.d * scales.sub[s]);
            for i in 16 * s..16 * s + 16 {
                codes[i] = (choose_code(it, target.x[i]) as i32 + 32) as u8;
            }
        }
        for half in 0..2 {
            let (codes, ql) = (&codes[128 * half..][..128], &mut block.ql[64 * half..][..64]);
            let qh = &mut block.qh[32 * half..][..32];
            for i in 0..32 {
                let (a, b, c, d) = (codes[i], codes[32 + i], codes[64 + i], codes[96 + i]);
                ql[i] = a & 15 | (c & 15) << 4;
                ql[32 + i] = b & 15 | (d & 15) << 4;
                qh[i] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6;
            }
        }
        block
    }
}

#[inline(always)]
fn part(values: &[f32; 256], s: usize) -> &[f32; 16] {
    &values.as_chunks::<16>().0[s]
}

#[inline(always)]
fn choose_scales(target: &Target<256>) -> Scales {
    let mut most = 0f32;
    for s in 0..16 {
        let t = free_scale(part(&target.x, s), part(&target.w, s)).abs();
        most = if t > most { t } else { most };
    }
    let (bits, d) = target.frame.store(most / TOP);
    let mut sub = [0.0; 16];
    for s in 0..16 {
        let (x, w) = (part(&target.x, s), part(&target.w, s));
        sub[s] = integer_scale(x, w, d, free_scale(x, w));
    }
    Scales { bits, d, sub }
}

/// The scale of sixteen weights if it were free: of sixteen mappings of the largest magnitude to
/// one end of the codes, the one whose least-squares scale leaves the smallest error.
#[inline(always)]
fn free_scale(x: &[f32; 16], w: &[f32; 16]) -> f32 {
    let mut peak = 0f32;
    for &x in x {
        peak = if x.abs() > peak.abs() { x } else { peak };
    }
    let mut id = Lanes::ZERO;
    for l in 0..LANES / 2 {
        id.0[l] = -(29.0 + 0.5 * l as f32);
        id.0[8 + l] = 28.5 + 0.5 * l as f32;
    }
    let id = id * Lanes::splat(inverse(peak));
    let (mut xq, mut qq) = (Lanes::ZERO, Lanes::ZERO);
    for (x, w) in x.iter().zip(w) {
        let q = (Lanes::splat(*x) * id).code(-32.0, 31.0);
        let wq = Lanes::splat(*w) * q;
        xq = xq + wq * Lanes::splat(*x);
        qq = qq + wq * q;
    }
    let best = (Lanes::ZERO - xq * xq * inverses(qq)).argmin();
    xq.0[best] * inverse(qq.0[best])
}

#[inline(always)]
fn inverses(mut x: Lanes) -> Lanes {
    for x in &mut x.0 {
        *x = inverse(*x);
    }
    x
}

/// The best of sixteen integers around `t / d`.
#[inline(always)]
fn integer_scale(x: &[f32; 16], w: &[f32; 16], d: f32, t: f32) -> f32 {
    let middle = code(t * inverse(d), -120.0, 119.0);
    let s = Lanes::IOTA + Lanes::splat(middle - 8.0);
    let scale = s * Lanes::splat(d);
    let id = inverses(scale);
    let mut error = Lanes::ZERO;
    for (x, w) in x.iter().zip(w) {
        let x = Lanes::splat(*x);
        let e = x - (x * id).code(-32.0, 31.0) * scale;
        error = error + Lanes::splat(*w) * e * e;
    }
    s.0[error.argmin()]
}

/// The nearest code; it does not depend on what errors cost.
#[inline(always)]
fn choose_code(inverse_scale: f32, x: f32) -> f32 {
    code(x * inverse_scale, -32.0, 31.0)
}
