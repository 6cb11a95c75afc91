//! The cached rows of one sequence in one layer: what a token leaves behind for those after it.
//!
//! Knows how rows are stored and turned back to f32; not what their columns mean. A row is `width`
//! numbers, padded with zeros to whole groups of 32 so that neither storage nor kernels see a remainder.

use super::tile::Strided;
use crate::convert::{f16_to_f32, f32_to_f16};
use crate::dispatch::{Op, dispatch};
use crate::isa::{Isa, LANES};
use crate::math::{magnitude, to_code};

/// Numbers that share a scale in [`CacheType::Q8_0`]; rows of every type are whole groups.
pub(super) use crate::chunk::GROUP;

/// How cached numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheType {
    /// Four bytes each, exact.
    #[default]
    F32,
    /// Two bytes each.
    F16,
    /// 34 bytes per 32: codes from -127 to 127 under an f16 scale.
    Q8_0,
}

impl CacheType {
    /// All types, largest first.
    pub const ALL: [CacheType; 3] = [CacheType::F32, CacheType::F16, CacheType::Q8_0];

    /// The name users write.
    pub fn name(self) -> &'static str {
        match self {
            CacheType::F32 => "f32",
            CacheType::F16 => "f16",
            CacheType::Q8_0 => "q8_0",
        }
    }

    /// The type with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.name() == name)
    }

    /// Bytes of a row of `width` numbers.
    pub fn row_bytes(self, width: usize) -> usize {
        width.div_ceil(GROUP)
            * match self {
                CacheType::F32 => 4 * GROUP,
                CacheType::F16 => 2 * GROUP,
                CacheType::Q8_0 => size_of::<Coded>(),
            }
    }
}

/// Thirty-two codes and their scale: number = scale * code.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Coded {
    scale: u16,
    codes: [i8; GROUP],
}
const _: () = assert!(size_of::<Coded>() == 34);

#[derive(Debug, Clone)]
enum Groups {
    F32(Vec<[f32; GROUP]>),
    F16(Vec<[u16; GROUP]>),
    Q8_0(Vec<Coded>),
}

/// Rows of one sequence in one layer.
#[derive(Debug, Clone)]
pub struct Cache {
    width: usize,
    /// Groups per row.
    groups: usize,
    stored: Groups,
}

impl Cache {
    /// An empty cache of rows of `width` numbers.
    pub fn new(ty: CacheType, width: usize) -> Self {
        let stored = match ty {
            CacheType::F32 => Groups::F32(Vec::new()),
            CacheType::F16 => Groups::F16(Vec::new()),
            CacheType::Q8_0 => Groups::Q8_0(Vec::new()),
        };
        Self { width, groups: width.div_ceil(GROUP), stored }
    }

    /// Numbers of a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Floats of a row, padding included.
    pub(super) fn stride(&self) -> usize {
        self.groups * GROUP
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        let groups = match &self.stored {
            Groups::F32(x) => x.len(),
            Groups::F16(x) => x.len(),
            Groups::Q8_0(x) => x.len(),
        };
        groups / self.groups.max(1)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything from row `len` on.
    pub fn truncate(&mut self, len: usize) {
        let len = len * self.groups;
        match &mut self.stored {
            Groups::F32(x) => x.truncate(len),
            Groups::F16(x) => x.truncate(len),
            Groups::Q8_0(x) => x.truncate(len),
        }
    }

    /// Appends rows of [`Cache::stride`] floats.
    pub(super) fn extend(&mut self, rows: &[f32]) {
        dispatch(Extend { cache: self, rows: rows.as_chunks::<GROUP>().0 });
    }

    /// Columns `columns` (whole groups) of `count` rows from `first` as f32: the stored ones where they are
    /// f32, and converted into `scratch` otherwise.
    #[inline(always)]
    pub(super) fn read<'a, I: Isa>(
        &'a self,
        isa: I,
        (first, count): (usize, usize),
        columns: std::ops::Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> Strided<'a> {
        let (from, groups) = (columns.start / GROUP, (columns.end - columns.start).div_ceil(GROUP));
        if let Groups::F32(stored) = &self.stored {
            let data = stored[first * self.groups..(first + count) * self.groups].as_flattened();
            return Strided { data: &data[from * GROUP..], stride: self.stride() };
        }
        scratch.resize(count * groups * GROUP, 0.0);
        let out = scratch.as_chunks_mut::<GROUP>().0;
        for row in 0..count {
            let at = (first + row) * self.groups + from;
            let out = &mut out[row * groups..][..groups];
            match &self.stored {
                Groups::F32(_) => {}
                Groups::F16(stored) => {
                    let stored = &stored[at..at + groups];
                    for g in 0..groups {
                        let (from, to) =
                            (stored[g].as_chunks::<LANES>().0, out[g].as_chunks_mut::<LANES>().0);
                        isa.store(isa.load_half(&from[0]), &mut to[0]);
                        isa.store(isa.load_half(&from[1]), &mut to[1]);
                    }
                }
                Groups::Q8_0(stored) => {
                    let stored = &stored[at..at + groups];
                    for g in 0..groups {
                        let scale = isa.splat(f16_to_f32(stored[g].scale));
                        let (from, to) =
                            (stored[g].codes.as_chunks::<LANES>().0, out[g].as_chunks_mut::<LANES>().0);
                        let zero = isa.splat(0.0);
                        isa.store(isa.fma(scale, isa.load_codes(&from[0]), zero), &mut to[0]);
                        isa.store(isa.fma(scale, isa.load_codes(&from[1]), zero), &mut to[1]);
                    }
                }
            }
        }
        Strided { data: scratch, stride: groups * GROUP }
    }
}

struct Extend<'a> {
    cache: &'a mut Cache,
    rows: &'a [[f32; GROUP]],
}

impl Op for Extend<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match &mut self.cache.stored {
            Groups::F32(stored) => stored.extend_from_slice(self.rows),
            Groups::F16(stored) => {
                let at = stored.len();
                stored.resize(at + self.rows.len(), [0; GROUP]);
                for g in 0..self.rows.len() {
                    let from = self.rows[g].as_chunks::<LANES>().0;
                    let to = stored[at + g].as_chunks_mut::<LANES>().0;
                    isa.store_half(isa.load(&from[0]), &mut to[0]);
                    isa.store_half(isa.load(&from[1]), &mut to[1]);
                }
            }
            Groups::Q8_0(stored) => {
                let at = stored.len();
                stored.resize(at + self.rows.len(), Coded { scale: 0, codes: [0; GROUP] });
                for g in 0..self.rows.len() {
                    stored[at + g] = code(&self.rows[g]);
                }
            }
        }
    }
}

/// Rounds a group to codes under the f16 scale that takes its largest magnitude to 127. What is not finite
/// makes the scale NaN, so that it stays visible.
#[inline(always)]
fn code(x: &[f32; GROUP]) -> Coded {
    let scale = f32_to_f16(magnitude(x) / 127.0);
    // The inverse of the scale as it will be read, so that its own rounding costs nothing.
    let inverse = (1.0 / f16_to_f32(scale)).min(f32::MAX);
    let mut codes = [0; GROUP];
    for i in 0..GROUP {
        codes[i] = to_code(x[i] * inverse);
    }
    Coded { scale, codes }
}
