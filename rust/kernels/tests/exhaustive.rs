//! Every number there is, on every level: halves, brain floats and 8-bit floats as they are converted, as weights,
//! and as the scales of blocks.

mod blocks;
mod contents;
mod setup;

use contents::{Contents, Rng, difference, same, weights};
use kizami_kernels::dispatch::{Op, dispatch_at};
use kizami_kernels::formats::mxfp4::E2M1;
use kizami_kernels::isa::{Isa, LANES};
use kizami_kernels::matmul::{Columns, Precision, dequantize, matmul};
use kizami_kernels::{Family, Level, Matrix, Type, repack, repacked_bytes, set_level};
use setup::{config, levels};
use std::sync::Mutex;

/// The level belongs to the process: one test at a time.
static GLOBALS: Mutex<()> = Mutex::new(());

/// The value of an E4M3 code, by the definition.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 128 == 0 { magnitude } else { -magnitude }
}

/// Loads everything, sixteen or eight at a time.
struct Load<'a>(&'a [u16]);

struct Loaded {
    half: Vec<f32>,
    /// Eight at a time, as decoders do.
    halves: Vec<f32>,
    brain: Vec<f32>,
    e4m3: Vec<f32>,
}

impl Op for Load<'_> {
    type Out = Loaded;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Loaded {
        let mut out = Loaded { half: vec![], halves: vec![], brain: vec![], e4m3: vec![] };
        let mut lanes = [0.0; LANES];
        for x in self.0.as_chunks::<LANES>().0 {
            isa.store(isa.load_half(x), &mut lanes);
            out.half.extend(lanes);
            isa.store(isa.load_brain(x), &mut lanes);
            out.brain.extend(lanes);
            isa.store(isa.load_e4m3(&x.map(|x| x as u8)), &mut lanes);
            out.e4m3.extend(lanes);
        }
        for x in self.0.as_chunks::<8>().0 {
            out.halves.extend(isa.halves(x.map(u16::to_le_bytes)));
        }
        out
    }
}

#[test]
fn every_code_is_loaded_exactly() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    for level in levels() {
        let found = dispatch_at(level, Load(&all)).expect("an available level");
        for (i, &code) in all.iter().enumerate() {
            let half = half::f16::from_bits(code).to_f32();
            assert!(same(found.half[i], half), "{level:?} f16 {code:#06x}");
            assert!(same(found.halves[i], half), "{level:?} f16 {code:#06x}, eight at a time");
            assert!(same(found.brain[i], half::bf16::from_bits(code).to_f32()), "{level:?} bf16 {code:#06x}");
            assert!(same(found.e4m3[i], e4m3(code as u8)), "{level:?} e4m3 {code:#04x}");
        }
    }
}

struct Store<'a>(&'a [f32]);

impl Op for Store<'_> {
    type Out = Vec<u16>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Vec<u16> {
        let (mut out, mut halves) = (vec![], [0; LANES]);
        for x in self.0.as_chunks::<LANES>().0 {
            isa.store_half(isa.load(x), &mut halves);
            out.extend(halves);
        }
        out
    }
}

/// Every half, and what lies at, just below and just above the middle between it and the next.
#[test]
fn every_half_is_rounded_to() {
    let (mut values, mut expected) = (vec![], vec![]);
    for code in 0..0x7c00u16 {
        let low = half::f16::from_bits(code).to_f32();
        let high = if code == 0x7bff { 65536.0 } else { half::f16::from_bits(code + 1).to_f32() };
        let middle = low.midpoint(high);
        let even = code + code % 2;
        for (x, to) in [(low, code), (middle.next_down(), code), (middle, even), (middle.next_up(), code + 1)]
        {
            values.extend([x, -x]);
            expected.extend([to, to | 0x8000]);
        }
    }
    for level in levels() {
        let found = dispatch_at(level, Store(&values)).expect("an available level");
        let wrong = (0..values.len()).find(|&i| found[i] != expected[i]);
        assert!(wrong.is_none(), "{level:?}: {:e}", values[wrong.unwrap_or(0)]);
        let odd = [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45, -1e-45, 0.0, -0.0];
        let odd = [odd, [f32::NAN; 8]].concat();
        let found = dispatch_at(level, Store(&odd)).expect("an available level");
        assert_eq!(found[..8], [0x7c00, 0xfc00, 0x7c00, 0xfc00, 0, 0x8000, 0, 0x8000], "{level:?}");
        assert!(found[8..].iter().all(|x| x & 0x7fff > 0x7c00), "{level:?}: NaN");
    }
}

fn decoded(w: &Matrix<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; w.rows() * w.cols()];
    dequantize(w, 0, &mut out).expect("all rows");
    out
}

/// All codes of the float formats in one matrix each.
#[test]
fn every_float_is_a_weight() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let bytes: Vec<u8> = (0..=u8::MAX).collect();
    let all = |value: fn(u16) -> f32| (0..=u16::MAX).map(value).collect::<Vec<f32>>();
    // A scale whose products are rounded.
    let scale = 0.7f32;
    for (ty, rows, data, scales, expected) in [
        (Type::F16, 256, &halves, &[][..], all(|x| half::f16::from_bits(x).to_f32())),
        (Type::BF16, 256, &halves, &[], all(|x| half::bf16::from_bits(x).to_f32())),
        (Type::F8E4M3, 1, &bytes, &[scale, scale], bytes.iter().map(|&x| e4m3(x) * scale).collect()),
    ] {
        let w = Matrix::new(ty, rows, 256, data, scales).expect("a valid matrix");
        let mut rng = Rng(1);
        let x: Vec<f32> = (0..3 * 256).map(|_| rng.unit()).collect();
        let product = |precision| {
            let mut out = vec![f32::NAN; 3 * rows];
            matmul(&w, &Columns::new(&x, 256, precision).expect("whole columns"), &mut out)
                .expect("they agree");
            out
        };
        assert!(set_level(Level::Scalar));
        let products = product(Precision::F32);
        for level in levels() {
            assert!(set_level(level));
            assert_eq!(difference(&decoded(&w), &expected), None, "{ty:?} at {level:?}");
            assert_eq!(difference(&product(Precision::F32), &products), None, "{ty:?} at {level:?}");
        }
    }
}

/// What a block's weights become when its scales change: a weight is `d * (scale * code)` rounded once, to which its
/// minimum times `dmin` is added, rounded once more. An f64 holds both products, and to round their sum twice is to
/// round it once.
struct Unit {
    codes: Vec<f32>,
    /// None where the format has no minimums.
    mins: Option<Vec<f32>>,
}

impl Unit {
    /// From the block under scales of one and zero.
    fn of(ty: Type, block: &[u8]) -> Self {
        let under = |scales: [u16; 2]| {
            let (mut block, mut next) = (block.to_vec(), scales.into_iter());
            blocks::set_scales(ty, &mut block, || next.next().expect("at most two"));
            (decoded(&Matrix::new(ty, 1, ty.block(), &block, &[]).expect("a valid row")), next.len() == 0)
        };
        let (codes, _) = under([ONE, 0]);
        let (mut mins, has_min) = under([0, ONE]);
        if ty.family() == Some(Family::Super) {
            // Those are taken off, zeros too.
            mins.iter_mut().for_each(|min| *min = -min.abs());
        }
        Self { codes, mins: has_min.then_some(mins) }
    }

    fn under(&self, d: u16, dmin: u16, out: &mut Vec<f32>) {
        let exact = |half: u16| f64::from(half::f16::from_bits(half).to_f32());
        for (i, &code) in self.codes.iter().enumerate() {
            let value = (exact(d) * f64::from(code)) as f32;
            out.push(match &self.mins {
                Some(mins) => (f64::from(value) + exact(dmin) * f64::from(mins[i])) as f32,
                None => value,
            });
        }
    }
}

/// 1.0 as f16.
const ONE: u16 = 0x3c00;

/// All 65,536 halves as the scale of every format that has such, and as the scale of its minimums; a sixteenth of them
/// in each part, and as many parts as the emulation of a CPU leaves time for.
#[test]
fn every_half_scales_a_block() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for &ty in Type::ALL.iter().filter(|ty| ty.family().is_some() && blocks::has_half(**ty)) {
        let mut rng = Rng(ty as u64 + 1);
        for part in 0..config(16).cases.min(16) as usize {
            let base = weights(ty, &mut rng, ty.block(), Contents::Random);
            assert!(set_level(Level::Scalar));
            let unit = Unit::of(ty, &base);
            let (mut bytes, mut expected) = (vec![], vec![]);
            for d in (0..=u16::MAX).skip(part).step_by(16) {
                // An odd factor goes through all of them too, in another order.
                let min = d.wrapping_mul(40_503);
                let mut halves = [d, min].into_iter();
                bytes.extend(&base);
                let at = bytes.len() - base.len();
                blocks::set_scales(ty, &mut bytes[at..], || halves.next().expect("at most two"));
                unit.under(d, min, &mut expected);
            }
            let w = Matrix::new(ty, 1 << 12, ty.block(), &bytes, &[]).expect("a valid matrix");
            for level in levels() {
                assert!(set_level(level));
                assert_eq!(difference(&decoded(&w), &expected), None, "{ty:?} at {level:?}, part {part}");
            }
            let mut records = vec![0; repacked_bytes(ty, w.rows(), w.cols()).expect("a block format")];
            repack(&w, &mut records).expect("a buffer of the right size");
            let w = Matrix::repacked(ty, w.rows(), w.cols(), &records, &[]).expect("what was written");
            assert_eq!(difference(&decoded(&w), &expected), None, "{ty:?} repacked, part {part}");
        }
    }
}

/// All scales of one byte, each with all codes.
#[test]
fn every_byte_scales_a_block() {
    let _guard = GLOBALS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let e8m0 = |x: u8| 2f64.powi(i32::from(x) - 127);
    // Without a sign; of the two codes of NaN, llama.cpp makes zero and a number.
    let ue4m3 = |x: u8| match x {
        0x7f => 0.0,
        0xff => 480.0,
        _ => f64::from(e4m3(x & 0x7f)),
    };
    for (ty, scales, scale) in [(Type::Mxfp4, 1, &e8m0 as &dyn Fn(u8) -> f64), (Type::Nvfp4, 4, &ue4m3)] {
        assert_eq!(ty.family(), Some(Family::Grouped));
        let (mut bytes, mut expected) = (vec![], vec![]);
        for code in 0..=u8::MAX {
            bytes.extend(vec![code; scales]);
            // Lower and upper nibbles run through the codes in opposite directions.
            let packed = |i: usize| (i % 16) as u8 | (15 - (i % 16) as u8) << 4;
            bytes.extend((0..ty.block() / 2).map(packed));
            // Nibbles of the same half of a group lie side by side.
            let half = ty.block() / 2 / scales;
            for s in 0..scales {
                for upper in [0, 4] {
                    for i in s * half..(s + 1) * half {
                        let level = E2M1[usize::from(packed(i) >> upper & 15)];
                        expected.push((scale(code) * f64::from(level) / 2.0) as f32);
                    }
                }
            }
        }
        let w = Matrix::new(ty, 256, ty.block(), &bytes, &[]).expect("a valid matrix");
        for level in levels() {
            assert!(set_level(level));
            assert_eq!(difference(&decoded(&w), &expected), None, "{ty:?} at {level:?}");
        }
    }
}
