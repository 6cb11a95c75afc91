//! How many cycles a product takes per 256 weights and column: every format, level and layout of rows, one thread, from
//! the second-level cache. `bench/formats.py` makes a page of it.
//!
//!     cargo run --release -p kizami-kernels --example cycles
//!
//! Writes a line `level,type,layout,columns,cycles` for each, and first the clock. Timers know nothing of cycles, so the
//! clock is measured too, before and after each product: a chain of additions and exclusive ors in which each waits for
//! the one before, a cycle on any CPU there is. The least of many times counts, under the faster of the two clocks.

#[path = "../tests/blocks/mod.rs"]
mod blocks;
#[path = "../tests/contents/mod.rs"]
mod contents;

use contents::{Contents, Rng, scales, weights};
use kizami_kernels::matmul::{Columns, Precision, matmul};
use kizami_kernels::par::set_threads;
use kizami_kernels::{Level, Matrix, Type, levels, repack, repacked_bytes, set_level};
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROWS: usize = 256;
const COLS: usize = 1024;
const COLUMNS: [usize; 3] = [1, 8, 32];
/// What one measurement may take.
const TIME: Duration = Duration::from_millis(80);

/// Seconds of the fastest of many calls.
fn least(time: Duration, mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut least) = (Instant::now(), Duration::MAX);
    while start.elapsed() < time {
        let before = Instant::now();
        f();
        least = least.min(before.elapsed());
    }
    least.as_secs_f64()
}

/// Cycles per second.
fn clock() -> f64 {
    const LINKS: u64 = 50_000;
    let chain = || {
        let (mut x, k) = (black_box(1u64), black_box(0x9e37_79b9_7f4a_7c15u64));
        for _ in 0..LINKS {
            x = x.wrapping_add(k) ^ k;
        }
        black_box(x);
    };
    2.0 * LINKS as f64 / least(Duration::from_millis(2), chain)
}

fn measure(level: Level, w: &Matrix<'_>, layout: &str, rng: &mut Rng) {
    for n in COLUMNS {
        let x: Vec<f32> = (0..n * COLS).map(|_| rng.unit()).collect();
        let columns = Columns::new(&x, COLS, Precision::Int8).expect("whole columns");
        let mut out = vec![0.0; n * ROWS];
        let before = clock();
        let seconds = least(TIME, || matmul(w, &columns, &mut out).expect("shapes that agree"));
        let cycles = seconds * before.max(clock()) / (ROWS * COLS / 256 * n) as f64;
        println!("{},{},{layout},{n},{cycles:.1}", level.name(), w.ty().name());
    }
}

fn main() {
    set_threads(1);
    println!("clock,{:.3e}", (0..100).map(|_| clock()).fold(0.0, f64::max));
    for level in levels() {
        set_level(level);
        for &ty in Type::ALL {
            let mut rng = Rng(1);
            let bytes = weights(ty, &mut rng, ROWS * COLS, Contents::Random);
            let scales = scales(ty, &mut rng, ROWS, COLS, Contents::Random);
            let rows = Matrix::new(ty, ROWS, COLS, &bytes, &scales).expect("a valid matrix");
            measure(level, &rows, "rows", &mut rng);
            if let Some(size) = repacked_bytes(ty, ROWS, COLS) {
                let mut records = vec![0; size];
                repack(&rows, &mut records).expect("a buffer of the right size");
                let repacked = Matrix::repacked(ty, ROWS, COLS, &records, &scales).expect("what was written");
                measure(level, &repacked, "repacked", &mut rng);
            }
        }
    }
}
