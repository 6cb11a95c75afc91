//! What a model does with weights besides one product, for every format: rows of an embedding table, and experts of a
//! stack, against f64 arithmetic and against themselves.

mod blocks;
mod contents;
mod setup;

use contents::{Contents, Rng, difference, scales, weights};
use kizami_kernels::matmul::{Precision, dequantize};
use kizami_kernels::ops::ffn::{Experts, Ffn, FfnBlock, GroupScore, Router, Scoring};
use kizami_kernels::ops::{Norm, head};
use kizami_kernels::par::set_threads;
use kizami_kernels::{Level, Matrix, Type, repack, repacked_bytes, set_level};
use setup::levels;
use std::sync::Mutex;

/// The level and the thread pool belong to the process: one test at a time.
static GLOBALS: Mutex<()> = Mutex::new(());

/// Matrices of one shape.
struct Stack {
    ty: Type,
    rows: usize,
    cols: usize,
    matrices: Vec<Stored>,
}

struct Stored {
    bytes: Vec<u8>,
    scales: Vec<f32>,
    /// The same repacked; none for floats.
    records: Option<Vec<u8>>,
}

impl Stack {
    fn new(ty: Type, count: usize, rows: usize, cols: usize, rng: &mut Rng) -> Self {
        let matrices = (0..count)
            .map(|_| {
                let bytes = weights(ty, rng, rows * cols, Contents::Random);
                let scales = scales(ty, rng, rows, cols, Contents::Random);
                let w = Matrix::new(ty, rows, cols, &bytes, &scales).expect("a valid matrix");
                let records = repacked_bytes(ty, rows, cols).map(|size| {
                    let mut records = vec![0; size];
                    repack(&w, &mut records).expect("a buffer of the right size");
                    records
                });
                Stored { bytes, scales, records }
            })
            .collect();
        Self { ty, rows, cols, matrices }
    }

    fn get(&self, i: usize) -> Matrix<'_> {
        let Stored { bytes, scales, .. } = &self.matrices[i];
        Matrix::new(self.ty, self.rows, self.cols, bytes, scales).expect("a valid matrix")
    }

    fn repacked(&self, i: usize) -> Matrix<'_> {
        match &self.matrices[i].records {
            Some(records) => {
                Matrix::repacked(self.ty, self.rows, self.cols, records, &self.matrices[i].scales)
                    .expect("as written")
            }
            None => self.get(i),
        }
    }

    fn decoded(&self, i: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.rows * self.cols];
        dequantize(&self.get(i), 0, &mut out).expect("all rows");
        out
    }
}

#[test]
fn a_row_of_an_embedding_is_that_row() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for &ty in Type::ALL {
        // Rows that end within a chunk too, where blocks allow it.
        for cols in [256, 256 + ty.block().max(32) % 256] {
            let table = Stack::new(ty, 1, 131, cols, &mut Rng(ty as u64 + 1));
            assert!(set_level(Level::Scalar));
            let all = table.decoded(0);
            let ids = [130u32, 0, 7, 7, 129, 16, 15];
            let expected: Vec<f32> =
                ids.iter().flat_map(|&id| &all[id as usize * cols..][..cols]).copied().collect();
            for level in levels() {
                assert!(set_level(level));
                for w in [table.get(0), table.repacked(0)] {
                    let found = head::embed(&w, &ids).expect("ids of the table");
                    assert_eq!(difference(&found, &expected), None, "{ty:?} at {level:?}");
                    assert!(head::embed(&w, &[131]).is_err(), "{ty:?}: a row that is not there");
                }
            }
        }
    }
}

const D: usize = 256;
const FF: usize = 256;
const EXPERTS: usize = 5;
const USED: usize = 2;
const TOKENS: usize = 9;
const EPS: f32 = 1e-6;

/// `x . w` and the sum of its terms' magnitudes.
fn dot(w: &[f32], x: &[f64]) -> (f64, f64) {
    let terms = || w.iter().zip(x).map(|(&w, &x)| f64::from(w) * x);
    (terms().sum(), terms().map(f64::abs).sum())
}

/// The block's result in f64, and how far f32 may be from it: some twenty roundings in each of the three products,
/// and 16 times as much room.
fn reference(x: &[f32], norm: &[f32], router: &[f32], experts: &[[Vec<f32>; 3]]) -> Vec<(f64, f64)> {
    let epsilon = 3.0 * 16.0 * 20.0 * 2f64.powi(-24);
    let mut out = Vec::new();
    for x in x.chunks_exact(D) {
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / D as f64;
        let h: Vec<f64> = x
            .iter()
            .zip(norm)
            .map(|(&x, &w)| f64::from(x) / (mean + f64::from(EPS)).sqrt() * f64::from(w))
            .collect();
        let mut scores: Vec<(f64, usize)> =
            (0..EXPERTS).map(|e| (1.0 / (1.0 + (-dot(&router[e * D..][..D], &h).0).exp()), e)).collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        let total: f64 = scores[..USED].iter().map(|s| s.0).sum();
        let mut sums: Vec<(f64, f64)> = x.iter().map(|&x| (f64::from(x), f64::from(x.abs()))).collect();
        for &(score, e) in &scores[..USED] {
            let [gate, up, down] = &experts[e];
            let hidden: Vec<(f64, f64)> = (0..FF)
                .map(|j| {
                    let ((g, gross_g), (u, gross_u)) =
                        (dot(&gate[j * D..][..D], &h), dot(&up[j * D..][..D], &h));
                    (g / (1.0 + (-g).exp()) * u, gross_g * gross_u)
                })
                .collect();
            for (sum, row) in sums.iter_mut().zip(down.chunks_exact(FF)) {
                for (&w, &(value, gross)) in row.iter().zip(&hidden) {
                    let weight = score / total * f64::from(w);
                    *sum = (sum.0 + weight * value, sum.1 + weight.abs() * gross);
                }
            }
        }
        out.extend(sums.iter().map(|&(value, gross)| (value, gross * epsilon)));
    }
    out
}

/// Each token goes through its own two of five experts, whatever their format: near the formula with float activations,
/// and with 8-bit ones the same bits at every level, for any number of threads, repacked or not.
#[test]
fn experts_of_every_format() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut rng = Rng(5);
    let mut floats = |n: usize, scale: f32| (0..n).map(|_| scale * rng.unit()).collect::<Vec<f32>>();
    let (norm, routing, x) = (floats(D, 1.0), floats(EXPERTS * D, 0.5), floats(TOKENS * D, 1.0));
    let router = Router {
        weight: Matrix::new(Type::F32, EXPERTS, D, bytemuck::cast_slice(&routing), &[])
            .expect("a valid matrix"),
        bias: &[],
        scoring: Scoring::Sigmoid,
        group_score: GroupScore::Max,
        groups: 1,
        groups_used: 1,
        used: USED,
        normalize: true,
        scale: 1.0,
    };
    for &ty in Type::ALL {
        let mut rng = Rng(ty as u64 + 1);
        let stacks =
            [(FF, D), (FF, D), (D, FF)].map(|(rows, cols)| Stack::new(ty, EXPERTS, rows, cols, &mut rng));
        let run = |get: fn(&Stack, usize) -> Matrix<'_>, precision| {
            let get = |e: usize| {
                let [gate, up, down] = stacks.each_ref().map(|stack| get(stack, e));
                Ffn { gate, up, down }
            };
            let experts = Experts { count: EXPERTS, get: &get };
            let block = FfnBlock {
                norm: Norm { weight: &norm, eps: EPS },
                shared: None,
                routed: Some((router, experts)),
            };
            let mut x = x.clone();
            block.forward(&mut x, precision, None).expect("shapes that agree");
            x
        };
        assert!(set_level(Level::Scalar));
        let decoded: Vec<[Vec<f32>; 3]> =
            (0..EXPERTS).map(|e| stacks.each_ref().map(|stack| stack.decoded(e))).collect();
        let exact = run(Stack::get, Precision::F32);
        for (i, (&found, (value, allowed))) in
            exact.iter().zip(reference(&x, &norm, &routing, &decoded)).enumerate()
        {
            let off = (f64::from(found) - value).abs();
            assert!(
                off <= allowed,
                "{ty:?} output {i}: {found:e} is {off:e} from {value:e}, over {allowed:e}"
            );
        }
        let rounded = run(Stack::get, Precision::Int8);
        for level in levels() {
            assert!(set_level(level));
            for threads in [1, 3] {
                set_threads(threads);
                for (precision, expected) in [(Precision::F32, &exact), (Precision::Int8, &rounded)] {
                    for get in [Stack::get, Stack::repacked] {
                        let difference = difference(&run(get, precision), expected);
                        assert_eq!(difference, None, "{ty:?} {precision:?} at {level:?}, {threads} threads");
                    }
                }
            }
        }
    }
}
