//! Reading records: sixteen rows at once as products take them, or one as its format's decoder returns it.

use super::{GROUPS, Layout, PLANES, moved};
use crate::chunk::{CHUNK, GROUP, SUB, Weights};
use crate::convert::{bf16_to_f32, f16_to_f32};
use crate::format::{Family, Format, Levels, Scale};
use crate::formats::halves;
use crate::isa::{Isa, LANES};
use crate::matrix::AHEAD;
use bytemuck::Pod;
use std::marker::PhantomData;

/// One record.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a, F> {
    bytes: &'a [u8],
    format: PhantomData<F>,
}

impl<'a, F: Format> Record<'a, F> {
    /// The record at the start of `bytes`, which must have one.
    #[inline(always)]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: &bytes[..F::SIZE], format: PhantomData }
    }

    #[inline(always)]
    fn part<T: Pod>(&self, at: usize) -> &'a T {
        bytemuck::from_bytes(&self.bytes[at..at + size_of::<T>()])
    }

    /// Code bytes of group `g` as products take them, eight fours; those of [`Levels::Shifted`] without the shift.
    #[inline(always)]
    pub(crate) fn codes<I: Isa>(&self, isa: I, g: usize) -> [I::Q; 8] {
        let group = self.bytes[64 * F::BITS * g..][..64 * F::BITS].as_chunks::<64>().0;
        let mut out = [isa.splat_byte(0); 8];
        let mut plane = 0;
        if F::BITS & 8 != 0 {
            for k in 0..8 {
                out[k] = isa.bytes(&group[k]);
            }
        }
        if F::BITS & 4 != 0 {
            let low = isa.splat_byte(15);
            for v in 0..4 {
                let x = isa.bytes(&group[v]);
                (out[2 * v], out[2 * v + 1]) = (isa.and(x, low), isa.and(isa.shr::<4, 4>(x), low));
            }
            plane = 4;
        }
        if F::BITS & 2 != 0 {
            let low = isa.splat_byte(3);
            for v in 0..2 {
                let x = isa.bytes(&group[plane + v]);
                if F::BITS & 4 != 0 {
                    // They go above the four bits that are there.
                    let (at, out) = (isa.splat_byte(0x30), &mut out[4 * v..]);
                    out[0] = isa.or(out[0], isa.and(isa.shl::<4, 4>(x), at));
                    out[1] = isa.or(out[1], isa.and(isa.shl::<2, 2>(x), at));
                    out[2] = isa.or(out[2], isa.and(x, at));
                    out[3] = isa.or(out[3], isa.and(isa.shr::<2, 2>(x), at));
                } else {
                    out[4 * v] = isa.and(x, low);
                    out[4 * v + 1] = isa.and(isa.shr::<2, 2>(x), low);
                    out[4 * v + 2] = isa.and(isa.shr::<4, 4>(x), low);
                    out[4 * v + 3] = isa.and(isa.shr::<6, 6>(x), low);
                }
            }
            plane += 2;
        }
        if F::BITS & 1 != 0 {
            let x = isa.bytes(&group[plane]);
            let at = isa.splat_byte(1 << plane);
            let moved = match plane {
                0 => [
                    x,
                    isa.shr::<1, 1>(x),
                    isa.shr::<2, 2>(x),
                    isa.shr::<3, 3>(x),
                    isa.shr::<4, 4>(x),
                    isa.shr::<5, 5>(x),
                    isa.shr::<6, 6>(x),
                    isa.shr::<7, 7>(x),
                ],
                2 => [
                    isa.shl::<2, 2>(x),
                    isa.shl::<1, 1>(x),
                    x,
                    isa.shr::<1, 1>(x),
                    isa.shr::<2, 2>(x),
                    isa.shr::<3, 3>(x),
                    isa.shr::<4, 4>(x),
                    isa.shr::<5, 5>(x),
                ],
                _ => [
                    isa.shl::<4, 4>(x),
                    isa.shl::<3, 3>(x),
                    isa.shl::<2, 2>(x),
                    isa.shl::<1, 1>(x),
                    x,
                    isa.shr::<1, 1>(x),
                    isa.shr::<2, 2>(x),
                    isa.shr::<3, 3>(x),
                ],
            };
            for k in 0..8 {
                out[k] = isa.or(out[k], isa.and(moved[k], at));
            }
        }
        for k in 0..8 {
            match const { moved_levels::<I, F>() } {
                Levels::From(0) => {}
                Levels::From(first) => out[k] = isa.add(out[k], isa.splat_byte(first)),
                Levels::Table(table) | Levels::Shifted(table) => out[k] = isa.lookup16(&table, out[k]),
            }
        }
        out
    }

    /// Integer scales of sub-block `s`, with the sign of the shift if there is one.
    #[inline(always)]
    pub(crate) fn scales(&self, s: usize) -> &'a [i8; LANES] {
        self.part(F::SCALES_AT + LANES * s)
    }

    /// Minimums of sub-blocks `2 p` and `2 p + 1`, as pairs. `Super` with `HAS_MIN` only.
    #[inline(always)]
    pub(crate) fn mins<I: Isa>(&self, isa: I, p: usize) -> I::V {
        isa.widen_pairs(self.part(F::MINS_AT + 2 * LANES * p))
    }

    /// Scales with the signs of their shifts, of sub-blocks `2 p` and `2 p + 1`, as pairs. `SHIFTED` only.
    #[inline(always)]
    pub(crate) fn shifts(&self, p: usize) -> [i32; LANES] {
        let scales: &[[i8; LANES]; 2] = self.part(F::SCALES_AT + 2 * LANES * p);
        let mut out = [0; LANES];
        for r in 0..LANES {
            out[r] = i32::from(scales[0][r]) & 0xffff | i32::from(scales[1][r]) << 16;
        }
        out
    }

    /// Asks for the record that comes next: making a panel is a pause in which the CPU's own prefetching stops.
    #[inline(always)]
    pub(crate) fn prefetch_next<I: Isa>(&self, isa: I) {
        for line in 0..F::SIZE / 64 {
            isa.prefetch(self.bytes, F::SIZE + 64 * line);
        }
    }

    /// Asks for as many lines as group `g` takes, of what one column meets some kilobytes later. Some CPUs keep up with
    /// codes by themselves ([`Isa::PREFETCH`]): there it helps only where sixteen floats of each row, or codes of
    /// eight bits, keep more lines under way than they follow.
    #[inline(always)]
    pub(crate) fn prefetch_ahead<I: Isa>(&self, isa: I, g: usize) {
        if I::PREFETCH || F::FLOATS > GROUPS || F::BITS == 8 {
            let lines = F::SIZE / 64;
            for line in lines * g / GROUPS..lines * (g + 1) / GROUPS {
                isa.prefetch(self.bytes, AHEAD + 64 * line);
            }
        }
    }

    /// Float scale of sub-block `s`. `Grouped` only.
    #[inline(always)]
    pub(crate) fn group_d<I: Isa>(&self, isa: I, s: usize) -> I::F {
        match F::SCALE {
            Scale::Half => self.floats(isa, s),
            Scale::Brain => isa.load_brain(&halves(self.part(F::FLOATS_AT + 2 * LANES * s))),
            Scale::Integer => isa.mul(self.floats(isa, 0), isa.to_float(isa.widen_i32(self.scales(s)))),
        }
    }

    /// Float minimum of group `g`. `Grouped` with `HAS_MIN` only.
    #[inline(always)]
    pub(crate) fn group_m<I: Isa>(&self, isa: I, g: usize) -> I::F {
        self.floats(isa, CHUNK / F::SUB + g)
    }

    /// Stored half `f`: `d` and `dmin`, or scales and minimums of groups.
    #[inline(always)]
    pub(crate) fn floats<I: Isa>(&self, isa: I, f: usize) -> I::F {
        isa.load_half(&halves(self.part(F::FLOATS_AT + 2 * LANES * f)))
    }

    /// Row `r` as its format's decoder returns it. Slow: for the few who want rows back.
    #[inline(always)]
    pub(crate) fn row<I: Isa>(&self, isa: I, r: usize) -> Weights<I> {
        let row = self.taken(r);
        let codes = row.codes.as_chunks::<64>().0;
        let mut out = Weights::of([
            isa.bytes(&codes[0]),
            isa.bytes(&codes[1]),
            isa.bytes(&codes[2]),
            isa.bytes(&codes[3]),
        ]);
        (out.scales, out.mins) = (row.scales, row.mins);
        if F::FAMILY == Family::Super || F::SCALE == Scale::Integer {
            (out.d, out.dmin) = (row.floats[0], row.floats[1]);
        }
        if F::FAMILY == Family::Grouped {
            for s in 0..CHUNK / F::SUB {
                out.group_d[s] = match F::SCALE {
                    Scale::Half => f16_to_f32(row.floats[s]),
                    Scale::Brain => bf16_to_f32(row.floats[s]),
                    Scale::Integer => f16_to_f32(out.d) * f32::from(row.scales[s * F::SUB / SUB]),
                };
            }
            if F::HAS_MIN {
                for g in 0..GROUPS {
                    out.group_m[g] = f16_to_f32(row.floats[CHUNK / F::SUB + g]);
                }
            }
        }
        out
    }

    #[inline(never)]
    fn taken(&self, r: usize) -> Taken {
        let mut out = Taken { codes: [0; CHUNK], scales: [0; 16], mins: [0; 16], floats: [0; 16] };
        let groups = self.bytes[..F::SCALES_AT].as_chunks::<64>().0;
        for i in 0..CHUNK {
            let (g, k) = (i / GROUP, i % GROUP);
            let number = read_number(&groups[g * F::BITS..][..F::BITS], k, 4 * r + k % 4);
            out.codes[i] = match F::LEVELS {
                Levels::From(first) => first + number,
                Levels::Table(table) => table[usize::from(number)],
                Levels::Shifted(table) => {
                    let shift = self.bytes[F::SCALES_AT + LANES * g + r] as i8 >> 7 | 1;
                    table[usize::from(number)].wrapping_add_signed(shift)
                }
            };
        }
        for s in 0..F::SCALES * F::SUB / SUB {
            let own = s * SUB / F::SUB;
            let scale = i16::from(self.bytes[F::SCALES_AT + LANES * own + r] as i8);
            out.scales[s] = if F::SHIFTED { scale.abs() } else { scale };
            if F::MINS_AT < F::FLOATS_AT {
                out.mins[s] =
                    i16::from(self.bytes[F::MINS_AT + 2 * LANES * (own / 2) + 2 * r + own % 2] as i8);
            }
        }
        for f in 0..F::FLOATS {
            out.floats[f] = u16::from_le_bytes(*self.part(F::FLOATS_AT + 2 * (LANES * f + r)));
        }
        out
    }
}

/// The levels of a format under the offset of an instruction set.
const fn moved_levels<I: Isa, F: Format>() -> Levels {
    let by = moved::<I, F>();
    match F::LEVELS {
        Levels::From(first) => Levels::From(first.wrapping_add(by)),
        Levels::Table(table) => Levels::Table(moved_table(table, by)),
        Levels::Shifted(table) => Levels::Shifted(moved_table(table, by)),
    }
}

const fn moved_table(mut table: [u8; 16], by: u8) -> [u8; 16] {
    let mut i = 0;
    while i < table.len() {
        table[i] = table[i].wrapping_add(by);
        i += 1;
    }
    table
}

/// What a record has of one row.
struct Taken {
    codes: [u8; CHUNK],
    scales: [i16; CHUNK / SUB],
    mins: [i16; CHUNK / SUB],
    floats: [u16; CHUNK / SUB],
}

/// The number of code `k` of four `k / 4` of a group, in lane byte `byte`.
fn read_number(group: &[[u8; 64]], k: usize, byte: usize) -> u8 {
    let (count, mut plane, mut number) = (group.len(), 0, 0);
    for bits in PLANES.into_iter().filter(|bits| count & bits != 0) {
        let (vector, at) = (&group[plane + k / 4 * bits / 8], k / 4 * bits % 8);
        number |= (vector[byte] >> at & (0xff >> (8 - bits))) << plane;
        plane += bits;
    }
    number
}
