//! One code per weight: an integer, or one of IQ4's levels; in drafts of IQ1, any of three values. The nearest one is
//! right whatever errors cost, given what earlier weights leave to make up for.

use super::lanes::{LANES, Lanes, code, codes as code_lanes};
use super::octet::{Octet, Row};
use super::signed::inverses;
use super::split::{Line, OCTET, Scales, Search};
use super::target::{Frame, Target, inverse};
use kizami_kernels::isa::Isa;

/// Values of which the nearest is taken. (A closure would not be inlined.)
pub(super) trait Nearest {
    fn nearest<I: Isa>(isa: I, x: I::F) -> I::F;
}

/// Integers `LOW..=HIGH`, stored from `LOW` as zero.
pub(super) struct Levels<const LOW: i32, const HIGH: i32>;

impl<const LOW: i32, const HIGH: i32> Nearest for Levels<LOW, HIGH> {
    #[inline(always)]
    fn nearest<I: Isa>(isa: I, x: I::F) -> I::F {
        code_lanes(isa, x, LOW as f32, HIGH as f32)
    }
}

impl<const LOW: i32, const HIGH: i32> Search for Levels<LOW, HIGH> {
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
            let line = scales.line(g);
            let id = inverse(line.scale);
            for i in 0..OCTET {
                codes[i] = (code((x[i] - line.start) * id, LOW as f32, HIGH as f32) - LOW as f32) as u8;
            }
        }
    }

    #[inline(always)]
    fn values(codes: [u8; OCTET]) -> [f32; OCTET] {
        let mut values = [0.0; OCTET];
        for i in 0..OCTET {
            values[i] = f32::from(codes[i]) + LOW as f32;
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
                codes[l][i] = (values[i].0[l] - LOW as f32) as u8;
            }
        }
        values
    }
}

/// Rounds eight weights one after the other, each with the errors of those before it on top.
#[inline(always)]
pub(super) fn in_order<I: Isa, V: Nearest>(isa: I, octet: &Octet, row: &Row) -> [Lanes; OCTET] {
    let (inverse, scale, start) = (inverses(row.scale).f(isa), row.scale.f(isa), row.start.f(isa));
    let mut error = [isa.splat(0.0); OCTET];
    let mut values = [Lanes::ZERO; OCTET];
    for j in 0..OCTET {
        let w = row.w[j].f(isa);
        let mut x = isa.plus(w, row.fed[j].f(isa));
        for i in 0..j {
            x = isa.fma(error[i], isa.splat(octet.u[i][j]), x);
        }
        let value = V::nearest(isa, isa.mul(isa.minus(x, start), inverse));
        error[j] = isa.minus(w, isa.fma(value, scale, start));
        values[j] = Lanes::of(isa, value);
    }
    values
}

/// `COUNT` signed sub-scales under one f16, or that alone.
#[derive(Clone, Copy)]
pub(super) struct Scaled<const COUNT: usize> {
    pub(super) bits: [u8; 2],
    /// What the bits stand for.
    pub(super) d: f32,
    pub(super) sub: [f32; COUNT],
}

impl Scaled<1> {
    /// A single scale, as an f16 can hold it.
    #[inline(always)]
    pub(super) fn single<const N: usize>(target: &Target<N>, d: f32) -> Self {
        let (bits, d) = target.frame.store(d);
        Scaled { bits, d, sub: [1.0] }
    }
}

impl<const COUNT: usize> Scales for Scaled<COUNT> {
    #[inline(always)]
    fn line(&self, octet: usize) -> Line {
        Line { scale: self.d * self.sub[octet * COUNT / 32], start: 0.0, variant: 0 }
    }

    #[inline(always)]
    fn refit(&mut self, frame: &Frame, factor: f32) {
        (self.bits, self.d) = frame.store(self.d * factor);
    }
}
