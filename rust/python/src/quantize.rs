//! Encoding tensors, measuring what it costs, and spending a budget.

use crate::error;
use crate::tensor::{Tensor, importance};
use kizami_kernels::{Family, Type, repacked_bytes};
use kizami_quantizer::tensor;
use numpy::PyReadonlyArray2;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The error for a type name nobody knows.
pub(crate) fn unknown_type(name: &str) -> PyErr {
    let known = Type::ALL.iter().map(|t| t.name()).collect::<Vec<_>>();
    error::usage(format!("type: found {name:?}, expected one of {}", known.join(", ")))
}

fn parse(name: &str) -> PyResult<Type> {
    Type::from_name(name).ok_or_else(|| unknown_type(name))
}

/// One dictionary per format: what every table of formats in Python is made from.
#[pyfunction]
pub(crate) fn types(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let describe = |&ty: &Type| {
        let d = PyDict::new(py);
        d.set_item("name", ty.name())?;
        d.set_item("ggml_id", ty.ggml_id())?;
        d.set_item("block", ty.block())?;
        d.set_item("block_bytes", ty.block_bytes())?;
        d.set_item("halves", ty.halves())?;
        d.set_item("bpw", ty.bpw())?;
        d.set_item("quantized", ty.family().is_some())?;
        d.set_item("family", ty.family().map(Family::name))?;
        d.set_item("repacked_bpw", repacked_bytes(ty, 1, 256).map(|bytes| bytes as f64 / 512.0))?;
        d.set_item("llama_ftype", ty.llama_ftype())?;
        d.set_item("description", ty.description())?;
        Ok(d)
    };
    Type::ALL.iter().map(describe).collect()
}

/// For each item the choice that, within `budget` bytes in total, costs least.
#[pyfunction]
pub(crate) fn solve(bytes: Vec<Vec<u64>>, cost: Vec<Vec<f64>>, budget: u64) -> PyResult<Vec<usize>> {
    kizami_quantizer::solve(&bytes, &cost, budget).map_err(error::quantizer)
}

pub(crate) fn encode(
    py: Python<'_>,
    t: &Tensor,
    type_name: &str,
    imatrix: Option<PyReadonlyArray2<'_, f32>>,
) -> PyResult<Vec<u8>> {
    let ty = parse(type_name)?;
    let importance = importance(t, imatrix.as_ref())?;
    py.detach(|| tensor::encode(&t.matrices(), ty, importance.as_deref())).map_err(error::quantizer)
}

pub(crate) fn distortion(
    py: Python<'_>,
    t: &Tensor,
    type_name: &str,
    imatrix: Option<PyReadonlyArray2<'_, f32>>,
    weights: usize,
) -> PyResult<(f64, f64, f64)> {
    let ty = parse(type_name)?;
    let importance = importance(t, imatrix.as_ref())?;
    let metric = py.detach(|| tensor::distortion(&t.matrices(), ty, importance.as_deref(), weights));
    metric.map(|m| (m.original, m.cross, m.encoded)).map_err(error::quantizer)
}
