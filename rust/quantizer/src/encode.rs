//! From rows of f32 to the bytes of a format: `encode_rows`, and the trait behind it.
//!
//! Knows how rows divide into blocks and checks what comes in. What makes a good block is the
//! business of one file per format below, each in two halves (`split.rs`): *choose the scales* of a block, and
//! *choose codes* given scales, target and what errors cost. Error feedback (`feedback.rs`) puts another
//! target and another cost into the second half.
//!
//! A row sees only its own weights, and what all rows share, so the bytes do not depend on how rows are
//! cut, and everything is elementwise f32 in a fixed order, so they do not depend on the CPU.
#![allow(clippy::needless_range_loop, reason = "lanes, groups and levels are numbers here")]

mod codebook;
mod e2m1;
mod feedback;
mod float;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
mod lanes;
mod line;
mod lines;
mod mxfp4;
mod nvfp4;
mod octet;
mod octets;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod quads;
mod scalar;
mod signed;
mod signs;
mod split;
mod steps;
mod target;
mod ternary;
#[cfg(test)]
pub(crate) mod tests;
mod tq1_0;
mod tq2_0;

use crate::curvature::Curvature;
use crate::error::{Error, expect_len};
use bytemuck::Pod;
use kizami_kernels::dispatch::Op;
use kizami_kernels::formats::{
    Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Iq4Nl, Iq4Xs, Mxfp4, Nvfp4, Q1_0, Q2_0, Q2K, Q3K, Q4_0,
    Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Tq1_0, Tq2_0,
};
use kizami_kernels::isa::Isa;
use kizami_kernels::{Type, dispatch};
use split::Split;
use std::marker::PhantomData;
use target::Target;

/// A format that can be written, in blocks of `N` weights.
trait Encode<const N: usize> {
    /// The block as it lies in the file.
    type Block: Pod;
    /// Must be `#[inline(always)]`, like all it calls: it runs inside the entry of an instruction set.
    fn encode<I: Isa>(isa: I, target: &Target<N>) -> Self::Block;
}

/// Encodes `rows`, whole rows of `cols` weights one after the other, as `ty` into `out`.
///
/// `importance` is the mean squared activation of each column (`cols` values, any scale), the
/// weight of a squared error there; without it all columns count alike. Finite weights beyond the
/// range of a format saturate.
pub fn encode_rows(
    ty: Type,
    rows: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), Error> {
    if let Some(importance) = importance.filter(|_| cols > 0) {
        expect_len("importance of columns", importance.len(), cols)?;
        if let Some(col) = importance.iter().position(|h| !h.is_finite() || *h < 0.0) {
            return Err(Error::Importance { col, value: importance[col] });
        }
    }
    encode(ty, Job { rows, cols, importance, feedback: None, out })
}

/// As [`encode_rows`], but columns make up for the errors of those before them, as far as inputs go together.
///
/// The loss is `(w - ŵ) H (w - ŵ)ᵀ` per row, with `H` the second moments behind `curvature`, whose columns are those
/// of the rows. Formats of few levels under one scale (TQ1_0, TQ2_0, Q2_0, Q1_0, MXFP4, NVFP4) and floats are encoded
/// as [`encode_rows`] does under the diagonal of `H`. The method is block LDL rounding (QuIP#, arXiv 2402.04396) with
/// a second level inside the block; see `encode/feedback.rs`.
///
/// Scales are least squares under that loss: what shrinkage codes leave is left.
pub fn encode_rows_with_feedback(
    ty: Type,
    rows: &[f32],
    curvature: &Curvature,
    out: &mut [u8],
) -> Result<(), Error> {
    let (cols, importance) = (curvature.cols(), Some(curvature.importance()));
    encode(ty, Job { rows, cols, importance, feedback: Some(curvature), out })
}

/// Rows to encode.
struct Job<'a> {
    rows: &'a [f32],
    cols: usize,
    importance: Option<&'a [f32]>,
    /// For formats that know feedback.
    feedback: Option<&'a Curvature>,
    out: &'a mut [u8],
}

fn encode(ty: Type, job: Job<'_>) -> Result<(), Error> {
    let (rows, cols) = (job.rows, job.cols);
    let row_length = Error::RowLength { ty: ty.name(), cols, block: ty.block() };
    let row_bytes = ty.row_bytes(cols).filter(|_| cols > 0).ok_or(row_length)?;
    let n_rows = rows.len() / cols;
    expect_len("weights of whole rows", rows.len(), n_rows * cols)?;
    expect_len("encoded bytes", job.out.len(), n_rows * row_bytes)?;
    if !dispatch(AllFinite(rows)) {
        let at = rows.iter().position(|x| !x.is_finite()).unwrap_or_default();
        return Err(Error::Weight { row: at / cols, col: at % cols, value: rows[at] });
    }
    match ty {
        Type::F32 | Type::F16 | Type::BF16 => float::encode(ty, job.rows, job.out),
        Type::Q4_0 => split::<Q4_0, 32>(job),
        Type::Q4_1 => split::<Q4_1, 32>(job),
        Type::Q5_0 => split::<Q5_0, 32>(job),
        Type::Q5_1 => split::<Q5_1, 32>(job),
        Type::Q8_0 => split::<Q8_0, 32>(job),
        Type::Q2K => split::<Q2K, 256>(job),
        Type::Q3K => split::<Q3K, 256>(job),
        Type::Q4K => split::<Q4K, 256>(job),
        Type::Q5K => split::<Q5K, 256>(job),
        Type::Q6K => split::<Q6K, 256>(job),
        Type::Iq4Nl => split::<Iq4Nl, 32>(job),
        Type::Iq4Xs => split::<Iq4Xs, 256>(job),
        Type::Iq3S => split::<Iq3S, 256>(job),
        Type::Iq3Xxs => split::<Iq3Xxs, 256>(job),
        Type::Iq2S => split::<Iq2S, 256>(job),
        Type::Iq2Xs => split::<Iq2Xs, 256>(job),
        Type::Iq2Xxs => split::<Iq2Xxs, 256>(job),
        Type::Iq1M => split::<Iq1M, 256>(job),
        Type::Iq1S => split::<Iq1S, 256>(job),
        Type::Tq2_0 => blocks::<Tq2_0, 256>(job),
        Type::Tq1_0 => blocks::<Tq1_0, 256>(job),
        Type::Mxfp4 => blocks::<Mxfp4, 32>(job),
        Type::Nvfp4 => blocks::<Nvfp4, 64>(job),
        Type::Q2_0 => blocks::<Q2_0, 64>(job),
        Type::Q1_0 => blocks::<Q1_0, 128>(job),
        Type::F8E4M3 => return Err(Error::NoEncoder { ty: ty.name() }),
    }
    Ok(())
}

/// A format with feedback, where it is asked for.
fn split<F: Split<N>, const N: usize>(job: Job<'_>) {
    const { assert!(Curvature::has_blocks_of(N), "curvatures know the metric of such blocks") };
    match job.feedback {
        Some(curvature) => dispatch(feedback::Rows::<F, N> { job, curvature, format: PhantomData }),
        None => blocks::<F, N>(job),
    }
}

fn blocks<E: Encode<N>, const N: usize>(job: Job<'_>) {
    dispatch(Blocks::<E, N>(job, PhantomData));
}

struct Blocks<'a, E, const N: usize>(Job<'a>, PhantomData<E>);

impl<E: Encode<N>, const N: usize> Op for Blocks<'_, E, N> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Job { rows, cols, importance, out, .. } = self.0;
        let (weights, _) = rows.as_chunks::<N>();
        let importance = importance.map(|h| h.as_chunks::<N>().0);
        let out = out.chunks_exact_mut(size_of::<E::Block>());
        for (i, (weights, out)) in weights.iter().zip(out).enumerate() {
            let importance = importance.map(|h| &h[i % (cols / N)]);
            let block = E::encode(isa, &Target::new(weights, importance));
            out.copy_from_slice(bytemuck::bytes_of(&block));
        }
    }
}

struct AllFinite<'a>(&'a [f32]);

impl Op for AllFinite<'_> {
    type Out = bool;
    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> bool {
        let mut infinite = 0u32;
        for x in self.0 {
            infinite |= u32::from(x.to_bits() & 0x7f80_0000 == 0x7f80_0000);
        }
        infinite == 0
    }
}
