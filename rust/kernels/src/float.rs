//! Weights as f32, and dot products of f32: the path of float formats, and of every format when a
//! caller wants float activations (calibration, and the reference that quantized runs are held against).
//!
//! The value of a dot product: sixteen lanes, lane `i` fused-multiply-adding elements `i`, `i + 16`,
//! ... in ascending order, then the lanes summed in the order of [`Isa::sum`]. Rows are padded with zeros.

use crate::chunk::{CHUNK, GROUP, GROUPED_OFFSET, SUB, SUPER_OFFSET};
use crate::convert::f16_to_f32;
use crate::dispatch::Op;
use crate::format::with_format;
use crate::format::{Family, FloatFormat, Format};
use crate::isa::{Isa, LANES};
use crate::matrix::{Matrix, SCALE_BLOCK};
use std::marker::PhantomData;

/// One chunk of a row as f32, zero past the end.
#[repr(C, align(64))]
#[derive(Clone)]
pub(crate) struct Floats(pub(crate) [f32; CHUNK]);

impl Floats {
    pub(crate) const ZERO: Self = Self([0.0; CHUNK]);
}

/// How a format becomes f32: its exact value, each product rounded once.
trait Decode {
    /// Decodes chunk `chunk` of row `row`.
    fn decode<I: Isa>(isa: I, w: &Matrix<'_>, row: usize, chunk: usize, out: &mut Floats);

    /// Adds the products of chunk `chunk` of row `row` with one column to sixteen lanes.
    #[inline(always)]
    fn dot<I: Isa>(
        isa: I,
        w: &Matrix<'_>,
        row: usize,
        chunk: usize,
        x: &[f32; CHUNK],
        mut acc: I::F,
    ) -> I::F {
        let mut floats = Floats::ZERO;
        Self::decode(isa, w, row, chunk, &mut floats);
        let (weights, x) = (floats.0.as_chunks::<LANES>().0, x.as_chunks::<LANES>().0);
        for k in 0..steps(w, chunk) {
            acc = isa.fma(isa.load(&weights[k]), isa.load(&x[k]), acc);
        }
        acc
    }
}

/// [`Decode`] of a float format.
struct OfFloats<F>(PhantomData<F>);

impl<F: FloatFormat> Decode for OfFloats<F> {
    #[inline(always)]
    fn decode<I: Isa>(_: I, w: &Matrix<'_>, row: usize, chunk: usize, out: &mut Floats) {
        decode_floats::<F>(w, row, chunk, out);
    }
}

/// [`Decode`] of a block format.
struct OfBlocks<F>(PhantomData<F>);

impl<F: Format> Decode for OfBlocks<F> {
    #[inline(always)]
    fn decode<I: Isa>(isa: I, w: &Matrix<'_>, row: usize, chunk: usize, out: &mut Floats) {
        let (codes, scales) = codes_and_scales::<I, F>(isa, w, row, chunk);
        let lanes = out.0.as_chunks_mut::<LANES>().0;
        for s in 0..CHUNK / SUB {
            isa.store(lane_values::<I, F>(isa, &codes[s], scales[s]), &mut lanes[s]);
        }
        out.0[CHUNK.min(w.cols() - chunk * CHUNK)..].fill(0.0);
    }

    /// Without a way through memory.
    #[inline(always)]
    fn dot<I: Isa>(
        isa: I,
        w: &Matrix<'_>,
        row: usize,
        chunk: usize,
        x: &[f32; CHUNK],
        mut acc: I::F,
    ) -> I::F {
        let (codes, scales) = codes_and_scales::<I, F>(isa, w, row, chunk);
        let x = x.as_chunks::<LANES>().0;
        for s in 0..steps(w, chunk) {
            acc = isa.fma(lane_values::<I, F>(isa, &codes[s], scales[s]), isa.load(&x[s]), acc);
        }
        acc
    }
}

/// Rows of a matrix as f32, one after the other.
#[inline(always)]
pub(crate) fn decode_rows<I: Isa>(isa: I, w: &Matrix<'_>, start: usize, out: &mut [f32]) {
    with_format!(w.ty(), F => float isa.enter(DecodeRows { w, start, out, format: PhantomData::<OfFloats<F>> }),
                              block isa.enter(DecodeRows { w, start, out, format: PhantomData::<OfBlocks<F>> }));
}

struct DecodeRows<'a, D> {
    w: &'a Matrix<'a>,
    start: usize,
    out: &'a mut [f32],
    format: PhantomData<D>,
}

impl<D: Decode> Op for DecodeRows<'_, D> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let mut floats = Floats::ZERO;
        for (r, row) in self.out.chunks_exact_mut(self.w.cols()).enumerate() {
            for (chunk, out) in row.chunks_mut(CHUNK).enumerate() {
                D::decode(isa, self.w, self.start + r, chunk, &mut floats);
                out.copy_from_slice(&floats.0[..out.len()]);
            }
        }
    }
}

#[inline(always)]
fn decode_floats<F: FloatFormat>(w: &Matrix<'_>, row: usize, chunk: usize, out: &mut Floats) {
    let (bytes, len) = w.chunk(row, chunk);
    let stored: &[F::Block] = bytemuck::cast_slice(bytes);
    for (out, &stored) in out.0[..len].iter_mut().zip(stored) {
        *out = F::value(stored);
    }
    out.0[len..].fill(0.0);
    let scales = w.row_scales(row);
    if !scales.is_empty() {
        for (i, part) in out.0[..len].chunks_mut(SCALE_BLOCK).enumerate() {
            let scale = scales[chunk * (CHUNK / SCALE_BLOCK) + i];
            part.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// Signed codes of a chunk, sixteen at a time, and the scale and minimum of each sixteen.
#[inline(always)]
fn codes_and_scales<I: Isa, F: Format>(
    isa: I,
    w: &Matrix<'_>,
    row: usize,
    chunk: usize,
) -> ([[i8; LANES]; CHUNK / SUB], [(f32, f32); CHUNK / SUB]) {
    let weights = w.decode::<I, F>(isa, row, chunk);
    let offset = match F::FAMILY {
        Family::Grouped => GROUPED_OFFSET,
        Family::Super => {
            if F::SIGNED {
                SUPER_OFFSET
            } else {
                0
            }
        }
    };
    let (d, dmin) = (f16_to_f32(weights.d) * F::D_FACTOR, f16_to_f32(weights.dmin));
    let unshift = isa.splat_byte(offset.wrapping_neg());
    let mut codes = [[0; 64]; 4];
    let mut scales = [(0.0, 0.0); CHUNK / SUB];
    for q in 0..4 {
        isa.put(isa.add(weights.codes[q], unshift), &mut codes[q]);
    }
    for s in 0..CHUNK / SUB {
        scales[s] = match F::FAMILY {
            Family::Grouped => (weights.group_d[s * SUB / GROUP], 0.0),
            // Exact: an f16 times an integer below 2^13. What is rounded is the product with the code.
            Family::Super => (d * f32::from(weights.scales[s]), dmin * f32::from(weights.mins[s])),
        };
    }
    (bytemuck::cast(codes), scales)
}

/// The values of sixteen codes, each product rounded once.
#[inline(always)]
fn lane_values<I: Isa, F: Format>(isa: I, codes: &[i8; LANES], (scale, min): (f32, f32)) -> I::F {
    let value = isa.mul(isa.splat(scale), isa.load_codes(codes));
    if F::HAS_MIN { isa.fma(isa.splat(min), isa.splat(-1.0), value) } else { value }
}

/// Sixteens of a chunk that the row has, the last perhaps padded.
#[inline(always)]
fn steps(w: &Matrix<'_>, chunk: usize) -> usize {
    CHUNK.min(w.cols() - chunk * CHUNK).div_ceil(LANES)
}

/// Adds the products of a tile of `R` rows and `C` columns; accumulators stay in registers.
#[inline(always)]
fn tile<I: Isa, const R: usize, const C: usize>(
    isa: I,
    w: &[Floats],
    x: [&[f32; CHUNK]; C],
    steps: usize,
    acc: &mut [[[f32; LANES]; R]],
) {
    let mut sums = [[isa.splat(0.0); R]; C];
    for c in 0..C {
        for r in 0..R {
            sums[c][r] = isa.load(&acc[c][r]);
        }
    }
    for k in 0..steps.min(CHUNK / LANES) {
        let mut rows = [isa.splat(0.0); R];
        for r in 0..R {
            rows[r] = isa.load(&w[r].0.as_chunks::<LANES>().0[k]);
        }
        for c in 0..C {
            let column = isa.load(&x[c].as_chunks::<LANES>().0[k]);
            for r in 0..R {
                sums[c][r] = isa.fma(rows[r], column, sums[c][r]);
            }
        }
    }
    for c in 0..C {
        for r in 0..R {
            isa.store(sums[c][r], &mut acc[c][r]);
        }
    }
}

/// Rows decoded together, so that a column chunk is read once for all of them.
const ROWS: usize = 4;
/// Columns whose accumulators are kept between chunks.
const COLUMNS: usize = 128;

/// `dot(w[row], x[column])` for as many rows from `start` as `out` has room for; for `out` see
/// [`crate::matmul::Job`]. `x` holds columns of `chunks * 256` floats, zero padded; `pick` maps the `n` wanted
/// ones into it.
#[inline(always)]
pub(crate) fn matmul_rows<I: Isa>(
    isa: I,
    w: &Matrix<'_>,
    x: &[f32],
    n: usize,
    pick: Option<&[u32]>,
    start: usize,
    out: &mut [f32],
) {
    with_format!(w.ty(), F =>
        float isa.enter(FloatRows { w, x, n, pick, start, out, format: PhantomData::<OfFloats<F>> }),
        block isa.enter(FloatRows { w, x, n, pick, start, out, format: PhantomData::<OfBlocks<F>> }));
}

/// A function of its own for every format: together they would share constants and spill them.
struct FloatRows<'a, D> {
    w: &'a Matrix<'a>,
    x: &'a [f32],
    n: usize,
    pick: Option<&'a [u32]>,
    start: usize,
    out: &'a mut [f32],
    format: PhantomData<D>,
}

impl<D: Decode> Op for FloatRows<'_, D> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { w, x, n, pick, start, out, .. } = self;
        rows::<I, D>(isa, w, x, n, |c| pick.map_or(c, |pick| pick[c] as usize), start, out);
    }
}

#[inline(always)]
fn rows<I: Isa, D: Decode>(
    isa: I,
    w: &Matrix<'_>,
    x: &[f32],
    n: usize,
    pick: impl Fn(usize) -> usize,
    start: usize,
    out: &mut [f32],
) {
    let chunks = w.chunks();
    let column = |c: usize, chunk: usize| -> &[f32; CHUNK] {
        x[(pick(c) * chunks + chunk) * CHUNK..][..CHUNK]
            .try_into()
            .expect("columns are padded to whole chunks")
    };
    if n == 1 {
        for (r, out) in out.iter_mut().enumerate() {
            let mut acc = isa.splat(0.0);
            for chunk in 0..chunks {
                acc = D::dot(isa, w, start + r, chunk, column(0, chunk), acc);
            }
            *out = isa.sum(acc);
        }
        return;
    }
    let mut rows = vec![Floats::ZERO; ROWS];
    let mut acc = vec![[[0.0; LANES]; ROWS]; COLUMNS.min(n)];
    let n_rows = out.len() / n;
    for first in (0..n_rows).step_by(ROWS) {
        let r_n = ROWS.min(n_rows - first);
        for c0 in (0..n).step_by(COLUMNS) {
            let c_n = COLUMNS.min(n - c0);
            acc[..c_n].fill([[0.0; LANES]; ROWS]);
            for chunk in 0..chunks {
                for (r, row) in rows[..r_n].iter_mut().enumerate() {
                    D::decode(isa, w, start + first + r, chunk, row);
                }
                let mut c = 0;
                if I::WIDE {
                    while c + 4 <= c_n {
                        let x = std::array::from_fn(|i| column(c0 + c + i, chunk));
                        tile::<I, ROWS, 4>(isa, &rows, x, steps(w, chunk), &mut acc[c..c + 4]);
                        c += 4;
                    }
                }
                while c < c_n {
                    tile::<I, ROWS, 1>(
                        isa,
                        &rows,
                        [column(c0 + c, chunk)],
                        steps(w, chunk),
                        &mut acc[c..c + 1],
                    );
                    c += 1;
                }
            }
            let panel = first / LANES * LANES;
            let count = LANES.min(n_rows - panel);
            for c in 0..c_n {
                for r in 0..r_n {
                    let at = panel * n + (c0 + c) * count + first - panel + r;
                    out[at] = isa.sum(isa.load(&acc[c][r]));
                }
            }
        }
    }
}

/// The dot product of two equally long slices, in the order of this file.
#[inline(always)]
pub(crate) fn dot<I: Isa>(isa: I, a: &[f32], b: &[f32]) -> f32 {
    let mut acc = isa.splat(0.0);
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        acc = isa.fma(isa.load(a), isa.load(b), acc);
    }
    if !a_rest.is_empty() {
        let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
        a[..a_rest.len()].copy_from_slice(a_rest);
        b[..b_rest.len()].copy_from_slice(b_rest);
        acc = isa.fma(isa.load(&a), isa.load(&b), acc);
    }
    isa.sum(acc)
}
