//! The promise of the kernels, for every format: the bits of a result depend on the weights and on
//! one column of activations, and on nothing else. Not on the instruction set, the other columns of
//! the batch or the number of threads. And that result is close to the true one.

mod blocks;
mod contents;
mod setup;

use contents::{Contents, Rng, activations, difference, scales, weights};
use kizami_kernels::matmul::{Columns, Precision, dequantize, matmul};
use kizami_kernels::par::set_threads;
use kizami_kernels::{Family, Level, Matrix, Type, repack, repacked_bytes, set_level};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use setup::{config, levels};
use std::sync::Mutex;

/// The level and the thread pool belong to the process: one test at a time.
static GLOBALS: Mutex<()> = Mutex::new(());

#[derive(Debug, Clone)]
struct Case {
    rows: usize,
    cols: usize,
    n: usize,
    threads: usize,
    contents: Contents,
    seed: u64,
}

impl Case {
    /// Weights, their scales where there are some, and columns.
    fn fill(&self, ty: Type) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
        let mut rng = Rng(self.seed);
        let bytes = weights(ty, &mut rng, self.rows * self.cols, self.contents);
        let scales = scales(ty, &mut rng, self.rows, self.cols, self.contents);
        (bytes, scales, activations(&mut rng, self.n, self.cols, self.contents))
    }
}

fn cases(ty: Type) -> impl Strategy<Value = Case> {
    let contents = prop::sample::select(vec![Contents::Random, Contents::Extreme, Contents::Hostile]);
    let columns = prop_oneof![2 => 1..=16usize, 1 => 1..=70usize];
    (1..=35usize, 1..=768 / ty.block(), columns, 1..=3usize, contents, 1..u64::MAX).prop_map(
        move |(rows, blocks, n, threads, contents, seed)| {
            let cols = blocks * ty.block();
            Case { rows, cols, n, threads, contents, seed }
        },
    )
}

fn run(w: &Matrix<'_>, x: &[f32], precision: Precision) -> Vec<f32> {
    let columns = Columns::new(x, w.cols(), precision).expect("whole columns");
    let mut out = vec![f32::NAN; columns.len() * w.rows()];
    matmul(w, &columns, &mut out).expect("shapes that agree");
    out
}

/// Holds a result against f64 arithmetic over the decoded weights. Three things may move it:
///
/// - rounding an activation to 8 bits, by at most half a step of its span's maximum / 127;
/// - each rounding of f32 arithmetic, 2^-24 of what is summed: a few per term and one per addition;
/// - where there are minimums, a weight is a sum whose two products are summed apart, so both count.
fn check_distance(w: &Matrix<'_>, bytes: &[u8], x: &[f32], precision: Precision, out: &[f32]) {
    let (ty, rows, cols) = (w.ty(), w.rows(), w.cols());
    let decoded = decode(w);
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
                let gross = f64::from(weight.abs()) + 2.0 * f64::from(min) * f64::from(w.scale().abs());
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

/// What a matrix's scale means: results and weights without it, each times it, rounded once.
fn check_scale(w: &Matrix<'_>, bytes: &[u8], x: &[f32]) {
    if w.ty() == Type::F8E4M3 {
        return;
    }
    let (ty, rows, cols) = (w.ty(), w.rows(), w.cols());
    let plain = Matrix::new(ty, rows, cols, bytes, &[]).expect("a valid matrix");
    let scaled = |x: Vec<f32>| x.into_iter().map(|x| x * w.scale()).collect::<Vec<_>>();
    for precision in [Precision::Int8, Precision::F32] {
        if let Some(difference) = difference(&run(w, x, precision), &scaled(run(&plain, x, precision))) {
            panic!("{ty:?} {precision:?} times {:e}: {difference}", w.scale());
        }
    }
    if let Some(difference) = difference(&decode(w), &scaled(decode(&plain))) {
        panic!("{ty:?} weights times {:e}: {difference}", w.scale());
    }
}

/// All weights.
fn decode(w: &Matrix<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; w.rows() * w.cols()];
    dequantize(w, 0, &mut out).expect("all rows");
    out
}

fn check(ty: Type, case: &Case, available: &[Level]) {
    let (bytes, scales, x) = case.fill(ty);
    set_threads(case.threads);
    let w = Matrix::new(ty, case.rows, case.cols, &bytes, &scales).expect("a valid matrix");
    check_scale(&w, &bytes, &x);
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
            let w =
                Matrix::repacked(ty, case.rows, case.cols, &side_by_side, &scales).expect("what was written");
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
        let mut runner = TestRunner::new(config(48));
        let result = runner.run(&cases(ty), |case| {
            let (bytes, _, _) = case.fill(ty);
            let w = Matrix::new(ty, case.rows, case.cols, &bytes, &[]).expect("a valid matrix");
            assert!(set_level(Level::Scalar));
            let (expected, written) = (decode(&w), repacked(&w).expect("a block format"));
            for level in levels() {
                assert!(set_level(level));
                assert!(repacked(&w).expect("a block format") == written, "{ty:?} at {level:?}: other bytes");
                let again =
                    Matrix::repacked(ty, case.rows, case.cols, &written, &[]).expect("what was written");
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
    assert!(Matrix::repacked(Type::Q8_0, 1, 32, &[0; 34], &[]).is_err());
    assert!(Matrix::repacked(Type::Q8_0, usize::MAX, usize::MAX / 32 * 32, &[], &[]).is_err());
    assert!(Matrix::repacked(Type::Q4K, 16, 32, &[], &[]).is_err());
    assert!(Matrix::new(Type::Q8_0, 1, 32, &[0; 34], &[1.0; 2]).is_err());
    assert!(Matrix::repacked(Type::Q8_0, 0, 32, &[], &[1.0; 2]).is_err());
    let nothing = Matrix::new(Type::Q8_0, 0, 32, &[], &[]).expect("a matrix without rows");
    assert_eq!(repacked_bytes(Type::Q8_0, 0, 32), Some(0));
    repack(&nothing, &mut []).expect("nothing to do");
    Matrix::repacked(Type::Q8_0, 0, 32, &[], &[]).expect("a matrix without rows");
}

#[test]
fn results_depend_on_nothing_but_weights_and_column() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let available = levels();
    for &ty in Type::ALL {
        let mut runner = TestRunner::new(config(96));
        let result = runner.run(&cases(ty), |case| {
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
    for level in levels() {
        assert!(set_level(level));
        for (i, &ty) in Type::ALL.iter().enumerate() {
            // Large enough for several tasks, with a last one that is not full; and one column alone.
            for (rows, n) in [(83, 40), (1107, 1)] {
                let seed = i as u64 + 1;
                let case = Case { rows, cols: 768, n, threads: 1, contents: Contents::Random, seed };
                let (bytes, scales, x) = case.fill(ty);
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
            let case = Case { rows, cols, n, threads: 1, contents: Contents::Random, seed: 7 };
            let (bytes, scales, x) = case.fill(ty);
            let w = Matrix::new(ty, rows, cols, &bytes, &scales).expect("a valid matrix");
            for precision in [Precision::Int8, Precision::F32] {
                assert!(set_level(Level::Scalar));
                let expected = run(&w, &x, precision);
                for level in levels() {
                    assert!(set_level(level));
                    let found = run(&w, &x, precision);
                    if let Some(difference) = difference(&found, &expected) {
                        panic!("{ty:?} {precision:?} {rows}x{cols}, {n} columns at {level:?}: {difference}");
                    }
                    if let Some(side_by_side) = repacked(&w) {
                        let w = Matrix::repacked(ty, rows, cols, &side_by_side, &scales)
                            .expect("what was written");
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
    for level in levels() {
        assert!(set_level(level));
        for n in [1, 2] {
            let found = run(&w, &vec![1.0; 256 * n], Precision::Int8);
            assert!(found.iter().all(|x| (x / expected - 1.0).abs() < 1e-6), "{level:?}: {found:?}");
        }
    }
}
