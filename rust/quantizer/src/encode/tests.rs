//! All encoders through the kernels' decoders: error bounds, extremes, and that neither the cut of
//! the rows nor the instruction set shows in the bytes.

use super::encode_rows;
use crate::{Error, Metric};
use kizami_kernels::matmul::dequantize_row;
use kizami_kernels::{Type, levels, set_level};
use proptest::prelude::*;

const COLS: usize = 512;

pub(super) fn block_types() -> impl Iterator<Item = Type> {
    Type::ALL.iter().copied().filter(|ty| ty.family().is_some())
}

/// A stream of independent standard Gaussians.
pub(crate) fn gaussian(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    (0..n)
        .map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32)
        .collect()
}

pub(crate) fn lognormal(seed: u64, n: usize) -> Vec<f32> {
    gaussian(seed, n).iter().map(|x| x.exp()).collect()
}

/// Mean products of inputs: `rank` directions of falling strength and some noise of each column's own.
pub(crate) fn moments(seed: u64, n: usize, rank: usize) -> Vec<f32> {
    let (directions, noise) = (gaussian(seed, rank * n), lognormal(seed + 1, n));
    let mut sums = vec![0f64; n * n];
    for (r, direction) in directions.chunks_exact(n).enumerate() {
        let strength = (-5.0 * r as f64 / rank as f64).exp();
        for i in 0..n {
            for j in 0..n {
                sums[i * n + j] += strength * f64::from(direction[i]) * f64::from(direction[j]);
            }
        }
    }
    (0..n).for_each(|i| sums[i * n + i] += 0.05 * f64::from(noise[i]));
    sums.iter().map(|x| *x as f32).collect()
}

/// A block of weights and their importance.
pub(super) fn block(seed: u64) -> ([f32; 256], [f32; 256]) {
    (gaussian(seed, 256).try_into().unwrap(), lognormal(seed + 100, 256).try_into().unwrap())
}

pub(super) fn encode(ty: Type, rows: &[f32], cols: usize, importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0u8; rows.len() / cols * ty.row_bytes(cols).unwrap()];
    encode_rows(ty, rows, cols, importance, &mut out).unwrap();
    out
}

pub(super) fn decode(ty: Type, bytes: &[u8], cols: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for row in bytes.chunks(ty.row_bytes(cols).unwrap()) {
        let mut values = vec![0f32; cols];
        dequantize_row(ty, row, &mut values).unwrap();
        out.extend(values);
    }
    out
}

fn measure(ty: Type, rows: &[f32], cols: usize, importance: Option<&[f32]>) -> Metric {
    let back = decode(ty, &encode(ty, rows, cols, importance), cols);
    let mut sum = Metric::default();
    for (a, b) in rows.chunks(cols).zip(back.chunks(cols)) {
        sum.add(Metric::of_row(a, b, importance));
    }
    sum
}

/// On Gaussian weights: 1 - rho² under flat and under lognormal importance, gain.
#[test]
fn errors_stay_below_their_bounds() {
    let rows: Vec<f32> = gaussian(1, 64 * 1024).iter().map(|x| x * 0.02).collect();
    let skewed = lognormal(2, 1024);
    let bounds = [
        (Type::F32, 0.0, 0.0, 1e-12),
        (Type::F16, 6e-8, 6e-8, 1e-4),
        (Type::BF16, 3e-6, 3e-6, 1e-4),
        (Type::Q8_0, 0.0000255, 0.0000235, 0.001),
        (Type::Q6K, 0.000290, 0.000240, 0.001),
        (Type::Q4K, 0.00505, 0.00415, 0.006),
        (Type::Iq4Nl, 0.00560, 0.00475, 0.007),
        (Type::Iq3Xxs, 0.0335, 0.0230, 0.001),
        (Type::Iq2Xxs, 0.1115, 0.0780, 0.001),
        (Type::Iq1S, 0.2050, 0.1690, 0.001),
        (Type::Q4_0, 0.00668, 0.00612, 0.006),
        (Type::Q4_1, 0.00492, 0.00412, 0.006),
        (Type::Q5_0, 0.00164, 0.00148, 0.003),
        (Type::Q5_1, 0.00114, 0.00095, 0.003),
        (Type::Q2K, 0.07, 0.0547, 0.05),
        (Type::Q3K, 0.0214, 0.0187, 0.015),
        (Type::Q5K, 0.00121, 0.00101, 0.003),
        (Type::Iq4Xs, 0.00567, 0.0049, 0.007),
        (Type::Iq3S, 0.0178, 0.0133, 0.002),
        (Type::Iq2S, 0.0592, 0.0474, 0.002),
        (Type::Iq2Xs, 0.0846, 0.061, 0.002),
        (Type::Iq1M, 0.177, 0.136, 0.002),
        (Type::Tq2_0, 0.197, 0.196, 0.002),
        (Type::Tq1_0, 0.197, 0.196, 0.002),
        (Type::Mxfp4, 0.0127, 0.0127, 0.015),
        (Type::Nvfp4, 0.0083, 0.0071, 0.008),
        (Type::Q2_0, 0.13, 0.1175, 0.002),
        (Type::Q1_0, 0.366, 0.364, 0.002),
    ];
    assert!(Type::ALL.iter().all(|ty| *ty == Type::F8E4M3 || bounds.iter().any(|bound| bound.0 == *ty)));
    for (ty, flat, lognormal, gain) in bounds {
        for (importance, bound) in [(None, flat), (Some(skewed.as_slice()), lognormal)] {
            let m = measure(ty, &rows, 1024, importance);
            assert!(m.incoherence() <= bound, "{ty:?}: 1 - rho² {} above {bound}", m.incoherence());
            assert!((m.gain() - 1.0).abs() <= gain, "{ty:?}: gain {}", m.gain());
        }
    }
}

#[test]
fn importance_moves_the_error_to_where_it_matters_less() {
    let rows = gaussian(3, 32 * COLS);
    let mut importance = vec![1.0; COLS];
    importance[..COLS / 2].fill(100.0);
    // With 255 levels, with one scale for so many weights, or with powers of two, there is little to move.
    let rigid = [Type::Q8_0, Type::Tq1_0, Type::Tq2_0, Type::Q2_0, Type::Q1_0, Type::Mxfp4];
    for ty in block_types().filter(|ty| !rigid.contains(ty)) {
        let mixed: Vec<f32> = (0..COLS).map(|c| importance[c * 37 % COLS]).collect();
        let told = measure(ty, &rows, COLS, Some(&mixed)).incoherence();
        let back = decode(ty, &encode(ty, &rows, COLS, None), COLS);
        let mut untold = Metric::default();
        for (a, b) in rows.chunks(COLS).zip(back.chunks(COLS)) {
            untold.add(Metric::of_row(a, b, Some(&mixed)));
        }
        assert!(told < 0.97 * untold.incoherence(), "{ty:?}: {told} against {}", untold.incoherence());
    }
}

#[test]
fn bytes_do_not_depend_on_how_rows_are_cut() {
    let (rows, importance) = (gaussian(4, 6 * COLS), lognormal(5, COLS));
    for ty in block_types() {
        let whole = encode(ty, &rows, COLS, Some(&importance));
        for cut in [1, 2, 3] {
            let parts: Vec<u8> =
                rows.chunks(cut * COLS).flat_map(|rows| encode(ty, rows, COLS, Some(&importance))).collect();
            assert_eq!(whole, parts, "{ty:?} in groups of {cut}");
        }
    }
}

/// Rows that make a search stumble: nothing, one weight, equal weights, outliers, huge, tiny.
pub(super) fn awkward_rows() -> Vec<Vec<f32>> {
    let noise = gaussian(6, COLS);
    let scaled = |s: f32| noise.iter().map(|x| x * s).collect::<Vec<f32>>();
    let mut rows: Vec<Vec<f32>> =
        [1e-45, 1e-38, 1e-30, 1e-12, 1e-7, 1e-3, 1e4, 1e7, 1e30, 8e37].map(scaled).to_vec();
    rows.push(vec![0.0; COLS]);
    rows.push(vec![-0.0; COLS]);
    rows.push(vec![0.7; COLS]);
    rows.push(vec![-0.7; COLS]);
    rows.push(vec![9.5e-6; COLS]);
    rows.push(vec![f32::MAX; COLS]);
    rows.push(vec![f32::MIN; COLS]);
    rows.push((0..COLS).map(|i| if i == 77 { -3.0 } else { 0.0 }).collect());
    rows.push((0..COLS).map(|i| if i == 77 { 1e6 } else { noise[i] }).collect());
    rows.push((0..COLS).map(|i| if i % 32 == 0 { noise[i] } else { noise[i] * 1e-12 }).collect());
    rows.push((0..COLS).map(|i| noise[i] * 10f32.powi(i as i32 % 60 - 30)).collect());
    rows
}

#[test]
fn awkward_rows_stay_finite_and_hardly_worse_than_zeros() {
    let mut spiked = vec![1e-30; COLS];
    spiked[5] = 1e30;
    let importances = [vec![0.0; COLS], vec![1e-38; COLS], vec![1e38; COLS], spiked, lognormal(7, COLS)];
    for (r, row) in awkward_rows().iter().enumerate() {
        for ty in block_types() {
            for importance in importances.iter().map(Some).chain([None]) {
                let back = decode(ty, &encode(ty, row, COLS, importance.map(Vec::as_slice)), COLS);
                assert!(back.iter().all(|x| x.is_finite()), "{ty:?}, row {r}");
                if row.iter().all(|x| *x == 0.0) {
                    assert!(back.iter().all(|x| *x == 0.0), "{ty:?}, row {r}: zeros");
                }
                // One scale for so many weights has to choose whom it serves.
                let single = matches!(ty, Type::Tq1_0 | Type::Tq2_0 | Type::Q2_0 | Type::Q1_0);
                let judge = importance.filter(|_| single).map(Vec::as_slice);
                let m = Metric::of_row(row, &back, judge);
                let importance = importance.is_some_and(|h| h[5] == 1e30);
                assert!(importance || m.error() <= 1.1 * m.original, "{ty:?}, row {r}: {m:?}");
            }
        }
    }
}

#[test]
fn scale_by_a_power_of_two_only_shows_in_the_scales() {
    let (rows, importance) = (gaussian(8, 4 * COLS), lognormal(9, COLS));
    let larger: Vec<f32> = rows.iter().map(|x| x * 32.0).collect();
    for ty in block_types() {
        let small = decode(ty, &encode(ty, &rows, COLS, Some(&importance)), COLS);
        let large = decode(ty, &encode(ty, &larger, COLS, Some(&importance)), COLS);
        assert!(small.iter().zip(&large).all(|(a, b)| a * 32.0 == *b), "{ty:?}");
    }
}

#[test]
fn every_instruction_set_gives_the_same_bytes() {
    let mut rows = gaussian(10, 3 * COLS);
    awkward_rows().iter().for_each(|row| rows.extend(row));
    let importance = lognormal(11, COLS);
    for ty in block_types() {
        let mut all = levels().into_iter().map(|level| {
            assert!(set_level(level));
            (level, encode(ty, &rows, COLS, Some(&importance)))
        });
        let (_, scalar) = all.next().unwrap();
        for (level, bytes) in all {
            assert!(bytes == scalar, "{ty:?} on {}", level.name());
        }
    }
}

#[test]
fn floats_round_to_nearest_and_saturate() {
    let values = [1.0, -2.5, 1e-8, 65519.0, 65520.0, -1e30, f32::MAX, 0.0];
    assert_eq!(decode(Type::F32, &encode(Type::F32, &values, 8, None), 8), values);
    let half = decode(Type::F16, &encode(Type::F16, &values, 8, None), 8);
    assert_eq!(half, [1.0, -2.5, 0.0, 65504.0, 65504.0, -65504.0, 65504.0, 0.0]);
    let brain = decode(Type::BF16, &encode(Type::BF16, &values, 8, None), 8);
    assert!(brain.iter().zip(values).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0), "{brain:?}");
}

#[test]
fn bad_input_is_named() {
    let (mut rows, mut out) = (vec![1.0; 2 * 256], vec![0u8; 2 * 66]);
    let mut go = |rows: &[f32], cols, h: Option<&[f32]>| encode_rows(Type::Iq2Xxs, rows, cols, h, &mut out);
    assert!(matches!(go(&rows, 128, None), Err(Error::RowLength { cols: 128, block: 256, .. })));
    assert!(matches!(go(&rows, 0, None), Err(Error::RowLength { cols: 0, .. })));
    assert!(matches!(go(&rows[1..], 256, None), Err(Error::Length { found: 511, .. })));
    assert!(matches!(go(&rows[256..], 256, None), Err(Error::Length { found: 132, expected: 66, .. })));
    assert!(matches!(go(&rows, 256, Some(&[1.0; 255])), Err(Error::Length { found: 255, .. })));
    let mut importance = [1.0; 256];
    importance[9] = -1.0;
    assert!(matches!(go(&rows, 256, Some(&importance)), Err(Error::Importance { col: 9, .. })));
    rows[256 + 3] = f32::NEG_INFINITY;
    assert!(matches!(go(&rows, 256, None), Err(Error::Weight { row: 1, col: 3, .. })));
    rows[256 + 3] = f32::NAN;
    assert!(matches!(go(&rows, 256, None), Err(Error::Weight { row: 1, col: 3, .. })));
    let f8 = encode_rows(Type::F8E4M3, &[1.0], 1, None, &mut [0u8]);
    assert_eq!(f8, Err(Error::NoEncoder { ty: "F8_E4M3" }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_finite_row_decodes_to_finite_weights(bits in prop::collection::vec(any::<u32>(), 256)) {
        let row: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).map(|x| if x.is_finite() { x } else { 1.0 }).collect();
        let importance: Vec<f32> = row.iter().rev().map(|x| x.abs()).collect();
        for ty in block_types() {
            let back = decode(ty, &encode(ty, &row, 256, Some(&importance)), 256);
            prop_assert!(back.iter().all(|x| x.is_finite()), "{:?}", ty);
        }
    }
}
