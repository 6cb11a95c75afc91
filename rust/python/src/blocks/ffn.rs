//! The feed-forward block's class.

use super::{Observer, observed, slice_mut};
use crate::error;
use crate::tensor::{Tensor, precision};
use kizami_kernels::matmul::Precision;
use kizami_kernels::ops::{Norm, ffn};
use numpy::{PyReadonlyArray2, PyReadwriteArray2};
use pyo3::prelude::*;

/// Feed-forward block of one layer: dense, or routed experts with shared ones.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct FfnBlock {
    layer: usize,
    norm: Vec<f32>,
    eps: f32,
    shared: Option<[Py<Tensor>; 3]>,
    routed: Option<Routed>,
}

struct Routed {
    router: Py<Tensor>,
    bias: Vec<f32>,
    experts: [Py<Tensor>; 3],
    scoring: ffn::Scoring,
    group_score: ffn::GroupScore,
    groups: usize,
    groups_used: usize,
    used: usize,
    normalize: bool,
    scale: f32,
}

/// Network `i` of gate, up and down stacks of equal length.
fn network<'a>(stacks: &'a [Py<Tensor>; 3], i: usize) -> ffn::Ffn<'a> {
    let [gate, up, down] = [0, 1, 2].map(|part| stacks[part].get().matrix_at(i));
    ffn::Ffn { gate, up, down }
}

/// How many networks three stacks hold.
fn count(stacks: &[Py<Tensor>; 3]) -> PyResult<usize> {
    let [gate, up, down] = [0, 1, 2].map(|part| stacks[part].get().count());
    if gate != up || gate != down {
        return Err(error::format(format!(
            "experts: found {gate} gate, {up} up and {down} down, expected equal numbers"
        )));
    }
    Ok(gate)
}

#[pymethods]
impl FfnBlock {
    #[new]
    #[pyo3(signature = (layer, *, norm, eps, shared=None, experts=None, router=None, bias=None, scoring="sigmoid",
                        group_score="top2", groups=1, groups_used=1, used=1, normalize=false, scale=1.0))]
    #[expect(
        clippy::too_many_arguments,
        reason = "keyword arguments: one per tensor or constant of the block"
    )]
    fn new(
        layer: usize,
        norm: &Tensor,
        eps: f32,
        shared: Option<[Py<Tensor>; 3]>,
        experts: Option<[Py<Tensor>; 3]>,
        router: Option<Py<Tensor>>,
        bias: Option<&Tensor>,
        scoring: &str,
        group_score: &str,
        groups: usize,
        groups_used: usize,
        used: usize,
        normalize: bool,
        scale: f32,
    ) -> PyResult<Self> {
        let scoring = match scoring {
            "softmax" => ffn::Scoring::Softmax,
            "sigmoid" => ffn::Scoring::Sigmoid,
            other => {
                return Err(error::format(format!("scoring: found {other:?}, expected softmax or sigmoid")));
            }
        };
        let group_score = match group_score {
            "max" => ffn::GroupScore::Max,
            "top2" => ffn::GroupScore::TopTwo,
            other => {
                return Err(error::format(format!("group_score: found {other:?}, expected max or top2")));
            }
        };
        let bias = bias.map_or(Ok(Vec::new()), Tensor::floats)?;
        let routed = match (router, experts) {
            (Some(router), Some(experts)) => Some(Routed {
                router,
                bias,
                experts,
                scoring,
                group_score,
                groups,
                groups_used,
                used,
                normalize,
                scale,
            }),
            (None, None) => None,
            _ => return Err(error::format("router and experts: found one, expected both or none".into())),
        };
        Ok(Self { layer, norm: norm.floats()?, eps, shared, routed })
    }

    #[getter]
    fn experts(&self) -> PyResult<usize> {
        self.routed.as_ref().map_or(Ok(0), |routed| count(&routed.experts))
    }

    #[pyo3(signature = (x, activations="int8", observer=None))]
    fn forward(
        &self,
        py: Python<'_>,
        mut x: PyReadwriteArray2<'_, f32>,
        activations: &str,
        observer: Option<&Observer>,
    ) -> PyResult<()> {
        let x = slice_mut(&mut x)?;
        self.run(py, activations, observer, |block, precision, o| block.forward(x, precision, o))
    }

    #[pyo3(signature = (x, sums, first, end, *, last, activations="int8", observer=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments: what a part of a step is made of")]
    fn forward_part(
        &self,
        py: Python<'_>,
        mut x: PyReadwriteArray2<'_, f32>,
        mut sums: PyReadwriteArray2<'_, f32>,
        first: usize,
        end: usize,
        last: bool,
        activations: &str,
        observer: Option<&Observer>,
    ) -> PyResult<()> {
        let (x, part) =
            (slice_mut(&mut x)?, ffn::Part { experts: first..end, sums: slice_mut(&mut sums)?, last });
        self.run(py, activations, observer, |block, precision, o| block.forward_part(x, part, precision, o))
    }

    #[pyo3(signature = (x, first, end, observer, *, last, hidden, activations="int8"))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments: what a part of a step is made of")]
    fn show(
        &self,
        py: Python<'_>,
        x: PyReadonlyArray2<'_, f32>,
        first: usize,
        end: usize,
        observer: &Observer,
        last: bool,
        hidden: bool,
        activations: &str,
    ) -> PyResult<()> {
        let x = x.as_slice().map_err(|_| error::usage("x must be contiguous".into()))?;
        self.run(py, activations, Some(observer), |block, precision, o| {
            o.map_or(Ok(()), |o| block.show(x, first..end, last, hidden, precision, o))
        })
    }
}

impl FfnBlock {
    fn run(
        &self,
        py: Python<'_>,
        activations: &str,
        observer: Option<&Observer>,
        step: impl FnOnce(
            &ffn::FfnBlock<'_>,
            Precision,
            Option<&mut kizami_kernels::ops::Observer<'_>>,
        ) -> Result<(), kizami_kernels::Error>
        + Send,
    ) -> PyResult<()> {
        let precision = precision(activations)?;
        let shared = match &self.shared {
            Some(s) => count(s).map(|_| Some(network(s, 0)))?,
            None => None,
        };
        let stacks = self.routed.as_ref().map(|r| &r.experts);
        let get = |i: usize| network(stacks.expect("asked only where there are experts"), i);
        let routed = match &self.routed {
            Some(r) => {
                let router = ffn::Router {
                    weight: r.router.get().matrix()?,
                    bias: &r.bias,
                    scoring: r.scoring,
                    group_score: r.group_score,
                    groups: r.groups,
                    groups_used: r.groups_used,
                    used: r.used,
                    normalize: r.normalize,
                    scale: r.scale,
                };
                Some((router, ffn::Experts { count: count(&r.experts)?, get: &get }))
            }
            None => None,
        };
        let block = ffn::FfnBlock { norm: Norm { weight: &self.norm, eps: self.eps }, shared, routed };
        py.detach(|| observed(observer, self.layer, |o| step(&block, precision, o)))
            .map_err(|e| error::kernel(&format!("blk.{} feed-forward", self.layer), e))
    }
}
