//! Making panels: of rows as files have them, decoded and transposed, and of repacked records, unpacked.

use super::Panel;
use crate::chunk::{CHUNK, GROUP, MAX_STEP, SUB, Weights};
use crate::dispatch::Op;
use crate::format::{Family, Format};
use crate::isa::{Isa, LANES};
use crate::matrix::Matrix;
use crate::repack::{Layout, Record, moved};
use bytemuck::Zeroable;
use std::marker::PhantomData;

/// Sixteen rows as they are decoded.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
pub(super) struct RowBuffer {
    codes: [[[u8; 64]; LANES]; 4],
    scales: [[u8; 64]; LANES],
}

/// Decodes one chunk of sixteen rows.
pub(super) struct Build<'a, F> {
    pub(super) w: &'a Matrix<'a>,
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) chunk: usize,
    pub(super) buffer: &'a mut RowBuffer,
    pub(super) panel: &'a mut Panel,
    pub(super) format: PhantomData<F>,
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
                        let mut mins = [0; CHUNK / SUB];
                        for s in 0..CHUNK / F::SUB {
                            mins[s] = weights.mins[s * F::SUB / SUB];
                        }
                        high.copy_from_slice(bytemuck::bytes_of(&mins));
                    }
                    (d[r], dmin[r]) = (weights.d, weights.dmin);
                }
                Family::Grouped => {
                    let [first, second]: &[[f32; 8]; 2] = bytemuck::cast_ref(&weights.group_d);
                    low.copy_from_slice(bytemuck::bytes_of(first));
                    let second = if F::HAS_MIN { &weights.group_m } else { second };
                    high.copy_from_slice(bytemuck::bytes_of(second));
                }
            }
        }
        for (q, words) in panel.codes.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            isa.transpose_words(&buffer.codes[q], words);
        }
        let by = const { moved::<I, F>() };
        if by != 0 {
            for word in &mut panel.codes {
                isa.put(isa.add(isa.bytes(word), isa.splat_byte(by)), word);
            }
        }
        let mut words = [[0; 64]; LANES];
        isa.transpose_words(&buffer.scales, &mut words);
        if F::FAMILY == Family::Grouped {
            for s in 0..CHUNK / F::SUB {
                panel.group_d[s] = bytemuck::cast(words[s]);
            }
            if F::HAS_MIN {
                for g in 0..CHUNK / GROUP {
                    panel.group_m[g] = bytemuck::cast(words[8 + g]);
                }
            }
            return;
        }
        for s in 0..CHUNK / F::SUB {
            // A word holds the scales of two neighbouring sixteens; where they are one, either will do.
            let pairs: [i32; LANES] = bytemuck::cast(words[s * F::SUB / GROUP]);
            let scales = pairs.map(|pair| (pair >> (s * F::SUB % GROUP)) as i8);
            by_steps(isa, isa.factors(&scales), &mut panel.scales[s]);
        }
        isa.store(isa.mul(isa.load_half(&d), isa.splat(F::D_FACTOR)), &mut panel.d);
        if F::HAS_MIN {
            isa.store(isa.load_half(&dmin), &mut panel.dmin);
            for p in 0..CHUNK / F::SUB / 2 {
                panel.mins[p] = bytemuck::cast(words[8 + p]);
            }
        }
    }
}

/// Integer scales times every step.
#[inline(always)]
fn by_steps<I: Isa>(isa: I, factors: I::V, out: &mut [[i32; LANES]; MAX_STEP as usize]) {
    for (step, out) in out.iter_mut().enumerate() {
        isa.store_i32(isa.mul_factors(factors, step as i16 + 1), out);
    }
}

/// Takes one record apart.
pub(super) struct Unpack<'a, F> {
    pub(super) record: Record<'a, F>,
    pub(super) panel: &'a mut Panel,
}

impl<F: Format> Op for Unpack<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { record, panel } = self;
        record.prefetch_next(isa);
        for (g, words) in panel.codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let codes = record.codes(isa, g);
            for k in 0..8 {
                isa.put(codes[k], &mut words[k]);
            }
        }
        if F::FAMILY == Family::Grouped {
            for s in 0..CHUNK / F::SUB {
                isa.store(record.group_d(isa, s), &mut panel.group_d[s]);
            }
            if F::HAS_MIN {
                for g in 0..CHUNK / GROUP {
                    isa.store(record.group_m(isa, g), &mut panel.group_m[g]);
                }
            }
            return;
        }
        for s in 0..CHUNK / F::SUB {
            let mut factors = isa.factors(record.scales(s));
            if F::SHIFTED {
                factors = isa.abs_factors(factors);
            }
            by_steps(isa, factors, &mut panel.scales[s]);
        }
        isa.store(isa.mul(record.floats(isa, 0), isa.splat(F::D_FACTOR)), &mut panel.d);
        if F::HAS_MIN {
            isa.store(record.floats(isa, 1), &mut panel.dmin);
        }
        for p in 0..CHUNK / F::SUB / 2 {
            if F::HAS_MIN {
                isa.store_i32(record.mins(isa, p), &mut panel.mins[p]);
            }
            if F::SHIFTED {
                panel.mins[p] = record.shifts(p);
            }
        }
    }
}
