//! Encoding tensors, measuring what it costs, and spending a budget.

use crate::error;
use crate::tensor::{Tensor, importance};
use kizami_kernels::{Family, Type, repacked_bytes};
use kizami_quantizer::tensor;
use numpy::{PyReadonlyArray2, PyUntypedArrayMethods};
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

/// As [`encode`], with error feedback: a curvature for each matrix, or one for all.
pub(crate) fn encode_with_feedback(
    py: Python<'_>,
    t: &Tensor,
    type_name: &str,
    curvatures: &[Py<Curvature>],
) -> PyResult<Vec<u8>> {
    let ty = parse(type_name)?;
    let matrices = t.matrices();
    let curvatures: Vec<&kizami_quantizer::Curvature> = curvatures.iter().map(|c| &c.get().0).collect();
    if curvatures.len() != 1 && curvatures.len() != matrices.len() {
        return Err(error::usage(format!(
            "curvatures: found {}, expected 1 or one for each of {} matrices",
            curvatures.len(),
            matrices.len()
        )));
    }
    let of = |i: usize| curvatures[i % curvatures.len()];
    let bytes: Result<Vec<Vec<u8>>, _> = py.detach(|| {
        matrices.iter().enumerate().map(|(i, w)| tensor::encode_with_feedback(w, ty, of(i))).collect()
    });
    bytes.map(|parts| parts.concat()).map_err(error::quantizer)
}

/// What an error in one column may be traded for in others.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct Curvature(kizami_quantizer::Curvature);

#[pymethods]
impl Curvature {
    #[new]
    #[pyo3(signature = (moments, damping=kizami_quantizer::Curvature::DAMPING, drift=None))]
    fn new(
        py: Python<'_>,
        moments: PyReadonlyArray2<'_, f64>,
        damping: f32,
        drift: Option<PyReadonlyArray2<'_, f64>>,
    ) -> PyResult<Self> {
        let [rows, cols] = *moments.shape() else { unreachable!("an array of two dimensions") };
        if rows != cols {
            return Err(error::usage(format!("moments: found shape [{rows}, {cols}], expected a square")));
        }
        if !(0.0..=1.0).contains(&damping) {
            return Err(error::usage(format!("damping: found {damping}, expected 0 to 1")));
        }
        if let Some(found) = drift.as_ref().map(|d| d.shape()).filter(|found| *found != [cols, cols]) {
            return Err(error::usage(format!("drift: found shape {found:?}, expected [{cols}, {cols}]")));
        }
        let floats =
            |x: &PyReadonlyArray2<'_, f64>| x.as_array().iter().map(|&x| x as f32).collect::<Vec<_>>();
        let (moments, drift) = (floats(&moments), drift.as_ref().map(floats));
        let made = py.detach(|| {
            let made = kizami_quantizer::Curvature::new(&moments, cols, damping)?;
            match drift {
                Some(drift) => made.followed(&drift),
                None => Ok(made),
            }
        });
        made.map(Self).map_err(error::quantizer)
    }

    #[getter]
    fn damping(&self) -> f32 {
        self.0.damping()
    }
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

pub(crate) fn output_power(py: Python<'_>, t: &Tensor, curvature: &Curvature) -> PyResult<f64> {
    let w = t.matrix()?;
    py.detach(|| tensor::output_power(&w, &curvature.0)).map_err(error::quantizer)
}

pub(crate) fn output_error(
    py: Python<'_>,
    t: &Tensor,
    type_name: &str,
    curvature: &Curvature,
    feedback: bool,
) -> PyResult<f64> {
    let (ty, w) = (parse(type_name)?, t.matrix()?);
    py.detach(|| tensor::output_error(&w, ty, &curvature.0, feedback)).map_err(error::quantizer)
}

/// What types do to the outputs of several matrices: `[types][matrices]`.
#[pyfunction]
pub(crate) fn output_errors(
    py: Python<'_>,
    tensors: Vec<Py<Tensor>>,
    curvatures: Vec<Py<Curvature>>,
    types: Vec<String>,
) -> PyResult<Vec<Vec<f64>>> {
    if tensors.len() != curvatures.len() {
        let (n, found) = (tensors.len(), curvatures.len());
        return Err(error::usage(format!(
            "curvatures: found {found}, expected one for each of {n} matrices"
        )));
    }
    let types: Vec<Type> = types.iter().map(|name| parse(name)).collect::<PyResult<_>>()?;
    let matrices: PyResult<Vec<_>> =
        tensors.iter().zip(&curvatures).map(|(t, c)| Ok((t.get().matrix()?, &c.get().0))).collect();
    let matrices = matrices?;
    py.detach(|| tensor::output_errors(&matrices, &types)).map_err(error::quantizer)
}
