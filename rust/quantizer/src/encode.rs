//! From rows of f32 to the bytes of a format: `encode_rows`, and the trait behind it.
//!
//! Knows how rows divide into blocks and checks what comes in. What makes a good block is the
//! business of one file per format below, each in two halves: *choose the scales* of a block, and
//! *choose codes* given scales, target and what errors cost. Error feedback will put another
//! target and another cost into the second half.
//!
//! A block sees only its own weights and importance, so the bytes do not depend on how rows are
//! cut, and everything is elementwise f32 in a fixed order, so they do not depend on the CPU.
#![allow(clippy::needless_range_loop, reason = "lanes, groups and levels are numbers here")]

mod codebook;
mod e2m1;
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
mod signed;
mod steps;
mod target;
mod ternary;
#[cfg(test)]
mod tests;
mod tq1_0;
mod tq2_0;

use crate::error::{Error, expect_len};
use bytemuck::Pod;
use kizami_kernels::dispatch::Op;
use kizami_kernels::formats::{
    Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Iq4Nl, Iq4Xs, Mxfp4, Nvfp4, Q1_0, Q2_0, Q2K, Q3K, Q4_0,
    Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Tq1_0, Tq2_0,
};
use kizami_kernels::isa::Isa;
use kizami_kernels::{Type, dispatch};
use target::Target;

/// A format that can be written, in blocks of `N` weights.
trait Encode<const N: usize> {
    /// The block as it lies in the file.
    type Block: Pod;
    /// Must be `#[inline(always)]`, like all it calls: it runs inside the entry of an instruction set.
    fn encode(target: &Target<N>) -> Self::Block;
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
    let row_length = Error::RowLength { ty: ty.name(), cols, block: ty.block() };
    let row_bytes = ty.row_bytes(cols).filter(|_| cols > 0).ok_or(row_length)?;
    let n_rows = rows.len() / cols;
    expect_len("weights of whole rows", rows.len(), n_rows * cols)?;
    expect_len("encoded bytes", out.len(), n_rows * row_bytes)?;
    if let Some(importance) = importance {
        expect_len("importance of columns", importance.len(), cols)?;
        if let Some(col) = importance.iter().position(|h| !h.is_finite() || *h < 0.0) {
            return Err(Error::Importance { col, value: importance[col] });
        }
    }
    if !dispatch(AllFinite(rows)) {
        let at = rows.iter().position(|x| !x.is_finite()).unwrap_or_default();
        return Err(Error::Weight { row: at / cols, col: at % cols, value: rows[at] });
    }
    match ty {
        Type::F32 | Type::F16 | Type::BF16 => float::encode(ty, rows, out),
        Type::Q4_0 => blocks::<Q4_0, 32>(rows, cols, importance, out),
        Type::Q4_1 => blocks::<Q4_1, 32>(rows, cols, importance, out),
        Type::Q5_0 => blocks::<Q5_0, 32>(rows, cols, importance, out),
        Type::Q5_1 => blocks::<Q5_1, 32>(rows, cols, importance, out),
        Type::Q8_0 => blocks::<Q8_0, 32>(rows, cols, importance, out),
        Type::Q2K => blocks::<Q2K, 256>(rows, cols, importance, out),
        Type::Q3K => blocks::<Q3K, 256>(rows, cols, importance, out),
        Type::Q4K => blocks::<Q4K, 256>(rows, cols, importance, out),
        Type::Q5K => blocks::<Q5K, 256>(rows, cols, importance, out),
        Type::Q6K => blocks::<Q6K, 256>(rows, cols, importance, out),
        Type::Iq4Nl => blocks::<Iq4Nl, 32>(rows, cols, importance, out),
        Type::Iq4Xs => blocks::<Iq4Xs, 256>(rows, cols, importance, out),
        Type::Iq3S => blocks::<Iq3S, 256>(rows, cols, importance, out),
        Type::Iq3Xxs => blocks::<Iq3Xxs, 256>(rows, cols, importance, out),
        Type::Iq2S => blocks::<Iq2S, 256>(rows, cols, importance, out),
        Type::Iq2Xs => blocks::<Iq2Xs, 256>(rows, cols, importance, out),
        Type::Iq2Xxs => blocks::<Iq2Xxs, 256>(rows, cols, importance, out),
        Type::Iq1M => blocks::<Iq1M, 256>(rows, cols, importance, out),
        Type::Iq1S => blocks::<Iq1S, 256>(rows, cols, importance, out),
        Type::Tq2_0 => blocks::<Tq2_0, 256>(rows, cols, importance, out),
        Type::Tq1_0 => blocks::<Tq1_0, 256>(rows, cols, importance, out),
        Type::Mxfp4 => blocks::<Mxfp4, 32>(rows, cols, importance, out),
        Type::Nvfp4 => blocks::<Nvfp4, 64>(rows, cols, importance, out),
        Type::Q2_0 => blocks::<Q2_0, 64>(rows, cols, importance, out),
        Type::Q1_0 => blocks::<Q1_0, 128>(rows, cols, importance, out),
        Type::F8E4M3 => return Err(Error::NoEncoder { ty: ty.name() }),
    }
    Ok(())
}

fn blocks<E: Encode<N>, const N: usize>(
    rows: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    dispatch(Blocks::<E, N> { rows, cols, importance, out, format: std::marker::PhantomData });
}

struct Blocks<'a, E, const N: usize> {
    rows: &'a [f32],
    cols: usize,
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
    format: std::marker::PhantomData<E>,
}

impl<E: Encode<N>, const N: usize> Op for Blocks<'_, E, N> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let (weights, _) = self.rows.as_chunks::<N>();
        let importance = self.importance.map(|h| h.as_chunks::<N>().0);
        let out = self.out.chunks_exact_mut(size_of::<E::Block>());
        for (i, (weights, out)) in weights.iter().zip(out).enumerate() {
            let importance = importance.map(|h| &h[i % (self.cols / N)]);
            let block = E::encode(&Target::new(weights, importance));
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
