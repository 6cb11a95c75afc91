//! Grouped-query attention (Ainslie et al., arXiv 2305.13245) with biases, as Qwen2 has it (arXiv 2407.10671).
//!
//! ```text
//! h = norm(x)
//! q = W_q h + b_q                        per head, rotated
//! k = W_k h + b_k,  v = W_v h + b_v      per group of heads; k rotated, both cached: [k of all groups | v of all]
//! score(t) = q . k_t * s                 x += W_o concat(sum over t of softmax(score)(t) v_t)
//! ```
//!
//! A cached group of a key or a value is padded to whole blocks of 32 numbers.

use super::cache::{Cache, GROUP};
use super::decode::{Block, HEADS, Heads};
use super::prefill::{Shape, Source, TILE, turn};
use super::tile::PANEL;
use super::{FEW, Forms, Segment, append, check_caches, decode, forms, gather, positions, prefill, scatter};
use crate::error::{Error, expect_len};
use crate::isa::Isa;
use crate::matmul::{Columns, Precision, matmul, matmul_all};
use crate::matrix::Matrix;
use crate::ops::{Norm, Observation, Observer, add, expect_shape, rope};
use crate::{par, profile};

/// A projection and its bias, empty where there is none.
#[derive(Clone, Copy)]
pub struct Biased<'a> {
    /// Its matrix.
    pub weight: Matrix<'a>,
    /// Added to the product.
    pub bias: &'a [f32],
}

impl Biased<'_> {
    fn add_bias(&self, out: &mut [f32]) {
        if !self.bias.is_empty() {
            out.chunks_exact_mut(self.bias.len()).for_each(|out| add(out, self.bias));
        }
    }

    fn check(&self, what: &'static str, rows: usize, cols: usize) -> Result<(), Error> {
        expect_shape(what, &self.weight, rows, cols)?;
        expect_len(what, self.bias.len(), if self.bias.is_empty() { 0 } else { rows })
    }
}

/// Weights and constants of one layer's attention.
pub struct Gqa<'a> {
    /// Norm of the block's input.
    pub norm: Norm<'a>,
    /// Query projection to `heads * dims`.
    pub q: Biased<'a>,
    /// Key projection to `groups * dims`.
    pub k: Biased<'a>,
    /// Value projection to `groups * dims`.
    pub v: Biased<'a>,
    /// Output projection.
    pub output: Matrix<'a>,
    /// Rotation of queries and keys, whole or their first part.
    pub rope: &'a rope::Rope,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub groups: usize,
    /// Factor on the scores.
    pub scale: f32,
}

impl Gqa<'_> {
    /// Numbers that a token leaves in the cache.
    pub fn width(groups: usize, dims: usize) -> usize {
        2 * groups * dims.next_multiple_of(GROUP)
    }

    /// Adds the attention of all segments' tokens to `x`, in order.
    pub fn forward(
        &self,
        x: &mut [f32],
        segments: &mut [Segment<'_>],
        precision: Precision,
        mut observer: Option<&mut Observer<'_>>,
    ) -> Result<(), Error> {
        let dims = self.check()?;
        let (d, heads, groups) = (self.norm.weight.len(), self.heads, self.groups);
        let positions = positions(segments, x, d)?;
        let n = positions.len();
        check_caches(segments, Self::width(groups, dims))?;
        let mut see = |role, cols, x: &[f32]| {
            if let Some(observer) = observer.as_mut() {
                observer(Observation { role, index: 0, count: 1, cols, x, pick: None, tokens: None });
            }
        };

        let span = profile::span("attn_norm", 0, 0);
        let h = self.norm.apply(x, d);
        drop(span);
        let columns = Columns::new(&h, d, precision)?;
        ["attn_q", "attn_k", "attn_v"].into_iter().for_each(|role| see(role, d, &h));
        let parts = [&self.q, &self.k, &self.v];
        let span = profile::linears("attn_q+k+v", parts.map(|part| &part.weight), n);
        let mut found = parts.map(|part| vec![0.0; n * part.weight.rows()]);
        let [q, k, v] = &mut found;
        matmul_all([(&self.q.weight, q), (&self.k.weight, k), (&self.v.weight, v)], &columns)?;
        parts.into_iter().zip(&mut found).for_each(|(part, out)| part.add_bias(out));
        let [mut q, k, v] = found;
        drop(span);

        let span = profile::span("attn_cache", 0, 0);
        let angles = self.rope.tables(&positions);
        self.rope.rotate_heads(&mut q, (heads, dims, 0), &angles);
        self.remember(dims, &k, &v, segments, &angles);
        drop(span);

        let span = profile::span("attn_scores", 0, 0);
        let mut values = vec![0.0; n * heads * dims];
        let Forms { few, tokens, many } = forms(segments, |s| s.len >= FEW);
        if !few.is_empty() {
            let found = decode::attend(&self.shared(dims), &few, &gather(&q, &tokens, heads * dims));
            scatter(&found, &tokens, heads * dims, &mut values);
        }
        let shape = Shape { heads, key_dims: dims, value_dims: dims, scale: self.scale };
        prefill::attend(&shape, &many, par::threads(), &q, &mut values, |cache, head| {
            let (key, value) = self.columns(head / (heads / groups), dims);
            Stored { cache, key, value, dims, scratch: Vec::new() }
        });
        drop(span);
        see("attn_output", heads * dims, &values);
        let _span = profile::linear("attn_output", &self.output, n);
        let mut out = vec![0.0; n * d];
        matmul(&self.output, &Columns::new(&values, heads * dims, precision)?, &mut out)?;
        add(x, &out);
        Ok(())
    }

    /// Checks all shapes; returns the numbers of a head.
    fn check(&self) -> Result<usize, Error> {
        let (d, heads, groups) = (self.norm.weight.len(), self.heads, self.groups);
        if groups == 0 || heads == 0 || !heads.is_multiple_of(groups) {
            return Err(Error::Range {
                what: "key and value heads",
                found: groups,
                expected: "a divisor of the query heads",
            });
        }
        let dims = self.q.weight.rows() / heads;
        if self.rope.dims() > dims {
            return Err(Error::Range {
                what: "rotated dimensions",
                found: self.rope.dims(),
                expected: "at most those of a head",
            });
        }
        self.q.check("attn_q", heads * dims, d)?;
        self.k.check("attn_k", groups * dims, d)?;
        self.v.check("attn_v", groups * dims, d)?;
        expect_shape("attn_output", &self.output, d, heads * dims)?;
        Ok(dims)
    }

    /// Appends each token's rotated keys and its values to its sequence's cache.
    fn remember(
        &self,
        dims: usize,
        k: &[f32],
        v: &[f32],
        segments: &mut [Segment<'_>],
        angles: &[(f32, f32)],
    ) {
        let (groups, padded) = (self.groups, dims.next_multiple_of(GROUP));
        let mut rows = vec![0.0; k.len() / dims * 2 * padded];
        for (i, row) in rows.chunks_exact_mut(padded).enumerate() {
            let (token, slot) = (i / (2 * groups), i % (2 * groups));
            let from = if slot < groups { k } else { v };
            row[..dims].copy_from_slice(&from[(token * groups + slot % groups) * dims..][..dims]);
            if slot < groups {
                let pairs = self.rope.dims() / 2;
                self.rope.rotate(&mut row[..dims], &angles[token * pairs..][..pairs]);
            }
        }
        append(segments, &rows);
    }

    /// Columns of the cached row where the key and the value of a group start.
    fn columns(&self, group: usize, dims: usize) -> (usize, usize) {
        let padded = dims.next_multiple_of(GROUP);
        (group * padded, (self.groups + group) * padded)
    }

    fn shared(&self, dims: usize) -> Heads {
        let per_group = self.heads / self.groups;
        let mut blocks = Vec::new();
        for group in 0..self.groups {
            let (key, value) = self.columns(group, dims);
            let block = |first| Block { heads: HEADS.min(per_group - first), key, value };
            blocks.extend((0..per_group).step_by(HEADS).map(block));
        }
        Heads { blocks, key_dims: dims, value_dims: dims, scale: self.scale }
    }
}

/// Keys and values of one group, as they are stored.
struct Stored<'a> {
    cache: &'a Cache,
    key: usize,
    value: usize,
    dims: usize,
    scratch: Vec<f32>,
}

impl Source for Stored<'_> {
    #[inline(always)]
    fn fill<I: Isa>(&mut self, isa: I, first: usize, count: usize, keys: &mut [f32], values: &mut [f32]) {
        let Self { cache, key, value, dims, scratch } = self;
        let padded = dims.next_multiple_of(PANEL);
        let rows = cache.read(isa, (first, count), *key..*key + padded, scratch);
        turn(rows, count, *dims, 0, *dims, keys);
        let rows = cache.read(isa, (first, count), *value..*value + padded, scratch);
        for t in 0..count {
            let row = &rows.data[t * rows.stride..][..padded];
            for p in 0..padded / PANEL {
                values[(p * TILE + t) * PANEL..][..PANEL].copy_from_slice(&row[p * PANEL..][..PANEL]);
            }
        }
    }
}
