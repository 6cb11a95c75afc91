//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).
//!
//! ```text
//! h = norm(x)
//! q = W_q_b norm(W_q_a h)                 or  q = W_q h          per head: [nope | rope], rope part rotated
//! [c | k_rope] = W_kv_a h                 c = norm(c), k_rope rotated, both cached: kv_lora + rope numbers a token
//!
//! absorbed, for few tokens                                expanded, for many
//! score(t) = (W_k_b q_nope . c_t + q_rope . k_rope_t) * s    score(t) = (q_nope . W_k_b^T c_t + q_rope . k_rope_t) * s
//! x += W_o concat(W_v_b sum of softmax(score)(t) c_t)        x += W_o concat(sum of softmax(score)(t) W_v_b c_t)
//! ```
//!
//! The two are the same sums in another order. Absorbed, all heads share the cached row; expanded, a head's
//! keys and values are rebuilt from it, tile by tile, once for all tokens of the segment. A segment takes the
//! form that takes it less time (`Dims::expands`); its own length and position decide, nothing else.

use super::cache::{Cache, GROUP};
use super::decode::{Block, HEADS, Heads, Query};
use super::prefill::{Shape, Source, TILE, turn};
use super::tile::{PANEL, Strided, panel};
use super::{FEW, Forms, Segment, append, check_caches, decode, forms, gather, positions, prefill, scatter};
use crate::error::Error;
use crate::isa::Isa;
use crate::matmul::{Columns, Job, Precision, dequantize, matmul, matmul_all, read_column, run};
use crate::matrix::Matrix;
use crate::ops::{Norm, Observation, Observer, add, expect_shape, expect_stack, rope};
use crate::{par, profile};

/// Weights and constants of one layer's attention.
pub struct Mla<'a> {
    /// Norm of the block's input.
    pub norm: Norm<'a>,
    /// Low-rank query: first projection and its norm; without it `q_b` takes the input itself.
    pub q_a: Option<(Matrix<'a>, Norm<'a>)>,
    /// Query projection to `heads * (nope + rope)`.
    pub q_b: Matrix<'a>,
    /// Projection to latent and rotary key.
    pub kv_a: Matrix<'a>,
    /// Norm of the latent.
    pub kv_a_norm: Norm<'a>,
    /// Per head, `kv_lora` x `nope`.
    pub k_b: Vec<Matrix<'a>>,
    /// Per head, `v` x `kv_lora`.
    pub v_b: Vec<Matrix<'a>>,
    /// Output projection.
    pub output: Matrix<'a>,
    /// Rotation of the rotary parts.
    pub rope: &'a rope::Rope,
    /// Factor on the scores.
    pub scale: f32,
}

struct Dims {
    d: usize,
    heads: usize,
    lora: usize,
    rope: usize,
    nope: usize,
    v: usize,
}

impl Dims {
    /// Numbers of a query.
    fn q(&self) -> usize {
        self.nope + self.rope
    }

    /// Numbers of a cached row.
    fn width(&self) -> usize {
        self.lora + self.rope
    }
}

impl Mla<'_> {
    /// Adds the attention of all segments' tokens to `x`, in order. With an observer every segment is
    /// absorbed: what `attn_k_b` and `attn_v_b` multiply is then per token, as calibration wants it.
    pub fn forward(
        &self,
        x: &mut [f32],
        segments: &mut [Segment<'_>],
        precision: Precision,
        mut observer: Option<&mut Observer<'_>>,
    ) -> Result<(), Error> {
        let dims = self.check()?;
        let Dims { d, heads, v, .. } = dims;
        let positions = positions(segments, x, d)?;
        let n = positions.len();
        check_caches(segments, dims.width())?;
        let observed = observer.is_some();
        let mut see = |role, index, count, cols, x: &[f32], pick: Option<&[u32]>| {
            if let Some(observer) = observer.as_mut() {
                observer(Observation { role, index, count, cols, x, pick, tokens: None });
            }
        };

        let span = profile::span("attn_norm", 0, 0);
        let h = self.norm.apply(x, d);
        drop(span);
        let columns = Columns::new(&h, d, precision)?;
        let mut q = vec![0.0; n * self.q_b.rows()];
        let mut kv = vec![0.0; n * dims.width()];
        see("attn_kv_a_mqa", 0, 1, d, &h, None);
        match &self.q_a {
            Some((q_a, norm)) => {
                see("attn_q_a", 0, 1, d, &h, None);
                let span = profile::linears("attn_q_a+kv_a_mqa", [q_a, &self.kv_a], n);
                let mut low = vec![0.0; n * q_a.rows()];
                matmul_all([(q_a, &mut low), (&self.kv_a, &mut kv)], &columns)?;
                let low = norm.apply(&low, q_a.rows());
                drop(span);
                see("attn_q_b", 0, 1, q_a.rows(), &low, None);
                let _span = profile::linear("attn_q_b", &self.q_b, n);
                matmul(&self.q_b, &Columns::new(&low, q_a.rows(), precision)?, &mut q)?;
            }
            None => {
                see("attn_q", 0, 1, d, &h, None);
                let _span = profile::linears("attn_q+kv_a_mqa", [&self.q_b, &self.kv_a], n);
                matmul_all([(&self.q_b, &mut q), (&self.kv_a, &mut kv)], &columns)?;
            }
        }

        let span = profile::span("attn_cache", 0, 0);
        let angles = self.rope.tables(&positions);
        self.rope.rotate_heads(&mut q, (heads, dims.q(), dims.nope), &angles);
        self.remember(&kv, segments, &dims, &angles);
        drop(span);

        let mut values = vec![0.0; n * heads * v];
        let Forms { few, tokens, many } = forms(segments, |s| !observed && dims.expands(s.len, s.position));
        if !many.is_empty() {
            let _span = profile::span("attn_expanded", 0, 0);
            let shape = Shape { heads, key_dims: dims.q(), value_dims: v, scale: self.scale };
            // Rebuilding keys and values is work of its own: a head is cut only where threads outnumber heads.
            let parts = par::threads().div_ceil(heads);
            prefill::attend(&shape, &many, parts, &q, &mut values, |cache, head| {
                Expansion::new(&dims, cache, &self.k_b[head], &self.v_b[head])
            });
        }
        if !few.is_empty() {
            let q = gather(&q, &tokens, heads * dims.q());
            let found = self.absorbed(&dims, &few, &q, &mut see)?;
            scatter(&found, &tokens, heads * v, &mut values);
        }
        see("attn_output", 0, 1, heads * v, &values, None);
        let _span = profile::linear("attn_output", &self.output, n);
        let mut out = vec![0.0; n * d];
        matmul(&self.output, &Columns::new(&values, heads * v, precision)?, &mut out)?;
        add(x, &out);
        Ok(())
    }

    fn check(&self) -> Result<Dims, Error> {
        let dims = Dims {
            d: self.norm.weight.len(),
            heads: self.k_b.len(),
            lora: self.kv_a_norm.weight.len(),
            rope: self.rope.dims(),
            nope: self.k_b.first().map_or(0, Matrix::cols),
            v: self.v_b.first().map_or(0, Matrix::rows),
        };
        let Dims { d, heads, lora, nope, v, .. } = dims;
        let q_rows = heads * dims.q();
        if let Some((q_a, norm)) = &self.q_a {
            expect_shape("attn_q_a", q_a, norm.weight.len(), d)?;
            expect_shape("attn_q_b", &self.q_b, q_rows, norm.weight.len())?;
        } else {
            expect_shape("attn_q", &self.q_b, q_rows, d)?;
        }
        expect_shape("attn_kv_a_mqa", &self.kv_a, dims.width(), d)?;
        expect_stack("attn_k_b", &self.k_b, heads, lora, nope)?;
        expect_stack("attn_v_b", &self.v_b, heads, v, lora)?;
        expect_shape("attn_output", &self.output, d, heads * v)?;
        Ok(dims)
    }

    /// Appends each token's normalized latent and rotated key to its sequence's cache.
    fn remember(&self, kv: &[f32], segments: &mut [Segment<'_>], dims: &Dims, angles: &[(f32, f32)]) {
        let latent = self.kv_a_norm.apply(kv, dims.width());
        let stride = dims.width().next_multiple_of(GROUP);
        let mut rows = vec![0.0; kv.len() / dims.width() * stride];
        for (token, row) in rows.chunks_exact_mut(stride).enumerate() {
            row[..dims.lora].copy_from_slice(&latent[token * dims.lora..][..dims.lora]);
            let key = &mut row[dims.lora..][..dims.rope];
            key.copy_from_slice(&kv[token * dims.width() + dims.lora..][..dims.rope]);
            self.rope.rotate(key, &angles[token * dims.rope / 2..][..dims.rope / 2]);
        }
        append(segments, &rows);
    }

    /// `[queries][heads][v]` of `q`, `[queries][heads][nope + rope]`, heads sharing the cached rows.
    fn absorbed(
        &self,
        dims: &Dims,
        queries: &[Query<'_>],
        q: &[f32],
        see: &mut impl FnMut(&'static str, usize, usize, usize, &[f32], Option<&[u32]>),
    ) -> Result<Vec<f32>, Error> {
        let Dims { heads, lora, nope, .. } = *dims;
        let n = queries.len();
        let mut q_nope = Vec::with_capacity(n * heads * nope);
        q.chunks_exact(dims.q()).for_each(|q| q_nope.extend_from_slice(&q[..nope]));
        // Absorb k_b into the queries. Here and at v_b activations stay f32: the matrices are about 3 % of a
        // token's work, and rounding their inputs a noticeable part of the error (docs/kernels.md).
        let span = profile::linears("attn_k_b", &self.k_b, n);
        let columns = Columns::new(&q_nope, nope, Precision::F32)?;
        let latent = per_head(&self.k_b, &columns, n, |head, pick| {
            see("attn_k_b", head, heads, nope, &q_nope, Some(pick));
        });
        let mut x = Vec::with_capacity(n * heads * dims.width());
        for (latent, q) in latent.chunks_exact(lora).zip(q.chunks_exact(dims.q())) {
            x.extend_from_slice(latent);
            x.extend_from_slice(&q[nope..]);
        }
        drop(span);
        let span = profile::span("attn_scores", 0, 0);
        let block = |first| Block { heads: HEADS.min(heads - first), key: 0, value: 0 };
        let blocks = (0..heads).step_by(HEADS).map(block).collect();
        let shared = Heads { blocks, key_dims: dims.width(), value_dims: lora, scale: self.scale };
        let mixed = decode::attend(&shared, queries, &x);
        drop(span);
        let _span = profile::linears("attn_v_b", &self.v_b, n);
        let columns = Columns::new(&mixed, lora, Precision::F32)?;
        Ok(per_head(&self.v_b, &columns, n, |head, pick| {
            see("attn_v_b", head, heads, lora, &mixed, Some(pick));
        }))
    }
}

impl Dims {
    /// Whether expanding a segment's keys and values takes less time than absorbing its queries. Either way
    /// `k_b` and `v_b` meet each of its tokens once; expansion also rebuilds the tokens before it. A
    /// multiply-add of absorbed attention takes about 3/2 of the time of any other (docs/kernels.md).
    fn expands(&self, len: usize, position: usize) -> bool {
        let pairs = len as u128 * (2 * position + len) as u128 / 2;
        let (absorbed, expanded) = (3 * (self.width() + self.lora) / 2, self.q() + self.v);
        let rebuilt = position as u128 * (self.lora * (self.nope + self.v)) as u128;
        len >= FEW && rebuilt <= pairs * absorbed.saturating_sub(expanded) as u128
    }
}

/// Keys and values of one head, rebuilt from the latents.
struct Expansion<'a> {
    cache: &'a Cache,
    /// `[panels of k_b, then of v_b][lora][32]`.
    weights: Vec<f32>,
    lora: usize,
    nope: usize,
    rope: usize,
    v: usize,
    latents: Vec<f32>,
    product: Vec<f32>,
}

impl<'a> Expansion<'a> {
    fn new(dims: &Dims, cache: &'a Cache, k_b: &Matrix<'_>, v_b: &Matrix<'_>) -> Self {
        let Dims { lora, nope, rope, v, .. } = *dims;
        let key_panels = nope.div_ceil(PANEL);
        let mut weights = vec![0.0; (key_panels + v.div_ceil(PANEL)) * lora * PANEL];
        let (keys, values) = weights.split_at_mut(key_panels * lora * PANEL);
        let mut decoded = vec![0.0; lora * nope.max(v)];
        dequantize(k_b, 0, &mut decoded[..lora * nope]).expect("checked with the block");
        for (p, panel) in keys.chunks_exact_mut(lora * PANEL).enumerate() {
            let width = PANEL.min(nope - p * PANEL);
            for (l, row) in panel.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
                row[..width].copy_from_slice(&decoded[l * nope + p * PANEL..][..width]);
            }
        }
        dequantize(v_b, 0, &mut decoded[..lora * v]).expect("checked with the block");
        for (p, panel) in values.chunks_exact_mut(lora * PANEL).enumerate() {
            for (i, row) in decoded[p * PANEL * lora..lora * v].chunks_exact(lora).take(PANEL).enumerate() {
                for (l, &w) in row.iter().enumerate() {
                    panel[l * PANEL + i] = w;
                }
            }
        }
        let product = vec![0.0; TILE * PANEL];
        Self { cache, weights, lora, nope, rope, v, latents: Vec::new(), product }
    }
}

impl Source for Expansion<'_> {
    #[inline(always)]
    fn fill<I: Isa>(&mut self, isa: I, first: usize, count: usize, keys: &mut [f32], values: &mut [f32]) {
        let Self { cache, weights, lora, nope, rope, v, latents, product } = self;
        let (lora, nope, rope) = (*lora, *nope, *rope);
        let rows = cache.read(isa, (first, count), 0..cache.stride(), latents);
        let weights = |p: usize| Strided { data: &weights[p * lora * PANEL..], stride: PANEL };
        for p in 0..nope.div_ceil(PANEL) {
            panel(isa, (count, lora), rows, weights(p), product, PANEL, false);
            let product = Strided { data: product, stride: PANEL };
            turn(product, TILE, PANEL.min(nope - p * PANEL), p * PANEL, nope + rope, keys);
        }
        turn(rows.columns(lora), count, rope, nope, nope + rope, keys);
        for p in 0..v.div_ceil(PANEL) {
            let values = &mut values[p * TILE * PANEL..][..TILE * PANEL];
            panel(isa, (count, lora), rows, weights(nope.div_ceil(PANEL) + p), values, PANEL, false);
        }
    }
}

/// Applies one matrix per head to `[n][heads]` columns; the result is `[n][heads][rows]`.
fn per_head(
    stack: &[Matrix<'_>],
    columns: &Columns<'_>,
    n: usize,
    mut see: impl FnMut(usize, &[u32]),
) -> Vec<f32> {
    let heads = stack.len();
    let rows = stack[0].rows();
    let picks: Vec<Vec<u32>> =
        (0..heads).map(|head| (0..n).map(|t| (t * heads + head) as u32).collect()).collect();
    picks.iter().enumerate().for_each(|(head, pick)| see(head, pick));
    let mut panels = vec![0.0; heads * rows * n];
    let slabs = panels.chunks_exact_mut(rows * n);
    let jobs = stack.iter().zip(&picks).zip(slabs);
    run(jobs.map(|((w, pick), out)| Job { w: *w, x: columns, pick: Some(pick), out }).collect());
    let mut out = vec![0.0; panels.len()];
    par::for_chunks(&mut out, heads * rows, |token, out| {
        for (panels, out) in panels.chunks_exact(rows * n).zip(out.chunks_exact_mut(rows)) {
            read_column(panels, n, token, out);
        }
    });
    out
}
