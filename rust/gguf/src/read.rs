//! Bytes to header, with every check.
//!
//! Each byte is read once, from front to back, into owned values; nothing is validated and then read
//! again. Counts are bounded by the bytes that are left before memory is reserved, sizes are computed
//! with checked arithmetic. Does not touch files or tensor data.

use crate::error::Kind;
use crate::header::{Header, TensorInfo};
use crate::layout::{ALIGNMENT_KEY, MAGIC};
use crate::lookalike::Lookalike;
use crate::types::TypeId;
use crate::value::Value;
use crate::wire::{Cursor, Place, Wire};

/// Magic, version, two counts.
pub(crate) const FIXED_BYTES: u64 = 24;
/// Most tensors, and most metadata keys. DeepSeek-V3 has about 1100 tensors.
const MAX_COUNT: u64 = 1_000_000;
/// The smallest metadata record: length, one letter, value type, one byte.
const MIN_RECORD: u64 = 8 + 1 + 4 + 1;
/// The smallest tensor record: length, one letter, one dimension with its count, type, offset.
const MIN_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;
/// Longest metadata key, as the specification has it.
const MAX_KEY: usize = 65_535;
/// Longest tensor name: ggml keeps names in 64 bytes with a NUL at the end.
const MAX_NAME: usize = 63;
/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;
/// Largest alignment.
const MAX_ALIGNMENT: u32 = 1 << 20;
/// Most bytes of metadata altogether.
const MAX_METADATA: u64 = 1 << 30;

/// Parses and validates a whole file in memory. Bytes after the last tensor are allowed.
pub fn parse(bytes: &[u8]) -> Result<Header, Kind> {
    parse_sized(bytes, bytes.len() as u64)
}

/// Parses the first bytes of a file of `file_size` bytes.
pub(crate) fn parse_sized(bytes: &[u8], file_size: u64) -> Result<Header, Kind> {
    let start = &bytes[..bytes.len().min(4)];
    if !MAGIC.starts_with(start) {
        let found = Lookalike::of(bytes);
        let mut magic = [0; 4];
        magic[..start.len()].copy_from_slice(start);
        return Err(Kind::Magic { start: magic, found });
    }
    if (bytes.len() as u64) < FIXED_BYTES {
        return Err(Kind::TooShort { have: bytes.len() as u64, needs: FIXED_BYTES });
    }
    let mut from = Cursor::new(bytes);
    from.take(4, Place { what: "magic", of: "" })?;
    let version = u32::read(&mut from, Place { what: "version", of: "" })?;
    if version != 0 && version.trailing_zeros() >= 16 {
        return Err(Kind::BigEndian);
    }
    if !(2..=3).contains(&version) {
        return Err(Kind::Version { found: version });
    }
    let left = bytes.len() as u64 - FIXED_BYTES;
    let tensors = count(&mut from, "tensor count", left / MIN_TENSOR)?;
    let records = count(&mut from, "metadata count", left / MIN_RECORD)?;

    let mut header = Header::new(version);
    for _ in 0..records {
        record(&mut from, &mut header)?;
    }
    // Running ends of the data, without and with the padding that every tensor is followed by.
    let (mut data_end, mut next) = (0, 0);
    for _ in 0..tensors {
        (data_end, next) = tensor(&mut from, &mut header, next)?;
    }
    if tensors > 0 {
        let alignment = header.alignment();
        // No overflow: the header fits into memory, and the alignment is at most 2^20.
        let data_start = from.offset().next_multiple_of(alignment);
        let needs = data_start.saturating_add(data_end);
        if needs > file_size {
            return Err(Kind::DataTruncated { needs, have: file_size });
        }
        header.shift_offsets(data_start);
    }
    Ok(header)
}

fn count(from: &mut Cursor, field: &'static str, possible: u64) -> Result<u64, Kind> {
    let offset = from.offset();
    let found = i64::read(from, Place { what: field, of: "" })?;
    let limit = possible.min(MAX_COUNT);
    match u64::try_from(found) {
        Ok(count) if count <= limit => Ok(count),
        _ => Err(Kind::Count { field, offset, found, limit }),
    }
}

/// A key or tensor name, by the rules both share.
fn name(from: &mut Cursor, field: &'static str, max: usize, too_long: &'static str) -> Result<String, Kind> {
    let offset = from.offset();
    let name = String::read(from, Place { what: field, of: "" })?;
    let expected = if name.is_empty() {
        "at least one character"
    } else if name.len() > max {
        too_long
    } else if name.contains('\0') {
        "no NUL character"
    } else {
        return Ok(name);
    };
    Err(Kind::Name { field, offset, found: name.chars().take(80).collect(), expected })
}

/// Reads one metadata record into the header.
fn record(from: &mut Cursor, header: &mut Header) -> Result<(), Kind> {
    let offset = from.offset();
    let key = name(from, "metadata key", MAX_KEY, "at most 65535 bytes")?;
    if header.value(&key).is_some() {
        return Err(Kind::Duplicate { field: "metadata key", offset, name: key });
    }
    let value_at = from.offset();
    let value = Value::read(from, &key)?;
    if from.offset() > MAX_METADATA {
        let field = "metadata".to_owned();
        return Err(Kind::TooLong { field, offset: value_at, found: from.offset(), limit: MAX_METADATA });
    }
    if key == ALIGNMENT_KEY {
        header.set_alignment(valid_alignment(&value).ok_or_else(|| Kind::Alignment {
            offset: value_at,
            found: match value.as_i64() {
                Some(number) => format!("{} {number}", value.type_name()),
                None => value.type_name().to_owned(),
            },
        })?);
    }
    header.add_value(key, value);
    Ok(())
}

/// The alignment that a value of `general.alignment` stands for.
pub(crate) fn valid_alignment(value: &Value) -> Option<u64> {
    match *value {
        Value::U32(bytes) if bytes.is_power_of_two() && bytes <= MAX_ALIGNMENT => Some(bytes.into()),
        _ => None,
    }
}

/// Reads one tensor record, which must start at `next`, into the header. Gives the end of the tensor
/// and of its padding, all from the start of the data.
fn tensor(from: &mut Cursor, header: &mut Header, next: u64) -> Result<(u64, u64), Kind> {
    let name_at = from.offset();
    let name = name(from, "tensor name", MAX_NAME, "at most 63 bytes")?;
    if header.tensor(&name).is_some() {
        return Err(Kind::Duplicate { field: "tensor name", offset: name_at, name });
    }
    let offset = from.offset();
    let rank = u32::read(from, Place { what: "dimension count", of: &name })?;
    if !(1..=MAX_DIMS).contains(&rank) {
        return Err(Kind::Rank { tensor: name, offset, found: rank });
    }
    let dims_at = from.offset();
    let mut dims = Vec::new();
    for axis in 0..rank as usize {
        let offset = from.offset();
        let found = i64::read(from, Place { what: "dimension", of: &name })?;
        match u64::try_from(found) {
            Ok(dim) if dim > 0 => dims.push(dim),
            _ => return Err(Kind::Dimension { tensor: name, axis, offset, found }),
        }
    }
    let offset = from.offset();
    let id = u32::read(from, Place { what: "type", of: &name })?;
    let Some(ty) = TypeId::from_id(id) else {
        return Err(Kind::TensorType { tensor: name, offset, found: id });
    };
    if !dims[0].is_multiple_of(ty.block()) {
        let (found, block) = (dims[0], ty.block());
        return Err(Kind::RowLength { tensor: name, offset: dims_at, ty: ty.name(), found, block });
    }
    let Some((nbytes, end, padded)) = extent(ty, &dims, next, header.alignment()) else {
        return Err(Kind::TooLarge { tensor: name, offset: dims_at, dims });
    };
    let offset = from.offset();
    let found = u64::read(from, Place { what: "offset", of: &name })?;
    if found != next {
        return Err(Kind::TensorOffset { tensor: name, offset, found, expected: next });
    }
    header.add_tensor(TensorInfo { name, ty, dims, offset: found, nbytes });
    Ok((end, padded))
}

/// Bytes of a tensor, its end and the end of its padding; none where a number exceeds 63 bits or a row
/// does not divide into blocks.
pub(crate) fn extent(ty: TypeId, dims: &[u64], start: u64, alignment: u64) -> Option<(u64, u64, u64)> {
    let fits = |n: &u64| i64::try_from(*n).is_ok();
    let (&cols, rows) = dims.split_first()?;
    dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim)).filter(fits)?;
    let nbytes = rows.iter().try_fold(ty.row_bytes(cols)?, |n, &dim| n.checked_mul(dim)).filter(fits)?;
    let end = start.checked_add(nbytes).filter(fits)?;
    let padded = end.checked_next_multiple_of(alignment).filter(fits)?;
    Some((nbytes, end, padded))
}
