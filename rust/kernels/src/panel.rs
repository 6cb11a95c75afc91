//! Many columns: sixteen rows become a panel whose lanes are rows (`panel/build.rs`), and the activations of a
//! block of columns are broadcast against it.
//!
//! ```text
//! 16 rows x 256 codes --decode, transpose--> panel: 64 words of 16 rows x 4 codes
//!
//!            rows 0 .. 15                          one dot-product instruction:
//! word k   [ c c c c | c c c c | ... | c c c c ]   lane r += 4 codes of row r . 4 activations
//!              x 4 activations of one column,      column after column, up to eight at once,
//!                broadcast to all lanes            the sums staying in registers
//! ```
//!
//! Integer scales meet the sums once per 16 or 32 weights: the panel holds them multiplied by each of the
//! eight steps that activations may have, so that one multiplication applies both.

use crate::chunk::{ActChunk, CHUNK, GROUP, MAX_STEP, SUB};
use crate::columns::BLOCK;
use crate::dispatch::Op;
use crate::format::{Family, Format};
use crate::isa::{Isa, LANES};
use crate::matrix::Matrix;
use crate::repack::{Layout, Record, WIDE, words};
use bytemuck::Zeroable;
use std::marker::PhantomData;

mod build;

use build::{Build, RowBuffer, Unpack};

/// Most columns that are multiplied together: [`Isa::TILE`] of the widest register file.
const TILE: usize = 8;

/// Sixteen rows of one chunk, lanes first.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
struct Panel {
    /// Four codes of each row, 64 times.
    codes: [[u8; 64]; CHUNK / 4],
    /// Factors ([`Isa::factors`]) `scale * (step + 1)` per sub-block and step. `Super` only.
    scales: [[[i32; LANES]; MAX_STEP as usize]; CHUNK / SUB],
    /// Minimums, or shifts, of two neighbouring sub-blocks per row: eight pairs, or four of sub-blocks of 32.
    mins: [[i32; LANES]; 8],
    /// Scale per sub-block. `Grouped` only.
    group_d: [[f32; LANES]; CHUNK / SUB],
    /// Minimum per group. `Grouped` with `HAS_MIN` only.
    group_m: [[f32; LANES]; CHUNK / GROUP],
    /// Scale of the chunk. `Super` only.
    d: [f32; LANES],
    /// Scale of the minimums. `HAS_MIN` only.
    dmin: [f32; LANES],
}

impl Panel {
    /// The factors of sub-block `s` of `SUB` weights for a column's step.
    #[inline(always)]
    fn factors<const SUB: usize>(&self, s: usize, a: &ActChunk) -> &[i32; LANES] {
        &self.scales[s][(a.steps[s * SUB / crate::chunk::SUB] - 1) as usize % MAX_STEP as usize]
    }
}

/// Rows `start..` times the `n` columns that `pick` names, all when none; `acts` is `[chunks][all columns]`. For
/// `out` see [`crate::matmul::Job`].
#[inline(always)]
pub(crate) fn rows<I: Isa, F: Format>(
    isa: I,
    w: &Matrix<'_>,
    acts: &[ActChunk],
    n: usize,
    pick: Option<&[u32]>,
    start: usize,
    out: &mut [f32],
) {
    let chunks = w.chunks();
    let all = acts.len() / chunks;
    let mut panel = Box::new(Panel::zeroed());
    let mut buffer = Box::new(RowBuffer::zeroed());
    let mut acc = vec![[0.0; LANES]; n.min(BLOCK)];
    for from in (0..n).step_by(BLOCK) {
        let acc = &mut acc[..BLOCK.min(n - from)];
        let pick = pick.map(|pick| &pick[from..][..acc.len()]);
        for (p, out) in out.chunks_mut(LANES * n).enumerate() {
            let (first, count) = (start + p * LANES, out.len() / n);
            acc.fill([0.0; LANES]);
            for chunk in 0..chunks {
                let (buffer, panel) = (&mut buffer, &mut panel);
                if w.is_repacked() {
                    let record = Record::<F>::new(&w.records::<F>(first)[chunk * F::SIZE..]);
                    isa.enter(Unpack { record, panel });
                } else {
                    isa.enter(Build::<F> { w, first, count, chunk, buffer, panel, format: PhantomData });
                }
                let acts = &acts[chunk * all..][..all];
                multiply::<I, F>(isa, w, panel, if pick.is_some() { acts } else { &acts[from..] }, pick, acc);
            }
            for (c, lanes) in acc.iter().enumerate() {
                out[(from + c) * count..][..count].copy_from_slice(&lanes[..count]);
            }
        }
    }
}

/// Adds the products of a panel and some columns to `acc`.
#[inline(always)]
fn multiply<I: Isa, F: Format>(
    isa: I,
    w: &Matrix<'_>,
    panel: &Panel,
    acts: &[ActChunk],
    pick: Option<&[u32]>,
    acc: &mut [[f32; LANES]],
) {
    let tiles = Tiles { panel, acts, pick, acc, kind: PhantomData::<()> };
    // Written as `if`s over constants, so that only what a format needs is compiled.
    if const { matches!(F::FAMILY, Family::Grouped) && F::SUB == SUB } {
        tiles.grouped::<I, F, 16, false>(isa);
    } else if const { matches!(F::FAMILY, Family::Grouped) && F::HAS_MIN } {
        tiles.grouped::<I, F, 32, true>(isa);
    } else if const { matches!(F::FAMILY, Family::Grouped) } {
        tiles.grouped::<I, F, 32, false>(isa);
    } else if const { F::SUB == SUB } {
        tiles.supers::<I, F, 16>(isa, w.is_repacked());
    } else {
        tiles.supers::<I, F, 32>(isa, w.is_repacked());
    }
}

impl<'a> Tiles<'a, ()> {
    #[inline(always)]
    fn run_as<I: Isa, K: Kind>(self, isa: I) {
        let Self { panel, acts, pick, acc, .. } = self;
        isa.enter(Tiles { panel, acts, pick, acc, kind: PhantomData::<K> });
    }

    #[inline(always)]
    fn grouped<I: Isa, F: Format, const SUB: usize, const MIN: bool>(self, isa: I) {
        if const { F::FULL } {
            self.run_as::<I, Grouped<SUB, MIN, FULL>>(isa);
        } else if const { words::<I, F>() == 8 } {
            self.run_as::<I, Grouped<SUB, MIN, 8>>(isa);
        } else {
            self.run_as::<I, Grouped<SUB, MIN, 4>>(isa);
        }
    }

    #[inline(always)]
    fn supers<I: Isa, F: Format, const SUB: usize>(self, isa: I, repacked: bool) {
        if const { F::SIGNED && F::HAS_MIN } {
            self.supers_of::<I, F, SUB, true, OWN>(isa);
        } else if const { F::HAS_MIN } {
            self.supers_of::<I, F, SUB, false, OWN>(isa);
        } else if const { !F::SIGNED } {
            self.supers_of::<I, F, SUB, false, NONE>(isa);
        } else if const { F::SHIFTED } && repacked {
            self.supers_of::<I, F, SUB, true, IN_SCALES>(isa);
        } else {
            self.supers_of::<I, F, SUB, true, NONE>(isa);
        }
    }

    #[inline(always)]
    fn supers_of<I: Isa, F: Format, const SUB: usize, const SIGNED: bool, const MINS: u8>(self, isa: I) {
        if const { words::<I, F>() == 8 } {
            self.run_as::<I, Super<SUB, SIGNED, MINS, 8>>(isa);
        } else if const { words::<I, F>() == 4 } {
            self.run_as::<I, Super<SUB, SIGNED, MINS, 4>>(isa);
        } else {
            self.run_as::<I, Super<SUB, SIGNED, MINS, WIDE>>(isa);
        }
    }
}

/// All columns times a panel, in tiles of nearly equal width: nine columns are five and four. A function of its
/// own: one for all formats of a kind.
struct Tiles<'a, K> {
    panel: &'a Panel,
    /// This chunk of all columns.
    acts: &'a [ActChunk],
    /// Which of them to use; all when none.
    pick: Option<&'a [u32]>,
    acc: &'a mut [[f32; LANES]],
    kind: PhantomData<K>,
}

impl<K: Kind> Op for Tiles<'_, K> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { panel, acts, pick, acc, .. } = self;
        let n = acc.len();
        let count = n.div_ceil(I::TILE);
        let mut first = 0;
        for t in 0..count {
            let width = n / count + usize::from(t < n % count);
            let mut columns = [&acts[0]; TILE];
            for (c, column) in columns[..width].iter_mut().enumerate() {
                *column = &acts[pick.map_or(first + c, |pick| pick[first + c] as usize)];
            }
            let acc = &mut acc[first..first + width];
            match width {
                1 => tile::<I, K, 1>(isa, panel, &columns, acc),
                2 => tile::<I, K, 2>(isa, panel, &columns, acc),
                3 => tile::<I, K, 3>(isa, panel, &columns, acc),
                4 if I::TILE >= 4 => tile::<I, K, 4>(isa, panel, &columns, acc),
                5 if I::TILE >= 5 => tile::<I, K, 5>(isa, panel, &columns, acc),
                6 if I::TILE >= 6 => tile::<I, K, 6>(isa, panel, &columns, acc),
                7 if I::TILE >= 7 => tile::<I, K, 7>(isa, panel, &columns, acc),
                8 if I::TILE >= 8 => tile::<I, K, 8>(isa, panel, &columns, acc),
                _ => unreachable!("tiles have at most as many columns as the level says"),
            }
            first += width;
        }
    }
}

#[inline(always)]
fn tile<I: Isa, K: Kind, const C: usize>(
    isa: I,
    panel: &Panel,
    columns: &[&ActChunk; TILE],
    acc: &mut [[f32; LANES]],
) {
    let columns = columns.first_chunk::<C>().expect("no more than a tile");
    let acc = acc.first_chunk_mut::<C>().expect("as many as columns");
    isa.enter(Tile { panel, columns, acc, kind: PhantomData::<K> });
}

/// How the sums of a tile are scaled.
trait Kind {
    /// Adds the products of the panel and `C` columns to `acc`.
    fn tile<I: Isa, const C: usize>(isa: I, panel: &Panel, a: [&ActChunk; C], acc: &mut [[f32; LANES]; C]);
}

/// Codes that fill a byte, in place of a number of words.
const FULL: usize = 0;

/// [`Family::Grouped`] with one float scale per `SUB` weights and perhaps minimums.
struct Grouped<const SUB: usize, const MIN: bool, const WORDS: usize>;

impl<const SUB: usize, const MIN: bool, const WORDS: usize> Kind for Grouped<SUB, MIN, WORDS> {
    #[inline(always)]
    fn tile<I: Isa, const C: usize>(isa: I, panel: &Panel, a: [&ActChunk; C], acc: &mut [[f32; LANES]; C]) {
        let quads: [&[i32; 64]; C] = a.map(|a| bytemuck::cast_ref(&a.codes));
        let mut f = [isa.splat(0.0); C];
        for c in 0..C {
            f[c] = isa.load(&acc[c]);
        }
        for g in 0..CHUNK / GROUP {
            for s in g * GROUP / SUB..(g + 1) * GROUP / SUB {
                let mut sum = [isa.splat_i32(0); C];
                let words = s * SUB / 4..(s + 1) * SUB / 4;
                if WORDS == FULL {
                    for c in 0..C {
                        sum[c] = isa.full_start(a[c].start(words.start, SUB / 4));
                    }
                    for k in words {
                        for c in 0..C {
                            sum[c] = isa.dot_full(sum[c], isa.bytes(&panel.codes[k]), quads[c][k]);
                        }
                    }
                } else {
                    for first in words.step_by(WORDS.max(1)) {
                        let part = part::<I, C>(isa, panel, (first, WORDS), true, a, &quads);
                        for c in 0..C {
                            sum[c] = isa.add_i32(sum[c], isa.dot_sum(part[c]));
                        }
                    }
                }
                let d = isa.load(&panel.group_d[s]);
                for c in 0..C {
                    f[c] = isa.fma(isa.mul(d, isa.splat(a[c].scales[g])), isa.to_float(sum[c]), f[c]);
                }
            }
            if MIN {
                let m = isa.load(&panel.group_m[g]);
                for c in 0..C {
                    f[c] = isa.fma(m, isa.splat(a[c].sum_of_group(g)), f[c]);
                }
            }
        }
        for c in 0..C {
            isa.store(f[c], &mut acc[c]);
        }
    }
}

/// Sums of products of `words` words of the panel from `first` on.
#[inline(always)]
fn part<I: Isa, const C: usize>(
    isa: I,
    panel: &Panel,
    (first, words): (usize, usize),
    shifted: bool,
    a: [&ActChunk; C],
    quads: &[&[i32; CHUNK / 4]; C],
) -> [I::D; C] {
    let mut sum = [isa.dot_zero(); C];
    if shifted {
        for c in 0..C {
            sum[c] = isa.dot_start(a[c], first, words);
        }
    }
    for k in first..first + words {
        for c in 0..C {
            sum[c] = isa.dot(sum[c], isa.bytes(&panel.codes[k]), quads[c][k]);
        }
    }
    sum
}

/// No minimums.
const NONE: u8 = 0;
/// Minimums under a float scale of their own.
const OWN: u8 = 1;
/// Shifts of the codes, times their integer scale: they add to the products.
const IN_SCALES: u8 = 2;

/// [`Family::Super`] with one integer scale per `SUB` weights.
struct Super<const SUB: usize, const SIGNED: bool, const MINS: u8, const WORDS: usize>;

impl<const SUB: usize, const SIGNED: bool, const MINS: u8, const WORDS: usize> Kind
    for Super<SUB, SIGNED, MINS, WORDS>
{
    #[inline(always)]
    fn tile<I: Isa, const C: usize>(isa: I, panel: &Panel, a: [&ActChunk; C], acc: &mut [[f32; LANES]; C]) {
        let quads: [&[i32; 64]; C] = a.map(|a| bytemuck::cast_ref(&a.codes));
        let mut total = [isa.splat_i32(0); C];
        for s in 0..CHUNK / SUB {
            let words = s * SUB / 4..(s + 1) * SUB / 4;
            if WORDS == WIDE {
                let mut sum = [isa.splat_i32(0); C];
                if SIGNED {
                    for c in 0..C {
                        sum[c] = isa.splat_i32(a[c].start(words.start, SUB / 4));
                    }
                }
                for k in words {
                    for c in 0..C {
                        sum[c] = isa.dot_wide(sum[c], isa.bytes(&panel.codes[k]), quads[c][k]);
                    }
                }
                for c in 0..C {
                    total[c] = isa.wide_end(total[c], sum[c], isa.load_i32(panel.factors::<SUB>(s, a[c])));
                }
                continue;
            }
            for first in words.step_by(WORDS) {
                let sum = part::<I, C>(isa, panel, (first, WORDS), SIGNED, a, &quads);
                for c in 0..C {
                    total[c] = isa.dot_end(total[c], sum[c], isa.load_i32(panel.factors::<SUB>(s, a[c])));
                }
            }
        }
        let mut min = [isa.splat_i32(0); C];
        if MINS == IN_SCALES {
            min = total;
        }
        if MINS != NONE {
            for p in 0..CHUNK / SUB / 2 {
                let mins = isa.load_i32(&panel.mins[p]);
                for c in 0..C {
                    min[c] = isa.dot2(min[c], mins, a[c].sum_pairs::<SUB>(p));
                }
            }
        }
        if MINS == IN_SCALES {
            total = min;
        }
        let (d, dmin) = (isa.load(&panel.d), isa.load(&panel.dmin));
        for c in 0..C {
            let scale = a[c].scales[0];
            let mut f = isa.fma(isa.mul(d, isa.splat(scale)), isa.to_float(total[c]), isa.load(&acc[c]));
            if MINS == OWN {
                let min = min[c];
                f = isa.fma(isa.mul(dmin, isa.splat(-scale)), isa.to_float(min), f);
            }
            isa.store(f, &mut acc[c]);
        }
    }
}

/// Some columns times a panel, as a function of its own.
struct Tile<'a, K, const C: usize> {
    panel: &'a Panel,
    columns: &'a [&'a ActChunk; C],
    acc: &'a mut [[f32; LANES]; C],
    kind: PhantomData<K>,
}

impl<K: Kind, const C: usize> Op for Tile<'_, K, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        K::tile::<I, C>(isa, self.panel, *self.columns, self.acc);
    }
}
