//! What a sequence keeps between steps, and the locking of several sequences for one.

use super::{Observer, lock, observed, slice_mut};
use crate::error;
use kizami_kernels::Error;
use kizami_kernels::ops;
use kizami_kernels::ops::attention::{self, CacheType, Segment};
use numpy::PyReadwriteArray2;
use pyo3::prelude::*;
use std::sync::Mutex;

/// The rows of one sequence, all layers.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct Cache {
    ty: CacheType,
    width: usize,
    state: Mutex<State>,
}

struct State {
    len: usize,
    layers: Vec<attention::Cache>,
}

/// The type that users call `name`.
pub(crate) fn cache_type(name: &str) -> PyResult<CacheType> {
    CacheType::from_name(name).ok_or_else(|| {
        let names = CacheType::ALL.map(CacheType::name).join(", ");
        error::usage(format!("cache type: found {name:?}, expected one of {names}"))
    })
}

/// The names of all types.
#[pyfunction]
pub(crate) fn cache_types() -> Vec<&'static str> {
    CacheType::ALL.map(CacheType::name).to_vec()
}

#[pymethods]
impl Cache {
    #[new]
    #[pyo3(signature = (layers, width, cache_type="f32"))]
    fn new(layers: usize, width: usize, cache_type: &str) -> PyResult<Self> {
        let ty = self::cache_type(cache_type)?;
        let layers = vec![attention::Cache::new(ty, width); layers];
        Ok(Self { ty, width, state: Mutex::new(State { len: 0, layers }) })
    }

    /// Tokens whose rows are complete in all layers.
    fn __len__(&self) -> usize {
        lock(&self.state).len
    }

    /// Declares `tokens` more of them complete.
    fn advance(&self, tokens: usize) {
        lock(&self.state).len += tokens;
    }

    /// Forgets everything from token `len` on.
    fn truncate(&self, len: usize) {
        let mut state = lock(&self.state);
        state.len = state.len.min(len);
        let len = state.len;
        state.layers.iter_mut().for_each(|l| l.truncate(len));
    }

    /// Name of the type its numbers are stored as.
    #[getter]
    fn r#type(&self) -> &'static str {
        self.ty.name()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        let state = lock(&self.state);
        state.len * self.ty.row_bytes(self.width) * state.layers.len()
    }
}

/// One step of a layer's attention: checks and locks the caches, one for each of `lens`, and calls `f` with the
/// hidden states and the layer's segments.
pub(super) fn step(
    py: Python<'_>,
    x: &mut PyReadwriteArray2<'_, f32>,
    (caches, lens): (&[Py<Cache>], &[usize]),
    (layer, width): (usize, usize),
    observer: Option<&Observer>,
    f: impl FnOnce(&mut [f32], &mut [Segment<'_>], Option<&mut ops::Observer<'_>>) -> Result<(), Error> + Send,
) -> PyResult<()> {
    check(caches, lens, width)?;
    let x = slice_mut(x)?;
    let run =
        || with_segments(caches, lens, layer, |segments| observed(observer, layer, |o| f(x, segments, o)));
    py.detach(run).map_err(|e| error::kernel(&format!("blk.{layer} attention"), e))
}

/// Checks that the caches of one step fit: one per segment, different ones, rows of `width` numbers.
fn check(caches: &[Py<Cache>], lens: &[usize], width: usize) -> PyResult<()> {
    if caches.len() != lens.len() {
        return Err(error::usage(format!("caches: found {}, expected {}", caches.len(), lens.len())));
    }
    for (i, c) in caches.iter().enumerate() {
        if c.get().width != width {
            return Err(error::usage(format!("cache: found width {}, expected {width}", c.get().width)));
        }
        if caches[..i].iter().any(|earlier| earlier.is(c)) {
            return Err(error::usage("caches: the same one twice in one batch".into()));
        }
    }
    Ok(())
}

/// Calls `f` with the segments of one layer, their caches locked.
fn with_segments(
    caches: &[Py<Cache>],
    lens: &[usize],
    layer: usize,
    f: impl FnOnce(&mut [Segment<'_>]) -> Result<(), Error>,
) -> Result<(), Error> {
    // Locked in one global order: two steps that share sequences cannot wait for each other.
    let mut order: Vec<usize> = (0..caches.len()).collect();
    order.sort_by_key(|&i| std::ptr::from_ref(caches[i].get()) as usize);
    let mut states: Vec<_> = order.into_iter().map(|i| (i, lock(&caches[i].get().state))).collect();
    states.sort_by_key(|(i, _)| *i);
    let mut segments = Vec::new();
    for ((_, state), &len) in states.iter_mut().zip(lens) {
        let position = state.len;
        let cache = state.layers.get_mut(layer).ok_or(Error::Range {
            what: "layer",
            found: layer,
            expected: "a layer of the cache",
        })?;
        // A step that was cut short has left rows behind.
        cache.truncate(position);
        segments.push(Segment { position, len, cache });
    }
    f(&mut segments)
}
