//! Weights as Python sees them: a format, a shape, and bytes that somebody else owns.

use crate::quantize::Curvature;
use crate::{error, memory};
use kizami_kernels::matmul::{Columns, Precision, dequantize, matmul};
use kizami_kernels::matrix::SCALE_BLOCK;
use kizami_kernels::{Matrix, Type, par, repack, repacked_bytes};
use numpy::{
    PyArray1, PyArray2, PyArrayDyn, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use std::sync::Arc;

/// Keeps the bytes of a tensor alive.
#[allow(dead_code, reason = "held, never read")]
enum Owner {
    File(Arc<kizami_gguf::File>),
    Array(Py<PyArray1<u8>>),
    Memory(memmap2::Mmap),
}

/// Bytes owned by [`Owner`].
#[derive(Clone)]
struct Bytes {
    _owner: Arc<Owner>,
    start: *const u8,
    len: usize,
}

// SAFETY: the bytes are only ever read, and `Owner` keeps them in place for as long as `self` lives.
#[allow(unsafe_code)]
unsafe impl Send for Bytes {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Bytes {}

impl Bytes {
    fn get(&self) -> &[u8] {
        // SAFETY: `start` and `len` come from a slice of what `_owner` keeps alive and in place: a
        // private read-only map, of a file or of memory, or a contiguous array whose buffer NumPy cannot reallocate while
        // `_owner` holds a reference. Writing to that array from Python is documented as forbidden.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.start, self.len)
        }
    }
}

/// Weights of one format: a vector, a matrix or a stack of matrices.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct Tensor {
    ty: Type,
    shape: Vec<usize>,
    rows: usize,
    cols: usize,
    mats: usize,
    bytes: Vec<Bytes>,
    /// Those of each matrix, or nothing: block scales for F8_E4M3, otherwise one.
    scales: Vec<Vec<f32>>,
    /// Whether rows lie side by side, as products like them.
    repacked: bool,
}

fn product(shape: &[usize]) -> PyResult<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|n| *n <= isize::MAX as usize / 8)
        .ok_or_else(|| error::format(format!("tensor shape {shape:?} does not fit memory")))
}

impl Tensor {
    fn from_parts(
        ty: Type,
        shape: Vec<usize>,
        bytes: Vec<Bytes>,
        scales: Vec<Vec<f32>>,
        repacked: bool,
    ) -> PyResult<Self> {
        let (mats, rows, cols) = match shape[..] {
            [cols] => (1, 1, cols),
            [rows, cols] => (1, rows, cols),
            [mats, rows, cols] => (mats, rows, cols),
            _ => {
                return Err(error::format(format!(
                    "tensor shape: found {shape:?}, expected one to three dimensions"
                )));
            }
        };
        product(&shape)?;
        if cols == 0 || rows == 0 || mats == 0 {
            return Err(error::format(format!("tensor shape: found {shape:?}, expected no zero")));
        }
        let tensor = Self { ty, shape, rows, cols, mats, bytes, scales, repacked };
        if tensor.bytes.len() != 1 && tensor.bytes.len() != mats {
            return Err(error::format(format!(
                "tensor buffers: found {}, expected 1 or {mats}",
                tensor.bytes.len()
            )));
        }
        if !tensor.scales.is_empty() && tensor.scales.len() != mats {
            return Err(error::format(format!(
                "tensor scales: found those of {} matrices, expected {mats}",
                tensor.scales.len()
            )));
        }
        for i in 0..mats {
            tensor.try_matrix(i)?;
        }
        let expected = tensor.matrix_bytes() * mats / tensor.bytes.len();
        for b in &tensor.bytes {
            if b.len != expected {
                return Err(error::format(format!("tensor bytes: found {}, expected {expected}", b.len)));
            }
        }
        Ok(tensor)
    }

    /// Tensor `name` of a file; the tensor called `scale` holds one scale for each of its matrices.
    pub(crate) fn from_file(
        file: Arc<kizami_gguf::File>,
        name: &str,
        scale: Option<&str>,
    ) -> PyResult<Option<Self>> {
        let Some((info, data)) = file.tensor(name) else { return Ok(None) };
        let ty = Type::from_ggml_id(info.ty.id()).ok_or_else(|| {
            error::format(format!(
                "{}: tensor {name}: type {} cannot be computed with; supported: {}",
                file.path().display(),
                info.ty.name(),
                Type::ALL.iter().map(|t| t.name()).collect::<Vec<_>>().join(" ")
            ))
        })?;
        let mut shape: Vec<usize> = info.dims.iter().rev().map(|d| *d as usize).collect();
        // Trailing dimensions of one are a writer's habit, not a shape.
        while shape.len() > 3 && shape[0] == 1 {
            shape.remove(0);
        }
        let scales = match scale {
            Some(scale) => crate::gguf::matrix_scales(&file, scale, name, &shape)?,
            None => Vec::new(),
        };
        let (start, len) = (data.as_ptr(), data.len());
        let bytes = vec![Bytes { start, len, _owner: Arc::new(Owner::File(file.clone())) }];
        Self::from_parts(ty, shape, bytes, scales, false).map(Some)
    }

    fn matrix_bytes(&self) -> usize {
        if self.repacked {
            return repacked_bytes(self.ty, self.rows, self.cols).unwrap_or(0);
        }
        self.ty.row_bytes(self.cols).unwrap_or(0) * self.rows
    }

    fn try_matrix(&self, index: usize) -> PyResult<Matrix<'_>> {
        let size = self.matrix_bytes();
        let data = match &self.bytes[..] {
            [whole] => whole.get().get(index * size..(index + 1) * size),
            parts => parts[index].get().get(..size),
        };
        let data = data.ok_or_else(|| error::format("tensor bytes: fewer than its shape needs".into()))?;
        let scales = self.scales.get(index).map_or(&[][..], Vec::as_slice);
        let bind = if self.repacked { Matrix::repacked } else { Matrix::new };
        bind(self.ty, self.rows, self.cols, data, scales).map_err(|e| error::kernel("tensor", e))
    }

    /// Matrices in the stack.
    pub(crate) fn count(&self) -> usize {
        self.mats
    }

    /// Matrix `index` of the stack, which must have it.
    pub(crate) fn matrix_at(&self, index: usize) -> Matrix<'_> {
        self.try_matrix(index).expect("checked at construction")
    }

    /// The matrices of the stack; one for vectors and matrices.
    pub(crate) fn matrices(&self) -> Vec<Matrix<'_>> {
        (0..self.mats).map(|i| self.try_matrix(i).expect("checked at construction")).collect()
    }

    pub(crate) fn matrix(&self) -> PyResult<Matrix<'_>> {
        if self.mats != 1 {
            return Err(error::format(format!("tensor shape: found {:?}, expected a matrix", self.shape)));
        }
        self.try_matrix(0)
    }

    /// A vector decoded to f32: norms and biases.
    pub(crate) fn floats(&self) -> PyResult<Vec<f32>> {
        let w = self.matrix()?;
        let mut out = vec![0.0; self.rows * self.cols];
        dequantize(&w, 0, &mut out).map_err(|e| error::kernel("tensor", e))?;
        Ok(out)
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }
}

#[pymethods]
impl Tensor {
    #[new]
    #[pyo3(signature = (type_name, shape, buffers, scales=None))]
    fn new(
        type_name: &str,
        shape: Vec<usize>,
        buffers: Vec<Bound<'_, PyArray1<u8>>>,
        scales: Option<Vec<PyReadonlyArray2<'_, f32>>>,
    ) -> PyResult<Self> {
        let ty = Type::from_name(type_name).ok_or_else(|| crate::quantize::unknown_type(type_name))?;
        let mut bytes = Vec::new();
        for array in buffers {
            let view = array.readonly();
            let slice =
                view.as_slice().map_err(|_| error::usage("tensor buffers must be contiguous".into()))?;
            let (start, len) = (slice.as_ptr(), slice.len());
            bytes.push(Bytes { start, len, _owner: Arc::new(Owner::Array(array.unbind())) });
        }
        let scales = scales.unwrap_or_default();
        let scales = scales.iter().map(|s| s.as_array().iter().copied().collect()).collect();
        Self::from_parts(ty, shape, bytes, scales, false)
    }

    #[getter]
    fn r#type(&self) -> &'static str {
        self.ty.name()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, pyo3::types::PyTuple>> {
        pyo3::types::PyTuple::new(py, &self.shape)
    }

    #[getter]
    fn nbytes(&self) -> usize {
        let scales: usize = self.scales.iter().map(|s| s.len() * 4).sum();
        self.matrix_bytes() * self.mats + scales
    }

    #[getter]
    fn bpw(&self) -> f64 {
        self.nbytes() as f64 * 8.0 / (self.mats * self.rows * self.cols) as f64
    }

    #[getter]
    fn scale<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<f32>>> {
        let apart = self.ty != Type::F8E4M3 && !self.scales.is_empty();
        apart.then(|| PyArray1::from_vec(py, self.scales.concat()))
    }

    #[getter]
    fn repacked(&self) -> bool {
        self.repacked
    }

    #[getter]
    fn repacked_nbytes(&self) -> Option<usize> {
        repacked_bytes(self.ty, self.rows, self.cols)?.checked_mul(self.mats)
    }

    fn __repr__(&self) -> String {
        format!(
            "Tensor({}, {:?}, {:.3} bpw, {} bytes{})",
            self.ty.name(),
            self.shape,
            self.bpw(),
            self.nbytes(),
            if self.repacked { ", repacked" } else { "" }
        )
    }

    fn repack(&self, py: Python<'_>) -> PyResult<Self> {
        let size = match self.repacked_nbytes() {
            Some(size) if !self.repacked => size,
            _ => {
                return Err(error::usage(format!(
                    "repack: found {}, expected quantized rows",
                    self.__repr__()
                )));
            }
        };
        let memory = py.detach(|| {
            let mut memory = memory::reserve(size)?;
            for (w, out) in self.matrices().iter().zip(memory.chunks_exact_mut(size / self.mats)) {
                repack(w, out).expect("a block format, and memory of its size");
            }
            memory.make_read_only()
        });
        let memory = memory.map_err(|e| PyMemoryError::new_err(format!("{size} bytes for weights: {e}")))?;
        let (start, len) = (memory.as_ptr(), memory.len());
        let bytes = vec![Bytes { start, len, _owner: Arc::new(Owner::Memory(memory)) }];
        Self::from_parts(self.ty, self.shape.clone(), bytes, self.scales.clone(), true)
    }

    fn at(&self, index: usize) -> PyResult<Self> {
        if index >= self.mats {
            return Err(error::usage(format!("matrix: found {index}, expected less than {}", self.mats)));
        }
        let size = self.matrix_bytes();
        let mut bytes = match &self.bytes[..] {
            [whole] => whole.clone(),
            parts => parts[index].clone(),
        };
        let skipped = if self.bytes.len() == 1 { index * size } else { 0 };
        bytes.start = bytes.get()[skipped..].as_ptr();
        bytes.len = size;
        let scales = self.scales.get(index).cloned().into_iter().collect();
        Self::from_parts(self.ty, vec![self.rows, self.cols], vec![bytes], scales, self.repacked)
    }

    fn part(&self, index: usize, start: usize, count: usize) -> PyResult<Self> {
        let mut part = self.at(index)?;
        let aligned = self.ty != Type::F8E4M3 || start.is_multiple_of(SCALE_BLOCK);
        let end = start.checked_add(count).filter(|&end| count > 0 && end <= self.rows && aligned);
        let (Some(end), false) = (end, self.repacked) else {
            let (rows, of) = (self.rows, self.ty.name());
            return Err(error::usage(format!(
                "rows: found {count} from row {start} of {rows} of {of}, expected some of them, and of F8_E4M3 whole \
                 blocks of {SCALE_BLOCK}"
            )));
        };
        let row = self.ty.row_bytes(self.cols).unwrap_or(0);
        let bytes = &mut part.bytes[0];
        bytes.start = bytes.get()[start * row..end * row].as_ptr();
        bytes.len = count * row;
        if self.ty == Type::F8E4M3 {
            let across = self.cols.div_ceil(SCALE_BLOCK);
            let scales = &mut part.scales[0];
            *scales = scales[start / SCALE_BLOCK * across..end.div_ceil(SCALE_BLOCK) * across].to_vec();
        }
        Self::from_parts(self.ty, vec![count, self.cols], part.bytes, part.scales, false)
    }

    fn rows(&self, py: Python<'_>, index: usize, rows: Vec<usize>) -> PyResult<Self> {
        let matrix = self.at(index)?;
        if let Some(row) = rows.iter().find(|row| **row >= self.rows) {
            return Err(error::usage(format!("row: found {row}, expected less than {}", self.rows)));
        }
        let w = matrix.matrix()?;
        let mut out = vec![0.0f32; rows.len() * self.cols];
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(self.cols)) {
            dequantize(&w, row, out).map_err(|e| error::kernel("tensor", e))?;
        }
        let array = PyArray1::from_vec(py, bytemuck::cast_slice::<f32, u8>(&out).to_vec());
        Self::new("F32", vec![rows.len(), self.cols], vec![array], None)
    }

    fn bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u8>>> {
        if self.ty == Type::F8E4M3 {
            return Err(error::usage(format!("{} keeps its scales apart: no byte form", self.ty.name())));
        }
        if self.repacked {
            return Err(error::usage(
                "bytes: found repacked weights, expected them as a file has them".into(),
            ));
        }
        let size = self.matrix_bytes() * self.mats;
        let mut all = Vec::with_capacity(size);
        self.bytes.iter().for_each(|b| all.extend_from_slice(b.get()));
        Ok(PyArray1::from_vec(py, all))
    }

    fn dequantize<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let out = py.detach(|| {
            let mut out = vec![0.0f32; self.mats * self.rows * self.cols];
            let matrices = self.matrices();
            let rows = (65536 / self.cols).max(1);
            for (w, out) in matrices.iter().zip(out.chunks_exact_mut(self.rows * self.cols)) {
                par::for_chunks(out, rows * self.cols, |task, out| {
                    dequantize(w, task * rows, out).expect("rows of the matrix");
                });
            }
            out
        });
        PyArray1::from_vec(py, out).reshape(self.shape.clone())
    }

    #[pyo3(signature = (x, activations="int8"))]
    fn matmul<'py>(
        &self,
        py: Python<'py>,
        x: PyReadonlyArray2<'py, f32>,
        activations: &str,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let w = self.matrix()?;
        let precision = precision(activations)?;
        let n = x.shape()[0];
        if x.shape()[1] != self.cols {
            return Err(error::usage(format!("x: found shape {:?}, expected [n, {}]", x.shape(), self.cols)));
        }
        let x = x.as_slice().map_err(|_| error::usage("x must be contiguous".into()))?;
        let out = py.detach(|| {
            let mut out = vec![0.0; n * self.rows];
            let columns = Columns::new(x, self.cols, precision)?;
            matmul(&w, &columns, &mut out).map(|()| out)
        });
        let out = out.map_err(|e| error::kernel("matmul", e))?;
        PyArray1::from_vec(py, out).reshape([n, self.rows])
    }

    #[pyo3(signature = (type_name, imatrix=None, curvatures=None))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        type_name: &str,
        imatrix: Option<PyReadonlyArray2<'py, f32>>,
        curvatures: Option<Vec<Py<Curvature>>>,
    ) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let bytes = match curvatures {
            Some(curvatures) => crate::quantize::encode_with_feedback(py, self, type_name, &curvatures)?,
            None => crate::quantize::encode(py, self, type_name, imatrix)?,
        };
        Ok(PyArray1::from_vec(py, bytes))
    }

    #[pyo3(signature = (type_name, imatrix=None, weights=1 << 20))]
    fn distortion(
        &self,
        py: Python<'_>,
        type_name: &str,
        imatrix: Option<PyReadonlyArray2<'_, f32>>,
        weights: usize,
    ) -> PyResult<(f64, f64, f64)> {
        crate::quantize::distortion(py, self, type_name, imatrix, weights)
    }

    fn output_power(&self, py: Python<'_>, curvature: &Curvature) -> PyResult<f64> {
        crate::quantize::output_power(py, self, curvature)
    }

    #[pyo3(signature = (type_name, curvature, feedback=true))]
    fn output_error(
        &self,
        py: Python<'_>,
        type_name: &str,
        curvature: &Curvature,
        feedback: bool,
    ) -> PyResult<f64> {
        crate::quantize::output_error(py, self, type_name, curvature, feedback)
    }
}

pub(crate) fn precision(activations: &str) -> PyResult<Precision> {
    match activations {
        "int8" => Ok(Precision::Int8),
        "f32" => Ok(Precision::F32),
        other => Err(error::usage(format!("activations: found {other:?}, expected int8 or f32"))),
    }
}

/// One importance vector per matrix, checked against the tensor.
pub(crate) fn importance(
    t: &Tensor,
    imatrix: Option<&PyReadonlyArray2<'_, f32>>,
) -> PyResult<Option<Vec<f32>>> {
    let Some(imatrix) = imatrix else { return Ok(None) };
    if imatrix.shape() != [t.mats, t.cols] {
        return Err(error::format(format!(
            "imatrix: found shape {:?}, expected [{}, {}]",
            imatrix.shape(),
            t.mats,
            t.cols
        )));
    }
    Ok(Some(imatrix.as_array().iter().copied().collect()))
}

/// `PyReadonlyArray1` as an owned vector of token ids.
pub(crate) fn ids(ids: &PyReadonlyArray1<'_, u32>) -> Vec<u32> {
    ids.as_array().iter().copied().collect()
}
