//! The parsed header: metadata and tensors in file order, found by name.
//!
//! Holds only what has been checked: the parts are added by the reader and by split sets, read by all.

use crate::types::TypeId;
use crate::value::Value;
use std::collections::HashMap;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, unique in the file, at most 63 bytes.
    pub name: String,
    /// Its type.
    pub ty: TypeId,
    /// One to four dimensions in ggml order: the first runs fastest, so a matrix has [cols, rows].
    pub dims: Vec<u64>,
    /// Where its bytes start, from the start of the file.
    pub offset: u64,
    /// How many bytes it has.
    pub nbytes: u64,
}

/// The header of a file or of a whole split set.
#[derive(Debug, Clone)]
pub struct Header {
    version: u32,
    alignment: u64,
    metadata: Vec<(String, Value)>,
    tensors: Vec<TensorInfo>,
    keys: HashMap<String, usize>,
    names: HashMap<String, usize>,
}

impl Header {
    pub(crate) fn new(version: u32) -> Self {
        Self {
            version,
            alignment: crate::layout::DEFAULT_ALIGNMENT,
            metadata: Vec::new(),
            tensors: Vec::new(),
            keys: HashMap::new(),
            names: HashMap::new(),
        }
    }

    pub(crate) fn set_alignment(&mut self, alignment: u64) {
        self.alignment = alignment;
    }

    /// Makes offsets from the start of the data into offsets from the start of the file.
    pub(crate) fn shift_offsets(&mut self, data_start: u64) {
        for info in &mut self.tensors {
            info.offset += data_start;
        }
    }

    /// False, and nothing added, where the key is there already.
    pub(crate) fn add_value(&mut self, key: String, value: Value) -> bool {
        let new = !self.keys.contains_key(&key);
        if new {
            self.keys.insert(key.clone(), self.metadata.len());
            self.metadata.push((key, value));
        }
        new
    }

    /// False, and nothing added, where the name is there already.
    pub(crate) fn add_tensor(&mut self, info: TensorInfo) -> bool {
        let new = !self.names.contains_key(&info.name);
        if new {
            self.names.insert(info.name.clone(), self.tensors.len());
            self.tensors.push(info);
        }
        new
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What tensor offsets are multiples of.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// All metadata in file order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The value of one metadata key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&i| &self.metadata[i].1)
    }

    /// All tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index(name).map(|i| &self.tensors[i])
    }

    /// The position of the tensor with this name among [`Header::tensors`].
    pub fn tensor_index(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }
}

/// Equal contents; the lookups follow from them.
impl PartialEq for Header {
    fn eq(&self, other: &Self) -> bool {
        (self.version, self.alignment) == (other.version, other.alignment)
            && self.metadata == other.metadata
            && self.tensors == other.tensors
    }
}
