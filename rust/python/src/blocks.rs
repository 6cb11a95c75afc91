//! Transformer blocks: weights bound once, then one call per layer and step.
//!
//! One file per class; here is what they share: the observer, and locks that survive a panic elsewhere.

mod cache;
mod ffn;
mod gqa;
mod head;
mod mla;

pub(crate) use cache::{Cache, cache_types};
pub(crate) use ffn::FfnBlock;
pub(crate) use gqa::Gqa;
pub(crate) use head::Head;
pub(crate) use mla::Mla;

use crate::error;
use kizami_kernels::ops::Observation;
use kizami_quantizer::{Inputs, Statistics};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadwriteArray2};
use pyo3::prelude::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an observer keeps of what it sees.
enum Seen {
    Sums(Statistics),
    Inputs(Inputs),
}

impl Seen {
    fn add(&mut self, name: &str, seen: &Observation<'_>) {
        match self {
            Seen::Sums(statistics) => statistics.add(name, seen),
            Seen::Inputs(inputs) => inputs.add(name, seen),
        }
    }

    fn sums(&mut self) -> PyResult<&mut Statistics> {
        match self {
            Seen::Sums(statistics) => Ok(statistics),
            Seen::Inputs(_) => {
                Err(error::usage("observer: found one of inputs, expected one of sums".into()))
            }
        }
    }
}

/// Sums of squares of every linear layer's input, per tensor: the imatrix in the making; of some, second moments. Or
/// inputs of some as they are, for another observer to follow.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct Observer {
    seen: Mutex<Seen>,
}

#[pymethods]
impl Observer {
    #[new]
    #[pyo3(signature = (moments=None))]
    fn new(moments: Option<Vec<String>>) -> Self {
        Self { seen: Mutex::new(Seen::Sums(Statistics::with_moments(moments.unwrap_or_default()))) }
    }

    #[staticmethod]
    fn of_inputs(names: Vec<String>) -> Self {
        Self { seen: Mutex::new(Seen::Inputs(Inputs::of(names))) }
    }

    fn follow(&self, observer: &Observer) -> PyResult<()> {
        lock(&self.seen).sums()?;
        let inputs = match &mut *lock(&observer.seen) {
            Seen::Inputs(inputs) => std::mem::take(inputs),
            Seen::Sums(_) => {
                return Err(error::usage("observer: found one of sums, expected one of inputs".into()));
            }
        };
        lock(&self.seen).sums()?.follow(inputs);
        Ok(())
    }

    #[expect(clippy::type_complexity, reason = "name, sums, counts: what an imatrix file holds")]
    fn entries<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<Vec<(String, Bound<'py, PyArray2<f32>>, Bound<'py, PyArray1<f32>>)>> {
        let mut seen = lock(&self.seen);
        let entries = seen.sums()?.entries().map(|(name, e)| {
            let sums =
                PyArray1::from_iter(py, e.sums().iter().map(|&x| x as f32)).reshape([e.count(), e.cols()])?;
            let counts = PyArray1::from_iter(py, e.tokens().iter().map(|&x| x as f32));
            Ok((name.to_owned(), sums, counts))
        });
        entries.collect()
    }

    fn tokens<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyArray1<f64>>>> {
        let mut seen = lock(&self.seen);
        let moments = seen.sums()?.moments(name);
        Ok(moments.map(|all| PyArray1::from_iter(py, all.iter().map(|m| m.tokens() as f64))))
    }

    fn pairs<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyArray1<f64>>>> {
        let mut seen = lock(&self.seen);
        let drifts = seen.sums()?.drifts(name);
        Ok(drifts.map(|all| PyArray1::from_iter(py, all.iter().map(|d| d.pairs() as f64))))
    }

    fn take<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        index: usize,
    ) -> PyResult<Option<Bound<'py, PyArray2<f64>>>> {
        let mut seen = lock(&self.seen);
        let moments = seen.sums()?.moments(name).and_then(|all| all.get_mut(index));
        let Some(moments) = moments.filter(|m| m.tokens() > 0) else { return Ok(None) };
        let sums = py.detach(|| moments.take());
        square(py, sums)
    }

    fn take_drift<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        index: usize,
    ) -> PyResult<Option<Bound<'py, PyArray2<f64>>>> {
        let mut seen = lock(&self.seen);
        let drift = seen.sums()?.drifts(name).and_then(|all| all.get_mut(index));
        let Some(drift) = drift.filter(|d| d.pairs() > 0) else { return Ok(None) };
        let sums = py.detach(|| drift.take());
        square(py, sums)
    }
}

fn square(py: Python<'_>, sums: Vec<f64>) -> PyResult<Option<Bound<'_, PyArray2<f64>>>> {
    let cols = sums.len().isqrt();
    PyArray1::from_vec(py, sums).reshape([cols, cols]).map(Some)
}

fn slice_mut<'a>(x: &'a mut PyReadwriteArray2<'_, f32>) -> PyResult<&'a mut [f32]> {
    x.as_slice_mut().map_err(|_| error::usage("x must be contiguous".into()))
}

/// Runs `f` with an observer that files what it sees under the names of a layer's tensors.
fn observed<R: Send>(
    observer: Option<&Observer>,
    layer: usize,
    f: impl FnOnce(Option<&mut kizami_kernels::ops::Observer<'_>>) -> R + Send,
) -> R {
    observed_as(observer, || format!("blk.{layer}."), f)
}

/// Runs `f` with an observer that files what it sees under names with this prefix.
fn observed_as<R: Send>(
    observer: Option<&Observer>,
    prefix: impl FnOnce() -> String,
    f: impl FnOnce(Option<&mut kizami_kernels::ops::Observer<'_>>) -> R + Send,
) -> R {
    match observer {
        // The whole block on the pool: one hand-over instead of one per parallel region.
        None => kizami_kernels::par::enter(|| f(None)),
        Some(o) => {
            let (mut kept, prefix) = (lock(&o.seen), prefix());
            f(Some(&mut |seen| kept.add(&format!("{prefix}{}.weight", seen.role), &seen)))
        }
    }
}
