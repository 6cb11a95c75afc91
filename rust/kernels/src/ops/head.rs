//! The two ends of a model: token ids to hidden states, hidden states to logits.

use super::{Norm, Observation, Observer, expect_shape};
use crate::error::{Error, expect_len};
use crate::matmul::{Columns, Precision, dequantize, matmul};
use crate::matrix::Matrix;
use crate::profile;

/// Rows of the embedding table: `[ids][d]`.
pub fn embed(table: &Matrix<'_>, ids: &[u32]) -> Result<Vec<f32>, Error> {
    let d = table.cols();
    let _span = profile::span("token_embd", 0, ids.len() * (table.nbytes() / table.rows().max(1)));
    let mut out = vec![0.0; ids.len() * d];
    for (&id, row) in ids.iter().zip(out.chunks_exact_mut(d)) {
        dequantize(table, id as usize, row)?;
    }
    Ok(out)
}

/// `[n][vocab]`: logits of the hidden states `x` (`[n][d]`).
pub fn logits(
    norm: Norm<'_>,
    output: &Matrix<'_>,
    x: &[f32],
    precision: Precision,
    observer: Option<&mut Observer<'_>>,
) -> Result<Vec<f32>, Error> {
    let d = norm.weight.len();
    expect_shape("output", output, output.rows(), d)?;
    expect_len("hidden states", x.len() % d.max(1), 0)?;
    let _span = profile::linear("output", output, x.len() / d);
    let h = norm.apply(x, d);
    if let Some(observer) = observer {
        show(&h, d, observer);
    }
    let mut out = vec![0.0; x.len() / d * output.rows()];
    matmul(output, &Columns::new(&h, d, precision)?, &mut out)?;
    Ok(out)
}

/// Shows an observer what the output matrix takes in, without the product: logits are many.
pub fn observe(norm: Norm<'_>, x: &[f32], observer: &mut Observer<'_>) -> Result<(), Error> {
    let d = norm.weight.len();
    expect_len("hidden states", x.len() % d.max(1), 0)?;
    show(&norm.apply(x, d), d, observer);
    Ok(())
}

fn show(h: &[f32], d: usize, observer: &mut Observer<'_>) {
    observer(Observation { role: "output", index: 0, count: 1, cols: d, x: h, pick: None, tokens: None });
}
