//! Many columns: sixteen rows are decoded once into a panel whose lanes are rows, and every column's
//! activations are broadcast against it.
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

use crate::chunk::{ActChunk, CHUNK, GROUP, MAX_STEP, SUB, Weights};
use crate::dispatch::Op;
use crate::format::{Family, Format};
use crate::isa::{Isa, LANES};
use crate::matrix::Matrix;
use bytemuck::Zeroable;
use std::marker::PhantomData;

/// Columns multiplied together where the register file is wide; half as many elsewhere.
const TILE: usize = 8;

/// Sixteen rows of one chunk, lanes first.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
struct Panel {
    /// Four codes of each row, 64 times.
    codes: [[u8; 64]; CHUNK / 4],
    /// `scale * (step + 1)` per sub-block and step. `Super` only.
    scales: [[[i32; LANES]; MAX_STEP as usize]; CHUNK / SUB],
    /// Minimums of two neighbouring sub-blocks of 16, per row. `HAS_MIN` only.
    mins: [[i16; 2 * LANES]; 8],
    /// Scale per group. `Grouped` only.
    group_d: [[f32; LANES]; CHUNK / GROUP],
    /// Scale of the chunk. `Super` only.
    d: [f32; LANES],
    /// Scale of the minimums. `HAS_MIN` only.
    dmin: [f32; LANES],
}

/// Sixteen rows as they are decoded.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
struct RowBuffer {
    codes: [[[u8; 64]; LANES]; 4],
    scales: [[u8; 64]; LANES],
}

/// Rows `start..` times the columns that `column` names, of which there are `n`; `acts` is `[chunks][all
/// columns]`. For `out` see [`crate::matmul::Job`].
#[inline(always)]
pub(crate) fn rows<I: Isa, F: Format>(
    isa: I,
    w: &Matrix<'_>,
    acts: &[ActChunk],
    n: usize,
    column: impl Fn(usize) -> usize,
    start: usize,
    out: &mut [f32],
) {
    let chunks = w.chunks();
    let all = acts.len() / chunks;
    let mut panel = Box::new(Panel::zeroed());
    let mut buffer = Box::new(RowBuffer::zeroed());
    let mut acc = vec![[0.0; LANES]; n];
    for (p, out) in out.chunks_mut(LANES * n).enumerate() {
        let count = out.len() / n;
        acc.fill([0.0; LANES]);
        for chunk in 0..chunks {
            let first = start + p * LANES;
            let (buffer, panel) = (&mut buffer, &mut panel);
            isa.enter(Build::<F> { w, first, count, chunk, buffer, panel, format: PhantomData });
            let acts = &acts[chunk * all..][..all];
            let column = |c: usize| &acts[column(c)];
            let panel = &*panel;
            match (F::FAMILY, F::SUB == SUB, F::SIGNED, F::HAS_MIN) {
                (Family::Grouped, ..) => tiles::<I, Grouped>(isa, panel, column, &mut acc),
                (_, false, false, false) => tiles::<I, Super<32, false, false>>(isa, panel, column, &mut acc),
                (_, false, false, true) => tiles::<I, Super<32, false, true>>(isa, panel, column, &mut acc),
                (_, false, true, false) => tiles::<I, Super<32, true, false>>(isa, panel, column, &mut acc),
                (_, false, true, true) => tiles::<I, Super<32, true, true>>(isa, panel, column, &mut acc),
                (_, true, false, false) => tiles::<I, Super<16, false, false>>(isa, panel, column, &mut acc),
                (_, true, false, true) => tiles::<I, Super<16, false, true>>(isa, panel, column, &mut acc),
                (_, true, true, false) => tiles::<I, Super<16, true, false>>(isa, panel, column, &mut acc),
                (_, true, true, true) => tiles::<I, Super<16, true, true>>(isa, panel, column, &mut acc),
            }
        }
        for (c, lanes) in acc.iter().enumerate() {
            write_panel(lanes, c, count, out);
        }
    }
}

/// Writes sixteen rows' results for column `c` into a panel of `count` rows.
#[inline(always)]
fn write_panel(lanes: &[f32; LANES], c: usize, count: usize, out: &mut [f32]) {
    out[c * count..][..count].copy_from_slice(&lanes[..count]);
}

/// Decodes one chunk of sixteen rows.
struct Build<'a, F> {
    w: &'a Matrix<'a>,
    first: usize,
    count: usize,
    chunk: usize,
    buffer: &'a mut RowBuffer,
    panel: &'a mut Panel,
    format: PhantomData<F>,
}

impl<F: Format> Op for Build<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { w, first, count, chunk, buffer, panel, .. } = self;
        let (mut d, mut dmin) = ([0; LANES], [0; LANES]);
        // A short last panel holds its last row more than once.
        for r in 0..LANES {
            let weights: Weights<I> = w.decode::<I, F>(isa, first + r.min(count - 1), chunk);
            for q in 0..4 {
                isa.put(weights.codes[q], &mut buffer.codes[q][r]);
            }
            let (low, high) = buffer.scales[r].split_at_mut(32);
            match F::FAMILY {
                Family::Super => {
                    low.copy_from_slice(bytemuck::bytes_of(&weights.scales));
                    if F::HAS_MIN {
                        high.copy_from_slice(bytemuck::bytes_of(&weights.mins));
                    }
                    (d[r], dmin[r]) = (weights.d, weights.dmin);
                }
                Family::Grouped => low.copy_from_slice(bytemuck::bytes_of(&weights.group_d)),
            }
        }
        for (q, words) in panel.codes.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            isa.transpose_words(&buffer.codes[q], words);
        }
        let mut words = [[0; 64]; LANES];
        isa.transpose_words(&buffer.scales, &mut words);
        if F::FAMILY == Family::Grouped {
            for g in 0..CHUNK / GROUP {
                panel.group_d[g] = bytemuck::cast(words[g]);
            }
            return;
        }
        for s in 0..CHUNK / F::SUB {
            // A word holds the scales of two neighbouring sixteens; where they are one, either will do.
            let pairs: [i32; LANES] = bytemuck::cast(words[s * F::SUB / GROUP]);
            let scales =
                pairs.map(|pair| if s * F::SUB % GROUP == 0 { pair << 16 >> 16 } else { pair >> 16 });
            for (step, out) in panel.scales[s].iter_mut().enumerate() {
                isa.scale_i32(&scales, step as i32 + 1, out);
            }
        }
        isa.store(isa.mul(isa.load_half(&d), isa.splat(F::D_FACTOR)), &mut panel.d);
        if F::HAS_MIN {
            isa.store(isa.load_half(&dmin), &mut panel.dmin);
            for p in 0..8 {
                panel.mins[p] = bytemuck::cast(words[8 + p]);
            }
        }
    }
}

/// All columns times a panel, in tiles of nearly equal width: nine columns are five and four.
#[inline(always)]
fn tiles<'a, I: Isa, K: Kind>(
    isa: I,
    panel: &'a Panel,
    column: impl Fn(usize) -> &'a ActChunk,
    acc: &mut [[f32; LANES]],
) {
    let n = acc.len();
    let count = n.div_ceil(if I::WIDE { TILE } else { TILE / 2 });
    let mut first = 0;
    for t in 0..count {
        let width = n / count + usize::from(t < n % count);
        let acc = &mut acc[first..first + width];
        let column = |c: usize| column(first + c);
        match width {
            1 => tile::<I, K, 1>(isa, panel, column, acc),
            2 => tile::<I, K, 2>(isa, panel, column, acc),
            3 => tile::<I, K, 3>(isa, panel, column, acc),
            4 => tile::<I, K, 4>(isa, panel, column, acc),
            5 => tile::<I, K, 5>(isa, panel, column, acc),
            6 => tile::<I, K, 6>(isa, panel, column, acc),
            7 => tile::<I, K, 7>(isa, panel, column, acc),
            _ => tile::<I, K, TILE>(isa, panel, column, acc),
        }
        first += width;
    }
}

#[inline(always)]
fn tile<'a, I: Isa, K: Kind, const C: usize>(
    isa: I,
    panel: &'a Panel,
    column: impl Fn(usize) -> &'a ActChunk,
    acc: &mut [[f32; LANES]],
) {
    isa.enter(Tile { panel, columns: std::array::from_fn::<_, C, _>(column), acc, kind: PhantomData::<K> });
}

/// How the sums of a tile are scaled.
trait Kind {
    /// Adds the products of the panel and `C` columns to `acc`.
    fn tile<I: Isa, const C: usize>(isa: I, panel: &Panel, a: [&ActChunk; C], acc: &mut [[f32; LANES]]);
}

/// [`Family::Grouped`].
struct Grouped;

impl Kind for Grouped {
    #[inline(always)]
    fn tile<I: Isa, const C: usize>(isa: I, panel: &Panel, a: [&ActChunk; C], acc: &mut [[f32; LANES]]) {
        let quads: [&[i32; 64]; C] = a.map(|a| bytemuck::cast_ref(&a.codes));
        let mut f = [isa.splat(0.0); C];
        for c in 0..C {
            f[c] = isa.load(&acc[c]);
        }
        for g in 0..CHUNK / GROUP {
            let mut sum = [isa.splat_i32(0); C];
            for c in 0..C {
                sum[c] = isa.start_full(a[c].starts32[g]);
            }
            for k in g * GROUP / 4..(g + 1) * GROUP / 4 {
                for c in 0..C {
                    sum[c] = isa.dot4_full(sum[c], &panel.codes[k], quads[c][k]);
                }
            }
            let d = isa.load(&panel.group_d[g]);
            for c in 0..C {
                f[c] = isa.fma(isa.mul(d, isa.splat(a[c].scales[g])), isa.to_float(sum[c]), f[c]);
            }
        }
        for c in 0..C {
            isa.store(f[c], &mut acc[c]);
        }
    }
}

/// [`Family::Super`] with one integer scale per `SUB` weights.
struct Super<const SUB: usize, const SIGNED: bool, const HAS_MIN: bool>;

impl<const SUB: usize, const SIGNED: bool, const HAS_MIN: bool> Kind for Super<SUB, SIGNED, HAS_MIN> {
    #[inline(always)]
    fn tile<I: Isa, const C: usize>(isa: I, panel: &Panel, a: [&ActChunk; C], acc: &mut [[f32; LANES]]) {
        let quads: [&[i32; 64]; C] = a.map(|a| bytemuck::cast_ref(&a.codes));
        let mut total = [isa.splat_i32(0); C];
        for s in 0..CHUNK / SUB {
            let mut sum = [isa.splat_i32(0); C];
            if SIGNED {
                for c in 0..C {
                    sum[c] = isa.splat_i32(if SUB == GROUP { a[c].starts32[s] } else { a[c].starts[s] });
                }
            }
            for k in s * SUB / 4..(s + 1) * SUB / 4 {
                for c in 0..C {
                    sum[c] = isa.dot4(sum[c], &panel.codes[k], quads[c][k]);
                }
            }
            for c in 0..C {
                let step = (a[c].steps[s * SUB / crate::chunk::SUB] - 1) as usize % MAX_STEP as usize;
                total[c] = isa.mul_add_i32(total[c], sum[c], &panel.scales[s][step]);
            }
        }
        let (d, dmin) = (isa.load(&panel.d), isa.load(&panel.dmin));
        for c in 0..C {
            let scale = a[c].scales[0];
            let mut f = isa.fma(isa.mul(d, isa.splat(scale)), isa.to_float(total[c]), isa.load(&acc[c]));
            if HAS_MIN {
                let sums: &[i32; 8] = bytemuck::cast_ref(&a[c].sums);
                let mut min = isa.splat_i32(0);
                for p in 0..8 {
                    min = isa.dot2(min, &panel.mins[p], sums[p]);
                }
                f = isa.fma(isa.mul(dmin, isa.splat(-scale)), isa.to_float(min), f);
            }
            isa.store(f, &mut acc[c]);
        }
    }
}

/// Some columns times a panel, as a function of its own: one for all formats of a kind.
struct Tile<'a, K, const C: usize> {
    panel: &'a Panel,
    columns: [&'a ActChunk; C],
    acc: &'a mut [[f32; LANES]],
    kind: PhantomData<K>,
}

impl<K: Kind, const C: usize> Op for Tile<'_, K, C> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        K::tile::<I, C>(isa, self.panel, self.columns, self.acc);
    }
}
