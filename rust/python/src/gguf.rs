//! GGUF files: metadata as Python values, tensors as [`Tensor`]s on the map, and the writer.

use crate::error;
use crate::tensor::Tensor;
use kizami_gguf::{Array, File, Layout, TypeId, Value, Writer};
use kizami_kernels::Type;
use numpy::PyReadonlyArray1;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// `(key, type, value)`.
type Entry<'py> = (String, String, Bound<'py, PyAny>);
/// `(name, offset, bytes)` of a tensor in its file.
type Placed = (String, u64, u64);
/// `(name, type, shape)` with rows before columns.
type Planned = (String, String, Vec<u64>);

macro_rules! conversions {
    ($($variant:ident $name:literal $array:literal;)*) => {
        fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
            match value {
                $(Value::$variant(v) => v.into_bound_py_any(py),)*
                Value::Array(array) => match array {
                    // A list, also of bytes: readers index it like any other array.
                    $(Array::$variant(v) => {
                        pyo3::types::PyList::new(py, v.iter().cloned())?.into_bound_py_any(py)
                    })*
                },
            }
        }

        fn to_value(key: &str, kind: &str, value: &Bound<'_, PyAny>) -> PyResult<Value> {
            let wrong = |_| error::format(format!("metadata {key}: found {value}, expected a value of type {kind}"));
            Ok(match kind {
                $($name => Value::$variant(value.extract().map_err(wrong)?),)*
                $($array => Value::Array(Array::$variant(value.extract::<Vec<_>>().map_err(wrong)?)),)*
                _ => return Err(error::format(format!("metadata {key}: unknown value type {kind:?}"))),
            })
        }
    };
}

conversions! {
    U8 "u8" "[u8]"; I8 "i8" "[i8]"; U16 "u16" "[u16]"; I16 "i16" "[i16]"; U32 "u32" "[u32]"; I32 "i32" "[i32]";
    U64 "u64" "[u64]"; I64 "i64" "[i64]"; F32 "f32" "[f32]"; F64 "f64" "[f64]"; Bool "bool" "[bool]";
    String "str" "[str]";
}

/// A GGUF file or split set, mapped.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct GgufFile {
    file: Arc<File>,
}

#[pymethods]
impl GgufFile {
    #[new]
    fn new(path: PathBuf) -> PyResult<Self> {
        Ok(Self { file: Arc::new(File::open(path).map_err(error::gguf)?) })
    }

    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Vec<Entry<'py>>> {
        let entries = self.file.header().metadata().iter();
        entries.map(|(key, v)| Ok((key.clone(), v.type_name().to_owned(), to_python(py, v)?))).collect()
    }

    #[getter]
    fn tensors(&self) -> Vec<(String, &'static str, Vec<u64>, u64)> {
        let infos = self.file.header().tensors().iter();
        infos
            .map(|t| (t.name.clone(), t.ty.name(), t.dims.iter().rev().copied().collect(), t.nbytes))
            .collect()
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.file.size()
    }

    /// The files of a split set; one for a file that is not split.
    #[getter]
    fn paths(&self) -> Vec<PathBuf> {
        self.file.shards().iter().map(|(path, _)| path.clone()).collect()
    }

    /// Takes the file's pages out of this process's memory; they are read again when needed.
    fn release(&self) {
        self.file.release();
    }

    #[pyo3(signature = (name, scale=None))]
    fn tensor(&self, name: &str, scale: Option<&str>) -> PyResult<Tensor> {
        Tensor::from_file(self.file.clone(), name, scale)?
            .ok_or_else(|| error::format(format!("{}: tensor {name}: missing", self.file.path().display())))
    }
}

fn layout_of(tensors: Vec<Planned>) -> PyResult<Vec<(String, TypeId, Vec<u64>)>> {
    let convert = |(name, ty, mut dims): Planned| {
        let ty = TypeId::from_name(&ty).ok_or_else(|| crate::quantize::unknown_type(&ty))?;
        dims.reverse();
        Ok((name, ty, dims))
    };
    tensors.into_iter().map(convert).collect()
}

fn values(metadata: Vec<Entry<'_>>) -> PyResult<Vec<(String, Value)>> {
    metadata.into_iter().map(|(key, kind, v)| to_value(&key, &kind, &v).map(|v| (key, v))).collect()
}

/// Writes a GGUF file beside its final name, and renames it when it is whole.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct GgufWriter {
    writer: Mutex<Option<Writer>>,
}

impl GgufWriter {
    fn with<R>(&self, f: impl FnOnce(&Writer) -> Result<R, kizami_gguf::Error>) -> PyResult<R> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let writer = writer.as_ref().ok_or_else(|| error::usage("the writer is closed".into()))?;
        f(writer).map_err(error::gguf)
    }

    fn take(&self) -> Option<Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[pymethods]
impl GgufWriter {
    #[new]
    fn new(path: PathBuf, metadata: Vec<Entry<'_>>, tensors: Vec<Planned>) -> PyResult<Self> {
        let writer = Writer::create(path, values(metadata)?, &layout_of(tensors)?).map_err(error::gguf)?;
        Ok(Self { writer: Mutex::new(Some(writer)) })
    }

    /// Bytes of the file that these metadata and tensors make.
    #[staticmethod]
    fn size(metadata: Vec<Entry<'_>>, tensors: Vec<Planned>) -> PyResult<u64> {
        let layout = Layout::new(&values(metadata)?, &layout_of(tensors)?);
        layout.map(|l| l.size()).map_err(|kind| error::format(kind.to_string()))
    }

    /// The header's bytes, name, offset and length of every tensor, and the size of the file.
    #[staticmethod]
    fn layout<'py>(
        py: Python<'py>,
        metadata: Vec<Entry<'_>>,
        tensors: Vec<Planned>,
    ) -> PyResult<(Bound<'py, PyBytes>, Vec<Placed>, u64)> {
        let layout = Layout::new(&values(metadata)?, &layout_of(tensors)?)
            .map_err(|kind| error::format(kind.to_string()))?;
        let placed = layout.tensors().iter().map(|t| (t.name.clone(), t.offset, t.nbytes)).collect();
        Ok((PyBytes::new(py, layout.bytes()), placed, layout.size()))
    }

    fn write(&self, py: Python<'_>, name: &str, data: PyReadonlyArray1<'_, u8>) -> PyResult<()> {
        let data = data.as_slice().map_err(|_| error::usage("tensor bytes must be contiguous".into()))?;
        py.detach(|| self.with(|w| w.write(name, data)))
    }

    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let writer = self.take().ok_or_else(|| error::usage("the writer is closed".into()))?;
        py.detach(|| writer.finish()).map_err(error::gguf)
    }

    /// Drops the partial file.
    fn abort(&self) {
        drop(self.take());
    }
}

/// What tensor `scale` of a file holds for the matrices of tensor `weight`, whose shape this is.
pub(crate) fn matrix_scales(
    file: &kizami_gguf::File,
    scale: &str,
    weight: &str,
    shape: &[usize],
) -> PyResult<Vec<Vec<f32>>> {
    let wrong = |found: String, mats: usize| {
        let path = file.path().display();
        error::format(format!(
            "{path}: tensor {scale}: found {found}, expected F32 [{mats}], one for each matrix of {weight}"
        ))
    };
    let mats = shape.iter().rev().skip(2).product::<usize>();
    let Some((info, data)) = file.tensor(scale) else { return Err(wrong("none".into(), mats)) };
    let fits = matches!(&info.dims[..], [n, rest @ ..] if *n == mats as u64 && rest.iter().all(|d| *d == 1));
    if info.ty.id() != Type::F32.ggml_id().expect("a GGUF type") || !fits {
        let dims: Vec<u64> = info.dims.iter().rev().copied().collect();
        return Err(wrong(format!("{} {dims:?}", info.ty.name()), mats));
    }
    Ok(data.as_chunks().0.iter().map(|&bytes| vec![f32::from_le_bytes(bytes)]).collect())
}
