//! The feed-forward block's class.

use super::{Observer, observed, slice_mut};
use crate::error;
use crate::tensor::{Tensor, precision};
use kizami_kernels::ops::{Norm, ffn};
use numpy::PyReadwriteArray2;
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

fn networks<'a>(stacks: &'a [Py<Tensor>; 3]) -> PyResult<Vec<ffn::Ffn<'a>>> {
    let [gate, up, down] = [0, 1, 2].map(|i| stacks[i].get().matrices());
    if gate.len() != up.len() || gate.len() != down.len() {
        return Err(error::format(format!(
            "experts: found {} gate, {} up and {} down, expected equal numbers",
            gate.len(),
            up.len(),
            down.len()
        )));
    }
    let zipped = gate.into_iter().zip(up).zip(down);
    Ok(zipped.map(|((gate, up), down)| ffn::Ffn { gate, up, down }).collect())
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

    #[pyo3(signature = (x, activations="int8", observer=None))]
    fn forward(
        &self,
        py: Python<'_>,
        mut x: PyReadwriteArray2<'_, f32>,
        activations: &str,
        observer: Option<&Observer>,
    ) -> PyResult<()> {
        let precision = precision(activations)?;
        let x = slice_mut(&mut x)?;
        let shared = match &self.shared {
            Some(s) => networks(s)?.into_iter().next(),
            None => None,
        };
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
                Some((router, networks(&r.experts)?))
            }
            None => None,
        };
        let block = ffn::FfnBlock { norm: Norm { weight: &self.norm, eps: self.eps }, shared, routed };
        py.detach(|| observed(observer, self.layer, |o| block.forward(x, precision, o)))
            .map_err(|e| error::kernel(&format!("blk.{} feed-forward", self.layer), e))
    }
}
