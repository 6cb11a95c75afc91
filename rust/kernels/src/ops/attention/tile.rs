//! Products of f32 matrices in registers: scores, weighted sums of values and the expansion of latents
//! are all this one loop. Knows strides; knows nothing of attention.
//!
//! ```text
//!                    b: 32 columns, k rows            out[m][lane] = fma over k, ascending, from 0 or from out
//!                    ┌────────────────┐
//!                    │ row k: 2 x 16  │ loaded once
//!                    └────────────────┘
//!   a: m rows of k   ┌────────────────┐
//!   ┌──────────┐     │                │
//!   │ a[m][k]  │ ──> │ 8 x 2 registers│ sixteen accumulators; 4 x 1 where only eight fit
//!   └──────────┘     └────────────────┘
//!    one broadcast
//! ```
//!
//! Every output is one chain of fused multiply-adds over `k` in ascending order, whatever the tile.

use crate::isa::{Isa, LANES};

/// Columns of a panel of `b`.
pub(super) const PANEL: usize = 32;

/// Rows of `stride` floats, of which a product takes the first ones.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

impl<'a> Strided<'a> {
    /// The rows from column `at` on.
    #[inline(always)]
    pub(super) fn columns(self, at: usize) -> Self {
        Self { data: &self.data[at..], stride: self.stride }
    }

    /// The rows from row `at` on.
    #[inline(always)]
    pub(super) fn rows(self, at: usize) -> Self {
        Self { data: &self.data[at * self.stride..], stride: self.stride }
    }
}

/// `out[i][..32] = sum over k of a[i][k] * b[k][..32]` for `m` rows; on top of `out` if `onto`.
#[inline(always)]
pub(super) fn panel<I: Isa>(
    isa: I,
    (m, k): (usize, usize),
    a: Strided<'_>,
    b: Strided<'_>,
    out: &mut [f32],
    out_stride: usize,
    onto: bool,
) {
    if I::WIDE {
        block::<I, 8, 2>(isa, (m, k), a, b, out, out_stride, onto);
    } else {
        block::<I, 4, 1>(isa, (m, k), a, b, out, out_stride, onto);
        block::<I, 4, 1>(isa, (m, k), a, b.columns(LANES), &mut out[LANES..], out_stride, onto);
    }
}

/// [`panel`] on top of `out`, of which row `i` takes the first `seen[i]` rows of `b` alone; `seen` ascends.
/// Under a causal mask that is more than saving work: a weight of zero times NaN would be NaN.
#[inline(always)]
pub(super) fn causal_panel<I: Isa>(
    isa: I,
    seen: &[usize],
    a: Strided<'_>,
    b: Strided<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    let step = if I::WIDE { 8 } else { 4 };
    let mut first = 0;
    while first < seen.len() {
        let m = step.min(seen.len() - first);
        let all = seen[first];
        panel(isa, (m, all), a.rows(first), b, &mut out[first * out_stride..], out_stride, true);
        for i in first + 1..first + m {
            if seen[i] > all {
                let (a, b) = (a.rows(i).columns(all), b.rows(all));
                let (k, out) = (seen[i] - all, &mut out[i * out_stride..]);
                block::<I, 1, 2>(isa, (1, k), a, b, out, out_stride, true);
            }
        }
        first += m;
    }
}

/// [`panel`] with sixteen columns. Its `b` is read again for every few rows of `a`, so it is taken in parts
/// that stay in the first-level cache; sums go on where they stopped.
#[inline(always)]
pub(super) fn half_panel<I: Isa>(
    isa: I,
    (m, k): (usize, usize),
    a: Strided<'_>,
    b: Strided<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    const PART: usize = 192;
    let mut at = 0;
    while at < k {
        let (a, b, k) = (a.columns(at), b.rows(at), PART.min(k - at));
        if I::WIDE {
            block::<I, 8, 1>(isa, (m, k), a, b, out, out_stride, at > 0);
        } else {
            block::<I, 4, 1>(isa, (m, k), a, b, out, out_stride, at > 0);
        }
        at += PART;
    }
}

/// `m` rows in tiles of `M`; the rows that a last tile lacks are computed as copies of the last one.
#[inline(always)]
fn block<I: Isa, const M: usize, const V: usize>(
    isa: I,
    (m, k): (usize, usize),
    a: Strided<'_>,
    b: Strided<'_>,
    out: &mut [f32],
    out_stride: usize,
    onto: bool,
) {
    let mut first = 0;
    while first < m {
        let mut rows: [&[f32]; M] = [&[]; M];
        for i in 0..M {
            rows[i] = &a.data[(first + i).min(m - 1) * a.stride..][..k];
        }
        let mut acc = [[isa.splat(0.0); V]; M];
        if onto {
            for i in 0..M {
                let from = lanes::<V>(&out[(first + i).min(m - 1) * out_stride..]);
                for v in 0..V {
                    acc[i][v] = isa.load(&from[v]);
                }
            }
        }
        for k in 0..k {
            let row = lanes::<V>(&b.data[k * b.stride..]);
            let mut columns = [isa.splat(0.0); V];
            for v in 0..V {
                columns[v] = isa.load(&row[v]);
            }
            for i in 0..M {
                let x = isa.splat(rows[i][k]);
                for v in 0..V {
                    acc[i][v] = isa.fma(x, columns[v], acc[i][v]);
                }
            }
        }
        for i in 0..M.min(m - first) {
            let to = &mut out[(first + i) * out_stride..][..V * LANES];
            for v in 0..V {
                let to: &mut [f32; LANES] =
                    (&mut to[v * LANES..][..LANES]).try_into().expect("sixteen lanes");
                isa.store(acc[i][v], to);
            }
        }
        first += M;
    }
}

#[inline(always)]
fn lanes<const V: usize>(x: &[f32]) -> &[[f32; LANES]; V] {
    x[..V * LANES].as_chunks::<LANES>().0.try_into().expect("V times sixteen lanes")
}
