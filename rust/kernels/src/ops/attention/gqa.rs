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
use super::decode::{Block, HEADS, Heads, Query, attend};
use super::prefill::{Prefill, Source, TILE, turn};
use super::tile::{PANEL, Strided};
use super::{FEW, Segment, check_caches, positions};
use crate::dispatch::dispatch;
use crate::error::{Error, expect_len};
use crate::isa::Isa;
use crate::matmul::{Columns, Precision, matmul};
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
    fn apply(&self, columns: &Columns<'_>) -> Result<Vec<f32>, Error> {
        let rows = self.weight.rows();
        let mut out = vec![0.0; columns.len() * rows];
        matmul(&self.weight, columns, &mut out)?;
        if !self.bias.is_empty() {
            out.chunks_exact_mut(rows).for_each(|out| add(out, self.bias));
        }
        Ok(out)
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
                observer(Observation { role, index: 0, count: 1, cols, x, pick: None });
            }
        };

        let span = profile::span("attn_norm", 0, 0);
        let h = self.norm.apply(x, d);
        drop(span);
        let columns = Columns::new(&h, d, precision)?;
        ["attn_q", "attn_k", "attn_v"].into_iter().for_each(|role| see(role, d, &h));
        let apply = |name, part: &Biased<'_>| {
            let _span = profile::linear(name, &part.weight, n);
            part.apply(&columns)
        };
        let mut q = apply("attn_q", &self.q)?;
        let (k, v) = (apply("attn_k", &self.k)?, apply("attn_v", &self.v)?);

        let span = profile::span("attn_cache", 0, 0);

        let angles = self.rope.tables(&positions);
        let angles = |token: usize| &angles[token * self.rope.dims() / 2..][..self.rope.dims() / 2];
        par::for_chunks(&mut q, heads * dims * 16, |task, q| {
            for (i, q) in q.chunks_exact_mut(heads * dims).enumerate() {
                q.chunks_exact_mut(dims).for_each(|q| self.rope.rotate(q, angles(task * 16 + i)));
            }
        });
        let padded = dims.next_multiple_of(GROUP);
        let mut rows = vec![0.0; n * 2 * groups * padded];
        for (i, row) in rows.chunks_exact_mut(padded).enumerate() {
            let (token, slot) = (i / (2 * groups), i % (2 * groups));
            let from = if slot < groups { &k } else { &v };
            row[..dims].copy_from_slice(&from[(token * groups + slot % groups) * dims..][..dims]);
            if slot < groups {
                self.rope.rotate(&mut row[..dims], angles(token));
            }
        }
        let mut rows = &rows[..];
        for s in segments.iter_mut() {
            let (mine, rest) = rows.split_at(s.len * 2 * groups * padded);
            s.cache.extend(mine);
            rows = rest;
        }

        drop(span);
        let span = profile::span("attn_scores", 0, 0);
        let mut values = vec![0.0; n * heads * dims];
        let mut at = 0;
        for s in segments.iter() {
            let part = at * heads * dims..(at + s.len) * heads * dims;
            if s.len < FEW {
                let queries: Vec<_> =
                    (0..s.len).map(|i| Query { cache: s.cache, len: s.position + i + 1 }).collect();
                let found = attend(&self.shared(dims), &queries, &q[part.clone()]);
                values[part].copy_from_slice(&found);
            } else {
                self.many(dims, s, &q[part.clone()], &mut values[part]);
            }
            at += s.len;
        }
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

    /// `[tokens][heads][dims]` of one long segment, into `out`. A task is a head and some of its queries: the
    /// tiles are cheap to fill, so tasks may be small.
    fn many(&self, dims: usize, segment: &Segment<'_>, q: &[f32], out: &mut [f32]) {
        let heads = self.heads;
        let part = segment.len.div_ceil(par::threads()).next_multiple_of(TILE).max(4 * TILE);
        let mut tasks = Vec::new();
        for first in (0..segment.len).step_by(part) {
            tasks.extend((0..heads).map(|head| (head, first)));
        }
        let done = par::map(tasks, |(head, first)| {
            let (key, value) = self.columns(head / (heads / self.groups), dims);
            let rows = dispatch(Prefill {
                source: Stored { cache: segment.cache, key, value, dims, scratch: Vec::new() },
                queries: Strided { data: &q[(first * heads + head) * dims..], stride: heads * dims },
                n: part.min(segment.len - first),
                position: segment.position + first,
                key_dims: dims,
                value_dims: dims,
                scale: self.scale,
            });
            (head, first, rows)
        });
        for (head, first, rows) in done {
            for (i, row) in rows.chunks_exact(dims.next_multiple_of(PANEL)).enumerate() {
                out[((first + i) * heads + head) * dims..][..dims].copy_from_slice(&row[..dims]);
            }
        }
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
