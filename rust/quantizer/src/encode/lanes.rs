//! Sixteen f32 side by side: sixteen trial scales of one group, or sixteen groups at once.
//!
//! Knows only elementwise arithmetic, so every instruction set returns the same bits. Plain loops
//! over a fixed array: inside the entry of [`kizami_kernels::dispatch`] each becomes one or two
//! vector instructions. (`array::map` and `from_fn` do not: they stay calls.) But where values live on from one
//! round of a loop to the next and end as single lanes, LLVM tears them to pieces: hot loops use an [`Isa`]'s registers.

use kizami_kernels::isa::Isa;
use std::ops::{Add, Div, Mul, Sub};

/// Lanes of [`Lanes`].
pub(crate) const LANES: usize = 16;

/// Sixteen values; operators work lane by lane.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Lanes(pub(crate) [f32; LANES]);

macro_rules! elementwise {
    ($($trait:ident $method:ident $op:tt;)*) => {$(
        impl $trait for Lanes {
            type Output = Lanes;
            #[inline(always)]
            fn $method(mut self, other: Lanes) -> Lanes {
                for l in 0..LANES {
                    self.0[l] $op other.0[l];
                }
                self
            }
        }
    )*};
}
elementwise! { Add add +=; Sub sub -=; Mul mul *=; Div div /=; }

impl Lanes {
    pub(crate) const ZERO: Lanes = Lanes([0.0; LANES]);

    /// In a register.
    #[inline(always)]
    pub(crate) fn f<I: Isa>(&self, isa: I) -> I::F {
        isa.load(&self.0)
    }

    /// Out of a register.
    #[inline(always)]
    pub(crate) fn of<I: Isa>(isa: I, x: I::F) -> Lanes {
        let mut out = Lanes::ZERO;
        isa.store(x, &mut out.0);
        out
    }

    #[inline(always)]
    pub(crate) const fn splat(x: f32) -> Lanes {
        Lanes([x; LANES])
    }

    /// `0, 1, 2 ... 15`
    pub(crate) const IOTA: Lanes =
        Lanes([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);

    #[inline(always)]
    pub(crate) fn min(mut self, other: Lanes) -> Lanes {
        for l in 0..LANES {
            self.0[l] = if self.0[l] < other.0[l] { self.0[l] } else { other.0[l] };
        }
        self
    }

    #[inline(always)]
    pub(crate) fn max(mut self, other: Lanes) -> Lanes {
        for l in 0..LANES {
            self.0[l] = if self.0[l] > other.0[l] { self.0[l] } else { other.0[l] };
        }
        self
    }

    #[inline(always)]
    pub(crate) fn abs(mut self) -> Lanes {
        for l in 0..LANES {
            self.0[l] = self.0[l].abs();
        }
        self
    }

    /// `then` where `self < bound`, else `otherwise`.
    #[inline(always)]
    pub(crate) fn where_less(self, bound: Lanes, then: Lanes, otherwise: Lanes) -> Lanes {
        let mut out = Lanes::ZERO;
        for l in 0..LANES {
            out.0[l] = if self.0[l] < bound.0[l] { then.0[l] } else { otherwise.0[l] };
        }
        out
    }

    /// Clamped to `low..=high`, then rounded to the nearest integer, ties to even. The bounds must
    /// stay within 2^22: the rounding is an addition that shifts the fraction out.
    #[inline(always)]
    pub(crate) fn code(self, low: f32, high: f32) -> Lanes {
        let shift = Lanes::splat(ROUND);
        (self.max(Lanes::splat(low)).min(Lanes::splat(high)) + shift) - shift
    }

    /// A lane with the smallest value.
    #[inline(always)]
    pub(crate) fn argmin(mut self) -> usize {
        let mut lanes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15u32];
        let mut half = LANES / 2;
        while half > 0 {
            for l in 0..half {
                let less = self.0[l + half] < self.0[l];
                lanes[l] = if less { lanes[l + half] } else { lanes[l] };
                self.0[l] = if less { self.0[l + half] } else { self.0[l] };
            }
            half /= 2;
        }
        lanes[0] as usize
    }
}

/// The same value, about which the compiler knows nothing. A loop over tables of [`Lanes`] whose
/// bounds or indices come from here keeps its bounds checks, and that stops LLVM from vectorizing
/// across iterations, with gathers and scatters, what is already one instruction per iteration.
#[inline(always)]
pub(crate) fn opaque<T>(value: T) -> T {
    std::hint::black_box(value)
}

/// 1.5 * 2^23: adding it leaves no bits for a fraction.
const ROUND: f32 = 12_582_912.0;

/// Sixteen values clamped and rounded as [`Lanes::code`] does.
#[inline(always)]
pub(crate) fn codes<I: Isa>(isa: I, x: I::F, low: f32, high: f32) -> I::F {
    let shift = isa.splat(ROUND);
    let x = isa.least(isa.most(x, isa.splat(low)), isa.splat(high));
    isa.minus(isa.plus(x, shift), shift)
}

/// One value clamped and rounded as [`Lanes::code`] does.
#[inline(always)]
pub(crate) fn code(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    let x = if x < high { x } else { high };
    (x + ROUND) - ROUND
}

/// Sum in one fixed order: sixteen partial sums, then halves.
#[inline(always)]
pub(crate) fn sum<const N: usize>(x: &[f32; N]) -> f32 {
    let mut lanes = Lanes::ZERO;
    for part in x.as_chunks::<LANES>().0 {
        lanes = lanes + Lanes(*part);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes.0[l] += lanes.0[l + half];
        }
        half /= 2;
    }
    lanes.0[0]
}

/// `sum of w * a * b` in the order of [`sum`].
#[inline(always)]
pub(crate) fn dot3<const N: usize>(w: &[f32; N], a: &[f32; N], b: &[f32; N]) -> f32 {
    let mut products = [0.0; N];
    for i in 0..N {
        products[i] = w[i] * a[i] * b[i];
    }
    sum(&products)
}
