//! The promise of the kernels, for every format: the bits of a result depend on the weights and on
//! one column of activations, and on nothing else. Not on the instruction set, the other columns of
//! the batch or the number of threads. And that result is close to the true one.

mod blocks;
mod cases;

use cases::cases;
use kizami_kernels::convert::f32_to_bf16;
use kizami_kernels::matmul::{Columns, Precision, dequantize, matmul};
use kizami_kernels::par::set_threads;
use kizami_kernels::{Family, Level, Matrix, Type, repack, repacked_bytes, set_level};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::sync::Mutex;

/// The level and the thread pool belong to the process: one test at a time.
static GLOBALS: Mutex<()> = Mutex::new(());

/// xorshift64*: contents are drawn from a seed, so that shrinking works on shapes.
struct Rng(u64);

impl Rng {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 33) as usize % n
    }

    /// Uniform in -1..1.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// What fills a matrix and its activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contents {
    /// Random bits under ordinary scales.
    Random,
    /// One random byte repeated and activations of one magnitude: where 16-bit sums would overflow.
    Extreme,
    /// Some scales, weights and activations are zeros, huge, infinite or NaN.
    Hostile,
}

#[derive(Debug, Clone)]
struct Case {
    rows: usize,
    cols: usize,
    n: usize,
    contents: Contents,
    seed: u64,
}

fn shapes(ty: Type) -> impl Strategy<Value = Case> {
    let contents = prop::sample::select(vec![Contents::Random, Contents::Extreme, Contents::Hostile]);
    (1..=20usize, 1..=768 / ty.block(), 1..=40usize, contents, 1..u64::MAX).prop_map(
        move |(rows, blocks, n, contents, seed)| Case { rows, cols: blocks * ty.block(), n, contents, seed },
    )
}

const HOSTILE_HALVES: [u16; 8] = [0x0000, 0x8000, 0x0001, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00];
const HOSTILE_FLOATS: [f32; 6] = [0.0, -0.0, 1e-40, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];

/// An f16 between about 2^-14 and 2, of either sign, or a hostile one in every fourth.
fn half(rng: &mut Rng, contents: Contents) -> u16 {
    if contents == Contents::Hostile && rng.below(4) == 0 {
        return HOSTILE_HALVES[rng.below(HOSTILE_HALVES.len())];
    }
    (rng.bits() & 0x83ff) as u16 | (rng.below(15) as u16 + 1) << 10
}

fn float(rng: &mut Rng, contents: Contents) -> f32 {
    if contents == Contents::Hostile && rng.below(64) == 0 {
        return HOSTILE_FLOATS[rng.below(HOSTILE_FLOATS.len())];
    }
    rng.unit()
}

fn weights(ty: Type, rng: &mut Rng, case: &Case) -> Vec<u8> {
    let count = case.rows * case.cols;
    match ty {
        Type::F32 => (0..count).flat_map(|_| float(rng, case.contents).to_le_bytes()).collect(),
        Type::F16 => (0..count).flat_map(|_| half(rng, case.contents).to_le_bytes()).collect(),
        Type::BF16 => (0..count).flat_map(|_| f32_to_bf16(float(rng, case.contents)).to_le_bytes()).collect(),
        Type::F8E4M3 => {
            let nan = |byte: u8| byte & 0x7f == 0x7f && case.contents != Contents::Hostile;
            (0..count).map(|_| rng.bits() as u8).map(|byte| if nan(byte) { 0 } else { byte }).collect()
        }
        _ => {
            let mut bytes = vec![0; count / ty.block() * ty.block_bytes()];
            for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                let byte = rng.bits() as u8;
                block.fill_with(|| if case.contents == Contents::Extreme { byte } else { rng.bits() as u8 });
                blocks::set_scales(ty, block, || half(rng, case.contents));
            }
            bytes
        }
    }
}

fn activations(rng: &mut Rng, case: &Case) -> Vec<f32> {
    let mut x = Vec::with_capacity(case.n * case.cols);
    for _ in 0..case.n {
        let magnitude = [0.0, 1e-3, 1.0, 300.0][rng.below(4)];
        for _ in 0..case.cols {
            let value = match case.contents {
                Contents::Extreme => rng.unit().signum(),
                contents => float(rng, contents),
            };
            x.push(magnitude * value);
        }
    }
    x
}

fn run(w: &Matrix<'_>, x: &[f32], precision: Precision) -> Vec<f32> {
    let columns = Columns::new(x, w.cols(), precision).expect("whole columns");
    let mut out = vec![f32::NAN; columns.len() * w.rows()];
    matmul(w, &columns, &mut out).expect("shapes that agree");
    out
}

/// Where two results differ in their bits; any NaN equals any other.
fn difference(found: &[f32], expected: &[f32]) -> Option<String> {
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    assert_eq!(found.len(), expected.len());
    let at = (0..found.len()).find(|&i| !same(found[i], expected[i]))?;
    Some(format!("output {at}: {:e}, not {:e}", found[at], expected[at]))
}

/// Holds a result against f64 arithmetic over the decoded weights. Three things may move it:
///
/// - rounding an activation to 8 bits, by at most half a step of its span's maximum / 127;
/// - each rounding of f32 arithmetic, 2^-24 of what is summed: a few per term and one per addition;
/// - where there are minimums, a weight is a sum whose two products are summed apart, so both count.
fn check_distance(w: &Matrix<'_>, bytes: &[u8], x: &[f32], precision: Precision, out: &[f32]) {
    let (ty, rows, cols) = (w.ty(), w.rows(), w.cols());
    let mut decoded = vec![0.0; rows * cols];
    dequantize(w, 0, &mut decoded).expect("all rows");
    let span = match (ty.family(), precision) {
        (Some(Family::Super), Precision::Int8) => Some(256),
        (Some(Family::Grouped), Precision::Int8) => Some(32),
        _ => None,
    };
    let additions = span.map_or(cols.div_ceil(16) + 4, |span| 3 * cols.div_ceil(span));
    let epsilon = (additions + 8) as f64 * 2f64.powi(-24);
    for (c, x) in x.chunks_exact(cols).enumerate() {
        for (r, weights) in decoded.chunks_exact(cols).enumerate() {
            let (mut exact, mut bound) = (0.0, f64::from(f32::MIN_POSITIVE));
            for (k, (&weight, &value)) in weights.iter().zip(x).enumerate() {
                let block = (r * cols + k) / ty.block() * ty.block_bytes();
                let min = match ty.family() {
                    Some(_) => blocks::largest_min(ty, &bytes[block..][..ty.block_bytes()]),
                    None => 0.0,
                };
                let gross = f64::from(weight.abs()) + 2.0 * f64::from(min);
                exact += f64::from(weight) * f64::from(value);
                bound += match span {
                    None => gross * f64::from(value.abs()) * epsilon,
                    Some(span) => {
                        let group = &x[k / span * span..cols.min((k / span + 1) * span)];
                        let max = f64::from(group.iter().fold(0.0f32, |max, x| max.max(x.abs())));
                        gross * max * (0.501 / 127.0 + epsilon)
                    }
                };
            }
            let found = f64::from(out[c * rows + r]);
            let distance = (found - exact).abs();
            assert!(
                distance <= bound,
                "{ty:?} {precision:?} row {r} column {c}: {found:e} is {distance:e} from {exact:e}, over {bound:e}"
            );
        }
    }
}

fn check(ty: Type, case: &Case, available: &[Level]) {
    let mut rng = Rng(case.seed);
    let bytes = weights(ty, &mut rng, case);
    let squares = if ty == Type::F8E4M3 { case.rows.div_ceil(128) * case.cols.div_ceil(128) } else { 0 };
    let scales: Vec<f32> = (0..squares).map(|_| rng.unit()).collect();
    let x = activations(&mut rng, case);
    let w = Matrix::new(ty, case.rows, case.cols, &bytes, &scales).expect("a valid matrix");
    for precision in [Precision::Int8, Precision::F32] {
        assert!(set_level(Level::Scalar));
        let expected = run(&w, &x, precision);
        if case.contents != Contents::Hostile {
            check_distance(&w, &bytes, &x, precision, &expected);
        }
        for &level in available {
            assert!(set_level(level));
            let found = run(&w, &x, precision);
            if let Some(difference) = difference(&found, &expected) {
                panic!("{ty:?} {precision:?} at {level:?}: {difference}");
            }
            let alone: Vec<f32> = x.chunks_exact(case.cols).flat_map(|x| run(&w, x, precision)).collect();
            if let Some(difference) = difference(&alone, &expected) {
                panic!("{ty:?} {precision:?} at {level:?}, one column at a time: {difference}");
            }
            let Some(side_by_side) = repacked(&w) else { continue };
            let w = Matrix::repacked(ty, case.rows, case.cols, &side_by_side).expect("what was written");
            if let Some(difference) = difference(&run(&w, &x, precision), &expected) {
                panic!("{ty:?} {precision:?} at {level:?}, repacked: {difference}");
            }
            let alone: Vec<f32> = x.chunks_exact(case.cols).flat_map(|x| run(&w, x, precision)).collect();
            if let Some(difference) = difference(&alone, &expected) {
                panic!("{ty:?} {precision:?} at {level:?}, repacked, one column at a time: {difference}");
            }
        }
    }
}

/// Rows side by side, at the level in use; none for floats.
fn repacked(w: &Matrix<'_>) -> Option<Vec<u8>> {
    let mut out = vec![0; repacked_bytes(w.ty(), w.rows(), w.cols())?];
    repack(w, &mut out).expect("a buffer of the right size");
    Some(out)
}

/// Rows put side by side decode to the bits they had, and every level writes the same bytes.
#[test]
fn repacking_loses_nothing() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for ty in Type::ALL.iter().copied().filter(|ty| ty.family().is_some()) {
        let mut runner = TestRunner::new(cases(48));
        let result = runner.run(&shapes(ty), |case| {
            let bytes = weights(ty, &mut Rng(case.seed), &case);
            let w = Matrix::new(ty, case.rows, case.cols, &bytes, &[]).expect("a valid matrix");
            let decode = |w: &Matrix<'_>| {
                let mut out = vec![f32::NAN; case.rows * case.cols];
                dequantize(w, 0, &mut out).expect("all rows");
                out
            };
            assert!(set_level(Level::Scalar));
            let (expected, written) = (decode(&w), repacked(&w).expect("a block format"));
            for level in available() {
                assert!(set_level(level));
                assert!(repacked(&w).expect("a block format") == written, "{ty:?} at {level:?}: other bytes");
                let again = Matrix::repacked(ty, case.rows, case.cols, &written).expect("what was written");
                if let Some(difference) = difference(&decode(&again), &expected) {
                    panic!("{ty:?} at {level:?}: {difference}");
                }
                assert!(
                    repacked(&again).expect("as before") == written,
                    "{ty:?} at {level:?}: not the same again"
                );
            }
            Ok(())
        });
        if let Err(error) = result {
            panic!("{ty:?}: {error}");
        }
    }
}

#[test]
fn repacking_refuses_what_it_cannot_do() {
    let floats = Matrix::new(Type::F16, 2, 32, &[0; 128], &[]).expect("a valid matrix");
    assert!(repacked_bytes(Type::F16, 2, 32).is_none());
    assert!(repack(&floats, &mut []).is_err());
    let w = Matrix::new(Type::Q8_0, 1, 32, &[0; 34], &[]).expect("a valid matrix");
    assert!(repack(&w, &mut [0; 34]).is_err());
    assert!(Matrix::repacked(Type::Q8_0, 1, 32, &[0; 34]).is_err());
    assert!(Matrix::repacked(Type::Q8_0, usize::MAX, usize::MAX / 32 * 32, &[]).is_err());
    assert!(Matrix::repacked(Type::Q4K, 16, 32, &[]).is_err());
    let nothing = Matrix::new(Type::Q8_0, 0, 32, &[], &[]).expect("a matrix without rows");
    assert_eq!(repacked_bytes(Type::Q8_0, 0, 32), Some(0));
    repack(&nothing, &mut []).expect("nothing to do");
    Matrix::repacked(Type::Q8_0, 0, 32, &[]).expect("a matrix without rows");
}

/// The levels this CPU can run; says which, and which not (`.ci/neon` reads it).
fn available() -> Vec<Level> {
    let (available, skipped): (Vec<Level>, Vec<Level>) =
        Level::ALL.iter().partition(|level| level.available());
    let names = |levels: &[Level]| levels.iter().map(|level| level.name()).collect::<Vec<_>>().join(" ");
    println!("levels: {}", names(&available));
    if !skipped.is_empty() {
        println!("SKIPPED, this CPU has no {}", names(&skipped));
    }
    available
}

#[test]
fn results_depend_on_nothing_but_weights_and_column() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let available = available();
    for &ty in Type::ALL {
        let mut runner = TestRunner::new(cases(96));
        let result = runner.run(&shapes(ty), |case| {
            check(ty, &case, &available);
            Ok(())
        });
        if let Err(error) = result {
            panic!("{ty:?}: {error}");
        }
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for level in available() {
        assert!(set_level(level));
        for (i, &ty) in Type::ALL.iter().enumerate() {
            // Large enough for several tasks, with a last one that is not full; and one column alone.
            for (rows, n) in [(83, 40), (1107, 1)] {
                let case = Case { rows, cols: 768, n, contents: Contents::Random, seed: i as u64 + 1 };
                let mut rng = Rng(case.seed);
                let bytes = weights(ty, &mut rng, &case);
                let scales = vec![0.5; if ty == Type::F8E4M3 { case.rows.div_ceil(128) * 6 } else { 0 }];
                let x = activations(&mut rng, &case);
                let w = Matrix::new(ty, case.rows, case.cols, &bytes, &scales).expect("a valid matrix");
                for precision in [Precision::Int8, Precision::F32] {
                    set_threads(1);
                    let expected = run(&w, &x, precision);
                    for threads in [2, 3] {
                        set_threads(threads);
                        if let Some(difference) = difference(&run(&w, &x, precision), &expected) {
                            panic!("{ty:?} {precision:?} at {level:?}, {threads} threads: {difference}");
                        }
                    }
                }
            }
        }
    }
}

/// Rows longer than what one column reads at a time, with and without a rest; more columns than any tile or block
/// of columns; rows of 128, which go in pairs where there is an even number of them.
const SHAPES: [(usize, usize, usize); 7] =
    [(17, 2048, 3), (16, 2304, 1), (1, 4352, 2), (5, 256, 131), (22, 128, 1), (35, 128, 1), (6, 128, 21)];

/// Each of [`SHAPES`] against each column alone, on every level.
#[test]
fn long_rows_and_many_columns() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for &ty in Type::ALL {
        for (rows, cols, n) in SHAPES.into_iter().filter(|shape| shape.1.is_multiple_of(ty.block())) {
            let case = Case { rows, cols, n, contents: Contents::Random, seed: 7 };
            let mut rng = Rng(case.seed);
            let bytes = weights(ty, &mut rng, &case);
            let scales =
                vec![0.5; if ty == Type::F8E4M3 { rows.div_ceil(128) * cols.div_ceil(128) } else { 0 }];
            let x = activations(&mut rng, &case);
            let w = Matrix::new(ty, rows, cols, &bytes, &scales).expect("a valid matrix");
            for precision in [Precision::Int8, Precision::F32] {
                assert!(set_level(Level::Scalar));
                let expected = run(&w, &x, precision);
                for level in available() {
                    assert!(set_level(level));
                    let found = run(&w, &x, precision);
                    if let Some(difference) = difference(&found, &expected) {
                        panic!("{ty:?} {precision:?} {rows}x{cols}, {n} columns at {level:?}: {difference}");
                    }
                    if let Some(side_by_side) = repacked(&w) {
                        let w = Matrix::repacked(ty, rows, cols, &side_by_side).expect("what was written");
                        if let Some(difference) = difference(&run(&w, &x, precision), &expected) {
                            panic!("{ty:?} {precision:?} {rows}x{cols} at {level:?}, repacked: {difference}");
                        }
                    }
                    let last = run(&w, &x[(n - 1) * cols..], precision);
                    if let Some(difference) = difference(&last, &expected[(n - 1) * rows..]) {
                        panic!(
                            "{ty:?} {precision:?} {rows}x{cols}, last column alone at {level:?}: {difference}"
                        );
                    }
                }
            }
        }
    }
}

/// The largest sum that any block can give stays within an i32.
#[test]
fn the_largest_sum_is_exact() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // Q6_K with all codes -32 and all scales -128; activations all 1: codes 127 under the largest step.
    let mut block = vec![0; 210];
    block[192..208].fill(0x80);
    block[208..].copy_from_slice(&[0x00, 0x3c]);
    let w = Matrix::new(Type::Q6K, 1, 256, &block, &[]).expect("a valid matrix");
    let expected = 256.0 * 32.0 * 128.0f32;
    for level in available() {
        assert!(set_level(level));
        for n in [1, 2] {
            let found = run(&w, &vec![1.0; 256 * n], Precision::Int8);
            assert!(found.iter().all(|x| (x / expected - 1.0).abs() < 1e-6), "{level:?}: {found:?}");
        }
    }
}
