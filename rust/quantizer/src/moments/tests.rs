//! Right, and the same bits however the inputs come and whoever adds them up.

use super::*;
use kizami_kernels::{levels, set_level};
use proptest::prelude::*;
use std::sync::Mutex;

/// Level and threads belong to the process: one test at a time.
static GLOBALS: Mutex<()> = Mutex::new(());

/// Inputs of some layer, with now and then a large one.
fn inputs(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| if next() > 0.98 { 50.0 * next() } else { next() }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() })]

    #[test]
    fn sums_are_those_of_f64(cols in 1usize..100, tokens in 0usize..600, seed: u64) {
        let x = inputs(seed, cols * tokens);
        let mut moments = Moments::new(cols);
        moments.add(&x, None);
        prop_assert_eq!(moments.tokens(), tokens as u64);
        let sums = moments.take();
        prop_assert_eq!(moments.tokens(), 0);
        prop_assert!(moments.take().iter().all(|&sum| sum == 0.0), "what was taken is forgotten");
        for i in 0..cols {
            for j in 0..cols {
                let terms = || x.chunks(cols).map(|x| f64::from(x[i]) * f64::from(x[j]));
                let (exact, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                // A chain of 256 roundings.
                prop_assert!((sums[i * cols + j] - exact).abs() <= 256.0 * 6e-8 * size);
                prop_assert_eq!(sums[i * cols + j], sums[j * cols + i]);
            }
        }
    }

    #[test]
    fn nothing_but_the_inputs_counts(cols in 1usize..100, cuts in prop::collection::vec(0usize..300, 1..5), seed: u64) {
        let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let tokens = cuts.iter().sum::<usize>();
        let x = inputs(seed, cols * tokens);
        let mut whole = Moments::new(cols);
        whole.add(&x, None);
        let expected = whole.take();
        let before = kizami_kernels::level();
        for level in levels() {
            assert!(set_level(level));
            for threads in [1, 3] {
                assert!(par::set_threads(threads));
                let (mut parts, mut picked) = (Moments::new(cols), Moments::new(cols));
                let mut start = 0;
                for &cut in &cuts {
                    parts.add(&x[start * cols..][..cut * cols], None);
                    let pick: Vec<u32> = (start..start + cut).map(|i| i as u32).collect();
                    picked.add(&x, Some(&pick));
                    start += cut;
                }
                prop_assert_eq!(parts.take(), expected.clone());
                prop_assert_eq!(picked.take(), expected.clone());
            }
        }
        assert!(set_level(before));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() })]

    #[test]
    fn drift_is_that_of_f64_on_every_level(cols in 1usize..100, tokens in 0usize..600, seed: u64) {
        let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (x, y) = (inputs(seed, cols * tokens), inputs(seed ^ 7, cols * tokens));
        let before = kizami_kernels::level();
        let mut all = Vec::new();
        for level in levels() {
            assert!(set_level(level));
            for threads in [1, 3] {
                assert!(par::set_threads(threads));
                let mut drift = Drift::new(cols);
                x.chunks(cols).zip(y.chunks(cols)).for_each(|(x, y)| drift.add(x, y));
                prop_assert_eq!(drift.pairs(), tokens as u64);
                all.push(drift.take());
                prop_assert_eq!(drift.pairs(), 0);
            }
        }
        assert!(set_level(before));
        prop_assert!(all.iter().all(|sums| *sums == all[0]));
        for i in 0..cols {
            for j in 0..cols {
                let terms = || x.chunks(cols).zip(y.chunks(cols)).map(|(x, y)| f64::from(y[i] - x[i]) * f64::from(x[j]));
                let (exact, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                prop_assert!((all[0][i * cols + j] - exact).abs() <= 256.0 * 6e-8 * size);
            }
        }
    }
}
