//! The class of both ends of a model.

use super::{Observer, observed_as};
use crate::error;
use crate::tensor::{Tensor, ids, precision};
use kizami_kernels::matmul::Precision;
use kizami_kernels::ops::{Norm, head};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

/// Both ends of a model: embedding table, final norm and output matrix.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct Head {
    embedding: Py<Tensor>,
    norm: Vec<f32>,
    output: Py<Tensor>,
    eps: f32,
}

#[pymethods]
impl Head {
    #[new]
    #[pyo3(signature = (*, embedding, norm, output, eps))]
    fn new(embedding: Py<Tensor>, norm: &Tensor, output: Py<Tensor>, eps: f32) -> PyResult<Self> {
        Ok(Self { embedding, norm: norm.floats()?, output, eps })
    }

    /// Hidden states of token ids.
    fn embed<'py>(
        &self,
        py: Python<'py>,
        tokens: PyReadonlyArray1<'py, u32>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let tokens = ids(&tokens);
        let table = self.embedding.get().matrix()?;
        if let Some(bad) = tokens.iter().find(|&&t| t as usize >= table.rows()) {
            return Err(error::usage(format!("token id: found {bad}, expected below {}", table.rows())));
        }
        let x = py.detach(|| head::embed(&table, &tokens)).map_err(|e| error::kernel("token_embd", e))?;
        PyArray1::from_vec(py, x).reshape([tokens.len(), self.embedding.get().cols()])
    }

    /// Logits of hidden states.
    #[pyo3(signature = (x, activations="int8", observer=None))]
    fn logits<'py>(
        &self,
        py: Python<'py>,
        x: PyReadonlyArray2<'py, f32>,
        activations: &str,
        observer: Option<&Observer>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let precision: Precision = precision(activations)?;
        let output = self.output.get().matrix()?;
        let n = x.shape()[0];
        let x = x.as_slice().map_err(|_| error::usage("x must be contiguous".into()))?;
        let norm = Norm { weight: &self.norm, eps: self.eps };
        let out = py
            .detach(|| observed_as(observer, String::new, |o| head::logits(norm, &output, x, precision, o)));
        let out = out.map_err(|e| error::kernel("output", e))?;
        PyArray1::from_vec(py, out).reshape([n, output.rows()])
    }
    /// What the output matrix takes in, without its product.
    fn observe(&self, py: Python<'_>, x: PyReadonlyArray2<'_, f32>, observer: &Observer) -> PyResult<()> {
        let x = x.as_slice().map_err(|_| error::usage("x must be contiguous".into()))?;
        let norm = Norm { weight: &self.norm, eps: self.eps };
        let seen = py.detach(|| {
            observed_as(Some(observer), String::new, |o| o.map_or(Ok(()), |o| head::observe(norm, x, o)))
        });
        seen.map_err(|e| error::kernel("output", e))
    }
}
