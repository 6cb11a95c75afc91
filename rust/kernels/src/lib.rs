//! Block formats times instruction sets: decode, matmul, attention, experts.
//!
//! Knows: how weights are packed, how to multiply them, what one transformer block computes.
//! Does not know: files, Python, tokens, models. A newcomer reads [`matmul`] and one file of
//! [`formats`]; `docs/kernels.md` tells the story.
#![deny(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "iterator adapters are calls that kernels may not inline")]

pub mod bandwidth;
pub mod chunk;
mod columns;
pub mod convert;
pub mod dispatch;
pub mod error;
pub mod float;
pub mod format;
pub mod formats;
mod gemv;
pub mod isa;
pub mod math;
pub mod matmul;
pub mod matrix;
pub mod ops;
mod panel;
pub mod par;
pub mod profile;
pub mod repack;

pub use dispatch::{Level, dispatch, level, levels, set_level};
pub use error::Error;
pub use format::{Family, Format, Type};
pub use matrix::Matrix;
pub use repack::{repack, repacked_bytes};
