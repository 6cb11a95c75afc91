//! Attention of many consecutive queries of one head, key tile by key tile, without a matrix of scores.
//!
//! Knows queries, tiles of keys and values, and the running softmax; where tiles come from is a [`Source`]'s
//! business.
//!
//! ```text
//!               keys 0..64   64..128   128..192
//! queries 0..32 ┌──────────┬─────────┬─────────┐     for each tile of keys, at absolute positions:
//!               │ ▓▓▓▓▓▓▓▓ │ ▓▓▓▓▓▓  │         │        scores = q · k * scale, masked on the diagonal
//!        32..64 │ ▓▓▓▓▓▓▓▓ │ ▓▓▓▓▓▓▓▓│         │        m' = max(m, scores), p = exp(scores - m')
//!        64..96 │ ▓▓▓▓▓▓▓▓ │ ▓▓▓▓▓▓▓▓│ ▓▓      │        c = exp(m - m'), l = l * c + sum of p
//!               └──────────┴─────────┴─────────┘        out = out * c + p · v
//!  blank blocks lie in the future: never computed    at the end out / l
//! ```
//!
//! Every query multiplies the keys and values that it sees and no others, so that not even a NaN comes from the
//! future. A row of `p · v` is one chain over ascending keys per tile, a sum of `p` sixteen lanes, so a query's result
//! depends on its position and the cache alone.

use super::cache::Cache;
use super::tile::{PANEL, Strided, causal_panel, panel};
use crate::dispatch::{Op, dispatch};
use crate::isa::{Isa, LANES};
use crate::{math, par};

/// Keys of a tile.
pub(super) const TILE: usize = 64;
/// Tiles of queries that a task has at least: filling the tiles of keys before them has to pay.
const LEAST: usize = 4;
/// Queries that meet a tile together: their scores stay in the first-level cache.
const QUERIES: usize = 32;

/// Where tiles of keys and values come from.
pub(super) trait Source {
    /// Writes the tile of `count` keys from `first`: `keys` as `[2][dims][32 keys]`, `values` as
    /// `[dims / 32][64 keys][32]`. What lies past `count` is never looked at.
    fn fill<I: Isa>(&mut self, isa: I, first: usize, count: usize, keys: &mut [f32], values: &mut [f32]);
}

/// What the heads of a layer share.
pub(super) struct Shape {
    pub(super) heads: usize,
    pub(super) key_dims: usize,
    pub(super) value_dims: usize,
    pub(super) scale: f32,
}

/// A segment whose first token is token `at` of the batch, and the `position` its cache had before it.
pub(super) struct Prompt<'a> {
    pub(super) cache: &'a Cache,
    pub(super) position: usize,
    pub(super) len: usize,
    pub(super) at: usize,
}

/// Writes `[tokens][heads][value_dims]` of the prompts' tokens into `out`, from the batch's queries `q`,
/// `[tokens][heads][key_dims]`. A task is a head and one of about `parts` parts of a prompt's queries.
pub(super) fn attend<'a, S: Source>(
    shape: &Shape,
    prompts: &[Prompt<'a>],
    parts: usize,
    q: &[f32],
    out: &mut [f32],
    source: impl Fn(&'a Cache, usize) -> S + Sync + Send,
) {
    let Shape { heads, key_dims, value_dims, scale } = *shape;
    let mut tasks = Vec::new();
    for prompt in prompts {
        let part = prompt.len.div_ceil(parts).next_multiple_of(TILE).max(LEAST * TILE);
        for first in (0..prompt.len).step_by(part) {
            let n = part.min(prompt.len - first);
            tasks.extend((0..heads).map(|head| (prompt, first, n, head)));
        }
    }
    let rows = par::map(tasks.clone(), |(prompt, first, n, head)| {
        dispatch(Prefill {
            source: source(prompt.cache, head),
            queries: Strided {
                data: &q[((prompt.at + first) * heads + head) * key_dims..],
                stride: heads * key_dims,
            },
            n,
            position: prompt.position + first,
            key_dims,
            value_dims,
            scale,
        })
    });
    let stride = value_dims.next_multiple_of(PANEL);
    for (tasks, rows) in tasks.chunks(heads).zip(rows.chunks(heads)) {
        let (prompt, first, n, _) = tasks[0];
        let width = heads * value_dims;
        let out = &mut out[(prompt.at + first) * width..][..n * width];
        par::for_chunks(out, TOGETHER * width, |task, out| {
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                for (rows, out) in rows.iter().zip(out.chunks_exact_mut(value_dims)) {
                    out.copy_from_slice(&rows[(task * TOGETHER + i) * stride..][..value_dims]);
                }
            }
        });
    }
}

/// Tokens whose heads are put together by one task.
const TOGETHER: usize = 16;

/// One head of one segment.
struct Prefill<'a, S> {
    source: S,
    /// One row per query.
    queries: Strided<'a>,
    n: usize,
    /// Position of the first query.
    position: usize,
    key_dims: usize,
    value_dims: usize,
    scale: f32,
}

impl<S: Source> Op for Prefill<'_, S> {
    /// `[n][value_dims, padded to 32]`.
    type Out = Vec<f32>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Vec<f32> {
        let Prefill { mut source, queries, n, position, key_dims, value_dims, scale } = self;
        let value_panels = value_dims.div_ceil(PANEL);
        let width = value_panels * PANEL;
        let mut keys = vec![0.0; TILE * key_dims];
        let mut values = vec![0.0; TILE * width];
        let mut scores = vec![0.0; QUERIES * TILE];
        let mut out = vec![0.0; n * width];
        let mut running = vec![(f32::NEG_INFINITY, 0.0); n];
        let end = position + n;
        let mut first = 0;
        while first < end {
            let count = TILE.min(end - first);
            source.fill(isa, first, count, &mut keys, &mut values);
            let mut q = first.saturating_sub(position) / QUERIES * QUERIES;
            while q < n {
                let rows = QUERIES.min(n - q);
                // Keys that the last query of the block sees.
                let seen = count.min(position + q + rows - first);
                let panels = seen.div_ceil(PANEL);
                for p in 0..panels {
                    let keys = Strided { data: &keys[p * key_dims * PANEL..], stride: PANEL };
                    let to = &mut scores[p * PANEL..];
                    panel(isa, (rows, key_dims), queries.rows(q), keys, to, TILE, false);
                }
                let mut visible = [0; QUERIES];
                for r in 0..rows {
                    visible[r] = (position + q + r + 1).saturating_sub(first).min(count);
                    if visible[r] == 0 {
                        continue;
                    }
                    let scores = &mut scores[r * TILE..][..panels * PANEL];
                    let shrink = soften(isa, scores, visible[r], scale, &mut running[q + r]);
                    if shrink != 1.0 {
                        let out = &mut out[(q + r) * width..][..width];
                        out.iter_mut().for_each(|x| *x *= shrink);
                    }
                }
                for p in 0..value_panels {
                    let weights = Strided { data: &scores, stride: TILE };
                    let values = Strided { data: &values[p * TILE * PANEL..], stride: PANEL };
                    let to = &mut out[q * width + p * PANEL..];
                    causal_panel(isa, &visible[..rows], weights, values, to, width);
                }
                q += QUERIES;
            }
            first += TILE;
        }
        for (i, (_, sum)) in running.into_iter().enumerate() {
            let scale = 1.0 / sum;
            let out = &mut out[i * width..][..width];
            out.iter_mut().for_each(|x| *x *= scale);
        }
        out
    }
}

/// Turns scores into weights under the running maximum and sum; returns the factor on what was summed before.
#[inline(always)]
fn soften<I: Isa>(isa: I, scores: &mut [f32], visible: usize, scale: f32, running: &mut (f32, f32)) -> f32 {
    scores[visible..].fill(f32::NEG_INFINITY);
    let lanes = scores.as_chunks_mut::<LANES>().0;
    let mut most = [f32::NEG_INFINITY; LANES];
    for lanes in lanes.iter_mut() {
        for i in 0..LANES {
            lanes[i] *= scale;
            most[i] = if lanes[i] > most[i] { lanes[i] } else { most[i] };
        }
    }
    let (mut max, sum) = *running;
    for most in most {
        max = if most > max { most } else { max };
    }
    let mut sums = [0.0; LANES];
    for lanes in lanes.iter_mut() {
        for i in 0..LANES {
            lanes[i] = math::exp(lanes[i] - max);
            sums[i] += lanes[i];
        }
    }
    let shrink = math::exp(running.0 - max);
    *running = (max, sum.mul_add(shrink, isa.sum(isa.load(&sums))));
    shrink
}

/// Writes `dims` columns of `count` rows as dims `at..` of a key tile `[2][key_dims][32 keys]`.
#[inline(always)]
pub(super) fn turn(
    rows: Strided<'_>,
    count: usize,
    dims: usize,
    at: usize,
    key_dims: usize,
    keys: &mut [f32],
) {
    for t in 0..count {
        let row = &rows.data[t * rows.stride..][..dims];
        let keys = &mut keys[(t / PANEL * key_dims + at) * PANEL + t % PANEL..];
        for d in 0..dims {
            keys[d * PANEL] = row[d];
        }
    }
}
