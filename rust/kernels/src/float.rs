//! Dot products of f32: the path of float formats, and of every format when a caller wants float
//! activations (calibration, and the reference that quantized runs are held against).
//!
//! The value of a dot product: sixteen lanes, lane `i` fused-multiply-adding elements `i`, `i + 16`,
//! ... in ascending order, then the lanes summed in the order of [`Isa::sum`]. Rows are padded with zeros.
//!
//! A chain of fused multiply-adds waits for itself; what keeps the multiplier busy is that several rows, and
//! several columns where there are, take turns. Sixteen rows end in one [`Isa::sum_each`].

use crate::chunk::CHUNK;
use crate::columns::BLOCK;
use crate::dispatch::Op;
use crate::format::with_format;
use crate::isa::{Isa, LANES};
use crate::matrix::{AHEAD, Matrix};
use decode::{Decode, OfBlocks, OfFloats, Rows};
use std::marker::PhantomData;

mod decode;

/// One chunk of a row as f32, zero past the end.
#[repr(C, align(64))]
#[derive(Clone)]
struct Floats([f32; CHUNK]);

impl Floats {
    const ZERO: Self = Self([0.0; CHUNK]);
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
        let w = Rows::of(self.w);
        let mut floats = Floats::ZERO;
        for (r, row) in self.out.chunks_exact_mut(self.w.cols()).enumerate() {
            for (chunk, out) in row.chunks_mut(CHUNK).enumerate() {
                D::decode(isa, &w, self.start + r, chunk, &mut floats);
                out.copy_from_slice(&floats.0[..out.len()]);
            }
        }
    }
}

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
        let chunks = w.chunks();
        let column = |c: usize| {
            let at = pick.map_or(c, |pick| pick[c] as usize);
            &x.as_chunks::<CHUNK>().0[at * chunks..][..chunks]
        };
        if n > 1 {
            return many::<I, D>(isa, w, column, n, start, out);
        }
        let (x, format) = (column(0), PhantomData::<D>);
        let even = start.is_multiple_of(2) && out.len().is_multiple_of(2);
        match (w.cols(), w.paired()) {
            (128, Some(w)) if even => isa.enter(One::<D, 128, 2> { w: &w, x, start, out, format }),
            (cols, _) if cols.is_multiple_of(CHUNK) => {
                isa.enter(One::<D, CHUNK, 1> { w, x, start, out, format })
            }
            _ => isa.enter(One::<D, 0, 1> { w, x, start, out, format }),
        }
    }
}

/// Rows that take turns: as many as a multiply-add has cycles.
const ROWS: usize = 4;

/// One column. Every chunk has `LEN` weights of a row, or, where that is zero, as many as the row has: a function of
/// its own for the lengths that matter, because a row of 128 weights is over before loops that count have begun. A
/// row of `w` is `PAIR` rows of the product.
struct One<'a, D, const LEN: usize, const PAIR: usize> {
    w: &'a Matrix<'a>,
    x: &'a [[f32; CHUNK]],
    start: usize,
    out: &'a mut [f32],
    format: PhantomData<D>,
}

impl<D: Decode, const LEN: usize, const PAIR: usize> Op for One<'_, D, LEN, PAIR> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { w, x, start, out, .. } = self;
        let chunks = w.chunks();
        let w = &Rows::of(w);
        let pairs = ROWS / PAIR;
        // In turns of four rows and a chunk.
        let turns = AHEAD.div_ceil(pairs * D::CHUNK_BYTES.min(w.row_bytes));
        let (groups, turns) = (turns / chunks, turns % chunks);
        let mut open = [D::closed(), D::closed(), D::closed(), D::closed()];
        for (panel, out) in out.chunks_mut(LANES).enumerate() {
            let mut lanes = [isa.splat(0.0); LANES];
            for group in 0..out.len().div_ceil(ROWS) {
                // A short last group computes its last row more than once.
                let mut rows = [(start + panel * LANES) / PAIR; ROWS];
                for i in 0..pairs {
                    rows[i] += (group * pairs + i).min((out.len() - 1) / PAIR);
                }
                let mut acc = [isa.splat(0.0); ROWS];
                for chunk in 0..chunks {
                    // Past the end of these rows come the next ones.
                    let over = chunk + turns >= chunks;
                    let at = (groups + usize::from(over)) * pairs * w.row_bytes + turns * D::CHUNK_BYTES
                        - if over { chunks * D::CHUNK_BYTES } else { 0 };
                    let (whole, steps) = if LEN > 0 { (LEN / LANES, LEN / LANES) } else { w.steps(chunk) };
                    let x = x[chunk].as_chunks::<LANES>().0;
                    for i in 0..pairs {
                        D::prefetch(isa, w, rows[i], chunk, PAIR * whole, at);
                        D::open(isa, w, rows[i], chunk, PAIR * whole, &mut open[i]);
                    }
                    for s in 0..whole {
                        let x = isa.load(&x[s]);
                        for r in 0..ROWS {
                            let weights = D::lanes(isa, &open[r / PAIR], r % PAIR * whole + s);
                            acc[r] = isa.fma(weights, x, acc[r]);
                        }
                    }
                    if whole < steps {
                        for r in 0..ROWS {
                            acc[r] = isa.fma(D::rest(isa, &open[r]), isa.load(&x[whole]), acc[r]);
                        }
                    }
                }
                for r in 0..ROWS {
                    lanes[group * ROWS + r] = acc[r];
                }
            }
            write_sums(isa, &lanes, out);
        }
    }
}

/// Sums of the lanes of up to sixteen rows.
#[inline(always)]
fn write_sums<I: Isa>(isa: I, lanes: &[I::F; LANES], out: &mut [f32]) {
    let sums = isa.sum_each(lanes);
    if let Ok(out) = <&mut [f32; LANES]>::try_from(&mut *out) {
        isa.store(sums, out);
        return;
    }
    let mut floats = [0.0; LANES];
    isa.store(sums, &mut floats);
    out.copy_from_slice(&floats[..out.len()]);
}

/// Columns that pass together, at most.
const MOST_COLUMNS: usize = 4;

/// Rows decoded together: what they and a tile of columns take fits the first-level cache, powers of two apart too.
const DECODED: usize = 8;

/// Many columns: a chunk of some rows is decoded once for a block of them, and stays in the first-level cache while
/// they pass.
#[inline(always)]
fn many<'a, I: Isa, D: Decode>(
    isa: I,
    w: &Matrix<'_>,
    column: impl Fn(usize) -> &'a [[f32; CHUNK]],
    n: usize,
    start: usize,
    out: &mut [f32],
) {
    const { assert!(matches!(I::FLOAT_COLUMNS, 1 | 3 | 4), "there are tiles of so many columns") };
    let (w, chunks) = (&Rows::of(w), w.chunks());
    let mut rows = vec![Floats::ZERO; DECODED];
    // Four rows of every column together: what takes turns in the cache lies together.
    let width = BLOCK.min(n);
    let mut acc = vec![[[0.0; LANES]; ROWS]; LANES / ROWS * width];
    for (panel, out) in out.chunks_mut(LANES * n).enumerate() {
        let count = out.len() / n;
        for c0 in (0..n).step_by(BLOCK) {
            let c_n = BLOCK.min(n - c0);
            for turn in 0..count.div_ceil(DECODED) * chunks {
                let (part, chunk) = (turn / chunks * DECODED, turn % chunks);
                let r_n = DECODED.min(count - part);
                for r in 0..r_n {
                    D::decode(isa, w, start + panel * LANES + part + r, chunk, &mut rows[r]);
                }
                let (_, steps) = w.steps(chunk);
                // Rows past the end of the matrix come along, zero or left over, as far as a tile reaches.
                let rows = &rows.as_chunks::<ROWS>().0[..r_n.div_ceil(ROWS)];
                let mut c = 0;
                while c < c_n {
                    let together = if c + I::FLOAT_COLUMNS <= c_n { I::FLOAT_COLUMNS } else { 1 };
                    let mut x = [&column(c0 + c)[chunk]; MOST_COLUMNS];
                    for i in 1..together {
                        x[i] = &column(c0 + c + i)[chunk];
                    }
                    for (group, rows) in rows.iter().enumerate() {
                        let acc = &mut acc[(part / ROWS + group) * width + c..];
                        match together {
                            4 => tile::<I, 4, 4>(isa, rows, 0, x, steps, chunk == 0, acc),
                            3 => {
                                tile::<I, 2, 3>(isa, rows, 0, x, steps, chunk == 0, acc);
                                tile::<I, 2, 3>(isa, rows, 2, x, steps, chunk == 0, acc);
                            }
                            _ => tile::<I, 4, 1>(isa, rows, 0, x, steps, chunk == 0, acc),
                        }
                    }
                    c += together;
                }
            }
            for c in 0..c_n {
                let mut lanes = [isa.splat(0.0); LANES];
                for r in 0..LANES {
                    lanes[r] = isa.load(&acc[r / ROWS * width + c][r % ROWS]);
                }
                write_sums(isa, &lanes, &mut out[(c0 + c) * count..][..count]);
            }
        }
    }
}

/// Adds the products of `R` rows, from `first`, and `C` columns to `acc`, or starts it with them; accumulators stay in
/// registers.
#[inline(always)]
fn tile<I: Isa, const R: usize, const C: usize>(
    isa: I,
    w: &[Floats; ROWS],
    first: usize,
    x: [&[f32; CHUNK]; MOST_COLUMNS],
    steps: usize,
    starts: bool,
    acc: &mut [[[f32; LANES]; ROWS]],
) {
    let acc = &mut acc[..C];
    let mut sums = [[isa.splat(0.0); R]; C];
    if !starts {
        for c in 0..C {
            for r in 0..R {
                sums[c][r] = isa.load(&acc[c][first + r]);
            }
        }
    }
    for k in 0..steps.min(CHUNK / LANES) {
        let mut rows = [isa.splat(0.0); R];
        for r in 0..R {
            rows[r] = isa.load(&w[first + r].0.as_chunks::<LANES>().0[k]);
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
            isa.store(sums[c][r], &mut acc[c][first + r]);
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
