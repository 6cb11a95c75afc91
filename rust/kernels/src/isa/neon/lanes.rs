//! What several NEON primitives are made of: moving lanes about, adding them up, and the instructions for which the
//! oldest compiler we promise has no intrinsic.
//!
//! SAFETY of every block here: as in `neon.rs`; each function says what its caller must hold.

use std::arch::aarch64::*;
use std::arch::asm;

/// Eight f16 to f32.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn half_lanes(x: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high);
    // SAFETY: register operations only; NEON by the caller's token.
    unsafe {
        asm!("fcvtl {:v}.4s, {:v}.4h", out(vreg) low, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
        asm!("fcvtl2 {:v}.4s, {:v}.8h", out(vreg) high, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    [low, high]
}

/// Eight f32 to f16, rounded as the environment says: to nearest even.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn half_bits(low: float32x4_t, high: float32x4_t) -> uint16x8_t {
    let out;
    // SAFETY: register operations only; NEON by the caller's token. The first instruction clears the upper half.
    unsafe {
        asm!(
            "fcvtn {out:v}.4h, {low:v}.4s",
            "fcvtn2 {out:v}.8h, {high:v}.4s",
            out = out(vreg) out,
            low = in(vreg) low,
            high = in(vreg) high,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    out
}

/// Asks for a cache line, into the second level.
#[allow(clippy::pointers_in_nomem_asm_block, reason = "a hint reads nothing")]
#[inline(always)]
pub(super) fn prefetch(at: *const u8) {
    // SAFETY: a hint, which no address makes fault; the pointer is never read through.
    unsafe { asm!("prfm pldl2keep, [{}]", in(reg) at, options(nomem, nostack, preserves_flags)) };
}

/// Sum of sixteen f32 lanes in the order `i + 8`, `i + 4`, `i + 2`, `i + 1`.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn lane_sum(x: [float32x4_t; 4]) -> f32 {
    // SAFETY: register operations only; NEON by the caller's token.
    unsafe {
        let x = fold(x);
        let x = vadd_f32(vget_low_f32(x), vget_high_f32(x));
        vpadds_f32(x)
    }
}

/// [`lane_sum`] of four rows.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn lane_sums(x: [[float32x4_t; 4]; 4]) -> float32x4_t {
    // SAFETY: register operations only; NEON by the caller's token.
    unsafe { vpaddq_f32(fold2(fold(x[0]), fold(x[1])), fold2(fold(x[2]), fold(x[3]))) }
}

/// Additions `i + 8` and `i + 4`.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
unsafe fn fold(x: [float32x4_t; 4]) -> float32x4_t {
    // SAFETY: register operations only; NEON by the caller's token.
    unsafe { vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3])) }
}

/// Addition `i + 2` of two rows.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
unsafe fn fold2(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: register operations only; NEON by the caller's token.
    unsafe {
        let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
        let (low, high) = (vzip1q_f64(a, b), vzip2q_f64(a, b));
        vaddq_f32(vreinterpretq_f32_f64(low), vreinterpretq_f32_f64(high))
    }
}

/// Lane sums of four registers, in order.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn row_sums(x: [int32x4_t; 4]) -> int32x4_t {
    // SAFETY: register operations only; NEON by the caller's token.
    unsafe { vpaddq_s32(vpaddq_s32(x[0], x[1]), vpaddq_s32(x[2], x[3])) }
}

/// Columns of four rows of four words.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn transpose4(x: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
    // SAFETY: register operations only; NEON by the caller's token.
    unsafe {
        let even = |a, b| vreinterpretq_u64_u32(vtrn1q_u32(a, b));
        let odd = |a, b| vreinterpretq_u64_u32(vtrn2q_u32(a, b));
        let (a, b) = (even(x[0], x[1]), odd(x[0], x[1]));
        let (c, d) = (even(x[2], x[3]), odd(x[2], x[3]));
        [vtrn1q_u64(a, c), vtrn1q_u64(b, d), vtrn2q_u64(a, c), vtrn2q_u64(b, d)]
            .map(|x| vreinterpretq_u32_u64(x))
    }
}

/// Each byte shifted left, or right by a negative number, zeros coming in.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn shifted(x: uint8x16_t, n: i8) -> uint8x16_t {
    // SAFETY: register operations only; NEON by the caller's token. With a constant this is an immediate shift.
    if n == 0 { x } else { unsafe { vshlq_u8(x, vdupq_n_s8(n)) } }
}

/// Each byte twice, widened.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn double(x: uint8x8_t) -> [i16; 16] {
    let mut out = [0; 16];
    // SAFETY: two stores of 16 bytes into 32.
    unsafe {
        let (low, high) = (vmovl_u8(vzip1_u8(x, x)), vmovl_u8(vzip2_u8(x, x)));
        vst1q_s16(out.as_mut_ptr(), vreinterpretq_s16_u16(low));
        vst1q_s16(out.as_mut_ptr().add(8), vreinterpretq_s16_u16(high));
    }
    out
}

/// A table for four registers' lookups.
/// # Safety
/// The CPU must have NEON: the caller holds the level's token.
#[inline(always)]
pub(super) unsafe fn load_table(x: &[u8; 64]) -> uint8x16x4_t {
    let x = x.as_ptr();
    // SAFETY: 64 bytes are readable behind the reference.
    unsafe { uint8x16x4_t(vld1q_u8(x), vld1q_u8(x.add(16)), vld1q_u8(x.add(32)), vld1q_u8(x.add(48))) }
}
