//! Activations on their way into a matrix product: rounded once, whatever the number of matrices.
//!
//! Knows how columns become the chunks that drivers multiply. Does not know weights.

use crate::chunk::{ActChunk, CHUNK, GROUP, GROUPED_OFFSET, MAX_STEP, SUPER_OFFSET};
use crate::dispatch::{Op, dispatch};
use crate::error::Error;
use crate::format::{Family, Type};
use crate::isa::Isa;
use crate::math::{magnitude, to_code};
use crate::par;
use std::sync::OnceLock;

/// Columns that meet all weights of a task before the next ones do: their activations, or their sums, stay in the
/// second-level cache.
pub(crate) const BLOCK: usize = 128;

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
pub(crate) enum Form {
    Float,
    Codes(Family),
}

pub(crate) fn form(ty: Type, precision: Precision) -> Form {
    match (ty.family(), precision) {
        (Some(family), Precision::Int8) => Form::Codes(family),
        _ => Form::Float,
    }
}

/// Activations of `n` columns (tokens), converted at most once to each form a matmul asks for.
pub struct Columns<'a> {
    x: &'a [f32],
    n: usize,
    pub(crate) cols: usize,
    pub(crate) precision: Precision,
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

    /// Columns that were quantized where they were made: `codes` is `[chunks][n]`, for weights of `family`
    /// alone.
    pub(crate) fn quantized(codes: Vec<ActChunk>, n: usize, cols: usize, family: Family) -> Columns<'static> {
        let columns = Columns {
            x: &[],
            n,
            cols,
            precision: Precision::Int8,
            padded: OnceLock::new(),
            supers: OnceLock::new(),
            grouped: OnceLock::new(),
        };
        let slot = match family {
            Family::Super => &columns.supers,
            Family::Grouped => &columns.grouped,
        };
        slot.get_or_init(|| codes);
        columns
    }

    /// Number of columns.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are no columns.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    pub(crate) fn chunks(&self) -> usize {
        self.cols.div_ceil(CHUNK)
    }

    /// Columns of `chunks * 256` floats, zero padded.
    pub(crate) fn floats(&self) -> &[f32] {
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

    /// Quantized activations, `[chunks][n]`.
    pub(crate) fn codes(&self, family: Family) -> &[ActChunk] {
        let slot = match family {
            Family::Super => &self.supers,
            Family::Grouped => &self.grouped,
        };
        slot.get_or_init(|| {
            let mut out = vec![ActChunk::default(); self.n * self.chunks()];
            par::for_chunks(&mut out, QUANTIZE_TASK, |task, out| {
                dispatch(Quantize { columns: self, family, first: task * QUANTIZE_TASK, out });
            });
            out
        })
    }

    /// Converts to the form that `ty` needs, before a parallel region does.
    pub(crate) fn prepare(&self, ty: Type) {
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

/// Chunks that one task quantizes: about ten microseconds of work.
const QUANTIZE_TASK: usize = 64;

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
        let Columns { x, cols, n, .. } = *self.columns;
        for (i, out) in self.out.iter_mut().enumerate() {
            let (chunk, column) = ((self.first + i) / n, (self.first + i) % n);
            let len = CHUNK.min(cols - chunk * CHUNK);
            let mut padded = [0.0; CHUNK];
            padded[..len].copy_from_slice(&x[column * cols + chunk * CHUNK..][..len]);
            quantize(&padded, self.family, out);
        }
    }
}

/// Rounds 256 activations as the weights of a family want them.
#[inline(always)]
pub(crate) fn quantize(x: &[f32; CHUNK], family: Family, out: &mut ActChunk) {
    let groups = x.as_chunks::<GROUP>().0;
    let mut max = [0.0f32; CHUNK / GROUP];
    let mut chunk_max = 0.0f32;
    for g in 0..CHUNK / GROUP {
        max[g] = magnitude(&groups[g]);
        chunk_max = if max[g] > chunk_max || max[g].is_nan() { max[g] } else { chunk_max };
    }
    let offset = match family {
        Family::Super => SUPER_OFFSET,
        Family::Grouped => GROUPED_OFFSET,
    };
    let codes = out.codes.as_chunks_mut::<GROUP>().0;
    for g in 0..CHUNK / GROUP {
        // Super: one float scale, and the smallest integer step whose range holds the group.
        let (unit, step) = match family {
            Family::Grouped => (max[g], 1),
            Family::Super => {
                let steps = (max[g] / chunk_max * f32::from(MAX_STEP)).ceil();
                (chunk_max / f32::from(MAX_STEP), (steps as i16).clamp(1, MAX_STEP))
            }
        };
        out.scales[g] = quantize_group(&groups[g], unit, unit * f32::from(step), &mut codes[g]);
        (out.steps[2 * g], out.steps[2 * g + 1]) = (step, step);
    }
    out.add_up(offset);
}

/// Rounds one group to -127..=127, to nearest even, so that 127 stands for `max`. Returns the scale
/// of a code whose step is one: `unit / 127`.
#[inline(always)]
fn quantize_group(x: &[f32; GROUP], unit: f32, max: f32, codes: &mut [i8; GROUP]) -> f32 {
    if max == 0.0 || max.is_nan() {
        codes.fill(0);
        return unit;
    }
    // The largest code is 127 up to rounding; a subnormal maximum would make the inverse infinite.
    let inverse = (127.0 / max).min(f32::MAX);
    for i in 0..GROUP {
        codes[i] = to_code(x[i] * inverse);
    }
    unit / 127.0
}
