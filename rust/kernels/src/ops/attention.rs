//! Attention: latent ([`mla`]) and grouped ([`gqa`]) over rows that sequences keep ([`cache`]).
//!
//! The blocks know their formulas; the sums over keys are [`prefill`]'s for many queries and [`decode`]'s for
//! few, both on the register tiles of [`tile`]. All of it is f32, and a token's result depends on its own
//! sequence and position and on how its segment is computed, never on what else is in the batch.

mod cache;
mod decode;
mod gqa;
mod mla;
mod prefill;
mod tile;

pub use cache::{Cache, CacheType};
pub use gqa::{Biased, Gqa};
pub use mla::Mla;

use crate::error::{Error, expect_len};
use decode::Query;
use prefill::Prompt;

/// Segments of fewer tokens are computed span by span, so that a few tokens have the same bits together or one
/// by one; longer ones may be computed tile by tile.
pub const FEW: usize = 32;

/// Some consecutive tokens of one sequence.
pub struct Segment<'a> {
    /// Position of the first token; the cache must hold exactly that many rows.
    pub position: usize,
    /// Number of tokens.
    pub len: usize,
    /// The sequence's cache in this layer.
    pub cache: &'a mut Cache,
}

/// The position of every token of a batch, of which there must be as many as `x` has rows of `d`.
fn positions(segments: &[Segment<'_>], x: &[f32], d: usize) -> Result<Vec<usize>, Error> {
    let n = segments.iter().fold(0, |n: usize, s| n.saturating_add(s.len));
    expect_len("hidden states", x.len(), n.saturating_mul(d))?;
    Ok(segments.iter().flat_map(|s| s.position..s.position + s.len).collect())
}

/// Checks that every cache has rows of `width` numbers, as many as its segment's position says.
fn check_caches(segments: &[Segment<'_>], width: usize) -> Result<(), Error> {
    segments.iter().try_for_each(|s| {
        expect_len("numbers of a cached row", s.cache.width(), width)?;
        expect_len("tokens in the cache", s.cache.len(), s.position)
    })
}

/// Appends to every segment's cache its tokens' rows, as many floats each as the cache's rows have.
fn append(segments: &mut [Segment<'_>], mut rows: &[f32]) {
    for s in segments {
        let (mine, rest) = rows.split_at(s.len * s.cache.stride());
        s.cache.extend(mine);
        rows = rest;
    }
}

/// A batch's tokens by the way their segments are computed.
#[derive(Default)]
struct Forms<'a> {
    /// Single tokens, and which of the batch they are.
    few: Vec<Query<'a>>,
    tokens: Vec<usize>,
    many: Vec<Prompt<'a>>,
}

/// Sorts segments whose rows are cached.
fn forms<'a>(segments: &'a [Segment<'_>], many: impl Fn(&Segment<'_>) -> bool) -> Forms<'a> {
    let (mut forms, mut at) = (Forms::default(), 0);
    for s in segments {
        if many(s) {
            forms.many.push(Prompt { cache: s.cache, position: s.position, len: s.len, at });
        } else {
            forms.few.extend((0..s.len).map(|i| Query { cache: s.cache, len: s.position + i + 1 }));
            forms.tokens.extend(at..at + s.len);
        }
        at += s.len;
    }
    forms
}

/// Tokens `tokens` of `x`, rows of `width`, one after the other.
fn gather(x: &[f32], tokens: &[usize], width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(tokens.len() * width);
    tokens.iter().for_each(|token| out.extend_from_slice(&x[token * width..][..width]));
    out
}

/// Puts rows of `width` where [`gather`] takes them from.
fn scatter(rows: &[f32], tokens: &[usize], width: usize, out: &mut [f32]) {
    for (token, row) in tokens.iter().zip(rows.chunks_exact(width)) {
        out[token * width..][..width].copy_from_slice(row);
    }
}
