//! Attention of few queries: all heads that read the same cached columns at once, keys cut into spans.
//!
//! Knows queries per head, the cache's columns and the merging of spans; not where queries come from.
//!
//! ```text
//!  cache, keys 0..128   ┐            16 heads
//!  ┌──────────────────┐ │ scores   ┌─────────┐   max, exp, sum    ┌─────────┐    span 0: m, l, o ┐ merged in
//!  │ key: its columns │ ├────────> │ [key][h]│ ─────────────────> │ [h][key]│ ──────────────────> ├ ascending
//!  └──────────────────┘ │ lanes =  └─────────┘   lanes = heads    └─────────┘  lanes = value dims │ order
//!  keys 128..256 ...    ┘ heads                                                span 1: m, l, o    ┘
//! ```
//!
//! Within a span every score is one chain over the key's columns, every sum one over ascending keys. Spans lie
//! at absolute positions and join a running (maximum, sum, output) one after the other, so a result depends on
//! the query's position and the cache alone, while spans and blocks of heads are computed by any thread.

use super::cache::Cache;
use super::tile::{PANEL, Strided, half_panel, panel};
use crate::dispatch::{Op, dispatch};
use crate::isa::{Isa, LANES};
use crate::math;
use crate::par;

/// Keys of a span.
const SPAN: usize = 128;
/// Heads of a block: the lanes of a register.
pub(super) const HEADS: usize = LANES;
/// Floats of outputs that may wait for merging: 32 MiB.
const WAITING: usize = 1 << 23;

/// Up to sixteen consecutive heads that read the same columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) heads: usize,
    /// First column of the key, and of the value.
    pub(super) key: usize,
    pub(super) value: usize,
}

/// What all queries of a call share.
pub(super) struct Heads {
    pub(super) blocks: Vec<Block>,
    pub(super) key_dims: usize,
    pub(super) value_dims: usize,
    pub(super) scale: f32,
}

/// One query token: the rows before `len` of its cache, itself included.
#[derive(Clone, Copy)]
pub(super) struct Query<'a> {
    pub(super) cache: &'a Cache,
    pub(super) len: usize,
}

/// Outputs `[queries][heads][value_dims]` of `x`, `[queries][heads][key_dims]`.
pub(super) fn attend(heads: &Heads, queries: &[Query<'_>], x: &[f32]) -> Vec<f32> {
    let (key_dims, width) = (heads.key_dims, heads.value_dims.next_multiple_of(PANEL));
    let blocks = heads.blocks.len();
    let turned = turn(heads, queries.len(), x);
    // Per query and block: the running maximum and sum of each head, and its output.
    let mut running = vec![Running::new(); queries.len() * blocks];
    let mut items = Vec::new();
    for (i, query) in queries.iter().enumerate() {
        for block in 0..blocks {
            items.extend((0..query.len.div_ceil(SPAN)).map(|span| (i * blocks + block, span * SPAN)));
        }
    }
    let mut partial = Vec::new();
    for wave in items.chunks((WAITING / (HEADS * width)).max(1)) {
        partial.clear();
        partial.resize(wave.len(), Running::new());
        let mut work = 0;
        let mut tasks = Vec::with_capacity(wave.len());
        for (&(at, first), out) in wave.iter().zip(&mut partial) {
            let query = queries[at / blocks];
            let count = SPAN.min(query.len - first);
            work += count * (key_dims + width) * HEADS;
            tasks.push(Span {
                cache: query.cache,
                keys: (first, count),
                block: heads.blocks[at % blocks],
                heads,
                x: &turned[at * key_dims * HEADS..][..key_dims * HEADS],
                out,
            });
        }
        par::for_each(tasks, work, dispatch);
        // Spans of one query and block are neighbours, in ascending order.
        let mut merges = Vec::new();
        let (mut parts, mut states) = (&partial[..], &mut running[..]);
        let mut skipped = 0;
        for group in wave.chunk_by(|a, b| a.0 == b.0) {
            let (mine, rest) = parts.split_at(group.len());
            let (state, later) =
                states[group[0].0 - skipped..].split_first_mut().expect("one state per group");
            (parts, states, skipped) = (rest, later, group[0].0 + 1);
            merges.push(Merge { state, parts: mine });
        }
        par::for_each(merges, wave.len() * HEADS * width * 4, dispatch);
    }
    let mut out = Vec::with_capacity(x.len() / key_dims * heads.value_dims);
    for (state, block) in running.iter().zip(heads.blocks.iter().cycle()) {
        for h in 0..block.heads {
            let scale = 1.0 / state.sum[h];
            out.extend(state.out[h * width..][..heads.value_dims].iter().map(|x| x * scale));
        }
    }
    out
}

/// Queries as `[queries][blocks][key_dims][16 heads]`: lanes are heads.
fn turn(heads: &Heads, n: usize, x: &[f32]) -> Vec<f32> {
    let (key_dims, blocks) = (heads.key_dims, &heads.blocks);
    let per_query = blocks.iter().map(|b| b.heads).sum::<usize>() * key_dims;
    let mut turned = vec![0.0; n * blocks.len() * key_dims * HEADS];
    par::for_chunks(&mut turned, blocks.len() * key_dims * HEADS, |query, turned| {
        let mut x = &x[query * per_query..][..per_query];
        for (block, turned) in blocks.iter().zip(turned.chunks_exact_mut(key_dims * HEADS)) {
            let (mine, rest) = x.split_at(block.heads * key_dims);
            for (d, lanes) in turned.as_chunks_mut::<HEADS>().0.iter_mut().enumerate() {
                for h in 0..block.heads {
                    lanes[h] = mine[h * key_dims + d];
                }
            }
            x = rest;
        }
    });
    turned
}

/// Maximum score, sum of weights and weighted sum of values over some keys, for the heads of a block.
#[derive(Clone)]
struct Running {
    max: [f32; HEADS],
    sum: [f32; HEADS],
    out: Vec<f32>,
}

impl Running {
    /// Of no keys. The output is allocated by the task that fills it: its thread then has it in its cache.
    fn new() -> Self {
        Self { max: [f32::NEG_INFINITY; HEADS], sum: [0.0; HEADS], out: Vec::new() }
    }
}

struct Span<'a> {
    cache: &'a Cache,
    /// First key and how many.
    keys: (usize, usize),
    block: Block,
    heads: &'a Heads,
    x: &'a [f32],
    out: &'a mut Running,
}

impl Op for Span<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Span { cache, keys, block, heads, x, out } = self;
        let (key_dims, count) = (heads.key_dims, keys.1);
        let width = heads.value_dims.next_multiple_of(PANEL);
        let (mut scratch, mut other) = (Vec::new(), Vec::new());
        let end = block.key + key_dims.next_multiple_of(PANEL);
        let rows = cache.read(isa, keys, block.key..end, &mut scratch);
        let values = if block.value >= block.key && block.value + width <= end {
            rows.columns(block.value - block.key)
        } else {
            cache.read(isa, keys, block.value..block.value + width, &mut other)
        };
        let mut scores = [[0.0; HEADS]; SPAN];
        out.out = vec![0.0; HEADS * width];
        let x = Strided { data: x, stride: HEADS };
        half_panel(isa, (count, key_dims), rows, x, scores.as_flattened_mut(), HEADS);
        let weights = soften(&mut scores[..count], heads.scale, &mut out.max, &mut out.sum);
        for p in 0..width / PANEL {
            let weights = Strided { data: weights.as_flattened(), stride: SPAN };
            let (values, to) = (values.columns(p * PANEL), &mut out.out[p * PANEL..]);
            panel(isa, (block.heads, count), weights, values, to, width, false);
        }
    }
}

/// Weights `[heads][keys]` of scores `[keys][heads]`, with their maximum and sum.
#[inline(always)]
fn soften(
    scores: &mut [[f32; HEADS]],
    scale: f32,
    max: &mut [f32; HEADS],
    sum: &mut [f32; HEADS],
) -> [[f32; SPAN]; HEADS] {
    *max = [f32::NEG_INFINITY; HEADS];
    *sum = [0.0; HEADS];
    for scores in scores.iter_mut() {
        for h in 0..HEADS {
            scores[h] *= scale;
            max[h] = if scores[h] > max[h] { scores[h] } else { max[h] };
        }
    }
    let mut weights = [[0.0; SPAN]; HEADS];
    for (t, scores) in scores.iter_mut().enumerate() {
        for h in 0..HEADS {
            scores[h] = math::exp(scores[h] - max[h]);
            sum[h] += scores[h];
        }
        for h in 0..HEADS {
            weights[h][t] = scores[h];
        }
    }
    weights
}

struct Merge<'a> {
    state: &'a mut Running,
    parts: &'a [Running],
}

impl Op for Merge<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let Merge { state, parts } = self;
        let width = parts[0].out.len() / HEADS;
        state.out.resize(HEADS * width, 0.0);
        for part in parts {
            for h in 0..HEADS {
                let max = if part.max[h] > state.max[h] { part.max[h] } else { state.max[h] };
                let (old, new) = (math::exp(state.max[h] - max), math::exp(part.max[h] - max));
                state.max[h] = max;
                state.sum[h] = part.sum[h].mul_add(new, state.sum[h] * old);
                let (out, from) = (&mut state.out[h * width..][..width], &part.out[h * width..][..width]);
                for i in 0..width {
                    out[i] = from[i].mul_add(new, out[i] * old);
                }
            }
        }
    }
}
