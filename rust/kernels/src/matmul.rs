//! The generic driver: any format, any instruction set, any number of columns.
//!
//! Rows of weights are decoded chunk by chunk, four at a time, and each decoded chunk meets every
//! column before the next one is decoded. The *value* of an output is fixed (`docs/kernels.md`):
//! one f32 accumulator, chunks in ascending order,
//!
//! ```text
//! Super     acc = fma(d * a, sum of scale * code * step * activation over 256, acc)      exact in i32
//!           acc = fma(-(dmin * a), sum of min * activation sum, acc)              where there are minimums
//! Grouped   acc = fma(d[g] * a[g], sum of code * activation over 32, acc)         for g ascending
//! floats    see float.rs
//! ```
//!
//! so threads, tiles, batch and instruction set cannot change it.

use crate::chunk::{ActChunk, CHUNK, Chunk, GROUP, MAX_STEP, SUB};
use crate::dispatch::{Op, dispatch};
use crate::error::{Error, expect_len};
use crate::float::{self, Floats};
use crate::format::with_format;
use crate::format::{Family, Format, Type};
use crate::isa::Isa;
use crate::matrix::Matrix;
use crate::par;
use std::sync::OnceLock;

/// What activations are rounded to before they meet quantized weights. Float weights always take f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 8-bit codes: the fast path.
    Int8,
    /// No rounding: calibration, and the reference of quality measurements.
    F32,
}

/// The form of the activations that a matmul needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Float,
    Codes(Family),
}

fn form(ty: Type, precision: Precision) -> Form {
    match (ty.family(), precision) {
        (Some(family), Precision::Int8) => Form::Codes(family),
        _ => Form::Float,
    }
}

/// Activations of `n` columns (tokens), converted at most once to each form a matmul asks for.
pub struct Columns<'a> {
    x: &'a [f32],
    n: usize,
    cols: usize,
    precision: Precision,
    padded: OnceLock<Vec<f32>>,
    supers: OnceLock<Vec<ActChunk>>,
    grouped: OnceLock<Vec<ActChunk>>,
}

impl<'a> Columns<'a> {
    /// Borrows `x` as columns of `cols` activations, one after the other.
    pub fn new(x: &'a [f32], cols: usize, precision: Precision) -> Result<Self, Error> {
        if cols == 0 || !x.len().is_multiple_of(cols) {
            return Err(Error::Length { what: "activations", found: x.len(), expected: cols });
        }
        let n = x.len() / cols;
        let (padded, supers, grouped) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Ok(Self { x, n, cols, precision, padded, supers, grouped })
    }

    /// Number of columns.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are no columns.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    fn chunks(&self) -> usize {
        self.cols.div_ceil(CHUNK)
    }

    fn floats(&self) -> &[f32] {
        if self.cols.is_multiple_of(CHUNK) {
            return self.x;
        }
        self.padded.get_or_init(|| {
            let mut padded = vec![0.0; self.n * self.chunks() * CHUNK];
            for (to, from) in
                padded.chunks_exact_mut(self.chunks() * CHUNK).zip(self.x.chunks_exact(self.cols))
            {
                to[..self.cols].copy_from_slice(from);
            }
            padded
        })
    }

    fn codes(&self, family: Family) -> &[ActChunk] {
        let slot = match family {
            Family::Super => &self.supers,
            Family::Grouped => &self.grouped,
        };
        slot.get_or_init(|| {
            let chunks = self.chunks();
            let mut out = vec![ActChunk::default(); self.n * chunks];
            par::for_chunks(&mut out, 64.max(chunks / 8), |task, part| {
                let first = task * 64.max(chunks / 8);
                dispatch(Quantize { columns: self, family, first, out: part });
            });
            out
        })
    }

    /// Converts to the form that `ty` needs, before a parallel region does.
    fn prepare(&self, ty: Type) {
        match form(ty, self.precision) {
            Form::Float => {
                self.floats();
            }
            Form::Codes(family) => {
                self.codes(family);
            }
        }
    }
}

struct Quantize<'a, 'b> {
    columns: &'b Columns<'a>,
    family: Family,
    first: usize,
    out: &'b mut [ActChunk],
}

impl Op for Quantize<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let Columns { x, cols, .. } = *self.columns;
        let chunks = self.columns.chunks();
        for (i, out) in self.out.iter_mut().enumerate() {
            let (column, chunk) = ((self.first + i) / chunks, (self.first + i) % chunks);
            let len = CHUNK.min(cols - chunk * CHUNK);
            let mut padded = [0.0; CHUNK];
            padded[..len].copy_from_slice(&x[column * cols + chunk * CHUNK..][..len]);
            let max: [f32; CHUNK / GROUP] = std::array::from_fn(|g| magnitude(&padded[g * GROUP..][..GROUP]));
            let chunk_max = max.iter().fold(0.0f32, |m, &x| if x > m || x.is_nan() { x } else { m });
            for (g, part) in padded.chunks_exact(GROUP).enumerate() {
                // Super: one float scale, and the smallest integer step whose range holds the group.
                let (unit, step) = match self.family {
                    Family::Grouped => (max[g], 1),
                    Family::Super => {
                        let steps = (max[g] / chunk_max * f32::from(MAX_STEP)).ceil();
                        (chunk_max / f32::from(MAX_STEP), (steps as i16).clamp(1, MAX_STEP))
                    }
                };
                let codes = &mut out.codes[g * GROUP..][..GROUP];
                out.scales[g] = quantize_group(part, unit, unit * f32::from(step), codes);
                out.steps[2 * g..2 * g + 2].fill(step);
            }
            for s in 0..CHUNK / SUB {
                let sum: i16 = out.codes[s * SUB..][..SUB].iter().map(|&c| i16::from(c)).sum();
                out.sums[s] = sum * out.steps[s];
            }
        }
    }
}

/// The largest magnitude; NaN where there is a NaN or an infinity, so that it stays visible in the output.
#[inline(always)]
fn magnitude(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let mut poison = [0.0f32; 16];
    for x in x.as_chunks::<16>().0 {
        for i in 0..16 {
            let magnitude = x[i].abs();
            lanes[i] = if magnitude > lanes[i] { magnitude } else { lanes[i] };
            poison[i] += x[i] * 0.0;
        }
    }
    let max = lanes.iter().fold(0.0f32, |m, &x| if x > m { x } else { m });
    max + poison.iter().fold(0.0f32, |a, &b| a + b)
}

/// Rounds one group to -127..=127, to nearest even, so that 127 stands for `max`. Returns the scale
/// of a code whose step is one: `unit / 127`.
#[inline(always)]
fn quantize_group(x: &[f32], unit: f32, max: f32, codes: &mut [i8]) -> f32 {
    if max == 0.0 || max.is_nan() {
        codes.fill(0);
        return unit;
    }
    // The largest code is 127 up to rounding; a subnormal maximum would make the inverse infinite.
    let inverse = (127.0 / max).min(f32::MAX);
    // Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits, on every CPU alike.
    const MAGIC: f32 = 12_582_912.0;
    for (code, &x) in codes.iter_mut().zip(x) {
        let rounded = (x * inverse + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32;
        *code = rounded.clamp(-127, 127) as i8;
    }
    unit / 127.0
}

/// One matrix times some columns; `out` is `[rows][columns]`.
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
    // Some tasks per thread so that a slow one does not hold up the rest, yet none below about
    // 30 microseconds of work.
    let per_task = (work / (par::threads() * 8)).max(1 << 18);
    let mut tasks = Vec::new();
    for Job { w, x, pick, out } in jobs {
        let n = pick.map_or(x.len(), <[u32]>::len);
        if n == 0 {
            continue;
        }
        let rows = (per_task / (w.cols() * n).max(1)).next_multiple_of(ROWS).max(ROWS);
        for (i, out) in out.chunks_mut(rows * n).enumerate() {
            tasks.push(Rows { w, x, pick, start: i * rows, out });
        }
    }
    par::for_each(tasks, work, dispatch);
}

/// Rows decoded together, so that a column chunk is read once for all of them.
const ROWS: usize = 4;

struct Rows<'a> {
    w: Matrix<'a>,
    x: &'a Columns<'a>,
    pick: Option<&'a [u32]>,
    start: usize,
    out: &'a mut [f32],
}

impl Op for Rows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Rows { w, x, pick, start, out } = self;
        let n = pick.map_or(x.len(), <[u32]>::len);
        let column = |c: usize| pick.map_or(c, |pick| pick[c] as usize);
        match form(w.ty(), x.precision) {
            Form::Float => float::matmul_rows(isa, &w, x.floats(), n, column, start, out),
            Form::Codes(family) => {
                let acts = x.codes(family);
                with_format!(w.ty(), F => float unreachable!("float weights take float activations"),
                                          block rows_of::<I, F>(isa, &w, acts, n, column, start, out));
            }
        }
    }
}

#[inline(always)]
fn rows_of<I: Isa, F: Format>(
    isa: I,
    w: &Matrix<'_>,
    acts: &[ActChunk],
    n: usize,
    column: impl Fn(usize) -> usize,
    start: usize,
    out: &mut [f32],
) {
    let chunks = w.chunks();
    let mut decoded: [Chunk; ROWS] = Default::default();
    out.fill(0.0);
    for (block, out) in out.chunks_mut(ROWS * n).enumerate() {
        let rows = out.len() / n;
        for chunk in 0..chunks {
            for (r, decoded) in decoded[..rows].iter_mut().enumerate() {
                float::decode_codes::<I, F>(isa, w, start + block * ROWS + r, chunk, decoded);
            }
            for c in 0..n {
                let a = &acts[column(c) * chunks + chunk];
                for (r, w) in decoded[..rows].iter().enumerate() {
                    let acc = &mut out[r * n + c];
                    *acc = add_chunk::<I, F>(isa, w, a, *acc);
                }
            }
        }
    }
}

#[inline(always)]
fn add_chunk<I: Isa, F: Format>(isa: I, w: &Chunk, a: &ActChunk, mut acc: f32) -> f32 {
    // The branch on the constant keeps one instance of each dot product per format.
    match F::FAMILY {
        Family::Super => {
            let sum = if F::SIGNED { isa.dot::<true>(w, a) } else { isa.dot::<false>(w, a) };
            acc = (w.d * a.scales[0]).mul_add(sum as f32, acc);
            if F::HAS_MIN {
                let sum = isa.dot_sums(&w.mins, &a.sums);
                acc = (-(w.dmin * a.scales[0])).mul_add(sum as f32, acc);
            }
        }
        Family::Grouped => {
            let sums = if F::SIGNED { isa.dot_groups::<true>(w, a) } else { isa.dot_groups::<false>(w, a) };
            for (g, sum) in sums.into_iter().enumerate() {
                acc = (w.group_d[g] * a.scales[g]).mul_add(sum as f32, acc);
            }
        }
    }
    acc
}

/// `out[column][row] = dot(w[row], x[column])`: what a linear layer computes, token after token.
pub fn matmul(w: &Matrix<'_>, x: &Columns<'_>, out: &mut [f32]) -> Result<(), Error> {
    let n = x.len();
    expect_len("input features of a matmul", x.cols, w.cols())?;
    expect_len("outputs of a matmul", out.len(), n * w.rows())?;
    if n == 1 {
        run(vec![Job { w: *w, x, pick: None, out }]);
        return Ok(());
    }
    let mut by_row = vec![0.0; out.len()];
    run(vec![Job { w: *w, x, pick: None, out: &mut by_row }]);
    transpose(&by_row, n, out);
    Ok(())
}

/// `[rows][n]` to `[n][rows]`.
pub(crate) fn transpose(by_row: &[f32], n: usize, out: &mut [f32]) {
    if n == 0 {
        return;
    }
    let rows = by_row.len() / n;
    // Eight columns at a time: each cache line that is read serves all of them.
    par::for_chunks(out, 8 * rows, |task, out| {
        for row in 0..rows {
            let from = &by_row[row * n + task * 8..];
            for (c, out) in out.chunks_exact_mut(rows).enumerate() {
                out[row] = from[c];
            }
        }
    });
}

/// Decodes rows `start..start + out.len() / cols` to f32, exactly as the format defines them.
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
        let mut floats = Floats::ZERO;
        for (r, row) in self.out.chunks_exact_mut(self.w.cols()).enumerate() {
            for (chunk, out) in row.chunks_mut(CHUNK).enumerate() {
                float::decode(isa, self.w, self.start + r, chunk, &mut floats);
                out.copy_from_slice(&floats.0[..out.len()]);
            }
        }
    }
}
