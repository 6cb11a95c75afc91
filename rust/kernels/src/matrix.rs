//! Weights as the drivers see them: a format, a shape, borrowed bytes and scales, checked once.

use crate::chunk::{CHUNK, Weights};
use crate::error::{Error, expect_len};
use crate::format::{Format, Type};
use crate::isa::{Isa, LANES};
use crate::repack::{Layout, Record, repacked_bytes};
use bytemuck::Zeroable;

/// Side of the square of weights that share one FP8 block scale.
pub const SCALE_BLOCK: usize = 128;

/// Bytes ahead of their use that the rows one column meets are asked for: what memory takes to answer, in decoding
/// time.
pub(crate) const AHEAD: usize = 4608;

/// A matrix of `rows` x `cols` weights: row after row as files have them, or rows side by side
/// ([`mod@crate::repack`]).
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    ty: Type,
    rows: usize,
    cols: usize,
    data: &'a [u8],
    scales: &'a [f32],
    repacked: bool,
}

impl<'a> Matrix<'a> {
    /// Borrows `data` as weights. `scales` holds one f32 per 128 x 128 weights, row-major, for [`Type::F8E4M3`];
    /// otherwise the one scale of the whole matrix, or nothing ([`Matrix::scale`]).
    pub fn new(ty: Type, rows: usize, cols: usize, data: &'a [u8], scales: &'a [f32]) -> Result<Self, Error> {
        let row = ty.row_bytes(cols).ok_or(Error::RowLength { ty: ty.name(), cols, block: ty.block() })?;
        let bytes = row.checked_mul(rows).ok_or(Error::Range {
            what: "rows of a matrix",
            found: rows,
            expected: "a size that fits memory",
        })?;
        expect_len("bytes of a matrix", data.len(), bytes)?;
        let expected = match ty {
            Type::F8E4M3 => rows.div_ceil(SCALE_BLOCK) * cols.div_ceil(SCALE_BLOCK),
            _ => scales.len().min(1),
        };
        expect_len("scales of a matrix", scales.len(), expected)?;
        Ok(Self { ty, rows, cols, data, scales, repacked: false })
    }

    /// Borrows what [`crate::repack()`] wrote as weights; `scales` as those of the matrix it was made of.
    pub fn repacked(
        ty: Type,
        rows: usize,
        cols: usize,
        data: &'a [u8],
        scales: &'a [f32],
    ) -> Result<Self, Error> {
        ty.row_bytes(cols).ok_or(Error::RowLength { ty: ty.name(), cols, block: ty.block() })?;
        let bytes = repacked_bytes(ty, rows, cols).ok_or(Error::Range {
            what: "rows of a repacked matrix",
            found: rows,
            expected: "block-quantized weights of a size that fits memory",
        })?;
        expect_len("bytes of a repacked matrix", data.len(), bytes)?;
        expect_len("scales of a matrix", scales.len(), scales.len().min(1))?;
        Ok(Self { ty, rows, cols, data, scales, repacked: true })
    }

    /// Whether rows lie side by side.
    pub fn is_repacked(&self) -> bool {
        self.repacked
    }

    /// The format.
    pub fn ty(&self) -> Type {
        self.ty
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What every weight is multiplied with besides the format's own scales: NVFP4's second level. Products meet it
    /// once, at their end.
    pub fn scale(&self) -> f32 {
        match (self.ty, self.scales) {
            (Type::F8E4M3, _) | (_, []) => 1.0,
            (_, [scale, ..]) => *scale,
        }
    }

    /// Multiplies products, or weights, with [`Matrix::scale`].
    #[inline(always)]
    pub(crate) fn apply_scale(&self, out: &mut [f32]) {
        let scale = self.scale();
        // One changes no bit, and nearly every matrix has it.
        if scale != 1.0 {
            out.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// Bytes of the weights and their scales.
    pub fn nbytes(&self) -> usize {
        size_of_val(self.data) + size_of_val(self.scales)
    }

    /// Chunks in a row, the last possibly short.
    pub fn chunks(&self) -> usize {
        self.cols.div_ceil(CHUNK)
    }

    /// The records of the panel of sixteen rows that begins with row `first`, one a chunk. Repacked only.
    #[inline(always)]
    pub(crate) fn records<F: Format>(&self, first: usize) -> &'a [u8] {
        debug_assert!(self.repacked && first.is_multiple_of(LANES));
        let panel = self.chunks() * F::SIZE;
        &self.data[first / LANES * panel..][..panel]
    }

    /// The bytes of chunk `chunk` of row `row`, and how many weights they hold.
    #[inline(always)]
    pub(crate) fn chunk(&self, row: usize, chunk: usize) -> (&'a [u8], usize) {
        debug_assert!(!self.repacked);
        let start = chunk * CHUNK;
        let len = CHUNK.min(self.cols - start);
        let (block, bytes) = (self.ty.block(), self.ty.block_bytes());
        let row = row * (self.cols / block * bytes);
        let start = row + start / block * bytes;
        (&self.data[start..start + len / block * bytes], len)
    }

    /// Bytes of a row.
    #[inline(always)]
    pub(crate) fn row_bytes(&self) -> usize {
        self.data.len() / self.rows.max(1)
    }

    /// The chunks of row `row` that are not cut short by its end.
    #[inline(always)]
    pub(crate) fn whole_chunks<F: Format>(&self, row: usize) -> &'a [F::Chunk] {
        debug_assert!(!self.repacked);
        let row = &self.data[row * self.row_bytes()..][..self.cols / CHUNK * size_of::<F::Chunk>()];
        bytemuck::cast_slice(row)
    }

    /// The chunk that the end of row `row` cuts short, followed by zeros: their scales make nothing of them.
    #[inline(always)]
    pub(crate) fn last_chunk<F: Format>(&self, row: usize) -> F::Chunk {
        let (bytes, _) = self.chunk(row, self.cols / CHUNK);
        let mut padded = F::Chunk::zeroed();
        bytemuck::bytes_of_mut(&mut padded)[..bytes.len()].copy_from_slice(bytes);
        padded
    }

    /// All weights, as they lie.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.data
    }

    /// Every two rows taken for one; none where a row is left over or does not lie in one piece.
    pub(crate) fn paired(&self) -> Option<Self> {
        let even = self.rows.is_multiple_of(2) && self.ty != Type::F8E4M3 && !self.repacked;
        even.then(|| Self { rows: self.rows / 2, cols: 2 * self.cols, ..*self })
    }

    /// Decodes chunk `chunk` of row `row`, and asks for the same chunk sixteen rows further on, where panels
    /// go next. Past the end of a short row the scales are zero.
    #[inline(always)]
    pub(crate) fn decode<I: Isa, F: Format>(&self, isa: I, row: usize, chunk: usize) -> Weights<I> {
        if self.repacked {
            return self.decode_repacked::<I, F>(isa, row, chunk);
        }
        let (bytes, len) = self.chunk(row, chunk);
        let ahead = LANES * (self.cols / F::BLOCK * size_of::<F::Block>());
        for line in 0..size_of::<F::Chunk>().div_ceil(64) {
            isa.prefetch(bytes, ahead + 64 * line);
        }
        if len == CHUNK {
            return F::decode(isa, bytemuck::from_bytes(bytes));
        }
        F::decode(isa, &self.last_chunk::<F>(row))
    }

    /// [`Matrix::decode`] of repacked rows.
    #[inline(always)]
    pub(crate) fn decode_repacked<I: Isa, F: Format>(&self, isa: I, row: usize, chunk: usize) -> Weights<I> {
        let records = self.records::<F>(row / LANES * LANES);
        Record::<F>::new(&records[chunk * F::SIZE..]).row(isa, row % LANES)
    }

    /// The block scales along `row`. [`Type::F8E4M3`] only.
    #[inline(always)]
    pub(crate) fn row_scales(&self, row: usize) -> &'a [f32] {
        let per_row = self.cols.div_ceil(SCALE_BLOCK);
        &self.scales[row / SCALE_BLOCK * per_row..][..per_row]
    }
}
