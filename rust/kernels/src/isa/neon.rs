//! NEON: every aarch64; with the dot-product extension (Armv8.4, and most cores since Cortex-A75) four products
//! of bytes and their sum are one instruction.
//!
//! SAFETY of every block here: the token exists only where `dispatch.rs` has asked the CPU for the
//! feature list of [`enter`] or [`enter_dotprod`], and each load or store stays inside the fixed-size array it is
//! given. What dot products are made of is in `neon/dot.rs`.

use super::{Isa, LANES};
use crate::chunk::ActChunk;
use crate::dispatch::Op;
use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

mod dot;
mod lanes;

use lanes::{double, half_bits, half_lanes, lane_sum, lane_sums, load_table, row_sums, shifted, transpose4};

/// Proof that NEON exists, and the dot-product extension where `DOT` says so. Made by `dispatch.rs` only.
#[derive(Debug, Clone, Copy)]
pub struct Neon<const DOT: bool>(());

impl<const DOT: bool> Neon<DOT> {
    /// # Safety
    /// The CPU must have the features of [`enter`], or of [`enter_dotprod`] if `DOT`.
    pub(crate) unsafe fn new_unchecked() -> Self {
        Self(())
    }
}

/// Whether this CPU has the features of [`enter`].
pub(crate) fn detected() -> bool {
    is_aarch64_feature_detected!("neon")
}

/// Whether this CPU has the features of [`enter_dotprod`].
pub(crate) fn detected_dotprod() -> bool {
    detected() && is_aarch64_feature_detected!("dotprod")
}

/// Runs `op` compiled with the features of this level.
#[target_feature(enable = "neon")]
pub(crate) fn enter<O: Op>(isa: Neon<false>, op: O) -> O::Out {
    op.run(isa)
}

/// Runs `op` compiled with the features of this level.
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn enter_dotprod<O: Op>(isa: Neon<true>, op: O) -> O::Out {
    op.run(isa)
}

/// What `$x` is for each of the four registers, `$i` its number.
macro_rules! four {
    ($i:ident => $x:expr) => {
        [four!(0 $i $x), four!(1 $i $x), four!(2 $i $x), four!(3 $i $x)]
    };
    ($number:literal $i:ident $x:expr) => {{
        let $i = $number;
        $x
    }};
}

impl<const DOT: bool> Isa for Neon<DOT> {
    type F = [float32x4_t; 4];
    type V = [int32x4_t; 4];
    type D = [int32x4_t; 4];
    type Q = [uint8x16_t; 4];
    type S = int32x4_t;
    type U = [int32x4_t; 8];
    // There are 32 registers, of which sixteen accumulators would take 64.
    const WIDE: bool = false;
    const FLOAT_COLUMNS: usize = 1;
    // Sums and totals of three columns, a word of codes and activations are 29 registers.
    const TILE: usize = 3;
    const NARROW: bool = false;
    const PREFETCH: bool = false;
    const SUPER_OFFSET: u8 = 0;
    const SMALL_OFFSET: u8 = 0;
    const FULL_OFFSET: u8 = 0;
    // A lookup in 256 entries is four instructions and three subtractions per sixteen bytes: with all of it in
    // registers IQ2_XXS took 669 instructions per 256 weights instead of 482.
    const BYTE_PERMUTE: bool = false;

    // Not inlined, or LLVM would make one function of all of them.
    #[inline(never)]
    fn enter<O: Op>(self, op: O) -> O::Out {
        // SAFETY: this token proves the features of its own level.
        unsafe { if DOT { enter_dotprod(Neon::<true>(()), op) } else { enter(Neon::<false>(()), op) } }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vld1q_f32(x.as_ptr().add(4 * i))) }
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vst1q_f32(out.as_mut_ptr().add(4 * i), x[i])) };
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vmulq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vfmaq_f32(c[i], a[i], b[i])) }
    }

    #[inline(always)]
    fn plus(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vaddq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    fn minus(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vsubq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    fn least(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i])) }
    }

    #[inline(always)]
    fn most(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i])) }
    }

    #[inline(always)]
    fn where_less(self, a: Self::F, b: Self::F, then: Self::F, otherwise: Self::F) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vbslq_f32(vcltq_f32(a[i], b[i]), then[i], otherwise[i])) }
    }

    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        // SAFETY: see the head of the file.
        unsafe { lane_sum(x) }
    }

    #[inline(always)]
    fn sum_each(self, x: &[Self::F; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { four!(i => lane_sums([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]])) }
    }

    #[inline(always)]
    fn halves(self, x: [[u8; 2]; 8]) -> [f32; 8] {
        let mut out = [0.0; 8];
        // SAFETY: see the head of the file.
        unsafe {
            let [low, high] = half_lanes(vld1q_u16(x.as_ptr().cast()));
            vst1q_f32(out.as_mut_ptr(), low);
            vst1q_f32(out.as_mut_ptr().add(4), high);
        }
        out
    }

    #[inline(always)]
    fn load_half(self, x: &[u16; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe {
            let ([a, b], [c, d]) =
                (half_lanes(vld1q_u16(x.as_ptr())), half_lanes(vld1q_u16(x.as_ptr().add(8))));
            [a, b, c, d]
        }
    }

    #[inline(always)]
    fn load_brain(self, x: &[u16; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(x.as_ptr().add(4 * i))))) }
    }

    #[inline(always)]
    fn load_e4m3(self, x: &[u8; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe {
            let x = vreinterpretq_s8_u8(vld1q_u8(x.as_ptr()));
            let [low, high] = [vshll_n_s8::<7>(vget_low_s8(x)), vshll_high_n_s8::<7>(x)];
            let mut out = self.splat(0.0);
            for (half, x) in [low, high].into_iter().enumerate() {
                // Sign and magnitude where f16 has them; the product moves the exponent from bias 7 to bias 15.
                let bits = vandq_u16(vreinterpretq_u16_s16(x), vdupq_n_u16(0xbf80));
                let largest = vdupq_n_u16(0x3f80);
                let nan = vceqq_u16(vandq_u16(bits, largest), largest);
                let bits = vorrq_u16(bits, vandq_u16(nan, vdupq_n_u16(0x7e00)));
                let [a, b] = half_lanes(bits);
                out[2 * half] = vmulq_n_f32(a, 256.0);
                out[2 * half + 1] = vmulq_n_f32(b, 256.0);
            }
            out
        }
    }

    #[inline(always)]
    fn load_codes(self, x: &[i8; LANES]) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe {
            let x = vld1q_u8(x.as_ptr().cast());
            // The byte goes to the top of its lane, which is read as a number with 24 bits after the point.
            four!(i => {
                let mut at = [255; 16];
                for lane in 0..4 {
                    at[4 * lane + 3] = 4 * i + lane as u8;
                }
                vcvtq_n_f32_s32::<24>(vreinterpretq_s32_u8(vqtbl1q_u8(x, vld1q_u8(at.as_ptr()))))
            })
        }
    }

    #[inline(always)]
    fn store_half(self, x: Self::F, out: &mut [u16; LANES]) {
        // SAFETY: see the head of the file.
        unsafe {
            vst1q_u16(out.as_mut_ptr(), half_bits(x[0], x[1]));
            vst1q_u16(out.as_mut_ptr().add(8), half_bits(x[2], x[3]));
        }
    }

    #[inline(always)]
    fn transpose_groups(self, x: &[[f32; 8]; LANES]) -> [Self::F; 8] {
        // SAFETY: see the head of the file.
        unsafe {
            let mut out = [self.splat(0.0); 8];
            for r in 0..4 {
                for g in [0, 4] {
                    let words = transpose4(four!(i => vld1q_u32(x[4 * r + i].as_ptr().add(g).cast())));
                    for i in 0..4 {
                        out[g + i][r] = vreinterpretq_f32_u32(words[i]);
                    }
                }
            }
            out
        }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { [vdupq_n_s32(x); 4] }
    }

    #[inline(always)]
    fn to_float(self, x: Self::V) -> Self::F {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vcvtq_f32_s32(x[i])) }
    }

    #[inline(always)]
    fn load_i32(self, x: &[i32; LANES]) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vld1q_s32(x.as_ptr().add(4 * i))) }
    }

    #[inline(always)]
    fn store_i32(self, x: Self::V, out: &mut [i32; LANES]) {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vst1q_s32(out.as_mut_ptr().add(4 * i), x[i])) };
    }

    #[inline(always)]
    fn widen_i32(self, x: &[i8; LANES]) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe {
            let x = vld1q_s8(x.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
            [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ]
        }
    }

    #[inline(always)]
    fn widen_pairs(self, x: &[i8; 2 * LANES]) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vreinterpretq_s32_s16(vmovl_s8(vld1_s8(x.as_ptr().add(8 * i))))) }
    }

    #[inline(always)]
    fn add_i32(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vaddq_s32(a[i], b[i])) }
    }

    #[inline(always)]
    fn dot2(self, acc: Self::V, w: Self::V, a: i32) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe {
            let w = four!(i => vreinterpretq_s16_s32(w[i]));
            let a = vreinterpret_s16_s32(vdup_n_s32(a));
            let (acc0, acc1) = dot::pairs((acc[0], acc[1]), (w[0], w[1]), a);
            let (acc2, acc3) = dot::pairs((acc[2], acc[3]), (w[2], w[3]), a);
            [acc0, acc1, acc2, acc3]
        }
    }

    // Codes meet activations as signed bytes, so no sum starts from anything but zero.

    #[inline(always)]
    fn dot_zero(self) -> Self::D {
        self.splat_i32(0)
    }

    #[inline(always)]
    fn dot_start(self, _: &ActChunk, _: usize, _: usize) -> Self::D {
        self.dot_zero()
    }

    #[inline(always)]
    fn dot(self, acc: Self::D, w: Self::Q, a: i32) -> Self::D {
        // SAFETY: see the head of the file.
        unsafe { dot::fours::<DOT>(acc, w, a) }
    }

    #[inline(always)]
    fn dot_sum(self, acc: Self::D) -> Self::V {
        acc
    }

    #[inline(always)]
    fn dot_end(self, total: Self::V, acc: Self::D, factor: Self::V) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vmlaq_s32(total[i], acc[i], factor[i])) }
    }

    #[inline(always)]
    fn dot_wide(self, acc: Self::V, w: Self::Q, a: i32) -> Self::V {
        self.dot(acc, w, a)
    }

    #[inline(always)]
    fn wide_end(self, total: Self::V, acc: Self::V, factor: Self::V) -> Self::V {
        self.dot_end(total, acc, factor)
    }

    #[inline(always)]
    fn factors(self, x: &[i8; LANES]) -> Self::V {
        self.widen_i32(x)
    }

    #[inline(always)]
    fn mul_factors(self, x: Self::V, by: i16) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vmulq_n_s32(x[i], i32::from(by))) }
    }

    #[inline(always)]
    fn abs_factors(self, x: Self::V) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vabsq_s32(x[i])) }
    }

    #[inline(always)]
    fn full_start(self, _: i32) -> Self::V {
        self.splat_i32(0)
    }

    #[inline(always)]
    fn dot_full(self, acc: Self::V, w: Self::Q, a: i32) -> Self::V {
        self.dot(acc, w, a)
    }

    #[inline(always)]
    fn transpose_words(self, rows: &[[u8; 64]; LANES], out: &mut [[u8; 64]; LANES]) {
        // SAFETY: see the head of the file.
        unsafe {
            for r in 0..4 {
                for k in 0..4 {
                    let block = four!(i => vld1q_u32(rows[4 * r + i].as_ptr().add(16 * k).cast()));
                    let words = transpose4(block);
                    for i in 0..4 {
                        vst1q_u32(out[4 * k + i].as_mut_ptr().add(16 * r).cast(), words[i]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn no_lanes(self) -> Self::S {
        // SAFETY: see the head of the file.
        unsafe { vdupq_n_s32(0) }
    }

    #[inline(always)]
    fn no_units(self) -> Self::U {
        [self.no_lanes(); 8]
    }

    #[inline(always)]
    fn dot_super<const SIGNED: bool>(
        self,
        codes: &[Self::Q; 4],
        scales: &[i16; 16],
        a: &ActChunk,
    ) -> Self::S {
        // SAFETY: see the head of the file.
        unsafe { dot::supers::<DOT, SIGNED>(codes, scales, a) }
    }

    #[inline(always)]
    fn dot_mins(self, mins: &[i16; 16], a: &ActChunk) -> Self::S {
        // SAFETY: see the head of the file.
        unsafe { dot::sixteen(mins, &a.sums) }
    }

    #[inline(always)]
    fn sum_rows(self, x: &[Self::S; LANES]) -> Self::V {
        // SAFETY: see the head of the file.
        unsafe { four!(i => row_sums([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]])) }
    }

    #[inline(always)]
    fn dot_units(self, codes: &[Self::Q; 4], a: &ActChunk) -> Self::U {
        // SAFETY: see the head of the file.
        unsafe { dot::units::<DOT>(codes, a) }
    }

    #[inline(always)]
    fn sum_units(self, x: &[Self::U; LANES], _: &ActChunk) -> [Self::V; 8] {
        let mut out = [self.splat_i32(0); 8];
        for g in 0..8 {
            // SAFETY: see the head of the file.
            out[g] = unsafe {
                four!(i => row_sums([x[4 * i][g], x[4 * i + 1][g], x[4 * i + 2][g], x[4 * i + 3][g]]))
            };
        }
        out
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8], at: usize) {
        lanes::prefetch(bytes.as_ptr().wrapping_add(at));
    }

    #[inline(always)]
    fn spread(self, x: Self::Q, at: &[u8; 8]) -> [i16; 16] {
        // SAFETY: see the head of the file.
        unsafe { double(vqtbl4_u8(uint8x16x4_t(x[0], x[1], x[2], x[3]), vld1_u8(at.as_ptr()))) }
    }

    #[inline(always)]
    fn twice(self, x: [u8; 8]) -> [i16; 16] {
        // SAFETY: see the head of the file.
        unsafe { double(vld1_u8(x.as_ptr())) }
    }

    #[inline(always)]
    fn widen(self, x: [i8; 16]) -> [i16; 16] {
        let mut out = [0; 16];
        // SAFETY: see the head of the file.
        unsafe {
            let x = vld1q_s8(x.as_ptr());
            vst1q_s16(out.as_mut_ptr(), vmovl_s8(vget_low_s8(x)));
            vst1q_s16(out.as_mut_ptr().add(8), vmovl_high_s8(x));
        }
        out
    }

    #[inline(always)]
    fn bytes(self, x: &[u8; 64]) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vld1q_u8(x.as_ptr().add(16 * i))) }
    }

    #[inline(always)]
    fn bytes2(self, low: &[u8; 32], high: &[u8; 32]) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vld1q_u8(if i < 2 { low } else { high }.as_ptr().add(16 * (i % 2)))) }
    }

    #[inline(always)]
    fn nibbles(self, low: &[u8; 16], high: &[u8; 16]) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe {
            let (low, high) = (vld1q_u8(low.as_ptr()), vld1q_u8(high.as_ptr()));
            let mask = vdupq_n_u8(15);
            [vandq_u8(low, mask), vshrq_n_u8::<4>(low), vandq_u8(high, mask), vshrq_n_u8::<4>(high)]
        }
    }

    #[inline(always)]
    fn words(self, x: [u64; 8]) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vcombine_u8(vcreate_u8(x[2 * i]), vcreate_u8(x[2 * i + 1]))) }
    }

    #[inline(always)]
    fn put(self, x: Self::Q, out: &mut [u8; 64]) {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vst1q_u8(out.as_mut_ptr().add(16 * i), x[i])) };
    }

    #[inline(always)]
    fn splat_byte(self, x: u8) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { [vdupq_n_u8(x); 4] }
    }

    #[inline(always)]
    fn and(self, a: Self::Q, b: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vandq_u8(a[i], b[i])) }
    }

    #[inline(always)]
    fn or(self, a: Self::Q, b: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vorrq_u8(a[i], b[i])) }
    }

    #[inline(always)]
    fn xor(self, a: Self::Q, b: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { four!(i => veorq_u8(a[i], b[i])) }
    }

    #[inline(always)]
    fn add(self, a: Self::Q, b: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { four!(i => vaddq_u8(a[i], b[i])) }
    }

    #[inline(always)]
    fn shr<const LOW: u32, const HIGH: u32>(self, x: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { four!(i => shifted(x[i], -(if i < 2 { LOW } else { HIGH } as i8))) }
    }

    #[inline(always)]
    fn shl<const LOW: u32, const HIGH: u32>(self, x: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe { four!(i => shifted(x[i], if i < 2 { LOW } else { HIGH } as i8)) }
    }

    #[inline(always)]
    fn lookup16(self, table: &[u8; 16], indices: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe {
            let table = vld1q_u8(table.as_ptr());
            four!(i => vqtbl1q_u8(table, indices[i]))
        }
    }

    #[inline(always)]
    fn lookup256(self, table: &[u8; 256], indices: Self::Q) -> Self::Q {
        // SAFETY: see the head of the file.
        unsafe {
            let quarters = table.as_chunks().0;
            let mut out = [vdupq_n_u8(0); 4];
            for q in 0..4 {
                // Numbers of other quarters are over 63, and leave what is there.
                let (table, first) = (load_table(&quarters[q]), vdupq_n_u8(64 * q as u8));
                out = four!(i => vqtbx4q_u8(out[i], table, vsubq_u8(indices[i], first)));
            }
            out
        }
    }
}
