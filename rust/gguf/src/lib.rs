//! The GGUF container: validated reading, split sets, layout-first writing.
//!
//! Knows: the bytes of a GGUF file, its metadata and where each tensor lies. Does not know: what a
//! weight means, any model, Python. Any byte sequence gives a [`Header`] or a typed [`Kind`] of error,
//! never a panic; what the writer lays out has passed the reader's own checks before the first write.
//!
//! ```
//! use kizami_gguf::{File, TypeId, Value, Writer};
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("small.gguf");
//! let metadata = vec![("general.name".to_owned(), Value::from("small"))];
//! let writer = Writer::create(&path, metadata, &[("bias".to_owned(), TypeId::F32, vec![2])])?;
//! writer.write("bias", &[0; 8])?;
//! writer.finish()?;
//!
//! let file = File::open(&path)?;
//! let (info, bytes) = file.tensor("bias").expect("just written");
//! assert_eq!((info.ty.name(), bytes.len()), ("F32", 8));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | [`types`] | the table of tensor types |
//! | [`value`] | metadata values |
//! | [`error`] | everything that can be wrong |
//! | [`lookalike`] | wrong files that are common |
//! | [`header`] | the parsed header, lookups by name |
//! | [`read`] | bytes to header, all checks |
//! | [`layout`] | header to bytes, exact file size |
//! | [`mod@file`] | mapped files and split sets |
//! | [`mod@write`] | the writer: partial file, positioned writes, rename |
#![deny(unsafe_code)]

pub mod error;
pub mod file;
pub mod header;
pub mod layout;
pub mod lookalike;
pub mod read;
mod split;
pub mod types;
pub mod value;
mod wire;
pub mod write;

pub use error::{Error, Kind};
pub use file::{File, View};
pub use header::{Header, TensorInfo};
pub use layout::Layout;
pub use lookalike::Lookalike;
pub use read::parse;
pub use types::TypeId;
pub use value::{Array, Value};
pub use write::Writer;
