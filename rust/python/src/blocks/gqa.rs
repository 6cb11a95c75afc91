//! Grouped-query attention's class.

use super::Observer;
use super::cache::{self, Cache};
use crate::tensor::{Tensor, precision};
use kizami_kernels::ops::{Norm, attention, rope};
use numpy::PyReadwriteArray2;
use pyo3::prelude::*;

/// Grouped-query attention of one layer.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct Gqa {
    layer: usize,
    norm: Vec<f32>,
    q: (Py<Tensor>, Vec<f32>),
    k: (Py<Tensor>, Vec<f32>),
    v: (Py<Tensor>, Vec<f32>),
    output: Py<Tensor>,
    rope: rope::Rope,
    heads: usize,
    groups: usize,
    eps: f32,
    scale: f32,
}

#[pymethods]
impl Gqa {
    #[new]
    #[pyo3(signature = (layer, *, norm, q, q_bias, k, k_bias, v, v_bias, output, heads, groups, eps, scale,
                        rope_dims, rope_base))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments: one per tensor of the block")]
    fn new(
        layer: usize,
        norm: &Tensor,
        q: Py<Tensor>,
        q_bias: Option<&Tensor>,
        k: Py<Tensor>,
        k_bias: Option<&Tensor>,
        v: Py<Tensor>,
        v_bias: Option<&Tensor>,
        output: Py<Tensor>,
        heads: usize,
        groups: usize,
        eps: f32,
        scale: f32,
        rope_dims: usize,
        rope_base: f32,
    ) -> PyResult<Self> {
        let bias = |bias: Option<&Tensor>| bias.map_or(Ok(Vec::new()), Tensor::floats);
        Ok(Self {
            layer,
            norm: norm.floats()?,
            q: (q, bias(q_bias)?),
            k: (k, bias(k_bias)?),
            v: (v, bias(v_bias)?),
            output,
            rope: rope::Rope::new(rope::Pairs::Halves, rope_dims, rope_base, None),
            heads,
            groups,
            eps,
            scale,
        })
    }

    /// Numbers that a token leaves in a cache.
    #[staticmethod]
    fn cache_width(groups: usize, dims: usize) -> usize {
        attention::Gqa::width(groups, dims)
    }

    #[pyo3(signature = (x, caches, lens, activations="int8", observer=None))]
    fn forward(
        &self,
        py: Python<'_>,
        mut x: PyReadwriteArray2<'_, f32>,
        caches: Vec<Py<Cache>>,
        lens: Vec<usize>,
        activations: &str,
        observer: Option<&Observer>,
    ) -> PyResult<()> {
        let precision = precision(activations)?;
        let output = self.output.get().matrix()?;
        let dims = output.cols() / self.heads.max(1);
        let gqa = attention::Gqa {
            norm: Norm { weight: &self.norm, eps: self.eps },
            q: attention::Biased { weight: self.q.0.get().matrix()?, bias: &self.q.1 },
            k: attention::Biased { weight: self.k.0.get().matrix()?, bias: &self.k.1 },
            v: attention::Biased { weight: self.v.0.get().matrix()?, bias: &self.v.1 },
            output,
            rope: &self.rope,
            heads: self.heads,
            groups: self.groups,
            scale: self.scale,
        };
        let at = (self.layer, attention::Gqa::width(self.groups, dims));
        cache::step(py, &mut x, (&caches, &lens), at, observer, |x, segments, o| {
            gqa.forward(x, segments, precision, o)
        })
    }
}
