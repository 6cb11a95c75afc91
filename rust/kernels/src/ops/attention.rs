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
