//! The one table of tensor types that GGUF files may name.
//!
//! Knows ids, names and block sizes. Does not know how a block is decoded. Ids of types that ggml has
//! removed (4, 5, 31-33, 36-38) are absent, so a file that uses them is rejected by the lookup.
//!
//! Sizes are those of ggml's C structs. The `gguf` Python package (0.19) agrees except for Q8_1, where it
//! still counts the two f32 of an older struct.

/// A live ggml tensor type: a row of [`TypeId::ALL`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TypeId {
    id: u32,
    name: &'static str,
    block: u64,
    block_bytes: u64,
}

macro_rules! types {
    ($($constant:ident $id:literal $name:literal $block:literal $bytes:literal;)*) => {
        impl TypeId {
            $(
                #[doc = concat!("`", $name, "`: ", $block, " weights in ", $bytes, " bytes.")]
                pub const $constant: TypeId =
                    TypeId { id: $id, name: $name, block: $block, block_bytes: $bytes };
            )*

            /// All live types, by id.
            pub const ALL: &[TypeId] = &[$(TypeId::$constant,)*];
        }
    };
}

types! {
    F32      0 "F32"       1   4;
    F16      1 "F16"       1   2;
    Q4_0     2 "Q4_0"     32  18;
    Q4_1     3 "Q4_1"     32  20;
    Q5_0     6 "Q5_0"     32  22;
    Q5_1     7 "Q5_1"     32  24;
    Q8_0     8 "Q8_0"     32  34;
    Q8_1     9 "Q8_1"     32  36;
    Q2_K    10 "Q2_K"    256  84;
    Q3_K    11 "Q3_K"    256 110;
    Q4_K    12 "Q4_K"    256 144;
    Q5_K    13 "Q5_K"    256 176;
    Q6_K    14 "Q6_K"    256 210;
    Q8_K    15 "Q8_K"    256 292;
    IQ2_XXS 16 "IQ2_XXS" 256  66;
    IQ2_XS  17 "IQ2_XS"  256  74;
    IQ3_XXS 18 "IQ3_XXS" 256  98;
    IQ1_S   19 "IQ1_S"   256  50;
    IQ4_NL  20 "IQ4_NL"   32  18;
    IQ3_S   21 "IQ3_S"   256 110;
    IQ2_S   22 "IQ2_S"   256  82;
    IQ4_XS  23 "IQ4_XS"  256 136;
    I8      24 "I8"        1   1;
    I16     25 "I16"       1   2;
    I32     26 "I32"       1   4;
    I64     27 "I64"       1   8;
    F64     28 "F64"       1   8;
    IQ1_M   29 "IQ1_M"   256  56;
    BF16    30 "BF16"      1   2;
    TQ1_0   34 "TQ1_0"   256  54;
    TQ2_0   35 "TQ2_0"   256  66;
    MXFP4   39 "MXFP4"    32  17;
    NVFP4   40 "NVFP4"    64  36;
    Q1_0    41 "Q1_0"    128  18;
    Q2_0    42 "Q2_0"     64  18;
}

impl TypeId {
    /// The type with this number; none for removed and unknown numbers.
    pub fn from_id(id: u32) -> Option<TypeId> {
        Self::ALL.iter().copied().find(|t| t.id == id)
    }

    /// The type with this name, in any case.
    pub fn from_name(name: &str) -> Option<TypeId> {
        Self::ALL.iter().copied().find(|t| t.name.eq_ignore_ascii_case(name))
    }

    /// The number in the file.
    pub const fn id(self) -> u32 {
        self.id
    }

    /// The name people write: `Q4_K`, `IQ2_XXS`.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Weights per block.
    pub const fn block(self) -> u64 {
        self.block
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> u64 {
        self.block_bytes
    }

    /// Bytes of a row of `cols` weights; none where the row does not divide into blocks.
    pub fn row_bytes(self, cols: u64) -> Option<u64> {
        if !cols.is_multiple_of(self.block) {
            return None;
        }
        (cols / self.block).checked_mul(self.block_bytes)
    }
}

impl std::fmt::Debug for TypeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl std::fmt::Display for TypeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::TypeId;

    #[test]
    fn lookups_find_every_row_and_nothing_else() {
        for &ty in TypeId::ALL {
            assert_eq!(TypeId::from_id(ty.id()), Some(ty));
            assert_eq!(TypeId::from_name(&ty.name().to_lowercase()), Some(ty));
            assert_eq!(TypeId::ALL.iter().filter(|t| t.id() == ty.id() || t.name() == ty.name()).count(), 1);
        }
        for removed in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(TypeId::from_id(removed), None);
        }
        assert_eq!(TypeId::from_name("Q4_3"), None);
    }

    #[test]
    fn rows_divide_into_blocks() {
        assert_eq!(TypeId::Q4_K.row_bytes(512), Some(288));
        assert_eq!(TypeId::Q4_K.row_bytes(128), None);
        assert_eq!(TypeId::F64.row_bytes(u64::MAX), None);
    }
}
