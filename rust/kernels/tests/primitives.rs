//! Every primitive of every instruction set against the scalar one, on random bytes: what no format uses today
//! must be right too when the next one does.

#![allow(clippy::needless_range_loop, reason = "rows and lanes have numbers")]

mod setup;

use kizami_kernels::chunk::{ActChunk, CHUNK, GROUPED_OFFSET, SUB, SUPER_OFFSET};
use kizami_kernels::dispatch::{Op, dispatch_at};
use kizami_kernels::isa::{Isa, LANES};
use proptest::prelude::*;
use setup::{config, levels};

/// Everything the primitives return, as numbers that can be compared.
#[derive(Debug)]
struct Found {
    bytes: Vec<[u8; 64]>,
    ints: Vec<[i32; LANES]>,
    floats: Vec<[u32; LANES]>,
    shorts: Vec<[i16; 16]>,
}

struct All<'a> {
    /// Random bytes.
    bytes: &'a [[u8; 64]; LANES],
    a: &'a ActChunk,
    /// The same for `Grouped` formats.
    grouped: &'a ActChunk,
}

/// Lanes as integers.
fn exact<I: Isa>(isa: I, x: I::V) -> [i32; LANES] {
    let mut lanes = [0; LANES];
    isa.store_i32(x, &mut lanes);
    lanes
}

impl Op for All<'_> {
    type Out = Found;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Found {
        let Self { bytes, a, grouped } = self;
        let q: Vec<I::Q> = bytes.iter().map(|b| isa.bytes(b)).collect();
        let halves = |i: usize| {
            let (parts, _) = bytes[i].as_chunks::<32>();
            (&parts[0], &parts[1])
        };
        let sixteen = |i: usize| &bytes[i].as_chunks::<16>().0[0];
        let table: [u8; 256] = bytemuck::cast([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let small = isa.and(q[1], isa.splat_byte(15));
        let at: [u8; 64] = bytes[4].map(|x| x & 127);
        let at8: [u8; 8] = std::array::from_fn(|i| bytes[5][i] & 63);
        let grid: Vec<[u8; 8]> =
            (0..2048u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
        let mut vectors = vec![
            q[0],
            isa.bytes2(halves(0).1, halves(1).0),
            isa.nibbles(sixteen(2), sixteen(3)),
            isa.words(bytemuck::cast(bytes[4])),
            isa.and(q[0], q[1]),
            isa.or(q[0], q[1]),
            isa.xor(q[0], q[1]),
            isa.add(q[0], q[1]),
            isa.shr::<0, 4>(q[2]),
            isa.shr::<3, 7>(q[2]),
            isa.shl::<4, 2>(q[3]),
            isa.shl::<1, 0>(q[3]),
            isa.lookup16(sixteen(6), small),
            isa.lookup64(&bytes[7], q[8]),
            isa.lookup256(&table, q[9]),
            isa.pick(q[10], q[11], &at),
            isa.fields(q[12], at8),
            isa.parity_signs(q[13]),
        ];
        for quarter in 0..4 {
            vectors.push(isa.negate(q[14], SUPER_OFFSET, q[15], quarter));
        }
        vectors.extend(isa.grid(grid[..].try_into().unwrap(), halves(5).0, sixteen(6)));
        let mut found: Vec<[u8; 64]> = Vec::new();
        for v in vectors {
            let mut out = [0; 64];
            isa.put(v, &mut out);
            found.push(out);
        }
        let mut turned = [[0; 64]; LANES];
        isa.transpose_words(bytes, &mut turned);
        found.extend(turned);

        // Dot products: codes at most 127 for the first kind, any for the second.
        let low: Vec<[u8; 64]> = bytes.iter().map(|b| b.map(|x| x & 127)).collect();
        let scales: [i16; 16] = isa.widen(bytemuck::cast(*sixteen(7)));
        let quad: [i32; CHUNK / 4] = bytemuck::cast(a.codes);
        let (mut ints, mut supers, mut mins, mut units) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for r in 0..LANES {
            let codes: [I::Q; 4] = std::array::from_fn(|i| isa.bytes(&low[(r + i) % LANES]));
            let full: [I::Q; 4] = std::array::from_fn(|i| isa.bytes(&bytes[(r + i) % LANES]));
            supers.push(if r % 2 == 0 {
                isa.dot_super::<true>(&codes, &scales, a)
            } else {
                isa.dot_super::<false>(&codes, &scales, a)
            });
            mins.push(isa.dot_mins(&scales, a));
            units.push(isa.dot_units(&full, grouped));
            let factors = isa.mul_factors(isa.factors(bytemuck::cast_ref(sixteen(r))), a.steps[r]);
            let by = isa.splat_byte(I::FULL_OFFSET.wrapping_sub(GROUPED_OFFSET));
            let mut wide = isa.splat_i32(a.start(8 * (r % 8), 8));
            let mut full_sum = isa.full_start(grouped.start(8 * (r % 8), 8));
            for k in r % 8 * 8..(r % 8 + 1) * 8 {
                wide = isa.dot_wide(wide, isa.bytes(&low[k % LANES]), quad[k]);
                full_sum = isa.dot_full(full_sum, isa.add(q[k % LANES], by), quad[k]);
            }
            ints.push(exact(isa, wide));
            ints.push(exact(isa, isa.wide_end(isa.splat_i32(r as i32), wide, factors)));
            ints.push(exact(isa, full_sum));
            // As many words as codes of that size allow: 4 of -32..=31, 8 of -16..=15, 8 of 0..=15 from zero.
            for (words, largest) in [(4, 32), (8, 16)] {
                let first = words * (r * 3 % (64 / words));
                let mut sums = [isa.dot_start(a, first, words), isa.dot_zero()];
                for k in first..first + words {
                    let signed = low[k % LANES].map(|x| SUPER_OFFSET - largest + x % (2 * largest));
                    let unsigned = low[k % LANES].map(|x| x % 16);
                    let shifted = isa.splat_byte(I::SUPER_OFFSET.wrapping_sub(SUPER_OFFSET));
                    sums[0] = isa.dot(sums[0], isa.add(isa.bytes(&signed), shifted), quad[k]);
                    sums[1] = isa.dot(sums[1], isa.bytes(&unsigned), quad[k]);
                }
                for sum in sums {
                    ints.push(exact(isa, isa.dot_sum(sum)));
                    ints.push(exact(isa, isa.dot_end(isa.splat_i32(r as i32), sum, factors)));
                    ints.push(exact(
                        isa,
                        isa.dot_end(isa.splat_i32(r as i32), sum, isa.abs_factors(factors)),
                    ));
                }
            }
            let lanes = isa.load_i32(&bytemuck::cast(bytes[r]));
            ints.push(exact(isa, lanes));
            ints.push(exact(isa, isa.dot2(isa.splat_i32(r as i32), lanes, quad[r])));
            ints.push(exact(isa, isa.dot2(isa.splat_i32(r as i32), factors, quad[r] & 0xffff)));
            ints.push(exact(isa, isa.add_i32(lanes, isa.splat_i32(quad[r]))));
            ints.push(exact(isa, isa.widen_i32(bytemuck::cast_ref(sixteen(r)))));
            ints.push(exact(isa, isa.widen_pairs(bytemuck::cast_ref(halves(r).1))));
        }
        let supers: [I::S; LANES] = supers.try_into().ok().unwrap();
        let mins: [I::S; LANES] = mins.try_into().ok().unwrap();
        let units: [I::U; LANES] = units.try_into().ok().unwrap();
        ints.push(exact(isa, isa.sum_rows(&supers)));
        ints.push(exact(isa, isa.sum_rows(&mins)));
        ints.extend(isa.sum_units(&units, grouped).map(|v| exact(isa, v)));

        let mut floats = Vec::new();
        let mut keep = |x: I::F| {
            let mut lanes = [0.0; LANES];
            isa.store(x, &mut lanes);
            floats.push(lanes.map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }));
        };
        let halves16: [u16; 32] = bytemuck::cast(bytes[8]);
        keep(isa.load_half(halves16[..16].try_into().unwrap()));
        keep(isa.load_brain(halves16[..16].try_into().unwrap()));
        keep(isa.load_e4m3(sixteen(9)));
        keep(isa.load_codes(bytemuck::cast_ref(sixteen(9))));
        let groups: [[f32; 8]; LANES] = std::array::from_fn(|r| isa.halves(bytemuck::cast(*sixteen(r))));
        isa.transpose_groups(&groups).into_iter().for_each(&mut keep);
        // Among halves of random bits are zeros of either sign, infinities and NaN.
        let (x, y) = (
            isa.load_half(halves16[..16].try_into().unwrap()),
            isa.load_brain(halves16[16..].try_into().unwrap()),
        );
        let zero = isa.splat(0.0);
        for (x, y) in [(x, y), (y, x), (x, zero), (zero, x), (x, x)] {
            keep(isa.plus(x, y));
            keep(isa.minus(x, y));
            keep(isa.least(x, y));
            keep(isa.most(x, y));
            keep(isa.where_less(x, y, x, zero));
        }
        // Magnitudes apart, so that another order of additions rounds to another sum.
        let mut rows = [isa.splat(0.0); LANES];
        for r in 0..LANES {
            let codes: &[i8; 64] = bytemuck::cast_ref(&bytes[r]);
            let (codes, _) = codes.as_chunks::<LANES>();
            let low = isa.fma(isa.load_codes(&codes[0]), isa.splat(1e-6), isa.load_codes(&codes[1]));
            rows[r] = isa.fma(isa.mul(isa.load_codes(&codes[2]), isa.load_codes(&codes[3])), low, low);
        }
        for r in 0..LANES {
            keep(isa.splat(isa.sum(rows[r])));
        }
        keep(isa.sum_each(&rows));
        let shorts = vec![isa.twice(at8), isa.widen(bytemuck::cast(*sixteen(10))), isa.spread(q[11], &at8)];
        Found { bytes: found, ints, floats, shorts }
    }
}

fn activations(codes: &[u8], offset: u8) -> ActChunk {
    let mut a = ActChunk::default();
    for (i, code) in a.codes.iter_mut().enumerate() {
        *code = (codes[i] as i8).max(-127);
    }
    for s in 0..CHUNK / SUB {
        a.steps[s] = i16::from(codes[s] % 8) + 1;
    }
    a.add_up(offset);
    a
}

proptest! {
    #![proptest_config(config(256))]
    #[test]
    fn every_level_returns_what_scalar_returns(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(127), Just(128), Just(255)], 64 * LANES),
        codes in prop::collection::vec(prop_oneof![any::<u8>(), Just(127), Just(129)], CHUNK),
    ) {
        let bytes: [[u8; 64]; LANES] = std::array::from_fn(|r| bytes[64 * r..][..64].try_into().unwrap());
        let (a, grouped) = (activations(&codes, SUPER_OFFSET), activations(&codes, GROUPED_OFFSET));
        let mut expected = None;
        for level in levels() {
            let found = dispatch_at(level, All { bytes: &bytes, a: &a, grouped: &grouped }).expect("an available level");
            let expected = expected.get_or_insert_with(|| All { bytes: &bytes, a: &a, grouped: &grouped }.run(kizami_kernels::isa::scalar::Scalar));
            for (i, (found, expected)) in found.bytes.iter().zip(&expected.bytes).enumerate() {
                prop_assert_eq!(found, expected, "{:?}, bytes {}", level, i);
            }
            for (i, (found, expected)) in found.ints.iter().zip(&expected.ints).enumerate() {
                prop_assert_eq!(found, expected, "{:?}, integers {}", level, i);
            }
            prop_assert_eq!(&found.floats, &expected.floats, "{:?}", level);
            prop_assert_eq!(&found.shorts, &expected.shorts, "{:?}", level);
        }
    }
}
