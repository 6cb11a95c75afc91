//! Split sets: `name-00001-of-00003.gguf` and the shards beside it, joined to one header.
//!
//! The metadata lies in the first shard; the others carry the `split.*` keys and their tensors. Files
//! that a merge has put together again keep `split.count` 0: they count as whole. Paths are made from the
//! name of the first shard and never from file content.

use crate::error::{Error, Kind};
use crate::file::Shard;
use crate::header::Header;
use memmap2::Mmap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// The count is a u16 in the files of the field.
const MAX_SHARDS: u64 = 65_535;

/// Files and their maps, the joint header, and the file of each tensor.
type Joined = (Vec<(PathBuf, Arc<Mmap>)>, Header, Vec<usize>);

/// Opens what belongs to the first shard. A file that is not split comes back as it is.
pub(crate) fn join(first: Shard) -> Result<Joined, Error> {
    let first_path = first.path.clone();
    let at_first = |kind: Kind| kind.at(&first_path);
    let count = match first.header.value(COUNT) {
        Some(_) => number(&first.header, COUNT).map_err(at_first)?,
        None => 1,
    };
    if count <= 1 {
        let shard_of = vec![0; first.header.tensors().len()];
        return Ok((vec![(first.path, first.map)], first.header, shard_of));
    }
    if count > MAX_SHARDS {
        return Err(at_first(mismatch(COUNT, count, "0 to 65535")));
    }
    let no = number(&first.header, NO).map_err(at_first)?;
    if no != 0 {
        return Err(at_first(Kind::NotFirstShard { no, count }));
    }
    let total = number(&first.header, TENSORS).map_err(at_first)?;
    let prefix = name_prefix(&first_path, count).map_err(at_first)?;

    let mut header = Header::new(first.header.version());
    header.set_alignment(first.header.alignment());
    for (key, value) in first.header.metadata() {
        if ![NO, COUNT, TENSORS].contains(&key.as_str()) {
            header.add_value(key.clone(), value.clone());
        }
    }
    let (mut files, mut shard_of) = (Vec::new(), Vec::new());
    let mut shard = first;
    for no in 0..count {
        if no > 0 {
            let path = first_path.with_file_name(format!("{prefix}{}", ending(no, count)));
            shard = open_further(&path, no, count)?;
            check_further(&shard.header, &header, no, count, total).map_err(|kind| kind.at(&path))?;
        }
        for info in shard.header.tensors() {
            if !header.add_tensor(info.clone()) {
                return Err(Kind::ShardTensor { tensor: info.name.clone() }.at(&shard.path));
            }
            shard_of.push(files.len());
        }
        files.push((shard.path.clone(), Arc::clone(&shard.map)));
    }
    let found = header.tensors().len() as u64;
    if found != total {
        let expected = format!("{found}, the tensors of all {count} shards");
        return Err(at_first(mismatch(TENSORS, total, &expected)));
    }
    Ok((files, header, shard_of))
}

fn open_further(path: &Path, no: u64, count: u64) -> Result<Shard, Error> {
    Shard::open(path).map_err(|error| match error.kind {
        Kind::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
            Kind::ShardMissing { no, count }.at(path)
        }
        _ => error,
    })
}

/// Whether a later shard belongs to the set. Metadata that it repeats must be that of the first shard:
/// shards of two conversions of one model differ nowhere else.
fn check_further(own: &Header, first: &Header, no: u64, count: u64, total: u64) -> Result<(), Kind> {
    for (key, expected) in [(NO, no), (COUNT, count), (TENSORS, total)] {
        let found = number(own, key)?;
        if found != expected {
            return Err(mismatch(key, found, &format!("{expected} in shard {} of {count}", no + 1)));
        }
    }
    for (key, value) in own.metadata() {
        if first.value(key).is_some_and(|expected| expected != value) {
            return Err(mismatch(key, "another value", "that of shard 1"));
        }
    }
    Ok(())
}

/// A `split.*` key as a number.
fn number(header: &Header, key: &str) -> Result<u64, Kind> {
    let value = header.value(key);
    value.and_then(|v| v.as_u64()).ok_or_else(|| {
        let found = value.map_or("nothing".to_owned(), |v| match v.as_i64() {
            Some(number) => number.to_string(),
            None => v.type_name().to_owned(),
        });
        mismatch(key, found, "a number, 0 or more")
    })
}

fn mismatch(key: &str, found: impl ToString, expected: &str) -> Kind {
    Kind::ShardKey { key: key.to_owned(), found: found.to_string(), expected: expected.to_owned() }
}

/// The file name of the first shard without its ending.
fn name_prefix(path: &Path, count: u64) -> Result<String, Kind> {
    let expected = ending(0, count);
    let name = path.file_name().and_then(|name| name.to_str());
    match name.and_then(|name| name.strip_suffix(&expected)) {
        Some(prefix) => Ok(prefix.to_owned()),
        None => Err(Kind::ShardName { expected }),
    }
}

fn ending(no: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", no + 1)
}
