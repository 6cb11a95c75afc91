//! Everything that can be wrong with a GGUF file or with a call that writes one.
//!
//! A message names the field, where it lies, what was found and what was expected. Advice for the
//! person is apart from the message, in [`Kind::hint`]. Knows no exit codes and no Python.

use crate::lookalike::Lookalike;
use std::io;
use std::path::{Path, PathBuf};

/// What is wrong, and with which file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub struct Error {
    /// The file; of a split set, the shard.
    pub path: PathBuf,
    /// What is wrong with it.
    pub kind: Kind,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Kind {
    /// The operating system refused.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A folder, device or pipe stands where a file is expected.
    #[error("not a regular file")]
    NotAFile,
    /// Fewer bytes than the fixed part of the header.
    #[error("not a GGUF file: found {have} bytes, expected at least {needs}")]
    TooShort {
        /// Bytes of the file.
        have: u64,
        /// Bytes of the smallest file.
        needs: u64,
    },
    /// The file does not start with `GGUF`.
    #[error("not a GGUF file but {found}: byte 0: found \"{}\", expected \"GGUF\"", start.escape_ascii())]
    Magic {
        /// The first bytes.
        start: [u8; 4],
        /// What the file seems to be.
        found: Lookalike,
    },
    /// Written for a big-endian machine.
    #[error("byte 4: the file is big-endian, expected little-endian")]
    BigEndian,
    /// A version of the format that is not read.
    #[error("byte 4: version: found {found}, expected 2 or 3")]
    Version {
        /// The version found.
        found: u32,
    },
    /// More tensors or metadata than the rest of the file can hold, or a negative number.
    #[error("byte {offset}: {field}: found {found}, expected 0 to {limit} in a file of this size")]
    Count {
        /// Which count.
        field: &'static str,
        /// Where it lies.
        offset: u64,
        /// The count found.
        found: i64,
        /// The most that is possible.
        limit: u64,
    },
    /// The header ends in the middle.
    #[error("truncated: byte {offset}: {field} needs {needs} bytes, found {left}")]
    HeaderTruncated {
        /// What is being read.
        field: String,
        /// Where it starts.
        offset: u64,
        /// Bytes it takes.
        needs: u64,
        /// Bytes left in the file.
        left: u64,
    },
    /// A string, an array or the metadata as a whole beyond any sensible size.
    #[error("byte {offset}: {field}: found length {found}, expected at most {limit}")]
    TooLong {
        /// Which field.
        field: String,
        /// Where its length lies.
        offset: u64,
        /// The length found.
        found: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// The machine has no memory for an array.
    #[error("{field}: no memory for {count} elements")]
    OutOfMemory {
        /// Which field.
        field: String,
        /// Its elements.
        count: usize,
    },
    /// Text that is not UTF-8.
    #[error("byte {offset}: {field}: found an invalid byte, expected UTF-8 text")]
    NotUtf8 {
        /// Which field.
        field: String,
        /// The first bad byte.
        offset: u64,
    },
    /// A metadata key or tensor name that cannot be one.
    #[error("byte {offset}: {field}: found {found:?}, expected {expected}")]
    Name {
        /// Metadata key or tensor name.
        field: &'static str,
        /// Where it lies.
        offset: u64,
        /// The name, shortened.
        found: String,
        /// The rule it breaks.
        expected: &'static str,
    },
    /// A key or name that occurs twice.
    #[error("byte {offset}: {field}: found {name:?} a second time, expected it once")]
    Duplicate {
        /// Metadata key or tensor name.
        field: &'static str,
        /// Where the second one lies.
        offset: u64,
        /// The name.
        name: String,
    },
    /// An unknown type number of a metadata value or array element.
    #[error("byte {offset}: value type of {key:?}: found {found}, expected 0 to 12")]
    ValueType {
        /// The key.
        key: String,
        /// Where the number lies.
        offset: u64,
        /// The number.
        found: u32,
    },
    /// An array of arrays.
    #[error("byte {offset}: array {key:?}: found arrays as elements, expected numbers or strings")]
    NestedArray {
        /// The key.
        key: String,
        /// Where the element type lies.
        offset: u64,
    },
    /// A bool that is neither 0 nor 1.
    #[error("byte {offset}: {field}: found {found}, expected a bool, 0 or 1")]
    Bool {
        /// Which field.
        field: String,
        /// Where it lies.
        offset: u64,
        /// The byte found.
        found: u8,
    },
    /// `general.alignment` has another type than u32, or an impossible value.
    #[error("byte {offset}: general.alignment: found {found}, expected a u32 power of two, at most 1048576")]
    Alignment {
        /// Where the value type lies.
        offset: u64,
        /// Type and value found.
        found: String,
    },
    /// A tensor without dimensions, or with more than four.
    #[error("byte {offset}: dimensions of tensor {tensor:?}: found {found}, expected 1 to 4")]
    Rank {
        /// The tensor.
        tensor: String,
        /// Where the number lies.
        offset: u64,
        /// The number.
        found: u32,
    },
    /// A dimension that is zero or negative.
    #[error("byte {offset}: dimension {axis} of tensor {tensor:?}: found {found}, expected 1 or more")]
    Dimension {
        /// The tensor.
        tensor: String,
        /// Which dimension, 0 being the one that runs fastest.
        axis: usize,
        /// Where it lies.
        offset: u64,
        /// The dimension found.
        found: i64,
    },
    /// An unknown or removed tensor type.
    #[error("byte {offset}: type of tensor {tensor:?}: found {found}, expected a live ggml type number")]
    TensorType {
        /// The tensor.
        tensor: String,
        /// Where the number lies.
        offset: u64,
        /// The number.
        found: u32,
    },
    /// Rows that do not divide into the type's blocks.
    #[error(
        "byte {offset}: rows of tensor {tensor:?}: found {found} weights, expected a multiple of {block} for {ty}"
    )]
    RowLength {
        /// The tensor.
        tensor: String,
        /// Where the first dimension lies.
        offset: u64,
        /// Its type.
        ty: &'static str,
        /// Weights per row.
        found: u64,
        /// Weights per block.
        block: u64,
    },
    /// Sizes beyond 63 bits.
    #[error("byte {offset}: tensor {tensor:?}: found dimensions {dims:?}, expected a size that fits 63 bits")]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// Where its dimensions lie.
        offset: u64,
        /// The dimensions, fastest first.
        dims: Vec<u64>,
    },
    /// A tensor that does not start where the one before it ends.
    #[error("byte {offset}: offset of tensor {tensor:?}: found {found}, expected {expected}")]
    TensorOffset {
        /// The tensor.
        tensor: String,
        /// Where the number lies.
        offset: u64,
        /// The offset found, from the start of the data.
        found: u64,
        /// The offset that leaves neither hole nor overlap.
        expected: u64,
    },
    /// The file ends before its tensors do.
    #[error("truncated: need {needs} bytes, have {have}")]
    DataTruncated {
        /// Bytes up to the end of the last tensor.
        needs: u64,
        /// Bytes of the file.
        have: u64,
    },
    /// A shard in the middle of a set was given.
    #[error("shard {} of {count} of a split set, expected shard 1", no + 1)]
    NotFirstShard {
        /// This shard's number, from 0.
        no: u64,
        /// Shards in the set.
        count: u64,
    },
    /// A shard's file name does not say which shard it is.
    #[error("file name: expected it to end in {expected:?}, as split.no and split.count say")]
    ShardName {
        /// The ending.
        expected: String,
    },
    /// A shard is not beside the first one.
    #[error("missing: shard {} of {count} of a split set", no + 1)]
    ShardMissing {
        /// Its number, from 0.
        no: u64,
        /// Shards in the set.
        count: u64,
    },
    /// A `split.*` key that cannot be, or a shard that does not belong to the set.
    #[error("{key}: found {found}, expected {expected}")]
    ShardKey {
        /// The metadata key.
        key: String,
        /// The value found, or "nothing".
        found: String,
        /// The value that fits.
        expected: String,
    },
    /// A tensor that another shard has as well.
    #[error("tensor {tensor:?}: found in this shard and in an earlier one, expected it once")]
    ShardTensor {
        /// The tensor.
        tensor: String,
    },
    /// A write to a tensor that the layout does not have.
    #[error("tensor {tensor:?}: not in the layout of this file")]
    UnknownTensor {
        /// The tensor.
        tensor: String,
    },
    /// A whole tensor of another size than its layout says.
    #[error("tensor {tensor:?}: found {found} bytes, expected {expected}")]
    WriteLength {
        /// The tensor.
        tensor: String,
        /// Bytes given.
        found: u64,
        /// Bytes of the tensor.
        expected: u64,
    },
    /// A part of a tensor that reaches beyond its end.
    #[error("tensor {tensor:?}: found {len} bytes at {start}, expected them within {nbytes}")]
    WriteRange {
        /// The tensor.
        tensor: String,
        /// Where the part starts in the tensor.
        start: u64,
        /// Bytes given.
        len: u64,
        /// Bytes of the tensor.
        nbytes: u64,
    },
    /// Bytes of a tensor that are there already.
    #[error(
        "tensor {tensor:?}: {len} bytes at {start} overlap with an earlier write, expected each byte once"
    )]
    WrittenTwice {
        /// The tensor.
        tensor: String,
        /// Where the part starts in the tensor.
        start: u64,
        /// Bytes given.
        len: u64,
    },
    /// A tensor that is not complete at the end.
    #[error("tensor {tensor:?}: found {written} bytes written, expected {nbytes}")]
    Incomplete {
        /// The tensor.
        tensor: String,
        /// Bytes written.
        written: u64,
        /// Bytes of the tensor.
        nbytes: u64,
    },
}

impl Kind {
    /// This error about that file.
    pub fn at(self, path: &Path) -> Error {
        Error { path: path.to_owned(), kind: self }
    }

    /// What the person can do, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Magic { found, .. } => found.hint(),
            Self::TooShort { .. }
            | Self::Count { .. }
            | Self::HeaderTruncated { .. }
            | Self::DataTruncated { .. } => Some("the download may be incomplete: fetch the file again"),
            Self::BigEndian => Some("get the little-endian file of this model"),
            Self::Version { found: 1 } => Some("convert the model again: version 1 has been gone since 2023"),
            Self::TensorType { .. } => Some("the type was removed from ggml, or is newer than this program"),
            Self::NotFirstShard { .. } => Some("open the shard whose name has 00001"),
            Self::ShardName { .. } => Some("give the shards the names back that they were published with"),
            Self::ShardMissing { .. } => Some("put all shards of the set into one folder"),
            _ => None,
        }
    }
}

/// Makes an [`Error`] out of an I/O error, for `map_err`.
pub(crate) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Kind::Io { doing, source }.at(path)
}
