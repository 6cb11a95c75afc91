//! Header to bytes: the exact layout of a file before anything is written.
//!
//! Does not judge. Whatever it is given it encodes, and the reader's checks decide, so that there is one
//! set of rules and the writer cannot make a file that the reader refuses. Touches no file.

use crate::error::Kind;
use crate::header::{Header, TensorInfo};
use crate::read::{extent, parse_sized, valid_alignment};
use crate::types::TypeId;
use crate::value::Value;
use crate::wire::Wire;

/// The first four bytes of every file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
/// The version that is written.
const VERSION: u32 = 3;
/// Alignment of the data where the metadata names none.
pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;
/// The key that names another.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";

/// Where every byte of a file will lie.
#[derive(Debug, Clone)]
pub struct Layout {
    bytes: Vec<u8>,
    header: Header,
    size: u64,
}

impl Layout {
    /// Lays out a file: metadata and tensors (name, type, dimensions with the fastest first) in the
    /// order given. The same input gives the same bytes.
    pub fn new(metadata: &[(String, Value)], tensors: &[(String, TypeId, Vec<u64>)]) -> Result<Layout, Kind> {
        let alignment = metadata
            .iter()
            .find(|(key, _)| key == ALIGNMENT_KEY)
            .and_then(|(_, value)| valid_alignment(value))
            .unwrap_or(DEFAULT_ALIGNMENT);
        let mut bytes = MAGIC.to_vec();
        VERSION.write(&mut bytes);
        (tensors.len() as u64).write(&mut bytes);
        (metadata.len() as u64).write(&mut bytes);
        for (key, value) in metadata {
            key.write(&mut bytes);
            value.write(&mut bytes);
        }
        let mut next = 0;
        for (name, ty, dims) in tensors {
            name.write(&mut bytes);
            u32::try_from(dims.len()).unwrap_or(u32::MAX).write(&mut bytes);
            for dim in dims {
                dim.write(&mut bytes);
            }
            ty.id().write(&mut bytes);
            next.write(&mut bytes);
            // Where there is no extent the reader stops at this very tensor.
            next = extent(*ty, dims, next, alignment).map_or(next, |(_, _, padded)| padded);
        }
        bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
        let size = (bytes.len() as u64).saturating_add(next);
        let header = parse_sized(&bytes, size)?;
        Ok(Layout { bytes, header, size })
    }

    /// Size of the finished file, padding included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The header as a reader of the finished file will see it.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All tensors with their places in the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.header.tensors()
    }

    /// The first bytes of the file, up to the data of the first tensor.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
