//! Few levels under one scale for many weights (TQ1_0, TQ2_0, Q2_0): many scales are tried.

use super::lanes::{LANES, Lanes, code, dot3};
use super::signed::{inverses, least_squares};
use super::target::{Target, inverse};

/// Trial scales for weights whose root mean square is one, and their number per round.
const FIRST: f32 = 0.4;
const STEP: f32 = 0.1;
/// The second round looks this far around the best of the first.
const FINE: f32 = 0.012;

/// The scale with the smallest error for codes `low..=high`, negative ones tried too where those are not symmetric.
#[inline(always)]
pub(super) fn choose_scale<const N: usize>(target: &Target<N>, low: f32, high: f32) -> f32 {
    let ones = [1.0; N];
    let rms = (dot3(&target.w, &target.x, &target.x) / dot3(&target.w, &ones, &ones)).sqrt();
    let mut scales = (Lanes::IOTA * Lanes::splat(STEP) + Lanes::splat(FIRST)) * Lanes::splat(rms);
    if low + high != 0.0 {
        for l in (1..LANES).step_by(2) {
            scales.0[l] = -scales.0[l];
        }
    }
    let coarse = least_squares(&target.x, &target.w, inverses(scales), low, high);
    let around = Lanes::splat(1.0) + (Lanes::IOTA - Lanes::splat(7.5)) * Lanes::splat(FINE);
    least_squares(&target.x, &target.w, around * Lanes::splat(inverse(coarse)), low, high)
}

/// The nearest code from `low` as zero, and what it stands for; it does not depend on what errors cost.
#[inline(always)]
pub(super) fn choose_code(d: f32, x: f32, low: f32, high: f32) -> (u8, f32) {
    let q = code(x * inverse(d), low, high);
    ((q - low) as u8, q * d)
}

/// Largest factor of [`unbiased`].
const MOST: f32 = 1.5;

/// The factor on the scale that keeps the gain at one, as in `steps.rs`, but leaves no more error than zeros would:
/// one scale for so many weights may serve an outlier.
#[inline(always)]
pub(super) fn unbiased<const N: usize>(target: &Target<N>, decoded: &[f32; N]) -> f32 {
    let xd = dot3(&target.h, &target.x, decoded);
    let factor = dot3(&target.h, &target.x, &target.x) / xd;
    let factor = if factor > 1.0 { factor.min(MOST) } else { 1.0 };
    let harmless = 2.0 * xd / dot3(&target.h, decoded, decoded);
    if harmless < factor { harmless } else { factor }
}
