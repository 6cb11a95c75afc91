//! Metadata values: the scalar types of GGUF, and flat arrays of them.
//!
//! One table gives the enum variants, the type numbers in the file and the names. Does not know any
//! key. Arrays of arrays exist in the specification, but no reader accepts them: nor does this one.

use crate::error::Kind;
use crate::wire::{Cursor, Place, Wire};

/// The type number of arrays.
const ARRAY: u32 = 9;

macro_rules! values {
    ($($variant:ident $ty:ident $id:literal $name:literal $array:literal;)*) => {
        /// A metadata value. Equality is that of the encoding: a NaN equals itself.
        #[derive(Debug, Clone)]
        pub enum Value {
            $(#[doc = concat!("`", $name, "`, type number ", $id, ".")] $variant($ty),)*
            /// A flat array, type number 9.
            Array(Array),
        }

        /// An array with elements of one type.
        #[derive(Debug, Clone)]
        pub enum Array {
            $(#[doc = concat!("Elements of type `", $name, "`.")] $variant(Vec<$ty>),)*
        }

        impl Value {
            /// The type's name: `u32`, `str`; of an array `[u32]`, `[str]`.
            pub fn type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                    Self::Array(array) => match array {
                        $(Array::$variant(_) => $array,)*
                    },
                }
            }

            pub(crate) fn read(from: &mut Cursor, key: &str) -> Result<Value, Kind> {
                let offset = from.offset();
                let place = Place { what: "value", of: key };
                let found = u32::read(from, Place { what: "value type", of: key })?;
                match found {
                    $($id => Ok(Self::$variant($ty::read(from, place)?)),)*
                    ARRAY => Ok(Self::Array(Array::read(from, key)?)),
                    _ => Err(Kind::ValueType { key: key.to_owned(), offset, found }),
                }
            }

            pub(crate) fn write(&self, to: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(value) => { u32::write(&$id, to); value.write(to) })*
                    Self::Array(array) => { ARRAY.write(to); array.write(to) }
                }
            }
        }

        impl Array {
            /// Number of elements.
            pub fn len(&self) -> usize {
                match self { $(Self::$variant(elements) => elements.len(),)* }
            }

            fn read(from: &mut Cursor, key: &str) -> Result<Array, Kind> {
                let offset = from.offset();
                let place = Place { what: "array", of: key };
                let found = u32::read(from, Place { what: "array element type", of: key })?;
                match found {
                    $($id => Ok(Self::$variant(Vec::read(from, place)?)),)*
                    ARRAY => Err(Kind::NestedArray { key: key.to_owned(), offset }),
                    _ => Err(Kind::ValueType { key: key.to_owned(), offset, found }),
                }
            }

            fn write(&self, to: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(elements) => { u32::write(&$id, to); elements.write(to) })*
                }
            }
        }

        impl PartialEq for Value {
            fn eq(&self, other: &Self) -> bool {
                match (self, other) {
                    $((Self::$variant(a), Self::$variant(b)) => a.same(b),)*
                    (Self::Array(a), Self::Array(b)) => a == b,
                    _ => false,
                }
            }
        }

        impl PartialEq for Array {
            fn eq(&self, other: &Self) -> bool {
                match (self, other) {
                    $((Self::$variant(a), Self::$variant(b)) => a.same(b),)*
                    _ => false,
                }
            }
        }

        $(
            impl From<$ty> for Value {
                fn from(value: $ty) -> Self {
                    Self::$variant(value)
                }
            }

            impl From<Vec<$ty>> for Value {
                fn from(elements: Vec<$ty>) -> Self {
                    Self::Array(Array::$variant(elements))
                }
            }
        )*
    };
}

values! {
    U8     u8     0  "u8"   "[u8]";
    I8     i8     1  "i8"   "[i8]";
    U16    u16    2  "u16"  "[u16]";
    I16    i16    3  "i16"  "[i16]";
    U32    u32    4  "u32"  "[u32]";
    I32    i32    5  "i32"  "[i32]";
    F32    f32    6  "f32"  "[f32]";
    Bool   bool   7  "bool" "[bool]";
    String String 8  "str"  "[str]";
    U64    u64    10 "u64"  "[u64]";
    I64    i64    11 "i64"  "[i64]";
    F64    f64    12 "f64"  "[f64]";
}

impl Value {
    fn integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// An integer of any width, if its value fits. Writers in the field disagree about widths.
    pub fn as_u64(&self) -> Option<u64> {
        self.integer()?.try_into().ok()
    }

    /// An integer of any width, if its value fits.
    pub fn as_i64(&self) -> Option<i64> {
        self.integer()?.try_into().ok()
    }

    /// A float of either width.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => Some(v.into()),
            Self::F64(v) => Some(v),
            _ => None,
        }
    }

    /// A bool.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(v) = *self { Some(v) } else { None }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(v) = self { Some(v) } else { None }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        if let Self::Array(v) = self { Some(v) } else { None }
    }
}

impl Array {
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::Value;

    #[test]
    fn integers_convert_only_when_they_fit() {
        assert_eq!(Value::from(-1i8).as_u64(), None);
        assert_eq!(Value::from(-1i8).as_i64(), Some(-1));
        assert_eq!(Value::from(u64::MAX).as_i64(), None);
        assert_eq!(Value::from(u64::MAX).as_u64(), Some(u64::MAX));
        assert_eq!(Value::from(7i32).as_u64(), Some(7));
        assert_eq!(Value::from(true).as_u64(), None);
        assert_eq!(Value::from(1.5f32).as_f64(), Some(1.5));
    }

    #[test]
    fn names_tell_arrays_from_scalars() {
        assert_eq!(Value::from("a").type_name(), "str");
        assert_eq!(Value::from(vec![1u32]).type_name(), "[u32]");
        assert_eq!(Value::from(f32::NAN), Value::from(f32::NAN));
        assert_ne!(Value::from(0.0f64), Value::from(-0.0f64));
        assert_ne!(Value::from(1u32), Value::from(1i32));
    }
}
