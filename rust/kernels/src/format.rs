//! The one table of weight formats, and the trait that each of them implements.
//!
//! Everything that needs a name, an id, a block size or the list of formats derives it from
//! [`formats!`] below; a new format is one file in `formats/` and one line here.

use crate::chunk::{CHUNK, Weights};
use crate::isa::{Isa, LANES};
use bytemuck::Pod;

/// How a block-quantized format scales its codes (see [`crate::chunk`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Integer sub-scales under one float scale per 256 weights; activations share one scale per 256.
    Super,
    /// One float scale per 32 weights, or 16; activations have one scale per 32.
    Grouped,
}

impl Family {
    /// In lower case.
    pub fn name(self) -> &'static str {
        match self {
            Family::Super => "super",
            Family::Grouped => "grouped",
        }
    }
}

/// How [`Family::Grouped`] scales are kept without loss where rows are repacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// As f16.
    Half,
    /// As bf16: powers of two that f16 has no room for.
    Brain,
    /// As an integer times the chunk's f16, [`Weights::scales`] and [`Weights::d`].
    Integer,
}

/// The code bytes that numbers of [`Format::BITS`] bits stand for.
#[derive(Debug, Clone, Copy)]
pub enum Levels {
    /// The number plus this.
    From(u8),
    /// The entry with that number.
    Table([u8; 16]),
    /// The entry with that number, plus one or minus one: the same for all weights of a group of 32, whose
    /// scale, never zero, is kept with that sign.
    Shifted([u8; 16]),
}

/// A block-quantized format: its memory layout and its decoder.
pub trait Format: Copy + Send + Sync + 'static {
    /// The block as it lies in the file; alignment 1, size asserted in the format's file.
    type Block: Pod;
    /// The blocks of 256 weights: one, or an array of several.
    type Chunk: Pod;
    /// Where a block's f16 scales are, that of its minimums last.
    const HALVES: &'static [usize] = &[0];
    /// How codes are scaled.
    const FAMILY: Family;
    /// Whether `Super` codes may be negative and are shifted by [`crate::chunk::SUPER_OFFSET`]. Those of
    /// `Grouped` always are, by [`crate::chunk::GROUPED_OFFSET`].
    const SIGNED: bool = false;
    /// Whether [`Weights::mins`], or [`Weights::group_m`], is in use.
    const HAS_MIN: bool = false;
    /// What the stored scale of a chunk is multiplied by, a power of two. `Super` only.
    const D_FACTOR: f32 = 1.0;
    /// Weights that share one scale below the chunk's: 16 or 32.
    const SUB: usize = 32;
    /// Largest magnitude of an integer scale, and of an integer minimum. `Super` only.
    const MAX_SCALE: i32 = 0;
    /// How float scales are repacked. `Grouped` only.
    const SCALE: Scale = Scale::Half;
    /// Bits that tell a weight's code apart from the others of its scale: 1 to 6, or 8. What rows are
    /// repacked with (`repack.rs`).
    const BITS: usize;
    /// Which codes those bits number. Integer scales and minimums fit an i8.
    const LEVELS: Levels;
    /// Weights per block.
    const BLOCK: usize = CHUNK / (size_of::<Self::Chunk>() / size_of::<Self::Block>());

    /// Decodes 256 weights. Must be `#[inline(always)]`: it runs inside the per-ISA entry of the driver.
    fn decode<I: Isa>(isa: I, chunk: &Self::Chunk) -> Weights<I>;
}

/// A format whose weights are plain floats, decoded to f32 exactly.
pub trait FloatFormat: Copy + Send + Sync + 'static {
    /// One stored weight.
    type Block: Pod;
    /// Whether the matrix has block scales.
    const SCALED: bool = false;
    /// The values of sixteen weights before any block scale. Must be `#[inline(always)]`.
    fn lanes<I: Isa>(isa: I, stored: &[Self::Block; LANES]) -> I::F;
}

macro_rules! formats {
    (
        float { $($fv:ident $fid:expr, $fkind:expr, $fname:literal, $fdoc:literal;)* }
        block { $($bv:ident $bid:expr, $bkind:expr, $bname:literal, $bdoc:literal;)* }
    ) => {
        /// A weight format this crate can decode and multiply.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Type {
            $(#[doc = $fdoc] $fv,)*
            $(#[doc = $bdoc] $bv,)*
        }

        impl Type {
            /// All formats, floats first.
            pub const ALL: &[Type] = &[$(Type::$fv,)* $(Type::$bv,)*];

            /// The type number in GGUF files; none for formats that GGUF does not know.
            pub fn ggml_id(self) -> Option<u32> {
                match self { $(Type::$fv => $fid,)* $(Type::$bv => $bid,)* }
            }

            /// What llama.cpp calls a file whose matrices mostly have this format (`llama_ftype`); none as above.
            pub fn llama_ftype(self) -> Option<u32> {
                match self { $(Type::$fv => $fkind,)* $(Type::$bv => $bkind,)* }
            }

            /// The name people write: `Q4_K`, `IQ2_XXS`.
            pub fn name(self) -> &'static str {
                match self { $(Type::$fv => $fname,)* $(Type::$bv => $bname,)* }
            }

            /// What it is, in a sentence.
            pub fn description(self) -> &'static str {
                match self { $(Type::$fv => $fdoc,)* $(Type::$bv => $bdoc,)* }
            }

            /// Weights per block.
            pub fn block(self) -> usize {
                match self {
                    $(Type::$fv => 1,)*
                    $(Type::$bv => <crate::formats::$bv as Format>::BLOCK,)*
                }
            }

            /// Bytes per block.
            pub fn block_bytes(self) -> usize {
                match self {
                    $(Type::$fv => size_of::<<crate::formats::$fv as FloatFormat>::Block>(),)*
                    $(Type::$bv => size_of::<<crate::formats::$bv as Format>::Block>(),)*
                }
            }

            /// Where the f16 scales are in a block, that of its minimums last; none for floats.
            pub fn halves(self) -> &'static [usize] {
                match self {
                    $(Type::$fv => &[],)*
                    $(Type::$bv => <crate::formats::$bv as Format>::HALVES,)*
                }
            }

            /// Bytes of sixteen rows of 256 weights side by side; none for floats.
            pub(crate) fn record_bytes(self) -> Option<usize> {
                match self {
                    $(Type::$fv => None,)*
                    $(Type::$bv => Some(<crate::formats::$bv as crate::repack::Layout>::SIZE),)*
                }
            }

            /// How codes are scaled; none for floats.
            pub fn family(self) -> Option<Family> {
                match self {
                    $(Type::$fv => None,)*
                    $(Type::$bv => Some(<crate::formats::$bv as Format>::FAMILY),)*
                }
            }
        }

        const _: () = {
            $(crate::chunk::assert_sums_fit::<crate::formats::$bv>();)*
        };

        /// Runs `$body` with `$F` bound to the marker type of a float or a block format.
        macro_rules! with_format {
            ($ty:expr, $F:ident => float $float:expr, block $block:expr) => {
                match $ty {
                    $($crate::Type::$fv => { #[allow(dead_code)] type $F = $crate::formats::$fv; $float })*
                    $($crate::Type::$bv => { #[allow(dead_code)] type $F = $crate::formats::$bv; $block })*
                }
            };
        }
        pub(crate) use with_format;
    };
}

// GGUF's number, llama.cpp's for a file of it, name, description.
formats! {
    float {
        F32 Some(0), Some(0), "F32", "IEEE single precision.";
        F16 Some(1), Some(1), "F16", "IEEE half precision.";
        BF16 Some(30), Some(32), "BF16", "The upper half of an f32.";
        F8E4M3 None, None, "F8_E4M3", "FP8 of published DeepSeek checkpoints, one f32 scale per 128 x 128 weights; no GGUF type.";
    }
    block {
        Q4_0 Some(2), Some(2), "Q4_0", "4-bit codes, f16 scale per 32.";
        Q4_1 Some(3), Some(3), "Q4_1", "4-bit codes, f16 scale and minimum per 32.";
        Q5_0 Some(6), Some(8), "Q5_0", "5-bit codes, f16 scale per 32.";
        Q5_1 Some(7), Some(9), "Q5_1", "5-bit codes, f16 scale and minimum per 32.";
        Q8_0 Some(8), Some(7), "Q8_0", "8-bit codes, f16 scale per 32.";
        Q2K Some(10), Some(10), "Q2_K", "2-bit codes, 4-bit scales and minimums per 16.";
        Q3K Some(11), Some(12), "Q3_K", "3-bit codes, 6-bit scales per 16.";
        Q4K Some(12), Some(15), "Q4_K", "4-bit codes, 6-bit scales and minimums per 32.";
        Q5K Some(13), Some(17), "Q5_K", "5-bit codes, 6-bit scales and minimums per 32.";
        Q6K Some(14), Some(18), "Q6_K", "6-bit codes, 8-bit scales per 16.";
        Iq4Nl Some(20), Some(25), "IQ4_NL", "4-bit indices into 16 non-linear levels, f16 scale per 32.";
        Iq4Xs Some(23), Some(30), "IQ4_XS", "4-bit indices into 16 non-linear levels, 6-bit scale per 32.";
        Iq3S Some(21), Some(26), "IQ3_S", "9-bit indices into a codebook of four values, signs, 4-bit scale per 32.";
        Iq3Xxs Some(18), Some(23), "IQ3_XXS", "8-bit indices into a codebook of four values, signs, 4-bit scale per 32.";
        Iq2S Some(22), Some(28), "IQ2_S", "10-bit indices into a codebook of eight values, signs, 4-bit scale per 16.";
        Iq2Xs Some(17), Some(20), "IQ2_XS", "9-bit indices into a codebook of eight values, signs, 4-bit scale per 16.";
        Iq2Xxs Some(16), Some(19), "IQ2_XXS", "8-bit indices into a codebook of eight values, signs, 4-bit scale per 32.";
        Iq1M Some(29), Some(31), "IQ1_M", "11-bit indices into a codebook of eight ternary values, a shift each, 3-bit scale per 16.";
        Iq1S Some(19), Some(24), "IQ1_S", "11-bit indices into a codebook of eight ternary values, shift, 3-bit scale per 32.";
        Tq2_0 Some(35), Some(37), "TQ2_0", "Ternary codes in 2 bits, f16 scale per 256.";
        Tq1_0 Some(34), Some(36), "TQ1_0", "Ternary codes, five to a byte, f16 scale per 256.";
        Mxfp4 Some(39), Some(38), "MXFP4", "E2M1 codes, power of two per 32.";
        Nvfp4 Some(40), Some(39), "NVFP4", "E2M1 codes, UE4M3 scale per 16.";
        Q2_0 Some(42), Some(41), "Q2_0", "2-bit codes from -1 to 2, f16 scale per 64.";
        Q1_0 Some(41), Some(40), "Q1_0", "Signs, f16 scale per 128.";
    }
}

impl Levels {
    /// Which bytes numbers of `bits` bits stand for.
    pub(crate) const fn bytes(self, bits: usize) -> [bool; 256] {
        let mut out = [false; 256];
        let mut number = 0;
        while number < 1 << bits {
            match self {
                Levels::From(first) if first as usize + number < 256 => out[first as usize + number] = true,
                // Zero where there are fewer levels than numbers.
                Levels::Table(table) if table[number] > 0 => out[table[number] as usize] = true,
                Levels::Shifted(table) if table[number] > 0 => {
                    out[table[number] as usize - 1] = true;
                    out[table[number] as usize + 1] = true;
                }
                _ => {}
            }
            number += 1;
        }
        out
    }
}

impl Type {
    /// The format with this name, in any case, `-` and `_` alike.
    pub fn from_name(name: &str) -> Option<Type> {
        let wanted = name.to_ascii_uppercase().replace('-', "_");
        Self::ALL.iter().copied().find(|t| t.name() == wanted)
    }

    /// The format with this GGUF type number.
    pub fn from_ggml_id(id: u32) -> Option<Type> {
        Self::ALL.iter().copied().find(|t| t.ggml_id() == Some(id))
    }

    /// Bytes of a row of `cols` weights; none where the row does not divide into blocks.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block()) {
            return None;
        }
        (cols / self.block()).checked_mul(self.block_bytes())
    }

    /// Bits per weight, block scales included.
    pub fn bpw(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::scalar::Scalar;
    use bytemuck::Zeroable;

    /// What formats say of their scales and codes is what random blocks decode to.
    fn check<F: Format>(ty: Type) {
        let (mut seed, mut scale, bytes) = (1u64, 0, F::LEVELS.bytes(F::BITS));
        for _ in 0..2000 {
            let mut chunk = F::Chunk::zeroed();
            for byte in bytemuck::bytes_of_mut(&mut chunk) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (seed >> 56) as u8;
            }
            let weights = F::decode(Scalar, &chunk);
            if F::FAMILY == Family::Super {
                let scales = weights.scales.iter().chain(&weights.mins);
                scale = scales.fold(scale, |most, &x| most.max(i32::from(x).abs()));
            }
            let stray = weights.codes.iter().flatten().find(|&&code| !bytes[usize::from(code)]);
            assert!(stray.is_none(), "{ty:?}: {stray:?}");
        }
        assert_eq!(scale, F::MAX_SCALE, "{ty:?}");
    }

    #[test]
    fn formats_state_their_bounds() {
        for &ty in Type::ALL {
            with_format!(ty, F => float (), block check::<F>(ty));
        }
    }
}
