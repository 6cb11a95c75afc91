//! Whole tensors: every matrix of a stack, all threads, any source format.
//!
//! Rows are decoded, encoded and dropped in small groups, so memory is the output's and little
//! more. The groups do not show in the bytes.

use crate::error::{Error, expect_len};
use crate::{Curvature, Metric, encode_rows, encode_rows_with_feedback};
use kizami_kernels::matmul::dequantize;
use kizami_kernels::{Matrix, Type, par};

/// Rows handled together: about this many weights.
const GROUP_WEIGHTS: usize = 16_384;
/// Rows handled together with feedback, at least and at most.
const FED_ROWS: (usize, usize) = (16, 64);

fn group_rows(cols: usize) -> usize {
    (GROUP_WEIGHTS / cols.max(1)).max(1)
}

/// Importance of matrix `index`, of `[matrices][cols]`.
fn importance_of(importance: Option<&[f32]>, index: usize, cols: usize) -> Option<&[f32]> {
    importance.map(|h| &h[index * cols..(index + 1) * cols])
}

/// Encodes all matrices of a tensor as `ty`, one after the other.
///
/// `importance` holds the mean squared activation of every column of every matrix.
pub fn encode(matrices: &[Matrix<'_>], ty: Type, importance: Option<&[f32]>) -> Result<Vec<u8>, Error> {
    let cols = matrices.first().map_or(0, Matrix::cols);
    let total: usize = matrices.iter().map(Matrix::rows).sum();
    if let Some(h) = importance {
        expect_len("importance of columns", h.len(), matrices.len() * cols)?;
    }
    let row_length = Error::RowLength { ty: ty.name(), cols, block: ty.block() };
    let row_bytes = ty.row_bytes(cols).ok_or(row_length)?;
    let mut out = vec![0u8; total * row_bytes];
    let mut tasks = Vec::new();
    let mut rest = out.as_mut_slice();
    for (index, w) in matrices.iter().enumerate() {
        let (part, more) = rest.split_at_mut(w.rows() * row_bytes);
        rest = more;
        for (group, out) in part.chunks_mut(group_rows(cols) * row_bytes).enumerate() {
            tasks.push((w, group * group_rows(cols), importance_of(importance, index, cols), out));
        }
    }
    let results: Vec<_> = par::map(tasks, |(w, start, importance, out)| {
        let mut rows = vec![0.0; out.len() / row_bytes * cols];
        dequantize(w, start, &mut rows).expect("rows of the matrix");
        encode_rows(ty, &rows, cols, importance, out).map_err(|e| e.below(start))
    });
    results.into_iter().collect::<Result<(), _>>().map(|()| out)
}

/// Encodes one matrix as `ty` with error feedback, on all threads. `curvature` has the matrix's columns.
pub fn encode_with_feedback(w: &Matrix<'_>, ty: Type, curvature: &Curvature) -> Result<Vec<u8>, Error> {
    let cols = w.cols();
    expect_len("columns of the curvature", curvature.cols(), cols)?;
    let row_length = Error::RowLength { ty: ty.name(), cols, block: ty.block() };
    let row_bytes = ty.row_bytes(cols).ok_or(row_length)?;
    let mut out = vec![0u8; w.rows() * row_bytes];
    // Rows that read the curvature together, but no thread without any.
    let group = w.rows().div_ceil(par::threads()).next_multiple_of(FED_ROWS.0).min(FED_ROWS.1);
    let tasks = out.chunks_mut((group * row_bytes).max(1)).enumerate().collect();
    let results: Vec<_> = par::map(tasks, |(i, out): (usize, &mut [u8])| {
        let mut rows = vec![0.0; out.len() / row_bytes * cols];
        dequantize(w, i * group, &mut rows).expect("rows of the matrix");
        encode_rows_with_feedback(ty, &rows, curvature, out).map_err(|e| e.below(i * group))
    });
    results.into_iter().collect::<Result<(), _>>().map(|()| out)
}

/// What encoding as `ty` would do to a tensor, measured on about `weights` of its weights: whole
/// rows, spread evenly over all matrices, each weighted by its importance.
pub fn distortion(
    matrices: &[Matrix<'_>],
    ty: Type,
    importance: Option<&[f32]>,
    weights: usize,
) -> Result<Metric, Error> {
    let cols = matrices.first().map_or(0, Matrix::cols);
    if let Some(h) = importance {
        expect_len("importance of columns", h.len(), matrices.len() * cols)?;
    }
    let row_length = Error::RowLength { ty: ty.name(), cols, block: ty.block() };
    let row_bytes = ty.row_bytes(cols).ok_or(row_length)?;
    let wanted = (weights / cols.max(1) / matrices.len().max(1)).max(8);
    let tasks: Vec<_> = (0..matrices.len()).collect();
    let results: Vec<Result<Metric, Error>> = par::map(tasks, |index| {
        let w = &matrices[index];
        let importance = importance_of(importance, index, cols);
        let n = wanted.min(w.rows());
        let mut sum = Metric::default();
        let (mut row, mut back, mut bytes) = (vec![0.0; cols], vec![0.0; cols], vec![0u8; row_bytes]);
        for i in 0..n {
            let at = i * w.rows() / n;
            dequantize(w, at, &mut row).expect("a row of the matrix");
            encode_rows(ty, &row, cols, importance, &mut bytes).map_err(|e| e.below(at))?;
            let encoded = Matrix::new(ty, 1, cols, &bytes, &[]).expect("one encoded row");
            dequantize(&encoded, 0, &mut back).expect("one encoded row");
            sum.add(Metric::of_row(&row, &back, importance));
        }
        Ok(sum)
    });
    let mut sum = Metric::default();
    for part in results {
        sum.add(part?);
    }
    Ok(sum)
}

/// Rows in a fixed order of sums, so that threads do not show.
fn sum_over_rows(
    w: &Matrix<'_>,
    loss: impl Fn(usize, &[f32]) -> Result<f64, Error> + Sync,
) -> Result<f64, Error> {
    let group = FED_ROWS.0;
    let parts: Vec<Result<f64, Error>> = par::map((0..w.rows()).step_by(group).collect(), |start: usize| {
        let mut rows = vec![0.0; group.min(w.rows() - start) * w.cols()];
        dequantize(w, start, &mut rows).expect("rows of the matrix");
        loss(start, &rows)
    });
    parts.into_iter().sum()
}

/// The mean squares of a matrix's outputs under `curvature`, summed over rows.
pub fn output_power(w: &Matrix<'_>, curvature: &Curvature) -> Result<f64, Error> {
    expect_len("columns of the curvature", curvature.cols(), w.cols())?;
    sum_over_rows(w, |_, rows| Ok(curvature.loss(rows)))
}

/// What encoding all rows of a matrix as `ty` does to its outputs under `curvature`: the mean squares of their errors,
/// summed over rows. With `feedback` codes make up for each other as in [`encode_with_feedback`];
/// otherwise each weight is rounded by itself.
pub fn output_error(w: &Matrix<'_>, ty: Type, curvature: &Curvature, feedback: bool) -> Result<f64, Error> {
    let cols = w.cols();
    expect_len("columns of the curvature", curvature.cols(), cols)?;
    let row_length = Error::RowLength { ty: ty.name(), cols, block: ty.block() };
    let row_bytes = ty.row_bytes(cols).ok_or(row_length)?;
    sum_over_rows(w, |start, rows| {
        let count = rows.len() / cols;
        let (mut error, mut bytes) = (vec![0.0; rows.len()], vec![0u8; count * row_bytes]);
        let encoded = if feedback {
            encode_rows_with_feedback(ty, rows, curvature, &mut bytes)
        } else {
            encode_rows(ty, rows, cols, Some(curvature.importance()), &mut bytes)
        };
        encoded.map_err(|e| e.below(start))?;
        let encoded = Matrix::new(ty, count, cols, &bytes, &[]).expect("encoded rows");
        dequantize(&encoded, 0, &mut error).expect("encoded rows");
        error.iter_mut().zip(rows).for_each(|(e, w)| *e -= w);
        Ok(curvature.loss(&error))
    })
}

/// [`output_error`] with feedback of several matrices, each with its curvature, in several types: `[types][matrices]`.
/// All of it in parallel, because a few rows of one matrix are too few for all threads.
pub fn output_errors(matrices: &[(Matrix<'_>, &Curvature)], types: &[Type]) -> Result<Vec<Vec<f64>>, Error> {
    let tasks = types.iter().flat_map(|&ty| matrices.iter().map(move |(w, curvature)| (ty, w, *curvature)));
    let errors: Result<Vec<f64>, Error> =
        par::map(tasks.collect(), |(ty, w, curvature)| output_error(w, ty, curvature, true))
            .into_iter()
            .collect();
    let errors = errors?;
    Ok((0..types.len()).map(|t| errors[t * matrices.len()..][..matrices.len()].to_vec()).collect())
}
