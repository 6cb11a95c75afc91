//! The factor against plain elimination, damping, what is refused, and drift.

use super::*;
use crate::encode::tests::{gaussian, moments};
use kizami_kernels::{levels, set_level};

/// The naive twin: column by column from the last, in f64, of the damped moments in the curvature's scale.
fn naive(h: &[f32], n: usize, damping: f64) -> (Vec<f64>, Vec<f64>) {
    let mean = (0..n).map(|i| f64::from(h[i * n + i])).sum::<f64>() / n as f64;
    let unit = (-mean.log2().floor()).exp2();
    let mut a: Vec<f64> = h.iter().map(|&x| f64::from(x) * unit).collect();
    (0..n).for_each(|i| a[i * n + i] += damping * mean * unit);
    let mut u = vec![0.0; n * n];
    for k in (0..n).rev() {
        for i in 0..k {
            u[i * n + k] = a[i * n + k] / a[k * n + k];
        }
        for i in 0..k {
            for j in 0..k {
                a[i * n + j] -= u[i * n + k] * a[k * n + k] * u[j * n + k];
            }
        }
    }
    (u, (0..n).map(|i| a[i * n + i]).collect())
}

#[test]
fn the_factor_is_that_of_plain_elimination() {
    for (n, rank, scale) in [(32, 40, 1.0), (96, 7, 1e-12), (160, 30, 3e7), (288, 100, 1.0), (416, 0, 1.0)] {
        let h: Vec<f32> = moments(n as u64, n, rank).iter().map(|x| x * scale).collect();
        let curvature = Curvature::new(&h, n, 0.01).unwrap();
        let (u, d) = naive(&h, n, 0.01);
        for j in 0..n {
            let pivot = f64::from(curvature.pivots[j]);
            assert!((pivot - d[j]).abs() <= 1e-4 * d[j], "{n}: pivot {j}: {pivot} against {}", d[j]);
            for (i, row) in curvature.octet(j / OCTET).iter().enumerate() {
                let found = f64::from(row[j % OCTET]);
                let expected = u[i * n + j];
                assert!((found - expected).abs() <= 1e-4, "{n}: {i}, {j}: {found} against {expected}");
            }
        }
    }
}

#[test]
fn the_loss_is_that_of_the_moments() {
    for (n, rank) in [(32, 40), (96, 7), (288, 100)] {
        let h = moments(n as u64, n, rank);
        let curvature = Curvature::new(&h, n, 0.01).unwrap();
        let mean = (0..n).map(|i| f64::from(h[i * n + i])).sum::<f64>() / n as f64;
        let rows = gaussian(9, 3 * n);
        let mut expected = 0.0;
        for row in rows.chunks_exact(n) {
            for i in 0..n {
                for j in 0..n {
                    let damping = if i == j { f64::from(0.01f32) * mean } else { 0.0 };
                    expected += f64::from(row[i]) * (f64::from(h[i * n + j]) + damping) * f64::from(row[j]);
                }
            }
        }
        let loss = curvature.loss(&rows);
        assert!((loss - expected).abs() <= 1e-4 * expected, "{n}: {loss} against {expected}");
        for level in levels() {
            assert!(set_level(level));
            assert_eq!(curvature.loss(&rows), loss, "{}", level.name());
        }
    }
}

#[test]
fn neither_threads_nor_instructions_show() {
    let h = moments(3, 288, 50);
    let first = Curvature::new(&h, 288, 0.01).unwrap();
    for level in levels() {
        for threads in 1..4 {
            assert!(set_level(level) && par::set_threads(threads));
            let again = Curvature::new(&h, 288, 0.01).unwrap();
            assert!(again.factor == first.factor && again.pivots == first.pivots, "{}", level.name());
        }
    }
}

#[test]
fn moments_without_information_and_moments_that_are_none() {
    let n = 64;
    let flat = Curvature::new(&vec![0.0; n * n], n, 0.01).unwrap();
    assert!(flat.pivots.iter().all(|d| *d == 1.0) && flat.factor.iter().flatten().all(|u| *u == 0.0));
    // One direction only, and a column that was never active.
    let v: Vec<f32> = gaussian(5, n).iter().enumerate().map(|(i, x)| if i == 9 { 0.0 } else { *x }).collect();
    let one: Vec<f32> = (0..n * n).map(|at| v[at / n] * v[at % n]).collect();
    let curvature = Curvature::new(&one, n, 0.01).unwrap();
    assert!(curvature.pivots.iter().all(|d| *d > 0.0) && curvature.damping() == 0.01);
    // Allowed by its diagonals, but not positive.
    let signs: Vec<f32> = (0..n * n).map(|at| if at / n == at % n { 1.0 } else { -1.0 }).collect();
    let raised = Curvature::new(&signs, n, 0.01).unwrap();
    assert!(raised.damping() > 60.0 && raised.pivots.iter().all(|d| *d > 0.0), "{}", raised.damping());
}

#[test]
fn bad_moments_are_named() {
    let good = moments(7, 32, 8);
    let with = |at: usize, x: f32| {
        let mut h = good.clone();
        h[at] = x;
        Curvature::new(&h, 32, 0.01).map(|_| ())
    };
    assert!(matches!(with(3 * 32 + 3, -1.0), Err(Error::Moments { row: 3, col: 0 | 3, .. })));
    assert!(matches!(with(3 * 32 + 1, f32::NAN), Err(Error::Moments { row: 3, col: 1, .. })));
    assert!(matches!(with(32 + 3, 1.1 * good[32 + 3] + 0.1), Err(Error::Moments { row: 3, col: 1, .. })));
    assert!(matches!(with(0, f32::INFINITY), Err(Error::Moments { row: 0, col: 0, .. })));
    assert!(matches!(Curvature::new(&good, 16, 0.01), Err(Error::RowLength { cols: 16, .. })));
    assert!(matches!(Curvature::new(&good, 64, 0.01), Err(Error::Length { expected: 4096, .. })));
}

#[test]
fn what_is_fed_in_is_what_drift_asks_for() {
    for (n, rank) in [(32, 40), (96, 7), (288, 100)] {
        let h = moments(n as u64, n, rank);
        let drift = gaussian(5, n * n);
        let curvature = Curvature::new(&h, n, 0.01).unwrap().followed(&drift).unwrap();
        let w = gaussian(6, n);
        let f: Vec<f64> = (0..n)
            .map(|j| {
                let k = |i: usize| f64::from(curvature.drift(j / OCTET).unwrap()[i][j % OCTET]);
                (0..n).map(|i| f64::from(w[i]) * k(i)).sum()
            })
            .collect();
        // f D (I + U)ᵀ against w drift.
        let u = |i: usize, k: usize| f64::from(curvature.octet(k / OCTET)[i][k % OCTET]);
        let (mut off, mut size) = (0.0, 0.0);
        for i in 0..n {
            let pulls = |k: usize| f[k] * f64::from(curvature.pivots[k]);
            let found = pulls(i) + (i + 1..n).map(|k| pulls(k) * u(i, k)).sum::<f64>();
            let expected: f64 =
                (0..n).map(|k| f64::from(w[k]) * f64::from(drift[k * n + i])).sum::<f64>() * curvature.unit;
            off += (found - expected).powi(2);
            size += expected.powi(2);
        }
        assert!(off < 1e-6 * size, "{n}: {off} of {size}");
    }
}

#[test]
fn the_metric_of_a_block_is_the_one_of_its_losses() {
    let cols = 512;
    let curvature = Curvature::new(&moments(62, cols, 60), cols, 0.01).unwrap();
    for (start, n) in [(0, 256), (256, 256), (352, 32)] {
        let metric = curvature.block(start, n);
        let e = gaussian(63, n);
        // Later blocks make up for what this one does: columns behind it do not count.
        let expected: f64 = (0..n)
            .map(|j| {
                let u = |i: usize| f64::from(curvature.octet((start + j) / OCTET)[start + i][j % OCTET]);
                let r: f64 = f64::from(e[j]) + (0..j).map(|i| f64::from(e[i]) * u(i)).sum::<f64>();
                f64::from(curvature.pivots()[start + j]) * r * r
            })
            .sum();
        let entry = |i: usize, j: usize| f64::from(metric.octet(j / OCTET)[i][j % OCTET]);
        let mut found = 0.0;
        for i in 0..n {
            for j in 0..n {
                found += f64::from(e[i]) * entry(i, j) * f64::from(e[j]);
            }
        }
        assert!((found - expected).abs() < 1e-4 * expected, "{found} against {expected}");
        for (g, (u, d)) in metric.octets.iter().enumerate() {
            let l = |i: usize, k: usize| if i == k { 1.0 } else { f64::from(u[i][k]) };
            for i in 0..OCTET {
                for j in 0..OCTET {
                    let found: f64 = (i.max(j)..OCTET).map(|k| l(i, k) * f64::from(d[k]) * l(j, k)).sum();
                    let at = |i: usize, j: usize| entry(OCTET * g + i, OCTET * g + j);
                    assert!((found - at(i, j)).abs() < 1e-4 * at(i, i).max(at(j, j)));
                }
            }
        }
    }
}
