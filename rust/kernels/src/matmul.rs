//! The generic driver: any format, any instruction set, any number of columns.
//!
//! Weights are decoded chunk by chunk, several rows at a time, and each decoded chunk meets every column of
//! a block before the next one is decoded: `gemv.rs` for one column, `panel.rs` for more, `float.rs`
//! where activations stay floats. The *value* of an output is fixed (`docs/architecture.md`):
//! one f32 accumulator, chunks in ascending order,
//!
//! ```text
//! Super     acc = fma(d * a, sum of scale * code * step * activation over 256, acc)      exact in i32
//!           acc = fma(-(dmin * a), sum of min * activation sum, acc)              where there are minimums
//! Grouped   acc = fma(d[s] * a[g], sum of code * activation over 32, or 16, acc)  for s ascending
//!           acc = fma(m[g], a[g] * activation sum, acc)                           where there are minimums
//! floats    see float.rs
//! all       acc * scale                                                           where the matrix has one
//! ```
//!
//! so threads, tiles, batch and instruction set cannot change it.

use crate::columns::{Form, form};
use crate::dispatch::{Op, dispatch};
use crate::error::{Error, expect_len};
use crate::float;
use crate::format::{Type, with_format};
use crate::gemv::{Gemv, Stream};
use crate::isa::{Isa, LANES};
use crate::matrix::Matrix;
use crate::{panel, par};
use std::marker::PhantomData;

pub use crate::columns::{Columns, Precision};

/// One matrix times some columns.
///
/// `out` is a sequence of panels of sixteen rows, the last perhaps shorter, each `[columns][rows of the
/// panel]`: what a task computes lies together, and so does each column's part of it.
pub(crate) struct Job<'a> {
    pub(crate) w: Matrix<'a>,
    pub(crate) x: &'a Columns<'a>,
    /// Which columns of `x` to use; all when none.
    pub(crate) pick: Option<&'a [u32]>,
    pub(crate) out: &'a mut [f32],
}

/// Runs all jobs as one parallel region. Shapes are the caller's duty.
pub(crate) fn run(jobs: Vec<Job<'_>>) {
    for job in &jobs {
        job.x.prepare(job.w.ty());
    }
    let work: usize = jobs.iter().map(|job| job.out.len() * job.w.cols()).sum();
    // Some tasks per thread so that a slow one does not hold up the rest, yet none below a few
    // microseconds of work.
    let per_task = (work / (par::threads() * 8)).max(1 << 16);
    let mut tasks = Vec::new();
    for Job { w, x, pick, out } in jobs {
        let n = pick.map_or(x.len(), <[u32]>::len);
        if n == 0 {
            continue;
        }
        let rows = (per_task / (w.cols() * n).max(1)).next_multiple_of(LANES).max(LANES);
        for (i, out) in out.chunks_mut(rows * n).enumerate() {
            tasks.push(Rows { w, x, pick, start: i * rows, out });
        }
    }
    par::for_each(tasks, work, dispatch);
}

/// Rows from `start` of a job, as many as `out` has room for.
pub(crate) struct Rows<'a> {
    pub(crate) w: Matrix<'a>,
    pub(crate) x: &'a Columns<'a>,
    pub(crate) pick: Option<&'a [u32]>,
    pub(crate) start: usize,
    pub(crate) out: &'a mut [f32],
}

impl Op for Rows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Rows { w, x, pick, start, out } = self;
        let n = pick.map_or(x.len(), <[u32]>::len);
        match form(w.ty(), x.precision) {
            Form::Float => float::matmul_rows(isa, &w, x.floats(), n, pick, start, &mut *out),
            Form::Codes(family) => {
                let acts = x.codes(family);
                with_format!(w.ty(), F => float unreachable!("float weights take float activations"),
                block match n {
                    1 => {
                        let column = pick.map_or(0, |pick| pick[0] as usize);
                        let out = &mut *out;
                        let one = Gemv { w: &w, acts, column, start, out, format: PhantomData::<F> };
                        if w.is_repacked() { isa.enter(Stream(one)) } else { isa.enter(one) }
                    }
                    _ => panel::rows::<I, F>(isa, &w, acts, n, pick, start, &mut *out),
                });
            }
        }
        w.apply_scale(out);
    }
}

/// `out[column][row] = dot(w[row], x[column])`: what a linear layer computes, token after token.
pub fn matmul(w: &Matrix<'_>, x: &Columns<'_>, out: &mut [f32]) -> Result<(), Error> {
    matmul_all([(w, out)], x)
}

/// [`matmul`] of several matrices that take the same columns, as one parallel region.
pub(crate) fn matmul_all<const N: usize>(
    products: [(&Matrix<'_>, &mut [f32]); N],
    x: &Columns<'_>,
) -> Result<(), Error> {
    let n = x.len();
    for (w, out) in &products {
        expect_len("input features of a matmul", x.cols, w.cols())?;
        expect_len("outputs of a matmul", out.len(), n * w.rows())?;
    }
    if n == 1 {
        run(products.into_iter().map(|(w, out)| Job { w: *w, x, pick: None, out }).collect());
        return Ok(());
    }
    let mut panels = products.each_ref().map(|(_, out)| vec![0.0; out.len()]);
    let jobs = products.iter().zip(&mut panels);
    run(jobs.map(|((w, _), out)| Job { w: **w, x, pick: None, out }).collect());
    for ((w, out), panels) in products.into_iter().zip(&panels) {
        let rows = w.rows();
        par::for_chunks(out, 8 * rows.max(1), |task, out| {
            for (c, out) in out.chunks_exact_mut(rows).enumerate() {
                read_column(panels, n, 8 * task + c, out);
            }
        });
    }
    Ok(())
}

/// Column `c` of the `n` in a job's output, in row order.
#[inline(always)]
pub(crate) fn read_column(panels: &[f32], n: usize, c: usize, out: &mut [f32]) {
    let (whole, rest) = out.as_chunks_mut::<LANES>();
    let (panels, last) = panels.split_at(whole.len() * LANES * n);
    for (panel, out) in panels.chunks_exact(LANES * n).zip(whole) {
        out.copy_from_slice(&panel[c * LANES..][..LANES]);
    }
    let count = rest.len();
    rest.copy_from_slice(&last[c * count..][..count]);
}

/// Decodes rows `start..start + out.len() / cols` to f32, exactly as the format defines them, times the matrix's
/// scale.
pub fn dequantize(w: &Matrix<'_>, start: usize, out: &mut [f32]) -> Result<(), Error> {
    let rows = out.len() / w.cols().max(1);
    expect_len("weights to decode", out.len(), rows * w.cols())?;
    if start + rows > w.rows() {
        return Err(Error::Range {
            what: "last row to decode",
            found: start + rows,
            expected: "a row of the matrix",
        });
    }
    dispatch(Dequantize { w, start, out });
    Ok(())
}

/// Decodes one row of a GGUF type: `bytes` as they lie in the file.
pub fn dequantize_row(ty: Type, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    if ty == Type::F8E4M3 {
        return Err(Error::Range { what: "F8_E4M3 rows without scales", found: 1, expected: "a matrix" });
    }
    let w = Matrix::new(ty, 1, out.len(), bytes, &[])?;
    dequantize(&w, 0, out)
}

struct Dequantize<'a, 'b> {
    w: &'b Matrix<'a>,
    start: usize,
    out: &'b mut [f32],
}

impl Op for Dequantize<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        float::decode_rows(isa, self.w, self.start, &mut *self.out);
        self.w.apply_scale(self.out);
    }
}
