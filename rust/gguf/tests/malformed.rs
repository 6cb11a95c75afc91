//! Files that must be refused, each with the error that says why.
//!
//! The bytes are put together by hand, not by the crate's writer, which cannot make most of them.

use kizami_gguf::{Kind, Lookalike, Value, parse};

/// Bytes of a header in the making.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn start(version: u32, tensors: i64, records: i64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(version).i64(tensors).i64(records)
    }

    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend(bytes);
        self
    }

    fn u32(self, value: u32) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn i64(self, value: i64) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn string(self, text: &[u8]) -> Raw {
        self.u64(text.len() as u64).bytes(text)
    }

    /// A record up to its value.
    fn key(self, key: &str, value_type: u32) -> Raw {
        self.string(key.as_bytes()).u32(value_type)
    }

    fn tensor(self, name: &str, dims: &[i64], ty: u32, offset: u64) -> Raw {
        let named = self.string(name.as_bytes()).u32(dims.len() as u32);
        dims.iter().fold(named, |raw, &dim| raw.i64(dim)).u32(ty).u64(offset)
    }

    /// Padding and `len` bytes of data.
    fn data(mut self, alignment: usize, len: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(alignment) + len, 0);
        self.0
    }

    /// Enough bytes for any count to be possible.
    fn padded(self) -> Vec<u8> {
        self.data(32, 4096)
    }
}

fn record(key: &str, value_type: u32) -> Raw {
    Raw::start(3, 0, 1).key(key, value_type)
}

fn array(element_type: u32, count: u64) -> Raw {
    record("list", 9).u32(element_type).u64(count)
}

fn tensor(name: &str, dims: &[i64], ty: u32, offset: u64) -> Vec<u8> {
    Raw::start(3, 1, 0).tensor(name, dims, ty, offset).padded()
}

macro_rules! refused {
    ($($what:literal: $bytes:expr => $pattern:pat $(if $guard:expr)?,)*) => {$(
        match parse(AsRef::<[u8]>::as_ref(&$bytes)) {
            Err($pattern) $(if $guard)? => {}
            other => panic!("{}: {other:?}", $what),
        }
    )*};
}

#[test]
fn good_headers_of_both_versions_parse() {
    for version in [2, 3] {
        let raw = Raw::start(version, 2, 2)
            .key("general.alignment", 4)
            .u32(64)
            .key("flags", 9)
            .u32(7)
            .u64(2)
            .bytes(&[0, 1])
            .tensor("a", &[32, 3], 8, 0)
            .tensor("b", &[5], 0, 128);
        let header = parse(&raw.data(64, 128 + 20)).unwrap();
        assert_eq!((header.version(), header.alignment()), (version, 64));
        assert_eq!(header.value("flags"), Some(&Value::from(vec![false, true])));
        let (a, b) = (header.tensor("a").unwrap(), header.tensor("b").unwrap());
        assert_eq!((a.ty.name(), a.nbytes, b.nbytes), ("Q8_0", 102, 20));
        assert_eq!((a.offset % 64, b.offset), (0, a.offset + 128));
    }
    assert!(parse(&Raw::start(3, 0, 0).0).unwrap().tensors().is_empty());
    assert!(parse(&Raw::start(3, 0, 0).bytes(b"trailing").0).is_ok());
}

#[test]
fn beginnings() {
    refused! {
        "no bytes": b"" => Kind::TooShort { have: 0, .. },
        "part of the magic": b"GGU" => Kind::TooShort { have: 3, .. },
        "part of the counts": b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" => Kind::TooShort { have: 23, .. },
        "other magic": b"GGML and more bytes after it" => Kind::Magic { found: Lookalike::Unknown, start: [b'G', b'G', b'M', b'L'] },
        "lower case": b"gguf\x03\0\0\0" => Kind::Magic { .. },
        "git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
            => Kind::Magic { found: Lookalike::LfsPointer, .. },
        "web page": b"\n<!DOCTYPE html><html>" => Kind::Magic { found: Lookalike::Html, .. },
        "zip": b"PK\x03\x04\x14\0" => Kind::Magic { found: Lookalike::Zip, .. },
        "safetensors": b"\x40\x01\0\0\0\0\0\0{\"a\":{}}" => Kind::Magic { found: Lookalike::Safetensors, .. },
        "before GGUF": b"tjgg\x03\0\0\0" => Kind::Magic { found: Lookalike::OldGgml, .. },
        "zeros": [0; 64] => Kind::Magic { found: Lookalike::Zeros, .. },
        "version 0": Raw::start(0, 0, 0).0 => Kind::Version { found: 0 },
        "version 1": Raw::start(1, 0, 0).0 => Kind::Version { found: 1 },
        "version 4": Raw::start(4, 0, 0).0 => Kind::Version { found: 4 },
        "big-endian": Raw::start(3u32.swap_bytes(), 0, 0).0 => Kind::BigEndian,
        "negative tensors": Raw::start(3, -1, 0).padded() => Kind::Count { offset: 8, found: -1, .. },
        "tensors beyond the file": Raw::start(3, 2, 0).bytes(&[0; 65]).0 => Kind::Count { limit: 1, found: 2, .. },
        "2^62 tensors": Raw::start(3, 1 << 62, 0).padded() => Kind::Count { offset: 8, .. },
        "negative records": Raw::start(3, 0, i64::MIN).padded() => Kind::Count { offset: 16, found: i64::MIN, .. },
        "records beyond the file": Raw::start(3, 0, 3).bytes(&[0; 41]).0 => Kind::Count { limit: 2, .. },
    }
}

#[test]
fn metadata() {
    let long_key = "k".repeat(65_536);
    refused! {
        "empty key": record("", 0).padded() => Kind::Name { offset: 24, ref found, .. } if found.is_empty(),
        "long key": record(&long_key, 0).padded() => Kind::Name { expected: "at most 65535 bytes", .. },
        "NUL in key": record("a\0b", 0).padded() => Kind::Name { expected: "no NUL character", .. },
        "key not UTF-8": Raw::start(3, 0, 1).string(b"ab\xff").padded() => Kind::NotUtf8 { offset: 34, .. },
        "key beyond the file": Raw::start(3, 0, 1).u64(1000).bytes(&[b'k'; 99]).0
            => Kind::HeaderTruncated { offset: 32, needs: 1000, left: 99, .. },
        "key of 2^64-1 bytes": Raw::start(3, 0, 1).u64(u64::MAX).padded() => Kind::TooLong { offset: 24, found: u64::MAX, .. },
        "key twice": Raw::start(3, 0, 2).key("k", 0).bytes(&[1]).key("k", 0).bytes(&[1]).padded()
            => Kind::Duplicate { field: "metadata key", offset: 38, .. },
        "value type 13": record("k", 13).padded() => Kind::ValueType { found: 13, offset: 33, .. },
        "value type -1": record("k", u32::MAX).padded() => Kind::ValueType { .. },
        "value beyond the file": record("k", 12).u32(0).0 => Kind::HeaderTruncated { needs: 8, left: 4, .. },
        "bool 2": record("k", 7).bytes(&[2]).padded() => Kind::Bool { found: 2, offset: 37, .. },
        "string beyond the file": record("k", 8).u64(4096).bytes(b"abc").0
            => Kind::HeaderTruncated { needs: 4096, left: 3, .. },
        "string over the cap": record("k", 8).u64((64 << 20) + 1).padded() => Kind::TooLong { .. },
        "string not UTF-8": record("k", 8).string(b"\xc0\xaf").padded() => Kind::NotUtf8 { offset: 45, .. },
        "array of arrays": array(9, 1).padded() => Kind::NestedArray { offset: 40, .. },
        "array of type 13": array(13, 1).padded() => Kind::ValueType { offset: 40, found: 13, .. },
        "array beyond the file": array(4, 5).bytes(&[0; 19]).0 => Kind::HeaderTruncated { needs: 20, left: 19, .. },
        "array over the cap": array(0, (64 << 20) + 1).padded() => Kind::TooLong { offset: 44, .. },
        "array of 2^61 u64": array(10, 1 << 61).padded() => Kind::TooLong { .. },
        "strings that cannot all be there": array(8, 600).padded() => Kind::HeaderTruncated { needs: 4800, .. },
        "string in array beyond the file": array(8, 1).u64(9).bytes(&[b'x'; 8]).0
            => Kind::HeaderTruncated { needs: 9, left: 8, .. },
        "bool in array": array(7, 2).bytes(&[1, 255]).padded() => Kind::Bool { found: 255, .. },
        "alignment as u64": record("general.alignment", 10).u64(32).padded()
            => Kind::Alignment { offset: 49, ref found } if found == "u64 32",
        "alignment as text": record("general.alignment", 8).string(b"32").padded() => Kind::Alignment { .. },
        "alignment 0": record("general.alignment", 4).u32(0).padded() => Kind::Alignment { ref found, .. } if found == "u32 0",
        "alignment 48": record("general.alignment", 4).u32(48).padded() => Kind::Alignment { .. },
        "alignment 2 MiB": record("general.alignment", 4).u32(2 << 20).padded() => Kind::Alignment { .. },
    }
}

#[test]
fn tensors() {
    let (name63, name64) = ("n".repeat(63), "n".repeat(64));
    assert!(parse(&tensor(&name63, &[1], 0, 0)).is_ok());
    let two =
        |b: &str, offset| Raw::start(3, 2, 0).tensor("a", &[9], 0, 0).tensor(b, &[9], 0, offset).padded();
    assert!(parse(&two("b", 64)).is_ok());
    refused! {
        "no name": tensor("", &[1], 0, 0) => Kind::Name { field: "tensor name", offset: 24, .. },
        "name of 64 bytes": tensor(&name64, &[1], 0, 0) => Kind::Name { expected: "at most 63 bytes", .. },
        "NUL in name": tensor("a\0", &[1], 0, 0) => Kind::Name { expected: "no NUL character", .. },
        "name not UTF-8": Raw::start(3, 1, 0).string(b"\xff").padded() => Kind::NotUtf8 { offset: 32, .. },
        "name twice": two("a", 64) => Kind::Duplicate { field: "tensor name", .. },
        "no dimensions": tensor("a", &[], 0, 0) => Kind::Rank { found: 0, offset: 33, .. },
        "five dimensions": tensor("a", &[1; 5], 0, 0) => Kind::Rank { found: 5, .. },
        "2^32-1 dimensions": Raw::start(3, 1, 0).string(b"a").u32(u32::MAX).padded() => Kind::Rank { found: u32::MAX, .. },
        "dimension 0": tensor("a", &[4, 0], 0, 0) => Kind::Dimension { axis: 1, found: 0, offset: 45, .. },
        "negative dimension": tensor("a", &[-32], 0, 0) => Kind::Dimension { axis: 0, found: -32, offset: 37, .. },
        "2^64 elements": tensor("a", &[1 << 32, 1 << 32], 0, 0) => Kind::TooLarge { .. },
        "2^66 bytes in 2^63 elements": tensor("a", &[1 << 31, 1 << 31, 2], 28, 0) => Kind::TooLarge { .. },
        "2^64 bytes": tensor("a", &[1 << 62], 0, 0) => Kind::TooLarge { .. },
        "padding beyond 63 bits": tensor("a", &[i64::MAX], 24, 0) => Kind::TooLarge { .. },
        "type 43": tensor("a", &[256], 43, 0) => Kind::TensorType { found: 43, offset: 45, .. },
        "removed type 4": tensor("a", &[256], 4, 0) => Kind::TensorType { found: 4, .. },
        "removed type 38": tensor("a", &[256], 38, 0) => Kind::TensorType { found: 38, .. },
        "rows of half a block": tensor("a", &[128, 2], 12, 0) => Kind::RowLength { found: 128, block: 256, ty: "Q4_K", .. },
        "first offset not 0": tensor("a", &[1], 0, 32) => Kind::TensorOffset { found: 32, expected: 0, .. },
        "hole": two("b", 96) => Kind::TensorOffset { found: 96, expected: 64, .. },
        "overlap": two("b", 32) => Kind::TensorOffset { found: 32, expected: 64, .. },
        "not aligned": two("b", 36) => Kind::TensorOffset { found: 36, expected: 64, .. },
        "offset of 2^64-32": two("b", u64::MAX - 31) => Kind::TensorOffset { .. },
        "record cut short": Raw::start(3, 1, 0).string(&[b'n'; 13]).u32(1).i64(1).0 => Kind::HeaderTruncated { left: 0, .. },
        "no data": Raw::start(3, 1, 0).tensor("a", &[1], 0, 0).0 => Kind::DataTruncated { needs: 68, have: 57 },
        "a byte missing": Raw::start(3, 1, 0).tensor("a", &[8], 0, 0).data(32, 31) => Kind::DataTruncated { needs: 96, have: 95 },
        "exabytes": tensor("a", &[1 << 40, 1 << 20], 0, 0) => Kind::DataTruncated { .. },
    }
}

#[test]
fn messages_name_place_found_and_expected() {
    let text = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
    assert_eq!(
        text(&Raw::start(3, 1, 0).tensor("a", &[8], 0, 0).data(32, 31)),
        "truncated: need 96 bytes, have 95"
    );
    assert_eq!(
        text(&tensor("blk.0.up", &[100], 12, 0)),
        "byte 44: rows of tensor \"blk.0.up\": found 100 weights, expected a multiple of 256 for Q4_K"
    );
    assert_eq!(
        text(&record("general.name", 8).u64(9).bytes(b"abc").0),
        "truncated: byte 56: value of \"general.name\" needs 9 bytes, found 3"
    );
    let page = parse(b"<html><body>404</body></html>").unwrap_err();
    assert_eq!(page.to_string(), "not a GGUF file but a web page: byte 0: found \"<htm\", expected \"GGUF\"");
    assert!(page.hint().unwrap().contains("fetch the file again"));
}
