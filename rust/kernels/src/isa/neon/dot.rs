//! Dot products of signed bytes: one `sdot` where the CPU has it (`DOT`), else widening multiplications.
//!
//! ```text
//! DOT     sdot               lane r += four products          1 instruction per 16 bytes
//! else    smull, smull2      sixteen products of 16 bits
//!         addp, sadalp       lane r += sums of four           4
//! ```
//!
//! Activations lie in -127..=127, so that a pair of products stays within 2 * 128 * 127 < 2^15.
//!
//! SAFETY of every block here: as in `neon.rs`; each function says what its caller must hold.

use crate::chunk::{ActChunk, CHUNK, GROUP, GROUPED_OFFSET, SUB, SUPER_OFFSET};
use std::arch::aarch64::*;
use std::arch::asm;

/// Lane `r` of `acc` plus the products of the four bytes of lane `r` of `w` and of `a`. The intrinsic is unstable in
/// the compilers we promise.
/// # Safety
/// The CPU must have the dot-product extension.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: register operations only; the extension by the caller's word. Where this is not inlined into a function
    // that is compiled for it, the assembler refuses.
    unsafe {
        asm!(
            "sdot {:v}.4s, {:v}.16b, {:v}.16b",
            inout(vreg) acc, in(vreg) w, in(vreg) a,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// As [`sdot`] with the first four bytes of `a` for every lane: no instruction has to repeat them.
/// # Safety
/// The CPU must have the dot-product extension.
#[inline(always)]
unsafe fn sdot_first(mut acc: int32x4_t, w: int8x16_t, a: int32x4_t) -> int32x4_t {
    // SAFETY: as in `sdot`.
    unsafe {
        asm!(
            "sdot {:v}.4s, {:v}.16b, {:v}.4b[0]",
            inout(vreg) acc, in(vreg) w, in(vreg) a,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Lane `r` of `acc` plus the products of the four bytes of lane `r` of `w` and of `a`, in each register.
/// # Safety
/// The CPU must have NEON, and the dot-product extension if `DOT`: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn fours<const DOT: bool>(
    acc: [int32x4_t; 4],
    w: [uint8x16_t; 4],
    a: i32,
) -> [int32x4_t; 4] {
    let mut out = acc;
    for i in 0..4 {
        // SAFETY: register operations only; features by the caller's token.
        unsafe {
            let w = vreinterpretq_s8_u8(w[i]);
            out[i] = if DOT {
                sdot_first(acc[i], w, vsetq_lane_s32::<0>(a, vdupq_n_s32(0)))
            } else {
                let a = vreinterpretq_s8_s32(vdupq_n_s32(a));
                let (low, high) = (vmull_s8(vget_low_s8(w), vget_low_s8(a)), vmull_high_s8(w, a));
                vpadalq_s16(acc[i], vpaddq_s16(low, high))
            };
        }
    }
    out
}

/// Pair sums of the products of sixteen bytes: lane `i` has those of bytes `i` and `8 + i`.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
unsafe fn halves(w: int8x16_t, a: int8x16_t) -> int16x8_t {
    // SAFETY: register operations only; NEON by the caller's token.
    unsafe { vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(a)), w, a) }
}

/// Lane `r` of the accumulators plus the products of the two i16 of lane `r` of `w` and of `a`.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn pairs(
    acc: (int32x4_t, int32x4_t),
    w: (int16x8_t, int16x8_t),
    a: int16x4_t,
) -> (int32x4_t, int32x4_t) {
    // SAFETY: register operations only; NEON by the caller's token.
    unsafe {
        let (first, second) = (vuzp1q_s16(w.0, w.1), vuzp2q_s16(w.0, w.1));
        let low = vmlal_lane_s16::<0>(acc.0, vget_low_s16(first), a);
        let high = vmlal_high_lane_s16::<0>(acc.1, first, a);
        (vmlal_lane_s16::<1>(low, vget_low_s16(second), a), vmlal_high_lane_s16::<1>(high, second, a))
    }
}

/// Lanes of the sum of sixteen products of i16.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn sixteen(a: &[i16; 16], b: &[i16; 16]) -> int32x4_t {
    // SAFETY: two loads of 16 bytes from each array of 32.
    unsafe {
        let (a0, a1) = (vld1q_s16(a.as_ptr()), vld1q_s16(a.as_ptr().add(8)));
        let (b0, b1) = (vld1q_s16(b.as_ptr()), vld1q_s16(b.as_ptr().add(8)));
        let sum = vmlal_high_s16(vmull_s16(vget_low_s16(a0), vget_low_s16(b0)), a0, b0);
        vmlal_high_s16(vmlal_s16(sum, vget_low_s16(a1), vget_low_s16(b1)), a1, b1)
    }
}

/// The sixteen activation codes of sub-block `s`.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
unsafe fn activations(a: &ActChunk, s: usize) -> int8x16_t {
    let codes: &[i8; SUB] = a.codes[SUB * s..][..SUB].try_into().expect("sixteen of 256");
    // SAFETY: 16 bytes are readable behind the reference.
    unsafe { vld1q_s8(codes.as_ptr()) }
}

/// [`crate::isa::Isa::dot_super`].
/// # Safety
/// The CPU must have NEON, and the dot-product extension if `DOT`: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn supers<const DOT: bool, const SIGNED: bool>(
    codes: &[[uint8x16_t; 4]; 4],
    scales: &[i16; CHUNK / SUB],
    a: &ActChunk,
) -> int32x4_t {
    // SAFETY: loads stay inside the arrays of 16; features by the caller's token.
    unsafe {
        let scale = [vld1q_s16(scales.as_ptr()), vld1q_s16(scales.as_ptr().add(8))];
        let step = [vld1q_s16(a.steps.as_ptr()), vld1q_s16(a.steps.as_ptr().add(8))];
        let eights = [vmulq_s16(scale[0], step[0]), vmulq_s16(scale[1], step[1])];
        // Multiplied twice, because widened products would be picked apart lane by lane.
        let fours = [
            vmull_s16(vget_low_s16(scale[0]), vget_low_s16(step[0])),
            vmull_high_s16(scale[0], step[0]),
            vmull_s16(vget_low_s16(scale[1]), vget_low_s16(step[1])),
            vmull_high_s16(scale[1], step[1]),
        ];
        let mut sum = vdupq_n_s32(0);
        // A lane number is part of the instruction.
        macro_rules! add {
            ($($s:literal)*) => {$(
                let (w, x) = (vreinterpretq_s8_u8(codes[$s / 4][$s % 4]), activations(a, $s));
                if DOT {
                    sum = vmlaq_laneq_s32::<{ $s % 4 }>(sum, sdot(vdupq_n_s32(0), w, x), fours[$s / 4]);
                } else {
                    let products = halves(w, x);
                    sum = vmlal_laneq_s16::<{ $s % 8 }>(sum, vget_low_s16(products), eights[$s / 8]);
                    sum = vmlal_high_laneq_s16::<{ $s % 8 }>(sum, products, eights[$s / 8]);
                }
            )*};
        }
        add!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        if SIGNED {
            const { assert!(SUPER_OFFSET == 1 << 6) };
            sum = vsubq_s32(sum, vshlq_n_s32::<6>(sixteen(scales, &a.sums)));
        }
        sum
    }
}

/// Lanes of eight sums of `(code - 128) * activation`.
/// # Safety
/// The CPU must have NEON, and the dot-product extension if `DOT`: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn units<const DOT: bool>(codes: &[[uint8x16_t; 4]; 4], a: &ActChunk) -> [int32x4_t; 8] {
    // SAFETY: register operations only; features by the caller's token.
    unsafe {
        let offset = vdupq_n_u8(GROUPED_OFFSET);
        let mut out = [vdupq_n_s32(0); CHUNK / GROUP];
        for g in 0..CHUNK / GROUP {
            let codes = &codes[g / 2][g % 2 * 2..];
            let w0 = vreinterpretq_s8_u8(veorq_u8(codes[0], offset));
            let w1 = vreinterpretq_s8_u8(veorq_u8(codes[1], offset));
            let (a0, a1) = (activations(a, 2 * g), activations(a, 2 * g + 1));
            out[g] = if DOT {
                sdot(sdot(out[g], w0, a0), w1, a1)
            } else {
                vpadalq_s16(vpaddlq_s16(halves(w0, a0)), halves(w1, a1))
            };
        }
        out
    }
}
