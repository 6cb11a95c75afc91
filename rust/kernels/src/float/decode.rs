//! Weights as f32, sixteen at a time.
//!
//! Knows formats and how a row's chunks lie in memory. Does not know what the values are multiplied with.

use super::Floats;
use crate::chunk::{CHUNK, GROUP, GROUPED_OFFSET, SUB, SUPER_OFFSET};
use crate::convert::f16_to_f32;
use crate::format::{Family, FloatFormat, Format};
use crate::isa::{Isa, LANES};
use crate::matrix::{Matrix, SCALE_BLOCK};
use bytemuck::Zeroable;
use std::marker::PhantomData;

/// A matrix with what a division would find again and again.
pub(super) struct Rows<'a> {
    w: Matrix<'a>,
    data: &'a [u8],
    pub(super) row_bytes: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn of(w: &Matrix<'a>) -> Self {
        Self { w: *w, data: w.bytes(), row_bytes: w.row_bytes() }
    }

    /// Whole sixteens of a chunk, and those that the row has, the last perhaps padded.
    #[inline(always)]
    pub(super) fn steps(&self, chunk: usize) -> (usize, usize) {
        let len = CHUNK.min(self.w.cols() - chunk * CHUNK);
        (len / LANES, len.div_ceil(LANES))
    }
}

/// How a format becomes f32: its exact value, each product rounded once.
pub(super) trait Decode {
    /// Bytes of 256 weights.
    const CHUNK_BYTES: usize;
    /// A chunk of a row, with the work done that its sixteens share.
    type Chunk<'a>;

    /// No chunk yet.
    fn closed<'a>() -> Self::Chunk<'a>;

    /// Opens chunk `chunk` of row `row`, which has `whole` sixteens. Into a place that is used again, because
    /// returning it costs a copy.
    fn open<'a, I: Isa>(
        isa: I,
        w: &Rows<'a>,
        row: usize,
        chunk: usize,
        whole: usize,
        out: &mut Self::Chunk<'a>,
    );

    /// Asks for what lies `ahead` bytes after a chunk.
    #[inline(always)]
    fn prefetch<I: Isa>(isa: I, w: &Rows<'_>, row: usize, chunk: usize, whole: usize, ahead: usize) {
        let at = row * w.row_bytes + chunk * Self::CHUNK_BYTES + ahead;
        for line in 0..(Self::CHUNK_BYTES * whole).div_ceil(64 * CHUNK / LANES) {
            isa.prefetch(w.data, at + 64 * line);
        }
    }

    /// Weights `16 s ..` of a chunk; `s` is below `whole`.
    fn lanes<I: Isa>(isa: I, chunk: &Self::Chunk<'_>, s: usize) -> I::F;

    /// Fewer than sixteen weights that a chunk may end with, and zeros.
    fn rest<I: Isa>(isa: I, chunk: &Self::Chunk<'_>) -> I::F;

    /// All of a chunk, zero past the end of the row.
    #[inline(always)]
    fn decode<I: Isa>(isa: I, w: &Rows<'_>, row: usize, chunk: usize, out: &mut Floats) {
        let (whole, steps) = w.steps(chunk);
        let mut open = Self::closed();
        Self::open(isa, w, row, chunk, whole, &mut open);
        let lanes = out.0.as_chunks_mut::<LANES>().0;
        for s in 0..whole {
            isa.store(Self::lanes(isa, &open, s), &mut lanes[s]);
        }
        if whole < steps {
            isa.store(Self::rest(isa, &open), &mut lanes[whole]);
        }
        for s in steps..CHUNK / LANES {
            isa.store(isa.splat(0.0), &mut lanes[s]);
        }
    }
}

/// [`Decode`] of a float format.
pub(super) struct OfFloats<F>(PhantomData<F>);

/// Stored floats of a chunk.
pub(super) struct Stored<'a, F: FloatFormat> {
    whole: &'a [[F::Block; LANES]],
    /// Fewer than sixteen, where the row ends.
    rest: &'a [F::Block],
    /// Block scales from this chunk on. `SCALED` only.
    scales: [f32; CHUNK / SCALE_BLOCK],
}

impl<F: FloatFormat> Stored<'_, F> {
    /// The values of `stored`, which are sixteen number `s` of the chunk.
    #[inline(always)]
    fn values<I: Isa>(&self, isa: I, stored: &[F::Block; LANES], s: usize) -> I::F {
        let values = F::lanes(isa, stored);
        if F::SCALED { isa.mul(values, isa.splat(self.scales[s / (SCALE_BLOCK / LANES)])) } else { values }
    }
}

impl<F: FloatFormat> Decode for OfFloats<F> {
    const CHUNK_BYTES: usize = CHUNK * size_of::<F::Block>();
    type Chunk<'a> = Stored<'a, F>;

    #[inline(always)]
    fn closed<'a>() -> Self::Chunk<'a> {
        Stored { whole: &[], rest: &[], scales: [0.0; CHUNK / SCALE_BLOCK] }
    }

    #[inline(always)]
    fn open<'a, I: Isa>(_: I, w: &Rows<'a>, row: usize, chunk: usize, whole: usize, out: &mut Stored<'a, F>) {
        let row_data = &w.data[row * w.row_bytes..][..w.row_bytes];
        let stored: &[F::Block] = bytemuck::cast_slice(&row_data[chunk * Self::CHUNK_BYTES..]);
        let (sixteens, rest) = stored.as_chunks::<LANES>();
        // The same length for all rows of a matrix, said so that it is checked once.
        (out.whole, out.rest) = (&sixteens[..whole], rest);
        if F::SCALED {
            let scales = &w.w.row_scales(row)[chunk * (CHUNK / SCALE_BLOCK)..];
            out.scales = [scales[0], if let [_, second, ..] = scales { *second } else { 0.0 }];
        }
    }

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, chunk: &Stored<'_, F>, s: usize) -> I::F {
        chunk.values(isa, &chunk.whole[s], s)
    }

    #[inline(always)]
    fn rest<I: Isa>(isa: I, chunk: &Stored<'_, F>) -> I::F {
        let mut padded = [F::Block::zeroed(); LANES];
        padded[..chunk.rest.len()].copy_from_slice(chunk.rest);
        let mut values = [0.0; LANES];
        isa.store(chunk.values(isa, &padded, chunk.whole.len()), &mut values);
        // An infinite block scale would make NaN of the padding.
        values[chunk.rest.len()..].fill(0.0);
        isa.load(&values)
    }
}

/// [`Decode`] of a block format.
pub(super) struct OfBlocks<F>(PhantomData<F>);

/// A chunk of a block format. Past the end of the row it may be anything.
pub(super) struct Codes {
    /// Signed codes.
    codes: [[u8; 64]; 4],
    /// Per 16 for `Super`, per `SUB` for `Grouped`.
    scales: [f32; CHUNK / SUB],
    /// Per 16, to be taken off. `HAS_MIN` only.
    mins: [f32; CHUNK / SUB],
}

impl<F: Format> Decode for OfBlocks<F> {
    const CHUNK_BYTES: usize = size_of::<F::Chunk>();
    type Chunk<'a> = Codes;

    #[inline(always)]
    fn closed<'a>() -> Self::Chunk<'a> {
        Codes { codes: [[0; 64]; 4], scales: [0.0; CHUNK / SUB], mins: [0.0; CHUNK / SUB] }
    }

    #[inline(always)]
    fn open<'a, I: Isa>(isa: I, w: &Rows<'a>, row: usize, chunk: usize, _: usize, out: &mut Codes) {
        // What fills a chunk past the end of a short row is the next row's; only the last needs a copy.
        let start = row * w.row_bytes + chunk * Self::CHUNK_BYTES;
        let weights = match w.data.get(start..start + Self::CHUNK_BYTES) {
            _ if w.w.is_repacked() => w.w.decode_repacked::<I, F>(isa, row, chunk),
            Some(chunk) => F::decode(isa, bytemuck::from_bytes(chunk)),
            None => F::decode(isa, &w.w.last_chunk::<F>(row)),
        };
        let offset = match (F::FAMILY, F::SIGNED) {
            (Family::Grouped, _) => GROUPED_OFFSET,
            (Family::Super, true) => SUPER_OFFSET,
            (Family::Super, false) => 0,
        };
        let unshift = isa.splat_byte(offset.wrapping_neg());
        for q in 0..4 {
            isa.put(isa.add(weights.codes[q], unshift), &mut out.codes[q]);
        }
        if F::FAMILY == Family::Grouped {
            out.scales = weights.group_d;
            if F::HAS_MIN {
                for s in 0..CHUNK / SUB {
                    out.mins[s] = -weights.group_m[s * SUB / GROUP];
                }
            }
            return;
        }
        // Exact: an f16 times an integer below 2^13. What is rounded is the product with the code.
        let (d, dmin) = (f16_to_f32(weights.d) * F::D_FACTOR, f16_to_f32(weights.dmin));
        for s in 0..CHUNK / SUB {
            out.scales[s] = d * f32::from(weights.scales[s]);
        }
        if F::HAS_MIN {
            for s in 0..CHUNK / SUB {
                out.mins[s] = dmin * f32::from(weights.mins[s]);
            }
        }
    }

    #[inline(always)]
    fn lanes<I: Isa>(isa: I, chunk: &Codes, s: usize) -> I::F {
        let codes: &[[i8; LANES]; CHUNK / SUB] = bytemuck::cast_ref(&chunk.codes);
        let scale = match F::FAMILY {
            Family::Grouped => chunk.scales[s * SUB / F::SUB],
            Family::Super => chunk.scales[s],
        };
        let value = isa.mul(isa.splat(scale), isa.load_codes(&codes[s]));
        if F::HAS_MIN { isa.fma(isa.splat(chunk.mins[s]), isa.splat(-1.0), value) } else { value }
    }

    /// Blocks are whole sixteens.
    #[inline(always)]
    fn rest<I: Isa>(isa: I, _: &Codes) -> I::F {
        isa.splat(0.0)
    }
}
