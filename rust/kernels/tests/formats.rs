//! Every block format against the weights that the `gguf` package, or llama.cpp, reads from the same bytes.
//! The fixtures are made by `data/make_formats.py`.

mod setup;

use kizami_kernels::formats::{iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs};
use kizami_kernels::matmul::dequantize_row;
use kizami_kernels::{Type, set_level};
use setup::levels;
use std::path::Path;

/// Equal bits, or both NaN.
fn same(found: f32, expected: f32) -> bool {
    found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan())
}

#[test]
fn blocks_decode_to_the_reference_weights() {
    for &ty in Type::ALL.iter().filter(|ty| ty.family().is_some()) {
        let name = ty.name().to_lowercase();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}.bin"));
        let file = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (count, rest) = file.split_first_chunk::<4>().expect("a count");
        let count = u32::from_le_bytes(*count) as usize;
        let (blocks, weights) = rest.split_at(count * ty.block_bytes());
        let weights: Vec<f32> = weights.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        assert_eq!(weights.len(), count * ty.block(), "{name}: size of the fixture");
        for level in levels() {
            assert!(set_level(level));
            // All blocks as one long row, then each as a row of its own: short rows take another path.
            let mut row = vec![f32::NAN; weights.len()];
            dequantize_row(ty, blocks, &mut row).expect("a valid row");
            for (i, (&found, &expected)) in row.iter().zip(&weights).enumerate() {
                assert!(same(found, expected), "{name} {level:?} weight {i}: {found:e}, not {expected:e}");
            }
            let pairs = blocks.chunks(ty.block_bytes()).zip(weights.chunks(ty.block()));
            for (b, (block, weights)) in pairs.enumerate() {
                let mut found = vec![f32::NAN; ty.block()];
                dequantize_row(ty, block, &mut found).expect("a valid block");
                let equal = found.iter().zip(weights).all(|(&f, &e)| same(f, e));
                assert!(equal, "{name} {level:?} block {b} on its own: {found:?}, not {weights:?}");
            }
        }
    }
}

#[test]
fn codebook_entries_are_distinct_and_within_their_levels() {
    fn check<const LEN: usize>(grid: &[[i8; LEN]], levels: &[i8]) {
        assert!(grid.iter().flatten().all(|value| levels.contains(value)));
        let mut sorted = grid.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), grid.len());
    }
    check(&iq2_xxs::GRID, &iq2_xxs::MAGNITUDES);
    check(&iq2_xs::GRID, &iq2_xs::MAGNITUDES);
    check(&iq2_s::GRID, &iq2_s::MAGNITUDES);
    check(&iq3_xxs::GRID, &iq3_xxs::MAGNITUDES);
    check(&iq3_s::GRID, &iq3_s::MAGNITUDES);
    check(&iq1_s::GRID, &[-1, 0, 1]);
    for (i, signs) in iq2_xxs::SIGNS.iter().enumerate() {
        assert_eq!(usize::from(signs & 127), i);
        assert_eq!(signs.count_ones() % 2, 0);
    }
}
