//! Transformer blocks: weights bound once, then one call per layer and step.

use crate::error;
use crate::tensor::{Tensor, ids, precision};
use kizami_kernels::matmul::Precision;
use kizami_kernels::ops::attention::{self, LatentCache};
use kizami_kernels::ops::{Norm, ffn, head, rope};
use kizami_quantizer::Statistics;
use numpy::{
    PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray2,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sums of squares of every linear layer's input, per tensor: the imatrix in the making.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct Observer {
    statistics: Mutex<Statistics>,
}

#[pymethods]
impl Observer {
    #[new]
    fn new() -> Self {
        Self { statistics: Mutex::default() }
    }

    #[expect(clippy::type_complexity, reason = "name, sums, counts: what an imatrix file holds")]
    fn entries<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<Vec<(String, Bound<'py, PyArray2<f32>>, Bound<'py, PyArray1<f32>>)>> {
        let statistics = lock(&self.statistics);
        let entries = statistics.entries().map(|(name, e)| {
            let sums =
                PyArray1::from_iter(py, e.sums().iter().map(|&x| x as f32)).reshape([e.count(), e.cols()])?;
            let counts = PyArray1::from_iter(py, e.tokens().iter().map(|&x| x as f32));
            Ok((name.to_owned(), sums, counts))
        });
        entries.collect()
    }
}

/// The keys of one sequence, all layers.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct Cache {
    width: usize,
    state: Mutex<State>,
}

struct State {
    len: usize,
    layers: Vec<LatentCache>,
}

#[pymethods]
impl Cache {
    #[new]
    fn new(layers: usize, width: usize) -> Self {
        let layers = vec![LatentCache::default(); layers];
        Self { width, state: Mutex::new(State { len: 0, layers }) }
    }

    /// Tokens whose keys are complete in all layers.
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
        state.layers.iter_mut().for_each(|l| l.truncate(len, self.width));
    }

    #[getter]
    fn nbytes(&self) -> usize {
        let state = lock(&self.state);
        state.len * self.width * 4 * state.layers.len()
    }
}

fn slice_mut<'a>(x: &'a mut PyReadwriteArray2<'_, f32>) -> PyResult<&'a mut [f32]> {
    x.as_slice_mut().map_err(|_| error::usage("x must be contiguous".into()))
}

/// Runs `f` with an observer that files what it sees under `blk.LAYER.`.
fn observed<R>(
    observer: Option<&Observer>,
    layer: usize,
    f: impl FnOnce(Option<&mut kizami_kernels::ops::Observer<'_>>) -> R,
) -> R {
    match observer {
        None => f(None),
        Some(o) => {
            let mut statistics = lock(&o.statistics);
            f(Some(&mut |seen| statistics.add(&format!("blk.{layer}.{}.weight", seen.role), &seen)))
        }
    }
}

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
        let rope = rope::Rope::new(rope_dims, rope_base, yarn);
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
        let name = |e| error::kernel(&format!("blk.{} attention", self.layer), e);
        if caches.len() != lens.len() {
            return Err(error::usage(format!("caches: found {}, expected {}", caches.len(), lens.len())));
        }
        let width = self.kv_a_norm.len() + self.rope.dims();
        for (i, c) in caches.iter().enumerate() {
            if c.get().width != width {
                return Err(error::usage(format!("cache: found width {}, expected {width}", c.get().width)));
            }
            if caches[..i].iter().any(|earlier| earlier.is(c)) {
                return Err(error::usage("caches: the same one twice in one batch".into()));
            }
        }
        let x = slice_mut(&mut x)?;
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
        py.detach(|| {
            // Locked in one global order: two steps that share sequences cannot wait for each other.
            let mut order: Vec<usize> = (0..caches.len()).collect();
            order.sort_by_key(|&i| std::ptr::from_ref(caches[i].get()) as usize);
            let mut states: Vec<_> = order.into_iter().map(|i| (i, lock(&caches[i].get().state))).collect();
            states.sort_by_key(|(i, _)| *i);
            let mut segments = Vec::new();
            for ((_, state), &len) in states.iter_mut().zip(&lens) {
                let position = state.len;
                let cache = state.layers.get_mut(self.layer).ok_or(kizami_kernels::Error::Range {
                    what: "layer",
                    found: self.layer,
                    expected: "a layer of the cache",
                })?;
                // A step that was cut short has left rows behind.
                cache.truncate(position, width);
                segments.push(attention::Segment { position, len, cache });
            }
            observed(observer, self.layer, |o| mla.forward(x, &mut segments, precision, o))
        })
        .map_err(name)
    }
}

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

/// Both ends of a model: embedding table, final norm and output matrix.
#[pyclass(frozen, module = "kizami._core")]
pub(crate) struct Head {
    embedding: Py<Tensor>,
    norm: Vec<f32>,
    output: Py<Tensor>,
    eps: f32,
}

#[pymethods]
impl Head {
    #[new]
    #[pyo3(signature = (*, embedding, norm, output, eps))]
    fn new(embedding: Py<Tensor>, norm: &Tensor, output: Py<Tensor>, eps: f32) -> PyResult<Self> {
        Ok(Self { embedding, norm: norm.floats()?, output, eps })
    }

    /// Hidden states of token ids.
    fn embed<'py>(
        &self,
        py: Python<'py>,
        tokens: PyReadonlyArray1<'py, u32>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let tokens = ids(&tokens);
        let table = self.embedding.get().matrix()?;
        if let Some(bad) = tokens.iter().find(|&&t| t as usize >= table.rows()) {
            return Err(error::usage(format!("token id: found {bad}, expected below {}", table.rows())));
        }
        let x = py.detach(|| head::embed(&table, &tokens)).map_err(|e| error::kernel("token_embd", e))?;
        PyArray1::from_vec(py, x).reshape([tokens.len(), self.embedding.get().cols()])
    }

    /// Logits of hidden states.
    #[pyo3(signature = (x, activations="int8", observer=None))]
    fn logits<'py>(
        &self,
        py: Python<'py>,
        x: PyReadonlyArray2<'py, f32>,
        activations: &str,
        observer: Option<&Observer>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let precision: Precision = precision(activations)?;
        let output = self.output.get().matrix()?;
        let n = x.shape()[0];
        let x = x.as_slice().map_err(|_| error::usage("x must be contiguous".into()))?;
        let norm = Norm { weight: &self.norm, eps: self.eps };
        let out = py.detach(|| match observer {
            None => head::logits(norm, &output, x, precision, None),
            Some(o) => {
                let mut statistics = lock(&o.statistics);
                let see =
                    &mut |seen: kizami_kernels::ops::Observation<'_>| statistics.add("output.weight", &seen);
                head::logits(norm, &output, x, precision, Some(see))
            }
        });
        let out = out.map_err(|e| error::kernel("output", e))?;
        PyArray1::from_vec(py, out).reshape([n, output.rows()])
    }
}
