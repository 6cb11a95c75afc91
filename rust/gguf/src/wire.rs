//! Primitive values on the wire: little-endian numbers, bools, length-prefixed strings, arrays.
//!
//! Knows how far the bytes reach; every read is checked against that before anything is reserved.
//! Does not know what the values mean.

use crate::error::Kind;

/// Longest metadata string. A chat template is some 10 KiB, a tokenizer blob a few MiB.
pub(crate) const MAX_STRING: u64 = 64 << 20;
/// Most elements in one metadata array. The largest known vocabularies have about 2^18.
pub(crate) const MAX_ARRAY: u64 = 64 << 20;

/// What is being read, for error messages.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The part: "value", "tensor name".
    pub(crate) what: &'static str,
    /// The key or tensor it belongs to; empty where not known yet.
    pub(crate) of: &'a str,
}

impl Place<'_> {
    pub(crate) fn field(self) -> String {
        if self.of.is_empty() { self.what.to_owned() } else { format!("{} of {:?}", self.what, self.of) }
    }
}

/// A position in the header bytes.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes from the start of the file.
    pub(crate) fn offset(&self) -> u64 {
        self.at as u64
    }

    pub(crate) fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The next `len` bytes.
    pub(crate) fn take(&mut self, len: u64, place: Place) -> Result<&'a [u8], Kind> {
        let rest = &self.bytes[self.at..];
        let taken =
            usize::try_from(len).ok().and_then(|n| rest.get(..n)).ok_or_else(|| Kind::HeaderTruncated {
                field: place.field(),
                offset: self.offset(),
                needs: len,
                left: self.left(),
            })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self, place: Place) -> Result<[u8; N], Kind> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, place)?);
        Ok(bytes)
    }
}

/// A value with one encoding.
pub(crate) trait Wire: Sized {
    /// The fewest bytes that one value takes.
    const MIN_BYTES: u64;
    fn read(from: &mut Cursor, place: Place) -> Result<Self, Kind>;
    fn write(&self, to: &mut Vec<u8>);
    /// Equality of the encodings: a NaN equals itself, 0.0 and -0.0 differ.
    fn same(&self, other: &Self) -> bool;
}

macro_rules! numbers {
    ($($ty:ty)*) => {$(
        impl Wire for $ty {
            const MIN_BYTES: u64 = size_of::<$ty>() as u64;

            fn read(from: &mut Cursor, place: Place) -> Result<Self, Kind> {
                Ok(<$ty>::from_le_bytes(from.fixed(place)?))
            }

            fn write(&self, to: &mut Vec<u8>) {
                to.extend(self.to_le_bytes());
            }

            fn same(&self, other: &Self) -> bool {
                self.to_le_bytes() == other.to_le_bytes()
            }
        }
    )*};
}
numbers! { u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 }

impl Wire for bool {
    const MIN_BYTES: u64 = 1;

    fn read(from: &mut Cursor, place: Place) -> Result<Self, Kind> {
        let offset = from.offset();
        match u8::read(from, place)? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(Kind::Bool { field: place.field(), offset, found }),
        }
    }

    fn write(&self, to: &mut Vec<u8>) {
        to.push(u8::from(*self));
    }

    fn same(&self, other: &Self) -> bool {
        self == other
    }
}

impl Wire for String {
    const MIN_BYTES: u64 = 8;

    fn read(from: &mut Cursor, place: Place) -> Result<Self, Kind> {
        let offset = from.offset();
        let len = u64::read(from, place)?;
        if len > MAX_STRING {
            return Err(Kind::TooLong { field: place.field(), offset, found: len, limit: MAX_STRING });
        }
        let start = from.offset();
        match str::from_utf8(from.take(len, place)?) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(Kind::NotUtf8 { field: place.field(), offset: start + e.valid_up_to() as u64 }),
        }
    }

    fn write(&self, to: &mut Vec<u8>) {
        (self.len() as u64).write(to);
        to.extend(self.as_bytes());
    }

    fn same(&self, other: &Self) -> bool {
        self == other
    }
}

/// An array: count, then the elements. The element type stands before the count and is read already.
impl<T: Wire> Wire for Vec<T> {
    const MIN_BYTES: u64 = 8;

    fn read(from: &mut Cursor, place: Place) -> Result<Self, Kind> {
        let offset = from.offset();
        let count = u64::read(from, place)?;
        if count > MAX_ARRAY {
            return Err(Kind::TooLong { field: place.field(), offset, found: count, limit: MAX_ARRAY });
        }
        // Both factors are small by now: no overflow. The elements must be there before memory is.
        let (needs, left) = (count * T::MIN_BYTES, from.left());
        if needs > left {
            return Err(Kind::HeaderTruncated { field: place.field(), offset: from.offset(), needs, left });
        }
        let count = count as usize;
        let mut elements = Vec::new();
        elements.try_reserve_exact(count).map_err(|_| Kind::OutOfMemory { field: place.field(), count })?;
        for _ in 0..count {
            elements.push(T::read(from, place)?);
        }
        Ok(elements)
    }

    fn write(&self, to: &mut Vec<u8>) {
        (self.len() as u64).write(to);
        for element in self {
            element.write(to);
        }
    }

    fn same(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().zip(other).all(|(a, b)| a.same(b))
    }
}
