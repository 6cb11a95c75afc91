//! A GGUF file, or a whole split set, mapped into memory.
//!
//! Knows files and maps, and which shard holds which tensor. The header is copied out of the map once
//! when the file is opened; tensor bytes are handed out as they lie in the map. Does not know how tensor
//! bytes are decoded.

use crate::error::{Error, Kind, io_error};
use crate::header::{Header, TensorInfo};
use crate::value::Value;
use crate::{read, split};
use memmap2::Mmap;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file or split set.
#[derive(Debug)]
pub struct File {
    header: Header,
    shards: Vec<(PathBuf, Arc<Mmap>)>,
    /// The shard of each tensor.
    shard_of: Vec<usize>,
}

/// One file of a set, as mapped and parsed.
pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    pub(crate) map: Arc<Mmap>,
    pub(crate) header: Header,
}

impl Shard {
    pub(crate) fn open(path: &Path) -> Result<Shard, Error> {
        // Asked before it is opened: opening a pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(io_error("open", path))?.is_file() {
            return Err(Kind::NotAFile.at(path));
        }
        let file = std::fs::File::open(path).map_err(io_error("open", path))?;
        if file.metadata().map_err(io_error("open", path))?.len() == 0 {
            // An empty file cannot be mapped.
            return Err(Kind::TooShort { have: 0, needs: read::FIXED_BYTES }.at(path));
        }
        let map = map(&file).map_err(io_error("map", path))?;
        let header = read::parse(&map).map_err(|kind| kind.at(path))?;
        Ok(Shard { path: path.to_owned(), map: Arc::new(map), header })
    }
}

/// One of two unsafe places of the crate; the other gives pages back.
#[allow(unsafe_code)]
fn map(file: &std::fs::File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and lives as long as its owner, which every view holds. It is a slice
    // of bytes, valid for any content; what must not happen is that another process changes the file
    // meanwhile. No program can forbid that. Therefore nothing is checked in the map and trusted later:
    // the header is copied out once, and consumers of tensor bytes treat every block as arbitrary data.
    // Our own writer never changes a file in place; it renames a new one over the old name.
    unsafe { Mmap::map(file) }
}

/// Lets go of the pages of a map that are in memory: they are read again when they are asked for.
#[allow(unsafe_code)]
fn release(map: &Mmap) {
    #[cfg(unix)]
    // SAFETY: `map` makes it with `Mmap::map`: shared with the file, and read-only, so no page of it has anything that the
    // file has not. What is read after this is what would have been read before. Where the system refuses, the pages stay,
    // which is no harm.
    unsafe {
        let _ = map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed);
    }
    #[cfg(not(unix))]
    let _ = map;
}

impl File {
    /// Opens a file, or all shards of a split set when given the first of them
    /// (`name-00001-of-00003.gguf`).
    pub fn open(path: impl AsRef<Path>) -> Result<File, Error> {
        let (shards, header, shard_of) = split::join(Shard::open(path.as_ref())?)?;
        Ok(File { header, shards, shard_of })
    }

    /// The file that was opened; of a split set, its first shard.
    pub fn path(&self) -> &Path {
        &self.shards[0].0
    }

    /// The files of the set and their maps; one for a file that is not split.
    pub fn shards(&self) -> &[(PathBuf, Arc<Mmap>)] {
        &self.shards
    }

    /// Takes all pages out of this process's memory that can be read again. Views stay what they are.
    pub fn release(&self) {
        self.shards.iter().for_each(|(_, map)| release(map));
    }

    /// Bytes of all files of the set.
    pub fn size(&self) -> u64 {
        self.shards.iter().map(|(_, map)| map.len() as u64).sum()
    }

    /// Metadata and tensors. Of a split set it is the header of the file that the set was split from:
    /// without the `split.*` keys; tensor offsets are those in the tensor's own shard.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The value of one metadata key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.header.value(key)
    }

    /// A tensor and its bytes.
    pub fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let (index, range) = self.place(name)?;
        let (_, map) = &self.shards[self.shard_of[index]];
        Some((&self.header.tensors()[index], map.get(range)?))
    }

    /// The bytes of a tensor as a value that keeps the map alive by itself.
    pub fn view(&self, name: &str) -> Option<View> {
        let (index, range) = self.place(name)?;
        let map = Arc::clone(&self.shards[self.shard_of[index]].1);
        map.get(range.clone())?;
        Some(View { map, range })
    }

    fn place(&self, name: &str) -> Option<(usize, Range<usize>)> {
        let index = self.header.tensor_index(name)?;
        let info = &self.header.tensors()[index];
        // The reader found the tensor inside the map, so both ends fit a usize.
        let start = usize::try_from(info.offset).ok()?;
        Some((index, start..start + usize::try_from(info.nbytes).ok()?))
    }
}

/// The bytes of one tensor, independent of the [`File`] they came from.
#[derive(Debug, Clone)]
pub struct View {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Deref for View {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        self
    }
}
