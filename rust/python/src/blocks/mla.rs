//! Latent attention's class.

use super::Observer;
use super::cache::{self, Cache};
use crate::error;
use crate::tensor::{Tensor, precision};
use kizami_kernels::ops::{Norm, attention, rope};
use numpy::PyReadwriteArray2;
use pyo3::prelude::*;

/// Multi-head latent attention of one layer.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct Mla {
    layer: usize,
    norm: Vec<f32>,
    q_a: Option<(Py<Tensor>, Vec<f32>)>,
    q_b: Py<Tensor>,
    kv_a: Py<Tensor>,
    kv_a_norm: Vec<f32>,
    k_b: Py<Tensor>,
    v_b: Py<Tensor>,
    output: Py<Tensor>,
    rope: rope::Rope,
    eps: f32,
    scale: f32,
}

#[pymethods]
impl Mla {
    #[new]
    #[pyo3(signature = (layer, *, norm, q_a, q_a_norm, q_b, kv_a, kv_a_norm, k_b, v_b, output,
                        eps, scale, rope_dims, rope_base, yarn=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments: one per tensor of the block")]
    fn new(
        layer: usize,
        norm: &Tensor,
        q_a: Option<Py<Tensor>>,
        q_a_norm: Option<&Tensor>,
        q_b: Py<Tensor>,
        kv_a: Py<Tensor>,
        kv_a_norm: &Tensor,
        k_b: Py<Tensor>,
        v_b: Py<Tensor>,
        output: Py<Tensor>,
        eps: f32,
        scale: f32,
        rope_dims: usize,
        rope_base: f32,
        yarn: Option<(f32, f32, f32, f32, f32)>,
    ) -> PyResult<Self> {
        let q_a = match (q_a, q_a_norm) {
            (Some(w), Some(norm)) => Some((w, norm.floats()?)),
            (None, None) => None,
            _ => {
                return Err(error::format(
                    "attn_q_a and attn_q_a_norm: found one, expected both or none".into(),
                ));
            }
        };
        let yarn = yarn.map(|(factor, original_context, beta_fast, beta_slow, magnitude)| rope::Yarn {
            factor,
            original_context,
            beta_fast,
            beta_slow,
            magnitude,
        });
        let rope = rope::Rope::new(rope::Pairs::Adjacent, rope_dims, rope_base, yarn);
        let (norm, kv_a_norm) = (norm.floats()?, kv_a_norm.floats()?);
        Ok(Self { layer, norm, q_a, q_b, kv_a, kv_a_norm, k_b, v_b, output, rope, eps, scale })
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
        let norm = |weight| Norm { weight, eps: self.eps };
        let q_a = match &self.q_a {
            Some((w, n)) => Some((w.get().matrix()?, norm(n))),
            None => None,
        };
        let mla = attention::Mla {
            norm: norm(&self.norm),
            q_a,
            q_b: self.q_b.get().matrix()?,
            kv_a: self.kv_a.get().matrix()?,
            kv_a_norm: norm(&self.kv_a_norm),
            k_b: self.k_b.get().matrices(),
            v_b: self.v_b.get().matrices(),
            output: self.output.get().matrix()?,
            rope: &self.rope,
            scale: self.scale,
        };
        let at = (self.layer, self.kv_a_norm.len() + self.rope.dims());
        cache::step(py, &mut x, (&caches, &lens), at, observer, |x, segments, o| {
            mla.forward(x, segments, precision, o)
        })
    }
}
