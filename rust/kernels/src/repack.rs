//! Rows side by side: weights as products like them, made once from the file's when a model is loaded.
//!
//! Sixteen rows of a chunk become one record whose vectors hold four codes of every row, so that a product
//! neither transposes nor looks into codebooks, and reads one stream. Records of a panel of sixteen rows lie
//! one after the other. Scales keep their stored precision, so every result keeps its bits.
//!
//! ```text
//! record    codes      8 groups of 32 weights, BITS vectors of 64 bytes each
//!           Super      scales [256 / SUB][16 rows] i8       minimums [256 / SUB / 2][16 rows][2] i8
//!                      d [16 rows] f16                      dmin [16 rows] f16
//!           Grouped    d [256 / SUB][16 rows] f16 or bf16   minimums [8 groups][16 rows] f16
//!             or       scales [8 groups][16 rows] i8        d [16 rows] f16
//!                      (padded to whole 64 bytes)
//!
//! vector    byte 4 r + i: code i of row r's four, as a number of 8, 4, 2 or 1 bits; the numbers of further
//!           fours lie above it
//!             8 bits  v0 .. v7   weights 4 v + i
//!             4 bits  v0 .. v3   weights 8 v + i      8 v + 4 + i
//!             2 bits  v0, v1     weights 16 v + i     16 v + 4 + i    + 8    + 12
//!             1 bit   v0         weights i            4 + i    ...    28 + i
//!           3 bits are 2 and 1, 5 bits 4 and 1, 6 bits 4 and 2: the lower bits first
//! ```
//!
//! Knows the layout: its sizes and its writer; `repack/record.rs` is its reader. Does not know products, nor who owns the memory.

use crate::chunk::{CHUNK, GROUP, GROUPED_OFFSET, SUB, SUPER_OFFSET, Weights, largest_code};
use crate::convert::f32_to_f16;
use crate::dispatch::{Op, dispatch};
use crate::error::{Error, expect_len};
use crate::format::{Family, Format, Levels, Scale, Type, with_format};
use crate::isa::{Isa, LANES};
use crate::matrix::Matrix;
use crate::par;
use std::marker::PhantomData;

mod record;

pub(crate) use record::Record;

/// Groups in a chunk.
const GROUPS: usize = CHUNK / GROUP;

/// The first code of each group.
const FIRSTS: [usize; GROUPS] = [0, 32, 64, 96, 128, 160, 192, 224];

/// Where the parts of a record are.
pub(crate) trait Layout: Format {
    /// Integer scales of a row.
    const SCALES: usize = match (Self::FAMILY, Self::SCALE) {
        (Family::Super, _) | (Family::Grouped, Scale::Integer) => CHUNK / Self::SUB,
        (Family::Grouped, _) => 0,
    };
    /// Float scales of a row, and its float minimums.
    const FLOATS: usize = match (Self::FAMILY, Self::SCALE) {
        (Family::Super, _) => 1 + Self::HAS_MIN as usize,
        (Family::Grouped, Scale::Integer) => 1,
        (Family::Grouped, _) => CHUNK / Self::SUB + if Self::HAS_MIN { GROUPS } else { 0 },
    };
    /// After the codes.
    const SCALES_AT: usize = 64 * GROUPS * Self::BITS;
    /// After the scales.
    const MINS_AT: usize = Self::SCALES_AT + LANES * Self::SCALES;
    /// After the minimums.
    const FLOATS_AT: usize = Self::MINS_AT
        + match Self::FAMILY {
            Family::Super if Self::HAS_MIN => LANES * Self::SCALES,
            _ => 0,
        };
    /// Bytes of a record.
    const SIZE: usize = {
        assert!(matches!(Self::BITS, 1..=6 | 8), "codes() knows these");
        assert!(Self::SUB == SUB || Self::SUB == GROUP);
        // Panels have no room for float minimums beside scales per 16.
        assert!(!(matches!(Self::FAMILY, Family::Grouped) && Self::HAS_MIN && Self::SUB == SUB));
        assert!(Self::FLOATS <= CHUNK / SUB, "the writer has room for these");
        // A shift is per group, and takes the place of minimums.
        assert!(!Self::SHIFTED || (Self::SUB == GROUP && Self::SIGNED && !Self::HAS_MIN));
        // Tiles of `Grouped` formats have no whole lanes for codes that do not fill a byte.
        assert!(matches!(Self::FAMILY, Family::Super) || Self::FULL || Self::REACH > 1);
        (Self::FLOATS_AT + 2 * LANES * Self::FLOATS).next_multiple_of(64)
    };
    /// Whether scales carry the sign of a shift by one ([`Levels::Shifted`]).
    const SHIFTED: bool = matches!(Self::LEVELS, Levels::Shifted(_));
    /// The largest magnitude of a code.
    const LARGEST: usize = largest_code::<Self>();
    /// Whether codes need a byte of their own: what is shifted by [`SUPER_OFFSET`] would not stay below 128.
    const FULL: bool = Self::LARGEST >= SUPER_OFFSET as usize;
    /// Words of four codes, up to 8, whose products with activations can be added up in sixteen bits, two by two. The
    /// sum fits, so it may wrap on its way. One, where it is too few to pay.
    const REACH: usize = match i16::MAX as usize / (2 * 127 * Self::LARGEST) {
        0..4 => 1,
        4..8 => 4,
        _ => 8,
    };
    /// The number of every code byte.
    const NUMBERS: [u8; 256] = numbers(Self::LEVELS, Self::BITS);
}

impl<F: Format> Layout for F {}

/// In place of a number of words: products are added up in whole lanes.
pub(crate) const WIDE: usize = 1;

/// Words of four codes whose products an instruction set adds up in [`Isa::D`] before it scales them; [`WIDE`] where
/// it adds them up in whole lanes.
#[inline(always)]
pub(crate) const fn words<I: Isa, F: Format>() -> usize {
    if I::NARROW && F::REACH < F::SUB / 4 { F::REACH } else { F::SUB / 4 }
}

/// What is added to the code bytes of a format to give those that an instruction set multiplies.
#[inline(always)]
pub(crate) const fn moved<I: Isa, F: Format>() -> u8 {
    // Sixteen-bit sums start from `ActChunk::pairs`, which know one offset; whole lanes beside them from `starts`.
    assert!(!I::NARROW || (I::SUPER_OFFSET == SUPER_OFFSET && I::SMALL_OFFSET == SUPER_OFFSET));
    let (from, to) = match F::FAMILY {
        Family::Super if F::SIGNED => (SUPER_OFFSET, I::SUPER_OFFSET),
        Family::Super => (0, 0),
        Family::Grouped if F::FULL => (GROUPED_OFFSET, I::FULL_OFFSET),
        Family::Grouped => (GROUPED_OFFSET, I::SMALL_OFFSET),
    };
    to.wrapping_sub(from)
}

const fn numbers(levels: Levels, bits: usize) -> [u8; 256] {
    let mut out = [0; 256];
    let mut number = 0;
    while number < 1 << bits {
        match levels {
            Levels::From(first) => {
                if first as usize + number < 256 {
                    out[first as usize + number] = number as u8;
                }
            }
            Levels::Table(table) => out[table[number] as usize] = number as u8,
            Levels::Shifted(table) => {
                if table[number] > 0 {
                    out[table[number] as usize - 1] = number as u8;
                    out[table[number] as usize + 1] = number as u8;
                }
            }
        }
        number += 1;
    }
    out
}

/// Bytes of a matrix with its rows side by side; none for floats, and where that does not fit memory.
pub fn repacked_bytes(ty: Type, rows: usize, cols: usize) -> Option<usize> {
    let panel = ty.record_bytes()?.checked_mul(cols.div_ceil(CHUNK))?;
    rows.div_ceil(LANES).checked_mul(panel)
}

/// Writes the rows of `w` side by side; `out` has [`repacked_bytes`].
///
/// # Errors
/// The matrix is of floats, or `out` has another length.
pub fn repack(w: &Matrix<'_>, out: &mut [u8]) -> Result<(), Error> {
    let Some(bytes) = repacked_bytes(w.ty(), w.rows(), w.cols()) else {
        return Err(Error::Range {
            what: "bits of a weight to repack",
            found: 8 * w.ty().block_bytes(),
            expected: "a block-quantized format",
        });
    };
    expect_len("bytes of repacked weights", out.len(), bytes)?;
    let panel = bytes / w.rows().div_ceil(LANES).max(1);
    // About as much as the second-level cache holds.
    let panels = ((1 << 18) / panel.max(1)).max(1);
    par::for_chunks(out, panels * panel, |task, out| {
        let first = task * panels * LANES;
        with_format!(w.ty(), F => float unreachable!("floats are not repacked"),
                     block dispatch(Pack { w, first, out, format: PhantomData::<F> }));
    });
    Ok(())
}

/// Rows `first..` of a matrix, as many panels as `out` has room for.
struct Pack<'a, F> {
    w: &'a Matrix<'a>,
    first: usize,
    out: &'a mut [u8],
    format: PhantomData<F>,
}

impl<F: Format> Op for Pack<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { w, first, out, .. } = self;
        let mut rows = [[[0; 64]; LANES]; 4];
        let mut words = [[0; 64]; CHUNK / 4];
        for (i, record) in out.chunks_exact_mut(F::SIZE).enumerate() {
            let (panel, chunk) = (i / w.chunks(), i % w.chunks());
            record.fill(0);
            for r in 0..LANES {
                // A short last panel holds its last row more than once.
                let row = (first + panel * LANES + r).min(w.rows() - 1);
                let weights: Weights<I> = w.decode::<I, F>(isa, row, chunk);
                for q in 0..4 {
                    isa.put(weights.codes[q], &mut rows[q][r]);
                }
                let floats = floats::<I, F>(&weights);
                let first = FIRSTS.map(|i| rows[i / 64][r][i % 64]);
                write_scales::<F>((&weights.scales, &weights.mins), floats, first, r, record);
            }
            for q in 0..4 {
                isa.transpose_words(&rows[q], words[LANES * q..].first_chunk_mut().expect("four quarters"));
            }
            for word in &mut words {
                isa.put(isa.lookup256(&F::NUMBERS, isa.bytes(word)), word);
            }
            let groups = record[..F::SCALES_AT].as_chunks_mut::<64>().0.chunks_exact_mut(F::BITS);
            for (words, group) in words.as_chunks().0.iter().zip(groups) {
                write_codes(words, group);
            }
        }
    }
}

/// The 16-bit scales of a row, and its minimums, in the order of the layout.
#[inline(always)]
fn floats<I: Isa, F: Format>(weights: &Weights<I>) -> [u16; CHUNK / SUB] {
    let mut out = [0; CHUNK / SUB];
    if F::FAMILY == Family::Super || F::SCALE == Scale::Integer {
        (out[0], out[1]) = (weights.d, weights.dmin);
        return out;
    }
    for s in 0..CHUNK / F::SUB {
        let d = weights.group_d[s];
        out[s] = if F::SCALE == Scale::Brain { (d.to_bits() >> 16) as u16 } else { f32_to_f16(d) };
    }
    if F::HAS_MIN {
        for g in 0..GROUPS {
            out[CHUNK / F::SUB + g] = f32_to_f16(weights.group_m[g]);
        }
    }
    out
}

/// How many bits of a code lie together: the parts of [`Format::BITS`], lower bits first.
const PLANES: [usize; 4] = [8, 4, 2, 1];

/// Writes the numbers of eight fours into as many vectors as they have bits.
#[inline(never)]
fn write_codes(words: &[[u8; 64]; 8], group: &mut [[u8; 64]]) {
    let (count, mut plane) = (group.len(), 0);
    for bits in PLANES.into_iter().filter(|bits| count & bits != 0) {
        for (k, word) in words.iter().enumerate() {
            let (vector, at) = (&mut group[plane + k * bits / 8], k * bits % 8);
            for (to, number) in vector.iter_mut().zip(word) {
                *to |= (number >> plane & (0xff >> (8 - bits))) << at;
            }
        }
        plane += bits;
    }
}

/// Writes the scales of row `r`: its integer scales and minimums per 16, its float scales, and the first code of
/// each group for [`Levels::Shifted`].
#[inline(never)]
fn write_scales<F: Format>(
    (scales, mins): (&[i16; 16], &[i16; 16]),
    floats: [u16; CHUNK / SUB],
    first: [u8; GROUPS],
    r: usize,
    record: &mut [u8],
) {
    for s in 0..F::SCALES {
        let at = s * F::SUB;
        let mut scale = i8::try_from(scales[at / SUB]).expect("integer scales fit a byte");
        if F::SHIFTED {
            let code = first[at / GROUP];
            let level = match F::LEVELS {
                Levels::Shifted(table) => table[usize::from(F::NUMBERS[usize::from(code)])],
                _ => code,
            };
            scale = if code < level { -scale } else { scale };
        }
        record[F::SCALES_AT + LANES * s + r] = scale as u8;
        if F::MINS_AT < F::FLOATS_AT {
            record[F::MINS_AT + 2 * LANES * (s / 2) + 2 * r + s % 2] =
                i8::try_from(mins[at / SUB]).expect("integer minimums fit a byte") as u8;
        }
    }
    for f in 0..F::FLOATS {
        record[F::FLOATS_AT + 2 * (LANES * f + r)..][..2].copy_from_slice(&floats[f].to_le_bytes());
    }
}
