//! Encoders per block format and the byte-exact budget solver.
//!
//! Knows: how to round weights into the formats of [`kizami_kernels`], how far the result is from
//! the original, and how to spend a budget of bytes over tensors. Does not know: files, what a tensor
//! is for, Python.
#![deny(unsafe_code)]

pub mod curvature;
pub mod encode;
pub mod error;
pub mod metric;
pub mod moments;
pub mod plan;
pub mod statistics;
pub mod tensor;

pub use curvature::Curvature;
pub use encode::{encode_rows, encode_rows_with_feedback};
pub use error::Error;
pub use metric::Metric;
pub use moments::{Drift, Moments};
pub use plan::solve;
pub use statistics::{Inputs, Statistics};
