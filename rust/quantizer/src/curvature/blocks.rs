//! The metric of a block's errors when all of its codes stand: `L D Lᵀ` with `L` a diagonal block of `I + U`, later
//! blocks making up for what this one does.
//!
//! What codes that are chosen again need: in order, the factor itself will do. Made once for all rows and formats.

use super::{Curvature, OCTET, Tile};
use kizami_kernels::dispatch::Op;
use kizami_kernels::isa::{Isa, LANES};
use kizami_kernels::{dispatch, par};

/// The lengths of blocks that formats with feedback have.
pub(super) const LENGTHS: [usize; 2] = [32, 256];

/// The metrics of all blocks of every length that divides a row.
#[derive(Debug, Clone, Default)]
pub(super) struct Blocks([Vec<BlockMetric>; LENGTHS.len()]);

impl Blocks {
    /// Those of a factor.
    pub(super) fn new(curvature: &Curvature) -> Blocks {
        let of = |n: usize| {
            let starts = (0..curvature.cols).step_by(n).filter(|_| curvature.cols.is_multiple_of(n));
            par::map(starts.collect(), |start: usize| dispatch(Make { curvature, start, n }))
        };
        Blocks(LENGTHS.map(of))
    }

    /// That of the block of `n` columns that begin with `start`.
    pub(super) fn at(&self, start: usize, n: usize) -> &BlockMetric {
        let of_length = LENGTHS.iter().position(|&length| length == n).expect("the length of a block");
        &self.0[of_length][start / n]
    }
}

/// The metric of one block.
#[derive(Debug, Clone)]
pub(crate) struct BlockMetric {
    /// Of columns `8 g .. 8 g + 8` all rows, for one `g` after the other.
    pub(crate) columns: Vec<[f32; OCTET]>,
    /// Every eight columns by themselves, factored as the whole is: `U` and `D`.
    pub(crate) octets: Vec<([[f32; OCTET]; OCTET], [f32; OCTET])>,
}

impl BlockMetric {
    /// All rows of columns `8 g .. 8 g + 8`.
    #[inline(always)]
    pub(crate) fn octet(&self, g: usize) -> &[[f32; OCTET]] {
        let n = OCTET * self.octets.len();
        &self.columns[n * g..n * (g + 1)]
    }
}

/// Makes that of the `n` columns that begin with `start`.
struct Make<'a> {
    curvature: &'a Curvature,
    start: usize,
    n: usize,
}

impl Op for Make<'_> {
    type Out = BlockMetric;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> BlockMetric {
        let Make { curvature, start, n } = self;
        let pivots = &curvature.pivots[start..start + n];
        // L by columns, sixteen rows side by side, and L D by rows, eight side by side.
        let mut tiles: Tile = vec![[0.0; LANES]; n / LANES * n];
        let mut rows = vec![[0.0; OCTET]; n / OCTET * n];
        for k in 0..n {
            let u = &curvature.octet((start + k) / OCTET)[start..=start + k];
            for (i, u) in u.iter().enumerate() {
                let l = if i == k { 1.0 } else { u[k % OCTET] };
                tiles[i / LANES * n + k][i % LANES] = l;
                rows[i / OCTET * n + k][i % OCTET] = l * pivots[k];
            }
        }
        let mut columns = vec![[0.0; OCTET]; n / OCTET * n];
        for g in 0..n / OCTET {
            for t in OCTET * g / LANES..n / LANES {
                let mut sums = [isa.splat(0.0); OCTET];
                for k in (OCTET * g).max(LANES * t)..n {
                    let l = isa.load(&tiles[n * t + k]);
                    for c in 0..OCTET {
                        sums[c] = isa.fma(l, isa.splat(rows[n * g + k][c]), sums[c]);
                    }
                }
                for c in 0..OCTET {
                    let mut sum = [0.0; LANES];
                    isa.store(sums[c], &mut sum);
                    for l in 0..LANES {
                        let (i, j) = (OCTET * g + c, LANES * t + l);
                        columns[n * g + j][c] = sum[l];
                        columns[n * (j / OCTET) + i][j % OCTET] = sum[l];
                    }
                }
            }
        }
        let mut octets = Vec::with_capacity(n / OCTET);
        for g in 0..n / OCTET {
            let least = pivots[OCTET * g..].first_chunk().expect("whole octets");
            octets.push(factored(columns[n * g + OCTET * g..].first_chunk().expect("whole octets"), least));
        }
        BlockMetric { columns, octets }
    }
}

/// Eight columns of a metric by themselves. What others could make up for only lowers pivots, so those of the whole are
/// the least.
fn factored(m: &[[f32; OCTET]; OCTET], least: &[f32; OCTET]) -> ([[f32; OCTET]; OCTET], [f32; OCTET]) {
    let (mut a, mut u, mut d) = ([[0.0; OCTET]; OCTET], [[0.0; OCTET]; OCTET], [0.0; OCTET]);
    for i in 0..OCTET {
        for j in 0..OCTET {
            a[i][j] = f64::from(m[i][j]);
        }
    }
    for k in (0..OCTET).rev() {
        let pivot = if a[k][k] > f64::from(least[k]) { a[k][k] } else { f64::from(least[k]) };
        d[k] = pivot as f32;
        for i in 0..k {
            let share = a[i][k] / pivot;
            u[i][k] = share as f32;
            for j in 0..k {
                a[i][j] -= share * a[k][j];
            }
        }
    }
    (u, d)
}
