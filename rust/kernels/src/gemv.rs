//! One column: each chunk of a row is decoded into registers and multiplied at once.
//!
//! Sixteen rows go together, so that their lane sums are added up and scaled sixteen at a time.
//!
//! ```text
//! chunk of row r --decode--> codes, scales --dot--> lanes r      r = 0..16
//! lanes 0..16 --sum_rows--> 16 exact sums --> acc = fma(d * a, sum, acc)
//! ```
//!
//! Repacked rows are lanes already ([`Stream`]): four codes of every row meet four broadcast activations.

use crate::chunk::{ActChunk, CHUNK, GROUP, GROUPED_OFFSET, SUB};
use crate::dispatch::Op;
use crate::format::{Family, Format};
use crate::isa::{Isa, LANES};
use crate::matrix::{AHEAD, Matrix};
use crate::repack::{Layout, Record, WIDE, words};
use bytemuck::Zeroable;
use std::marker::PhantomData;

/// Rows from `start`, as many as `out` has room for, times column `column` of `[chunks][all columns]`. A
/// function of its own for every format: together they would share constants and spill them.
pub(crate) struct Gemv<'a, F> {
    pub(crate) w: &'a Matrix<'a>,
    pub(crate) acts: &'a [ActChunk],
    pub(crate) column: usize,
    pub(crate) start: usize,
    pub(crate) out: &'a mut [f32],
    pub(crate) format: PhantomData<F>,
}

impl<F: Format> Op for Gemv<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { w, acts, column, start, out, .. } = self;
        let chunks = w.chunks();
        let all = acts.len() / chunks;
        let mut lanes = Lanes::<I>::new(isa);
        for (panel, out) in out.chunks_mut(LANES).enumerate() {
            let first = start + panel * LANES;
            let mut acc = isa.splat(0.0);
            let together = if F::FAMILY == Family::Super { TOGETHER } else { TOGETHER_GROUPED };
            for from in (0..chunks).step_by(together) {
                let n = together.min(chunks - from);
                let mut a = [&acts[from * all + column]; TOGETHER];
                for c in 1..n {
                    a[c] = &acts[(from + c) * all + column];
                }
                for r in 0..LANES {
                    // A short last panel computes its last row more than once.
                    let row = first + r.min(out.len() - 1);
                    lanes.row::<F>(isa, w, (row, r), from, &a[..n]);
                }
                acc = lanes.finish::<F>(isa, &a[..n], acc);
            }
            let mut floats = [0.0; LANES];
            isa.store(acc, &mut floats);
            out.copy_from_slice(&floats[..out.len()]);
        }
    }
}

/// Chunks of a row that are read one after the other before the next row: memory likes that.
const TOGETHER: usize = 8;
/// The same for [`Family::Grouped`], whose lanes take four times the room.
const TOGETHER_GROUPED: usize = 2;

/// What sixteen rows have come to, before lanes are added up.
struct Lanes<I: Isa> {
    d: [[u16; LANES]; TOGETHER],
    dmin: [[u16; LANES]; TOGETHER],
    /// Scales per group, or per 16 in two halves.
    group_d: [[[[f32; 8]; LANES]; 2]; TOGETHER_GROUPED],
    group_m: [[[f32; 8]; LANES]; TOGETHER_GROUPED],
    sums: [[I::S; LANES]; TOGETHER],
    mins: [[I::S; LANES]; TOGETHER],
    /// Per group; of its halves where each has a scale.
    units: [[[I::U; LANES]; 2]; TOGETHER_GROUPED],
}

impl<I: Isa> Lanes<I> {
    #[inline(always)]
    fn new(isa: I) -> Self {
        Self {
            d: [[0; LANES]; TOGETHER],
            dmin: [[0; LANES]; TOGETHER],
            group_d: [[[[0.0; 8]; LANES]; 2]; TOGETHER_GROUPED],
            group_m: [[[0.0; 8]; LANES]; TOGETHER_GROUPED],
            sums: [[isa.no_lanes(); LANES]; TOGETHER],
            mins: [[isa.no_lanes(); LANES]; TOGETHER],
            units: [[[isa.no_units(); LANES]; 2]; TOGETHER_GROUPED],
        }
    }

    /// Multiplies chunks of a row, from `from` on, with the activations `a`; the row is lane `r`.
    #[inline(always)]
    fn row<F: Format>(
        &mut self,
        isa: I,
        w: &Matrix<'_>,
        (row, r): (usize, usize),
        from: usize,
        a: &[&ActChunk],
    ) {
        let whole: &[F::Chunk] = w.whole_chunks::<F>(row);
        let cut = (from + a.len()).min(whole.len());
        // The chunk that the end of the row cuts short, if it is among them, comes from a padded copy.
        let last = if cut < from + a.len() { [w.last_chunk::<F>(row)] } else { [F::Chunk::zeroed()] };
        let parts = [&whole[from.min(cut)..cut], &last[..from + a.len() - cut]];
        let ahead = w.row_bytes() * (AHEAD / (a.len() * size_of::<F::Chunk>())).max(1);
        let mut c = 0;
        for part in parts {
            for chunk in part {
                // Relative to the copy of a last chunk this asks for nothing useful, and harms nothing.
                for line in 0..size_of::<F::Chunk>().div_ceil(64) {
                    isa.prefetch(bytemuck::bytes_of(chunk), ahead + 64 * line);
                }
                let (weights, a) = (F::decode(isa, chunk), a[c]);
                match F::FAMILY {
                    Family::Super => {
                        let sum = if F::SIGNED {
                            isa.dot_super::<true>(&weights.codes, &weights.scales, a)
                        } else {
                            isa.dot_super::<false>(&weights.codes, &weights.scales, a)
                        };
                        (self.sums[c][r], self.d[c][r]) = (sum, weights.d);
                        if F::HAS_MIN {
                            (self.mins[c][r], self.dmin[c][r]) =
                                (isa.dot_mins(&weights.mins, a), weights.dmin);
                        }
                    }
                    Family::Grouped => {
                        let d: [[f32; 8]; 2] = bytemuck::cast(weights.group_d);
                        self.group_d[c][0][r] = d[0];
                        if F::SUB == GROUP {
                            self.units[c][0][r] = isa.dot_units(&weights.codes, a);
                        } else {
                            self.group_d[c][1][r] = d[1];
                            for half in 0..2 {
                                let codes = half_of_groups(isa, &weights.codes, half);
                                self.units[c][half][r] = isa.dot_units(&codes, a);
                            }
                        }
                        if F::HAS_MIN {
                            self.group_m[c][r] = weights.group_m;
                        }
                    }
                }
                c += 1;
            }
        }
    }

    /// Adds up the lanes of every chunk, scales the sums and adds them to `acc`.
    #[inline(always)]
    fn finish<F: Format>(&self, isa: I, a: &[&ActChunk], mut acc: I::F) -> I::F {
        for (c, a) in a.iter().enumerate() {
            if F::FAMILY == Family::Grouped {
                let halves = GROUP / F::SUB;
                let mut d = [isa.transpose_groups(&self.group_d[c][0]); 2];
                let mut sums = [isa.sum_units(&self.units[c][0], a); 2];
                if halves == 2 {
                    d[1] = isa.transpose_groups(&self.group_d[c][1]);
                    sums[1] = isa.sum_units(&self.units[c][1], a);
                }
                let mut m = d[0];
                if F::HAS_MIN {
                    m = isa.transpose_groups(&self.group_m[c]);
                }
                for g in 0..8 {
                    let scale = isa.splat(a.scales[g]);
                    for half in 0..halves {
                        let s = g * halves + half;
                        acc = isa.fma(isa.mul(d[s / 8][s % 8], scale), isa.to_float(sums[half][g]), acc);
                    }
                    if F::HAS_MIN {
                        acc = isa.fma(m[g], isa.splat(a.sum_of_group(g)), acc);
                    }
                }
                continue;
            }
            let scale = a.scales[0];
            let d = isa.mul(isa.load_half(&self.d[c]), isa.splat(F::D_FACTOR));
            let sum = isa.to_float(isa.sum_rows(&self.sums[c]));
            acc = isa.fma(isa.mul(d, isa.splat(scale)), sum, acc);
            if F::HAS_MIN {
                let sum = isa.to_float(isa.sum_rows(&self.mins[c]));
                acc = isa.fma(isa.mul(isa.load_half(&self.dmin[c]), isa.splat(-scale)), sum, acc);
            }
        }
        acc
    }
}

/// [`Family::Grouped`] codes with those of one half of each group zero: dot products then are of the other.
#[inline(always)]
fn half_of_groups<I: Isa>(isa: I, codes: &[I::Q; 4], half: usize) -> [I::Q; 4] {
    const fn mask(half: usize, inside: u8, outside: u8) -> [u8; 64] {
        let mut out = [outside; 64];
        let mut i = 0;
        while i < 64 {
            if i / SUB % 2 == half {
                out[i] = inside;
            }
            i += 1;
        }
        out
    }
    static KEEP: [[u8; 64]; 2] = [mask(0, 255, 0), mask(1, 255, 0)];
    static ZERO: [[u8; 64]; 2] = [mask(0, 0, GROUPED_OFFSET), mask(1, 0, GROUPED_OFFSET)];
    let mut out = *codes;
    for q in 0..4 {
        out[q] = isa.or(isa.and(codes[q], isa.bytes(&KEEP[half])), isa.bytes(&ZERO[half]));
    }
    out
}

/// As [`Gemv`] for repacked rows: one stream of records, which some CPUs prefetch better than instructions do and others
/// not at all well ([`Isa::PREFETCH`]).
pub(crate) struct Stream<'a, F>(pub(crate) Gemv<'a, F>);

impl<F: Format> Op for Stream<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Gemv { w, acts, column, start, out, .. } = self.0;
        let all = acts.len() / w.chunks();
        for (panel, out) in out.chunks_mut(LANES).enumerate() {
            let records = w.records::<F>(start + panel * LANES).chunks_exact(F::SIZE);
            let mut acc = isa.splat(0.0);
            for (chunk, record) in records.enumerate() {
                let (record, a) = (Record::<F>::new(record), &acts[chunk * all + column]);
                acc = match (F::FAMILY, F::SUB) {
                    (Family::Grouped, GROUP) => grouped::<I, F, GROUP>(isa, record, a, acc),
                    (Family::Grouped, _) => grouped::<I, F, SUB>(isa, record, a, acc),
                    (Family::Super, GROUP) => supers::<I, F, GROUP>(isa, record, a, acc),
                    (Family::Super, _) => supers::<I, F, SUB>(isa, record, a, acc),
                };
            }
            let mut floats = [0.0; LANES];
            isa.store(acc, &mut floats);
            out.copy_from_slice(&floats[..out.len()]);
        }
    }
}

/// `LEN` is the format's `SUB`.
#[inline(always)]
fn grouped<I: Isa, F: Format, const LEN: usize>(
    isa: I,
    record: Record<'_, F>,
    a: &ActChunk,
    mut acc: I::F,
) -> I::F {
    let quads: &[i32; CHUNK / 4] = bytemuck::cast_ref(&a.codes);
    for g in 0..CHUNK / GROUP {
        record.prefetch_ahead(isa, g);
        let codes = record.codes(isa, g);
        for half in 0..GROUP / LEN {
            let s = g * GROUP / LEN + half;
            let range = half * LEN / 4..(half + 1) * LEN / 4;
            let sum = if F::FULL {
                let mut sum = isa.full_start(a.start(s * LEN / 4, LEN / 4));
                for k in range {
                    sum = isa.dot_full(sum, codes[k], quads[8 * g + k]);
                }
                sum
            } else {
                let words = const { words::<I, F>() };
                let mut sum = isa.splat_i32(0);
                for first in range.step_by(words) {
                    let mut part = isa.dot_start(a, 8 * g + first, words);
                    for k in first..first + words {
                        part = isa.dot(part, codes[k], quads[8 * g + k]);
                    }
                    sum = isa.add_i32(sum, isa.dot_sum(part));
                }
                sum
            };
            acc = isa.fma(isa.mul(record.group_d(isa, s), isa.splat(a.scales[g])), isa.to_float(sum), acc);
        }
        if F::HAS_MIN {
            acc = isa.fma(record.group_m(isa, g), isa.splat(a.sum_of_group(g)), acc);
        }
    }
    acc
}

/// `LEN` is the format's `SUB`.
#[inline(always)]
fn supers<I: Isa, F: Format, const LEN: usize>(
    isa: I,
    record: Record<'_, F>,
    a: &ActChunk,
    acc: I::F,
) -> I::F {
    let quads: &[i32; CHUNK / 4] = bytemuck::cast_ref(&a.codes);
    let (mut total, mut min) = (isa.splat_i32(0), isa.splat_i32(0));
    for g in 0..CHUNK / GROUP {
        record.prefetch_ahead(isa, g);
        let codes = record.codes(isa, g);
        for half in 0..GROUP / LEN {
            let s = g * GROUP / LEN + half;
            let mut factors = isa.factors(record.scales(s));
            if F::SHIFTED {
                total = isa.dot2(total, factors, i32::from(a.sums32[g]) & 0xffff);
                factors = isa.abs_factors(factors);
            }
            factors = isa.mul_factors(factors, a.steps[s * LEN / SUB]);
            let words = const { words::<I, F>() };
            let range = half * LEN / 4..(half + 1) * LEN / 4;
            if words == WIDE {
                let start = if F::SIGNED { a.start(s * LEN / 4, LEN / 4) } else { 0 };
                let mut sum = isa.splat_i32(start);
                for k in range {
                    sum = isa.dot_wide(sum, codes[k], quads[8 * g + k]);
                }
                total = isa.wide_end(total, sum, factors);
                continue;
            }
            for first in range.step_by(words) {
                let mut sum = if F::SIGNED { isa.dot_start(a, 8 * g + first, words) } else { isa.dot_zero() };
                for k in first..first + words {
                    sum = isa.dot(sum, codes[k], quads[8 * g + k]);
                }
                total = isa.dot_end(total, sum, factors);
            }
        }
    }
    let scale = a.scales[0];
    let d = isa.mul(record.floats(isa, 0), isa.splat(F::D_FACTOR));
    let acc = isa.fma(isa.mul(d, isa.splat(scale)), isa.to_float(total), acc);
    if !F::HAS_MIN {
        return acc;
    }
    for p in 0..CHUNK / LEN / 2 {
        min = isa.dot2(min, record.mins(isa, p), a.sum_pairs::<LEN>(p));
    }
    isa.fma(isa.mul(record.floats(isa, 1), isa.splat(-scale)), isa.to_float(min), acc)
}
