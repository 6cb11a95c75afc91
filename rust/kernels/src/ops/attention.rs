//! Multi-head latent attention, absorbed form (DeepSeek-V2, arXiv 2405.04434, section 2.1).
//!
//! ```text
//! h = norm(x)
//! q = W_q_b norm(W_q_a h)                 or  q = W_q h          per head: [nope | rope]
//! [c | k_rope] = W_kv_a h                 c = norm(c), k_rope rotated, both cached: kv_lora + rope floats a token
//! score(t) = (W_k_b q_nope . c_t + q_rope . k_rope_t) * scale    for t up to the token's own position
//! x += W_o concat(W_v_b sum over t of softmax(score)(t) * c_t)
//! ```
//!
//! All heads share the cached row, so nothing per head is ever stored. A token's result depends on
//! its own sequence and position alone, whatever else is in the batch.

use super::{Norm, Observation, Observer, add, expect_shape, expect_stack, rope};
use crate::dispatch::{Op, dispatch};
use crate::error::{Error, expect_len};
use crate::float;
use crate::isa::{Isa, LANES};
use crate::math;
use crate::matmul::{Columns, Job, Precision, matmul, read_column, run};
use crate::matrix::Matrix;
use crate::par;

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

/// The cached rows of one sequence in one layer: `kv_lora + rope` floats a token.
#[derive(Debug, Default, Clone)]
pub struct LatentCache {
    rows: Vec<f32>,
}

impl LatentCache {
    /// Forgets everything from token `len` on.
    pub fn truncate(&mut self, len: usize, width: usize) {
        self.rows.truncate(len * width);
    }
}

/// Some consecutive tokens of one sequence.
pub struct Segment<'a> {
    /// Position of the first token; the cache must hold exactly that many.
    pub position: usize,
    /// Number of tokens.
    pub len: usize,
    /// The sequence's cache in this layer.
    pub cache: &'a mut LatentCache,
}

impl Mla<'_> {
    /// Adds the attention of all segments' tokens to `x`, in order.
    pub fn forward(
        &self,
        x: &mut [f32],
        segments: &mut [Segment<'_>],
        precision: Precision,
        mut observer: Option<&mut Observer<'_>>,
    ) -> Result<(), Error> {
        let d = self.norm.weight.len();
        let heads = self.k_b.len();
        let (lora, rope_dims) = (self.kv_a_norm.weight.len(), self.rope.dims());
        let width = lora + rope_dims;
        let nope = self.k_b.first().map_or(0, Matrix::cols);
        let v = self.v_b.first().map_or(0, Matrix::rows);
        let n: usize = segments.iter().map(|s| s.len).sum();
        expect_len("hidden states", x.len(), n * d)?;
        self.check(d, heads, width, nope, v)?;
        for s in segments.iter() {
            expect_len("tokens in the cache", s.cache.rows.len() / width, s.position)?;
        }
        let mut see = |role, index, count, cols, x: &[f32], pick: Option<&[u32]>| {
            if let Some(observer) = observer.as_mut() {
                observer(Observation { role, index, count, cols, x, pick });
            }
        };

        let h = self.norm.apply(x, d);
        let columns = Columns::new(&h, d, precision)?;
        let mut q = vec![0.0; n * self.q_b.rows()];
        match &self.q_a {
            Some((q_a, norm)) => {
                see("attn_q_a", 0, 1, d, &h, None);
                let mut low = vec![0.0; n * q_a.rows()];
                matmul(q_a, &columns, &mut low)?;
                let low = norm.apply(&low, q_a.rows());
                see("attn_q_b", 0, 1, q_a.rows(), &low, None);
                matmul(&self.q_b, &Columns::new(&low, q_a.rows(), precision)?, &mut q)?;
            }
            None => {
                see("attn_q", 0, 1, d, &h, None);
                matmul(&self.q_b, &columns, &mut q)?;
            }
        }
        see("attn_kv_a_mqa", 0, 1, d, &h, None);
        let mut kv = vec![0.0; n * width];
        matmul(&self.kv_a, &columns, &mut kv)?;
        let latent = self.kv_a_norm.apply(&kv, width);

        // Positions: rotate, and append to each sequence's cache.
        let mut q_nope = Vec::with_capacity(n * heads * nope);
        let mut queries = vec![0.0; n * heads * width];
        let mut token = 0;
        for s in segments.iter_mut() {
            s.cache.rows.reserve(s.len * width);
            for i in 0..s.len {
                let table = self.rope.table(s.position + i);
                let key = &mut kv[token * width + lora..][..rope_dims];
                rope::rotate(key, &table);
                s.cache.rows.extend_from_slice(&latent[token * lora..][..lora]);
                s.cache.rows.extend_from_slice(key);
                for head in 0..heads {
                    let q = &mut q[(token * heads + head) * (nope + rope_dims)..][..nope + rope_dims];
                    let (plain, rotary) = q.split_at_mut(nope);
                    rope::rotate(rotary, &table);
                    q_nope.extend_from_slice(plain);
                    queries[(token * heads + head) * width + lora..][..rope_dims].copy_from_slice(rotary);
                }
                token += 1;
            }
        }

        // Absorb k_b into the queries. Here and at v_b activations stay f32: the matrices are about 3 % of a
        // token's work, and rounding their inputs a noticeable part of the error (docs/kernels.md).
        let columns = Columns::new(&q_nope, nope, Precision::F32)?;
        let absorbed = per_head(&self.k_b, &columns, n, |head, pick| {
            see("attn_k_b", head, heads, nope, &q_nope, Some(pick));
        });
        for (row, out) in absorbed.chunks_exact(lora).zip(queries.chunks_exact_mut(width)) {
            out[..lora].copy_from_slice(row);
        }

        let mixed = self.attend(&queries, segments, heads, width, lora);

        let columns = Columns::new(&mixed, lora, Precision::F32)?;
        let values = per_head(&self.v_b, &columns, n, |head, pick| {
            see("attn_v_b", head, heads, lora, &mixed, Some(pick));
        });
        see("attn_output", 0, 1, heads * v, &values, None);
        let mut out = vec![0.0; n * d];
        matmul(&self.output, &Columns::new(&values, heads * v, precision)?, &mut out)?;
        add(x, &out);
        Ok(())
    }

    fn check(&self, d: usize, heads: usize, width: usize, nope: usize, v: usize) -> Result<(), Error> {
        let lora = self.kv_a_norm.weight.len();
        let q_rows = heads * (nope + width - lora);
        if let Some((q_a, norm)) = &self.q_a {
            expect_shape("attn_q_a", q_a, norm.weight.len(), d)?;
            expect_shape("attn_q_b", &self.q_b, q_rows, norm.weight.len())?;
        } else {
            expect_shape("attn_q", &self.q_b, q_rows, d)?;
        }
        expect_shape("attn_kv_a_mqa", &self.kv_a, width, d)?;
        expect_stack("attn_k_b", &self.k_b, heads, lora, nope)?;
        expect_stack("attn_v_b", &self.v_b, heads, v, lora)?;
        expect_shape("attn_output", &self.output, d, heads * v)
    }

    /// `[n][heads][lora]`: for every query the average of the cached latents under its softmax.
    fn attend(
        &self,
        queries: &[f32],
        segments: &[Segment<'_>],
        heads: usize,
        width: usize,
        lora: usize,
    ) -> Vec<f32> {
        // The cache that each token reads, up to and including itself.
        let mut keys = Vec::new();
        for s in segments {
            keys.extend((0..s.len).map(|i| &s.cache.rows[..(s.position + i + 1) * width]));
        }
        // A task is some heads of one token: the heads of a task share each cached row they load.
        let group = [4, 2].into_iter().find(|g| heads.is_multiple_of(*g)).unwrap_or(1);
        let mut out = vec![0.0; queries.len() / width * lora];
        par::for_chunks(&mut out, group * lora, |task, out| {
            let keys = keys[task * group / heads];
            let queries = &queries[task * group * width..][..group * width];
            dispatch(Attend { queries, keys, width, lora, scale: self.scale, out });
        });
        out
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

struct Attend<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    width: usize,
    lora: usize,
    scale: f32,
    out: &'a mut [f32],
}

impl Op for Attend<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Attend { queries, keys, width, lora, scale, out } = self;
        let n = keys.len() / width;
        let heads = queries.len() / width;
        let mut scores = vec![0.0; heads * n];
        for (t, key) in keys.chunks_exact(width).enumerate() {
            for (head, q) in queries.chunks_exact(width).enumerate() {
                scores[head * n + t] = float::dot(isa, q, key) * scale;
            }
        }
        for scores in scores.chunks_exact_mut(n) {
            math::softmax(isa, scores);
        }
        for (head, out) in out.chunks_exact_mut(lora).enumerate() {
            let scores = &scores[head * n..][..n];
            let (blocks, rest) = out.as_chunks_mut::<{ 4 * LANES }>();
            for (b, out) in blocks.iter_mut().enumerate() {
                let mut acc = [isa.splat(0.0); 4];
                for (t, &p) in scores.iter().enumerate() {
                    let p = isa.splat(p);
                    let row = keys[t * width + b * 4 * LANES..][..4 * LANES].as_chunks::<LANES>().0;
                    for i in 0..4 {
                        acc[i] = isa.fma(p, isa.load(&row[i]), acc[i]);
                    }
                }
                for (acc, out) in acc.into_iter().zip(out.as_chunks_mut::<LANES>().0) {
                    isa.store(acc, out);
                }
            }
            let done = lora - rest.len();
            for (t, &p) in scores.iter().enumerate() {
                for (i, out) in rest.iter_mut().enumerate() {
                    *out = p.mul_add(keys[t * width + done + i], *out);
                }
            }
        }
    }
}
