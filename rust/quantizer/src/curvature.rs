//! What an error in one column may be traded for in others: the second moments of a layer's inputs, factored.
//!
//! Knows linear algebra only. For `H = E[x xᵀ]` of `n` columns, damped, it finds `H = (I + U) D (I + U)ᵀ` with `U`
//! strictly upper triangular and `D` diagonal, so that the loss of an error row `e` is a plain sum over columns:
//!
//! ```text
//! e H eᵀ = sum over j of d[j] * (e[j] + sum over i < j of e[i] * u[i][j])²
//! ```
//!
//! Columns rounded in ascending order can therefore absorb what the ones before them did wrong. Blocks of any width
//! are contained in the same factor (their metric is `L D Lᵀ` with `L` a diagonal block of `I + U`), which is why one
//! serves blocks of 256 or 32 weights and codebook entries of eight, four or one. This is the LDL form of GPTQ (arXiv
//! 2210.17323) that QuIP# uses for blocks (arXiv 2402.04396), eliminated from the last column.
//!
//! What inputs themselves have lost, where outputs are wanted as if they had not, is one more thing to make up for:
//! [`Curvature::followed`].
//!
//! All sums are f32 with fused multiply-adds in a fixed order, so neither threads nor the instruction set show.
#![allow(clippy::needless_range_loop, reason = "triangles are walked by numbers")]

use crate::error::{Error, expect_len};
use kizami_kernels::dispatch::Op;
use kizami_kernels::isa::{Isa, LANES};
use kizami_kernels::{dispatch, par};

mod blocks;
#[cfg(test)]
mod tests;

pub(crate) use blocks::BlockMetric;
use blocks::Blocks;

/// Columns whose rows of `U` lie together.
pub(crate) const OCTET: usize = 8;
/// Columns eliminated at once.
const PANEL: usize = 128;
/// Rows updated at once: their sums stay in registers.
const ROWS: usize = 8;
/// The least damping, as a share of the mean diagonal: below it f32 cannot tell a pivot from zero.
const LEAST_DAMPING: f32 = 1.0 / (1 << 17) as f32;
/// By how much damping grows where a pivot gets lost.
const MORE_DAMPING: f32 = 8.0;
/// How far the two halves may disagree, and how far an entry may exceed what its diagonals allow, relative to those.
const TOLERANCE: f32 = 1e-3;

/// The factored second moments of one layer's inputs.
#[derive(Debug, Clone)]
pub struct Curvature {
    cols: usize,
    damping: f32,
    /// What moments were multiplied by, a power of two; one for those that are all zero.
    unit: f64,
    /// The diagonal of the moments, undamped, in this scale.
    importance: Vec<f32>,
    /// `D`, in the same scale.
    pivots: Vec<f32>,
    /// `U`, eight columns after the other: of columns `8 g .. 8 g + 8` the rows `0 .. 8 g + 8`.
    factor: Vec<[f32; OCTET]>,
    /// What is fed into columns before any is rounded, for each weight: `K` of [`Curvature::followed`], eight columns
    /// after the other, all rows. Nothing where inputs do not differ.
    drift: Vec<[f32; OCTET]>,
    /// The metrics of blocks by themselves.
    blocks: Blocks,
}

impl Curvature {
    /// Damping that suits calibration with several times as many tokens as columns.
    pub const DAMPING: f32 = 0.01;

    /// Factors `moments`, `[cols][cols]` mean products of inputs in any scale; `cols` is a multiple of 32.
    ///
    /// `damping` times the mean of the diagonal is added to the diagonal, so columns that were never active keep a
    /// little weight. Where rounding, or moments that are no moments, leave a pivot below half of what damping alone
    /// guarantees, damping is multiplied by eight and the work begins anew; [`Curvature::damping`] tells. Moments that
    /// are all zero count as the identity.
    ///
    /// About `cols³ / 3` multiply-adds on all threads; holds `1.5 cols²` floats meanwhile, and after half of `cols²` and
    /// `306 cols` for the metrics of blocks.
    ///
    /// Errors: a wrong length, an entry that is not finite, not symmetric or larger than its diagonals allow.
    pub fn new(moments: &[f32], cols: usize, damping: f32) -> Result<Curvature, Error> {
        if cols == 0 || !cols.is_multiple_of(4 * OCTET) {
            return Err(Error::RowLength { ty: "second moments", cols, block: 4 * OCTET });
        }
        expect_len("second moments", moments.len(), cols * cols)?;
        check(moments, cols)?;
        let mean = (0..cols).map(|i| f64::from(moments[i * cols + i])).sum::<f64>() / cols as f64;
        // An exact power of two, so that any scale gives the same factor.
        let unit = if mean > 0.0 { (-mean.log2().floor()).exp2() } else { 0.0 };
        let scaled = |x: f32| (f64::from(x) * unit) as f32;
        let mut damping = if damping > LEAST_DAMPING { damping } else { LEAST_DAMPING };
        let importance: Vec<f32> = (0..cols).map(|i| scaled(moments[i * cols + i])).collect();
        loop {
            let extra = if mean > 0.0 { (f64::from(damping) * mean * unit) as f32 } else { 1.0 };
            let mut matrix = vec![0.0; cols * cols];
            par::for_chunks(&mut matrix, cols, |i, row| {
                row.iter_mut().zip(&moments[i * cols..]).for_each(|(out, &x)| *out = scaled(x));
                row[i] += extra;
            });
            if let Some(pivots) = eliminate(&mut matrix, cols, 0.5 * extra) {
                let (importance, unit) = if mean > 0.0 { (importance, unit) } else { (vec![1.0; cols], 1.0) };
                let factor = pack(&matrix, cols);
                drop(matrix);
                let (drift, blocks) = (Vec::new(), Blocks::default());
                let made = Curvature { cols, damping, unit, importance, pivots, factor, drift, blocks };
                return Ok(Curvature { blocks: Blocks::new(&made), ..made });
            }
            damping *= MORE_DAMPING;
        }
    }

    /// With other outputs to come close to: those for inputs `y`, while inputs are `x`. `drift` is `[cols][cols]` means
    /// of `(y - x) xᵀ`, in the scale of the moments of `x`.
    ///
    /// The loss of an error row `e` of weights `w` is then that of `w y` against `(w - e) x`: up to a constant
    /// `e H eᵀ + 2 w drift eᵀ`, as if weights were `w + w drift H⁻¹`: GPTAQ's correction (arXiv 2504.02692). As a sum over
    /// columns it is that of `d[j] * (e[j] + sum over i < j of e[i] * u[i][j] + f[j])²` with `f = w K`,
    /// `K D (I + U)ᵀ = drift`. About `cols³` multiply-adds on all threads; holds `cols²` floats more after.
    ///
    /// Errors: a wrong length, an entry that is not finite.
    pub fn followed(mut self, drift: &[f32]) -> Result<Curvature, Error> {
        let cols = self.cols;
        expect_len("drift", drift.len(), cols * cols)?;
        let scaled = |at: usize| (f64::from(drift[at]) * self.unit) as f32;
        if let Some(at) = (0..drift.len()).find(|&at| !scaled(at).is_finite()) {
            return Err(Error::Drift { row: at / cols, col: at % cols, value: drift[at] });
        }
        let solved: Vec<Tile> = par::map((0..cols / LANES).collect(), |t: usize| {
            let mut rows: Tile =
                (0..cols).map(|j| std::array::from_fn(|l| scaled((LANES * t + l) * cols + j))).collect();
            dispatch(Begin { curvature: &self, rows: &mut rows });
            rows
        });
        let mut fed = vec![[0.0; OCTET]; cols / OCTET * cols];
        par::for_chunks(&mut fed, cols, |g, columns| {
            for i in 0..cols {
                for c in 0..OCTET {
                    columns[i][c] = solved[i / LANES][OCTET * g + c][i % LANES];
                }
            }
        });
        self.drift = fed;
        Ok(self)
    }

    /// Rows of columns `8 g .. 8 g + 8` of `K`, if inputs differ.
    pub(crate) fn drift(&self, g: usize) -> Option<&[[f32; OCTET]]> {
        self.drift.get(g * self.cols..(g + 1) * self.cols)
    }

    /// Columns, the length of a row of weights.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The damping that was used, as a share of the mean diagonal.
    pub fn damping(&self) -> f32 {
        self.damping
    }

    /// Mean squares of the inputs, column by column, in some scale: what encoders without feedback take.
    pub fn importance(&self) -> &[f32] {
        &self.importance
    }

    /// `D`: what a squared error costs in each column once later columns have made up for it.
    pub(crate) fn pivots(&self) -> &[f32] {
        &self.pivots
    }

    /// Whether there are metrics of blocks of `n` columns.
    pub(crate) const fn has_blocks_of(n: usize) -> bool {
        n == blocks::LENGTHS[0] || n == blocks::LENGTHS[1]
    }

    /// The metric of the block of `n` columns that begin with `start`, where `n` is a length that blocks have.
    pub(crate) fn block(&self, start: usize, n: usize) -> &BlockMetric {
        self.blocks.at(start, n)
    }

    /// The loss of error rows, `e H eᵀ` under the damped moments, summed over rows; of weights, the mean square of
    /// their outputs. `rows` has a number for each column, row after row.
    pub fn loss(&self, rows: &[f32]) -> f64 {
        dispatch(Loss(self, rows)) / self.unit
    }

    /// Rows `0 .. 8 g + 8` of columns `8 g .. 8 g + 8` of `U`.
    pub(crate) fn octet(&self, g: usize) -> &[[f32; OCTET]] {
        &self.factor[start(g)..start(g + 1)]
    }
}

/// Solves `F D (I + U)ᵀ = B` for sixteen rows side by side, from the last column.
struct Begin<'a> {
    curvature: &'a Curvature,
    rows: &'a mut Tile,
}

impl Op for Begin<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Begin { curvature, rows } = self;
        for g in (0..curvature.cols / OCTET).rev() {
            let u = curvature.octet(g);
            for c in (0..OCTET).rev() {
                // Column by column what it explains of those before it.
                let y = isa.load(&rows[OCTET * g + c]);
                for i in OCTET * g..OCTET * g + c {
                    let rest = isa.fma(y, isa.splat(-u[i][c]), isa.load(&rows[i]));
                    isa.store(rest, &mut rows[i]);
                }
            }
            let mut y = [isa.splat(0.0); OCTET];
            for c in 0..OCTET {
                y[c] = isa.load(&rows[OCTET * g + c]);
            }
            for i in 0..OCTET * g {
                let mut rest = isa.load(&rows[i]);
                for c in 0..OCTET {
                    rest = isa.fma(y[c], isa.splat(-u[i][c]), rest);
                }
                isa.store(rest, &mut rows[i]);
            }
        }
        for i in 0..curvature.cols {
            let f = isa.mul(isa.load(&rows[i]), isa.splat(1.0 / curvature.pivots[i]));
            isa.store(f, &mut rows[i]);
        }
    }
}

/// [`Curvature::loss`]: in f64, residual by residual; rows share what they read of the factor.
struct Loss<'a>(&'a Curvature, &'a [f32]);

impl Op for Loss<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> f64 {
        let Loss(curvature, rows) = self;
        let mut total = 0.0;
        for (g, d) in curvature.pivots.as_chunks::<OCTET>().0.iter().enumerate() {
            let factor = curvature.octet(g);
            for row in rows.chunks_exact(curvature.cols) {
                let mut residuals = [0.0; OCTET];
                for c in 0..OCTET {
                    residuals[c] = f64::from(row[OCTET * g + c]);
                }
                for (&x, u) in row.iter().zip(factor) {
                    for c in 0..OCTET {
                        residuals[c] += f64::from(x) * f64::from(u[c]);
                    }
                }
                for c in 0..OCTET {
                    total += f64::from(d[c]) * residuals[c] * residuals[c];
                }
            }
        }
        total
    }
}

/// Where the rows of octet `g` begin.
fn start(g: usize) -> usize {
    OCTET * (g * (g + 1) / 2)
}

/// Whether these can be second moments. A diagonal below zero, too, exceeds what it allows itself.
fn check(moments: &[f32], cols: usize) -> Result<(), Error> {
    let roots: Vec<f32> = (0..cols).map(|i| moments[i * cols + i].max(0.0).sqrt()).collect();
    let bad = par::map((0..cols).collect(), |row: usize| {
        (0..=row).find(|&col| {
            let (x, y) = (moments[row * cols + col], moments[col * cols + row]);
            let most = roots[row] * roots[col];
            // Written so that no number and infinity fail.
            !((x - y).abs() <= TOLERANCE * most && x.abs() <= (1.0 + TOLERANCE) * most && most.is_finite())
        })
    });
    match bad.iter().enumerate().find_map(|(row, bad)| bad.map(|col| (row, col))) {
        None => Ok(()),
        Some((row, col)) => {
            let (value, mirrored) = (moments[row * cols + col], moments[col * cols + row]);
            Err(Error::Moments { row, col, value, mirrored })
        }
    }
}

/// Turns the strictly upper half of `a`, `[n][n]`, into `U` and returns `D`; nothing where a pivot is below `least`.
/// The lower half is left alone.
fn eliminate(a: &mut [f32], n: usize, least: f32) -> Option<Vec<f32>> {
    let mut pivots = vec![0.0; n];
    let mut end = n;
    while end > 0 {
        let start = end.saturating_sub(PANEL);
        let inner = factor_panel(a, n, start..end, least, &mut pivots)?;
        let (above, _) = a.split_at_mut(start * n);
        let work = Panel { n, start, end, inner: &inner, pivots: &pivots[start..end] };
        // What remains of the columns of the panel, sixteen rows side by side, and `U` of them with its sign changed.
        let columns: Vec<_> =
            par::map(above.chunks_mut(LANES * n).collect(), |rows| dispatch(Solve(&work, rows)));
        par::for_chunks(above, LANES * n, |tile, rows| dispatch(Update(&work, rows, tile, &columns)));
        end = start;
    }
    Some(pivots)
}

/// `U` and `D` of a diagonal block, by the same elimination column by column in f64; its `U` as `[p][p]` in f32.
fn factor_panel(
    a: &mut [f32],
    n: usize,
    range: std::ops::Range<usize>,
    least: f32,
    pivots: &mut [f32],
) -> Option<Vec<f32>> {
    let (p, start) = (range.len(), range.start);
    let mut block: Vec<f64> = Vec::with_capacity(p * p);
    for i in range.clone() {
        block.extend(a[i * n..][range.clone()].iter().map(|&x| f64::from(x)));
    }
    let mut inner = vec![0.0; p * p];
    for k in (0..p).rev() {
        let pivot = block[k * p + k];
        if pivot.is_nan() || pivot < f64::from(least) {
            return None;
        }
        pivots[start + k] = pivot as f32;
        for i in 0..k {
            let share = block[i * p + k] / pivot;
            inner[i * p + k] = share as f32;
            a[(start + i) * n + start + k] = share as f32;
            for j in i..k {
                block[i * p + j] -= share * block[j * p + k];
            }
        }
    }
    Some(inner)
}

/// A panel of columns that is being eliminated.
struct Panel<'a> {
    n: usize,
    start: usize,
    end: usize,
    /// `U` of the diagonal block.
    inner: &'a [f32],
    pivots: &'a [f32],
}

/// Sixteen rows of a panel's columns side by side.
type Tile = Vec<[f32; LANES]>;

/// Solves `Y (I + U)ᵀ = A` for sixteen rows above the panel and leaves `U = Y D⁻¹` there. Returns `Y` and `-U`.
struct Solve<'a>(&'a Panel<'a>, &'a mut [f32]);

impl Op for Solve<'_> {
    type Out = (Tile, Tile);
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> (Tile, Tile) {
        let Solve(&Panel { n, start, end, inner, pivots }, rows) = self;
        let p = end - start;
        let (mut y, mut minus_u) = (vec![[0.0; LANES]; p], vec![[0.0; LANES]; p]);
        for k in 0..p {
            for r in 0..LANES {
                y[k][r] = rows[r * n + start + k];
            }
        }
        for k in (0..p).rev() {
            let mut sum = isa.load(&y[k]);
            for m in k + 1..p {
                sum = isa.fma(isa.splat(-inner[k * p + m]), isa.load(&y[m]), sum);
            }
            isa.store(sum, &mut y[k]);
            for r in 0..LANES {
                let u = y[k][r] / pivots[k];
                minus_u[k][r] = -u;
                rows[r * n + start + k] = u;
            }
        }
        (y, minus_u)
    }
}

/// Takes what a panel explains from sixteen rows above it: `A -= Y Uᵀ`, right of the diagonal.
struct Update<'a>(&'a Panel<'a>, &'a mut [f32], usize, &'a [(Tile, Tile)]);

impl Op for Update<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Update(&Panel { n, .. }, rows, tile, columns) = self;
        let y = &columns[tile].0;
        for (at, (_, minus_u)) in columns.iter().enumerate().skip(tile) {
            for half in 0..LANES / ROWS {
                let mut sums = [isa.splat(0.0); ROWS];
                for r in 0..ROWS {
                    let row = &rows[(ROWS * half + r) * n + LANES * at..];
                    sums[r] = isa.load(row.first_chunk().expect("columns are whole tiles"));
                }
                for (y, u) in y.iter().zip(minus_u) {
                    let u = isa.load(u);
                    for r in 0..ROWS {
                        sums[r] = isa.fma(isa.splat(y[ROWS * half + r]), u, sums[r]);
                    }
                }
                for r in 0..ROWS {
                    let row = &mut rows[(ROWS * half + r) * n + LANES * at..];
                    isa.store(sums[r], row.first_chunk_mut().expect("columns are whole tiles"));
                }
            }
        }
    }
}

/// The strictly upper half, eight columns after the other.
fn pack(a: &[f32], n: usize) -> Vec<[f32; OCTET]> {
    let mut factor = vec![[0.0; OCTET]; start(n / OCTET)];
    for g in 0..n / OCTET {
        for (i, row) in factor[start(g)..start(g + 1)].iter_mut().enumerate() {
            for c in 0..OCTET {
                let j = OCTET * g + c;
                row[c] = if i < j { a[i * n + j] } else { 0.0 };
            }
        }
    }
    factor
}
