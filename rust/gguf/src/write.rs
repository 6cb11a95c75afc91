//! The writer: layout first, then tensors in any order, then one rename.
//!
//! Everything goes to a partial file beside the output, which already has its final size and place for
//! every tensor. The output's own name changes hands only when all is written and on disk, so it never
//! shows half a file, and an older file under that name stays good until then. Dropping the writer removes
//! the partial file. Free space is not asked for: the standard library cannot, so a full disk is an error
//! of the write that meets it.

use crate::error::{Error, Kind, io_error};
use crate::layout::Layout;
use crate::types::TypeId;
use crate::value::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::NamedTempFile;

/// A file being written. Writes take `&self`: several threads may write at the same time.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    partial: NamedTempFile,
    layout: Layout,
    progress: Mutex<Vec<Progress>>,
}

/// What has been written of one tensor.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// Start to end of the parts that were taken on, neighbours merged.
    claimed: BTreeMap<u64, u64>,
    /// Bytes that have arrived.
    written: u64,
}

impl Progress {
    /// Takes on a part that is not empty; false where it overlaps with an earlier one.
    fn claim(&mut self, mut start: u64, mut end: u64) -> bool {
        let before = self.claimed.range(..=start).next_back().map(|(&s, &e)| (s, e));
        let after = self.claimed.range(start..).next().map(|(&s, &e)| (s, e));
        if before.is_some_and(|(_, e)| e > start) || after.is_some_and(|(s, _)| s < end) {
            return false;
        }
        if let Some((s, e)) = before
            && e == start
        {
            start = s;
        }
        if let Some((s, e)) = after
            && s == end
        {
            self.claimed.remove(&s);
            end = e;
        }
        self.claimed.insert(start, end);
        true
    }
}

impl Writer {
    /// Lays the file out, creates the partial file in its final size and writes the header. Tensors are
    /// name, type, and dimensions with the fastest first.
    pub fn create(
        path: impl AsRef<Path>,
        metadata: Vec<(String, Value)>,
        tensors: &[(String, TypeId, Vec<u64>)],
    ) -> Result<Writer, Error> {
        let path = path.as_ref();
        let layout = Layout::new(&metadata, tensors).map_err(|kind| kind.at(path))?;
        drop(metadata);
        // Found out now rather than after hours of work.
        let name = path.file_name().ok_or_else(|| Kind::NotAFile.at(path))?;
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(Kind::NotAFile.at(path));
        }
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".partial");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        // The result is an ordinary file, not a secret: as readable as the umask allows.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let partial = builder.tempfile_in(folder(path)).map_err(io_error("create", path))?;
        let file = partial.as_file();
        file.set_len(layout.size()).map_err(io_error("reserve space for", path))?;
        write_at(file, layout.bytes(), 0).map_err(io_error("write", path))?;
        let progress = Mutex::new(vec![Progress::default(); layout.tensors().len()]);
        Ok(Writer { path: path.to_owned(), partial, layout, progress })
    }

    /// The path that the finished file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where every byte lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Writes a whole tensor.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (found, expected) = (bytes.len() as u64, self.layout.tensors()[self.index(name)?].nbytes);
        if found != expected {
            return Err(self.error(Kind::WriteLength { tensor: name.to_owned(), found, expected }));
        }
        self.write_rows(name, 0, bytes)
    }

    /// Writes a part of a tensor, `start` bytes from the tensor's beginning. Parts may come in any order;
    /// each byte comes once.
    pub fn write_rows(&self, name: &str, start: u64, bytes: &[u8]) -> Result<(), Error> {
        let index = self.index(name)?;
        let info = &self.layout.tensors()[index];
        let len = bytes.len() as u64;
        let Some(end) = start.checked_add(len).filter(|&end| end <= info.nbytes) else {
            let tensor = name.to_owned();
            return Err(self.error(Kind::WriteRange { tensor, start, len, nbytes: info.nbytes }));
        };
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.progress()[index].claim(start, end) {
            return Err(self.error(Kind::WrittenTwice { tensor: name.to_owned(), start, len }));
        }
        // A part that fails here stays claimed but never counts as written: finish refuses.
        write_at(self.partial.as_file(), bytes, info.offset + start)
            .map_err(io_error("write", &self.path))?;
        self.progress()[index].written += len;
        Ok(())
    }

    /// Checks that every tensor is complete, brings all to disk and gives the file its name.
    pub fn finish(self) -> Result<(), Error> {
        for (info, progress) in self.layout.tensors().iter().zip(self.progress().iter()) {
            if progress.written != info.nbytes {
                let (tensor, written, nbytes) = (info.name.clone(), progress.written, info.nbytes);
                return Err(self.error(Kind::Incomplete { tensor, written, nbytes }));
            }
        }
        let Writer { path, partial, .. } = self;
        partial.as_file().sync_all().map_err(io_error("bring to disk", &path))?;
        partial.persist(&path).map_err(|e| io_error("rename the partial file to", &path)(e.error))?;
        sync_folder(folder(&path)).map_err(io_error("bring to disk", &path))
    }

    fn index(&self, name: &str) -> Result<usize, Error> {
        let index = self.layout.header().tensor_index(name);
        index.ok_or_else(|| self.error(Kind::UnknownTensor { tensor: name.to_owned() }))
    }

    /// A panic of another thread leaves the list usable: each change to it is complete or absent.
    fn progress(&self) -> MutexGuard<'_, Vec<Progress>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, kind: Kind) -> Error {
        kind.at(&self.path)
    }
}

/// The folder of a path; that of a bare name is the current one.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(unix)]
fn write_at(file: &fs::File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_at(file: &fs::File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}

/// Makes the rename itself survive a power cut.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    match fs::File::open(folder)?.sync_all() {
        // Some network file systems do not sync folders. The file is complete under its name all the same.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

#[cfg(windows)]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Progress;

    #[test]
    fn claims_merge_and_refuse_overlaps() {
        let mut progress = Progress::default();
        assert!(progress.claim(10, 20));
        assert!(progress.claim(0, 5));
        for (start, end) in [(0, 1), (4, 6), (9, 11), (19, 21), (0, 30), (12, 13), (10, 20)] {
            assert!(!progress.claim(start, end), "{start}..{end}");
        }
        assert!(progress.claim(5, 10));
        assert!(progress.claim(20, 30));
        assert_eq!(progress.claimed, [(0, 30)].into());
    }
}
