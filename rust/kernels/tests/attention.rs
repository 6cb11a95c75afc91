//! Attention against f64 arithmetic, and its promise: the bits of a token's result depend on the weights, its
//! own sequence and the form its segment takes; not on instruction set, threads or the rest of the batch.

mod cases;

use cases::cases;
use kizami_kernels::matmul::Precision;
use kizami_kernels::ops::attention::{Cache, CacheType, FEW, Mla, Segment};
use kizami_kernels::ops::{Norm, Observation, rope};
use kizami_kernels::par::set_threads;
use kizami_kernels::{Level, Matrix, Type, set_level};
use proptest::prelude::*;
use std::sync::Mutex;

/// The level and the thread pool belong to the process: one test at a time.
static GLOBALS: Mutex<()> = Mutex::new(());

const BASE: f32 = 10_000.0;

/// Uniform in -1..1, drawn from a seed.
fn noise(n: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        ((x >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
    };
    std::iter::repeat_with(next).take(n).collect()
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    d: usize,
    heads: usize,
    lora: usize,
    rope: usize,
    nope: usize,
    v: usize,
}

struct Layer {
    shape: Shape,
    norm: Vec<f32>,
    latent_norm: Vec<f32>,
    q: Vec<f32>,
    kv: Vec<f32>,
    k_b: Vec<f32>,
    v_b: Vec<f32>,
    output: Vec<f32>,
    rope: rope::Rope,
}

const SCALE: f32 = 0.2;

impl Layer {
    fn new(shape: Shape, seed: u64) -> Self {
        let Shape { d, heads, lora, rope, nope, v } = shape;
        let unit = |x: Vec<f32>| x.into_iter().map(|x| 1.0 + x).collect();
        Self {
            shape,
            norm: unit(noise(d, seed, 0.1)),
            latent_norm: unit(noise(lora, seed + 1, 0.1)),
            q: noise(heads * (nope + rope) * d, seed + 2, 0.3),
            kv: noise((lora + rope) * d, seed + 3, 0.3),
            k_b: noise(heads * lora * nope, seed + 4, 0.3),
            v_b: noise(heads * v * lora, seed + 5, 0.3),
            output: noise(d * heads * v, seed + 6, 0.3),
            rope: rope::Rope::new(rope::Pairs::Adjacent, rope, BASE, None),
        }
    }

    fn forward<'a>(&'a self, x: &mut [f32], segments: &mut [Segment<'_>], observed: bool) {
        let Shape { d, heads, lora, rope, nope, v } = self.shape;
        let matrix = |rows, cols, w: &'a [f32]| {
            Matrix::new(Type::F32, rows, cols, bytemuck::cast_slice(w), &[]).expect("a whole matrix")
        };
        let mla = Mla {
            norm: Norm { weight: &self.norm, eps: 1e-6 },
            q_a: None,
            q_b: matrix(heads * (nope + rope), d, &self.q[..]),
            kv_a: matrix(lora + rope, d, &self.kv[..]),
            kv_a_norm: Norm { weight: &self.latent_norm, eps: 1e-6 },
            k_b: self.k_b.chunks_exact(lora * nope).map(|w| matrix(lora, nope, w)).collect(),
            v_b: self.v_b.chunks_exact(v * lora).map(|w| matrix(v, lora, w)).collect(),
            output: matrix(d, heads * v, &self.output[..]),
            rope: &self.rope,
            scale: SCALE,
        };
        let mut see = |_: Observation<'_>| {};
        let observer: Option<&mut kizami_kernels::ops::Observer<'_>> =
            if observed { Some(&mut see) } else { None };
        mla.forward(x, segments, Precision::F32, observer).expect("shapes that agree");
    }

    fn cache(&self, ty: CacheType) -> Cache {
        Cache::new(ty, self.shape.lora + self.shape.rope)
    }

    /// The output for `x` cut into steps of the given lengths.
    fn steps(&self, ty: CacheType, x: &[f32], lens: &[usize]) -> Vec<f32> {
        let (mut cache, mut x, mut position) = (self.cache(ty), x.to_vec(), 0);
        for &len in lens {
            let part = &mut x[position * self.shape.d..][..len * self.shape.d];
            self.forward(part, &mut [Segment { position, len, cache: &mut cache }], false);
            position += len;
        }
        assert_eq!(cache.len(), position);
        x
    }

    /// The formulas of mla.rs in f64, one token after the other.
    fn reference(&self, x: &[f32]) -> Vec<f64> {
        let Shape { d, heads, lora, rope, nope, v } = self.shape;
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let norm = |x: &[f64], w: &[f32]| -> Vec<f64> {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            x.iter().zip(w).map(|(x, &w)| x / (mean + 1e-6).sqrt() * f64::from(w)).collect()
        };
        let times = |w: &[f32], x: &[f64]| -> Vec<f64> {
            w.chunks_exact(x.len()).map(|w| w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()).collect()
        };
        let turn = |x: &mut [f64], position: usize| {
            for i in 0..rope / 2 {
                let angle = position as f64 * f64::from(BASE).powf(-2.0 * i as f64 / rope as f64);
                let (a, b) = (x[2 * i], x[2 * i + 1]);
                x[2 * i] = a * angle.cos() - b * angle.sin();
                x[2 * i + 1] = a * angle.sin() + b * angle.cos();
            }
        };
        let (mut keys, mut out) = (Vec::new(), Vec::new());
        for (position, x) in x.chunks_exact(d).enumerate() {
            let h = norm(&wide(x), &self.norm);
            let mut q = times(&self.q, &h);
            let mut kv = times(&self.kv, &h);
            turn(&mut kv[lora..], position);
            let c = norm(&kv[..lora], &self.latent_norm);
            keys.push((c, kv[lora..].to_vec()));
            let mut values = Vec::new();
            for head in 0..heads {
                let q = &mut q[head * (nope + rope)..][..nope + rope];
                turn(&mut q[nope..], position);
                let q_c = times(&self.k_b[head * lora * nope..][..lora * nope], &q[..nope]);
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let scores: Vec<f64> = keys
                    .iter()
                    .map(|(c, k)| (dot(&q_c, c) + dot(&q[nope..], k)) * f64::from(SCALE))
                    .collect();
                let max = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
                let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = p.iter().sum();
                let mixed: Vec<f64> = (0..lora)
                    .map(|l| keys.iter().zip(&p).map(|((c, _), p)| c[l] * p).sum::<f64>() / sum)
                    .collect();
                values.extend(times(&self.v_b[head * v * lora..][..v * lora], &mixed));
            }
            out.extend(times(&self.output, &values).iter().zip(x).map(|(y, &x)| y + f64::from(x)));
        }
        out
    }
}

fn segment(position: usize, len: usize, cache: &mut Cache) -> Segment<'_> {
    Segment { position, len, cache }
}

/// Root of the mean square of the difference, relative to the reference.
fn distance(found: &[f32], expected: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let off: f64 = found.iter().zip(expected).map(|(&f, e)| square(f64::from(f) - e)).sum();
    (off / expected.iter().map(|&e| square(e)).sum::<f64>()).sqrt()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn shapes() -> impl Strategy<Value = Shape> {
    let odd = |max: usize| (1..=max).prop_map(|x| x * 3 - 2);
    (odd(20), 1..=19usize, odd(24), 1..=10usize, odd(14), odd(14))
        .prop_map(|(d, heads, lora, rope, nope, v)| Shape { d, heads, lora, rope: rope * 2, nope, v })
}

fn available() -> impl Iterator<Item = Level> {
    Level::ALL.iter().copied().filter(|level| level.available())
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn agrees_with_f64_and_itself(shape in shapes(), n in 1..160usize, cut in 0.0..1.0f64, seed in 1..u64::MAX / 2) {
        let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let layer = Layer::new(shape, seed);
        let x = noise(n * shape.d, seed + 9, 1.0);
        let expected = layer.reference(&x);
        let cut = 1 + ((n - 1) as f64 * cut) as usize;
        let steps = [cut, n - cut];
        let lens = if n == cut { &steps[..1] } else { &steps[..] };
        for (ty, allowed) in [(CacheType::F32, 2e-6), (CacheType::F16, 2e-3), (CacheType::Q8_0, 4e-2)] {
            set_level(Level::Scalar);
            set_threads(1);
            let oracle = layer.steps(ty, &x, lens);
            let off = distance(&oracle, &expected);
            prop_assert!(off < allowed, "{ty:?} is {off:e} from the reference");
            for level in available() {
                set_level(level);
                for threads in [1, 3] {
                    set_threads(threads);
                    prop_assert_eq!(bits(&layer.steps(ty, &x, lens)), bits(&oracle), "{:?}, {} threads", level, threads);
                }
            }
        }
    }
}

const REAL: Shape = Shape { d: 64, heads: 4, lora: 96, rope: 16, nope: 32, v: 32 };

#[test]
fn short_segments_have_the_bits_of_single_tokens() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let layer = Layer::new(REAL, 3);
    let n = 300;
    let x = noise(n * REAL.d, 4, 1.0);
    for ty in CacheType::ALL {
        let single = layer.steps(ty, &x, &vec![1; n]);
        let mut lens = vec![FEW - 1; n / (FEW - 1)];
        lens.push(n - lens.len() * (FEW - 1));
        assert_eq!(bits(&layer.steps(ty, &x, &lens)), bits(&single), "{ty:?}");
    }
}

#[test]
fn where_a_prompt_is_cut_does_not_show() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let layer = Layer::new(REAL, 5);
    let n = 400;
    let x = noise(n * REAL.d, 6, 1.0);
    for ty in CacheType::ALL {
        let whole = layer.steps(ty, &x, &[n]);
        assert_eq!(bits(&layer.steps(ty, &x, &[203, 197])), bits(&whole), "{ty:?}");
    }
}

#[test]
fn sequences_do_not_see_each_other() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let layer = Layer::new(REAL, 7);
    let d = REAL.d;
    let (a, b) = (noise(150 * d, 8, 1.0), noise(140 * d, 9, 1.0));
    for ty in CacheType::ALL {
        let (mut first, mut second) = (layer.cache(ty), layer.cache(ty));
        let mut both = [&a[..100 * d], &b[..139 * d]].concat();
        layer.forward(&mut both, &mut [segment(0, 100, &mut first), segment(0, 139, &mut second)], false);
        let mut next = [&a[100 * d..], &b[139 * d..]].concat();
        layer.forward(&mut next, &mut [segment(100, 50, &mut first), segment(139, 1, &mut second)], false);
        let (alone_a, alone_b) = (layer.steps(ty, &a, &[100, 50]), layer.steps(ty, &b, &[139, 1]));
        assert_eq!(bits(&both[..100 * d]), bits(&alone_a[..100 * d]));
        assert_eq!(bits(&both[100 * d..]), bits(&alone_b[..139 * d]));
        assert_eq!(bits(&next[..50 * d]), bits(&alone_a[100 * d..]));
        assert_eq!(bits(&next[50 * d..]), bits(&alone_b[139 * d..]));
    }
}

#[test]
fn both_forms_agree_and_an_observer_changes_only_the_form() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let layer = Layer::new(REAL, 10);
    let n = 260;
    let x = noise(n * REAL.d, 11, 1.0);
    let mut absorbed = x.clone();
    let mut cache = layer.cache(CacheType::F32);
    layer.forward(&mut absorbed, &mut [Segment { position: 0, len: n, cache: &mut cache }], true);
    assert_eq!(bits(&absorbed), bits(&layer.steps(CacheType::F32, &x, &vec![1; n])));
    let expanded = layer.steps(CacheType::F32, &x, &[n]);
    assert_ne!(bits(&absorbed), bits(&expanded), "this length was meant to be expanded");
    let wide: Vec<f64> = absorbed.iter().map(|&x| f64::from(x)).collect();
    assert!(distance(&expanded, &wide) < 2e-6);
}

#[test]
fn a_damaged_cache_row_stays_visible() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let layer = Layer::new(REAL, 12);
    for ty in CacheType::ALL {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = noise(40 * REAL.d, 13, 1.0);
            x[0] = bad;
            for lens in [&[40][..], &[20, 20]] {
                let out = layer.steps(ty, &x, lens);
                assert!(out[39 * REAL.d..].iter().all(|x| x.is_nan()), "{ty:?} {bad} {lens:?}");
            }
        }
    }
}

#[test]
fn nothing_comes_from_the_future() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let layer = Layer::new(REAL, 14);
    let (n, d) = (200, REAL.d);
    let clean = noise(n * d, 15, 1.0);
    for lens in [&[200][..], &[75, 125], &[40, 3, 157], &[1, 199]] {
        let expected = bits(&layer.steps(CacheType::F16, &clean, lens));
        for level in available() {
            set_level(level);
            for (t, bad) in [(1, f32::NAN), (31, f32::INFINITY), (77, f32::NAN), (130, f32::NEG_INFINITY)] {
                let mut x = clean.clone();
                x[t * d + 5] = bad;
                let found = layer.steps(CacheType::F16, &x, lens);
                assert_eq!(bits(&found[..t * d]), expected[..t * d], "{level:?}, token {t} of {lens:?}");
                assert!(found[t * d..].iter().all(|x| x.is_nan()), "{level:?}, token {t} of {lens:?}");
            }
        }
    }
}

#[test]
fn a_row_counts_its_bytes() {
    for (ty, bytes) in [(CacheType::F32, 2304), (CacheType::F16, 1152), (CacheType::Q8_0, 612)] {
        assert_eq!(ty.row_bytes(576), bytes);
        assert_eq!(CacheType::from_name(ty.name()), Some(ty));
    }
    assert_eq!(CacheType::from_name("f8"), None);
}
