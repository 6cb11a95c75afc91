//! Feed-forward blocks: the fused path has the bits of the long one, some experts at a time those of all together, and
//! nobody's result depends on the others in the batch, on the instruction set or on the number of threads.

mod blocks;
mod setup;

use kizami_kernels::matmul::Precision;
use kizami_kernels::ops::Norm;
use kizami_kernels::ops::ffn::{Experts, Ffn, FfnBlock, GroupScore, Part, Router, Scoring};
use kizami_kernels::par::set_threads;
use kizami_kernels::{Matrix, Type, set_level};
use proptest::prelude::*;
use setup::{config, levels};

const D: usize = 256;
const EXPERTS: usize = 6;
/// Scales of whole matrices.
const SCALES: [f32; 4] = [0.7, 1.0, -1.3, 0.1];

/// Bytes of a matrix whose block scales are small and positive.
fn weights(ty: Type, rows: usize, cols: usize, seed: &mut u64) -> Vec<u8> {
    let mut next = || {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 56) as u8
    };
    let mut bytes = vec![0; ty.row_bytes(cols).expect("whole blocks") * rows];
    if ty == Type::F32 {
        for x in bytes.as_chunks_mut::<4>().0 {
            *x = (f32::from(next()) / 2048.0 - 0.0625).to_le_bytes();
        }
        return bytes;
    }
    bytes.fill_with(&mut next);
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        blocks::set_scales(ty, block, || u16::from_le_bytes([next(), 0x08]));
    }
    bytes
}

proptest! {
    #![proptest_config(config(16))]
    #[test]
    fn fused_is_the_long_way(
        n in prop_oneof![Just(0), 1..40usize, Just(300)],
        ff in (1..20usize).prop_map(|blocks| 32 * blocks),
        types in prop::sample::select(vec![
            [Type::Q4K, Type::Q4K, Type::Q8_0],
            [Type::Iq1S, Type::Iq2Xxs, Type::Iq4Nl],
            [Type::Q8_0, Type::Iq3Xxs, Type::F32],
            [Type::Q6K, Type::F32, Type::Q8_0],
            [Type::Iq2Xxs, Type::Iq1S, Type::Q4K],
            [Type::Iq3S, Type::Q5_1, Type::Nvfp4],
            [Type::Mxfp4, Type::Iq1M, Type::Q2_0],
        ]),
        shared in any::<bool>(),
        routed in any::<bool>(),
        scaled in any::<bool>(),
        cut in any::<usize>(),
        seed in any::<u64>(),
    ) {
        let mut seed = seed;
        // Rows of `down` must be whole blocks.
        let ff = ff.next_multiple_of(types[2].block());
        let count = EXPERTS + 1;
        let shapes = [(ff, D), (ff, D), (D, ff)];
        let data: Vec<[Vec<u8>; 3]> = (0..count)
            .map(|_| std::array::from_fn(|i| weights(types[i], shapes[i].0, shapes[i].1, &mut seed)))
            .collect();
        let get = |e: usize| {
            let [gate, up, down] = std::array::from_fn(|i| {
                let scale = if scaled { &SCALES[(e + i) % SCALES.len()..][..1] } else { &[] };
                Matrix::new(types[i], shapes[i].0, shapes[i].1, &data[e][i], scale).expect("bytes that fit")
            });
            Ffn { gate, up, down }
        };
        let router_bytes = weights(Type::F32, EXPERTS, D, &mut seed);
        let router = Router {
            weight: Matrix::new(Type::F32, EXPERTS, D, &router_bytes, &[]).expect("bytes that fit"),
            bias: &[0.0, 0.1, -0.1, 0.2, 0.0, 0.05],
            scoring: Scoring::Sigmoid,
            group_score: GroupScore::TopTwo,
            groups: 2,
            groups_used: 1,
            used: 2,
            normalize: true,
            scale: 1.5,
        };
        let norm: Vec<f32> = (0..D).map(|i| 0.5 + i as f32 / 512.0).collect();
        let block = FfnBlock {
            norm: Norm { weight: &norm, eps: 1e-6 },
            shared: shared.then(|| get(EXPERTS)),
            routed: routed.then_some((router, Experts { count: EXPERTS, get: &get })),
        };
        let x: Vec<f32> = weights(Type::F32, n, D, &mut seed).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();

        let mut seen = Vec::new();
        let mut long = x.clone();
        let mut see = |o: kizami_kernels::ops::Observation<'_>| {
            seen.push((o.role, o.index, o.cols, o.pick.map_or(o.x.len() / o.cols, <[u32]>::len)));
        };
        block.forward(&mut long, Precision::Int8, Some(&mut see)).expect("shapes that agree");
        prop_assert!(long.iter().all(|x| x.is_finite()));
        for role in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
            let of: Vec<_> = seen.iter().filter(|s| s.0 == role).collect();
            prop_assert_eq!(of.len(), if routed && n > 0 { EXPERTS } else { 0 });
            prop_assert_eq!(of.iter().map(|s| s.3).sum::<usize>(), if routed { 2 * n } else { 0 });
            let cols = if role == "ffn_down_exps" { ff } else { D };
            prop_assert!(of.iter().all(|s| s.2 == cols));
        }
        for level in levels() {
            set_level(level);
            for threads in [1, 3] {
                set_threads(threads);
                let mut fused = x.clone();
                block.forward(&mut fused, Precision::Int8, None).expect("shapes that agree");
                prop_assert_eq!(bits(&fused), bits(&long), "{:?}, {} threads", level, threads);
            }
        }
        let (mut parts, mut sums, mut seen_of_parts) = (x.clone(), vec![0.0; x.len()], Vec::new());
        let ends = if routed { vec![cut % EXPERTS, cut % EXPERTS + 1, EXPERTS] } else { vec![0] };
        let mut start = 0;
        for (i, &end) in ends.iter().enumerate() {
            let part = Part { experts: start..end, sums: &mut sums, last: i + 1 == ends.len() };
            let mut see = |o: kizami_kernels::ops::Observation<'_>| {
                seen_of_parts.push((o.role, o.index, o.cols, o.pick.map_or(o.x.len() / o.cols, <[u32]>::len)));
            };
            block.forward_part(&mut parts, part, Precision::Int8, Some(&mut see)).expect("shapes that agree");
            start = end;
        }
        prop_assert_eq!(bits(&parts), bits(&long), "parts that end at {:?}", ends);
        seen.sort();
        seen_of_parts.sort();
        prop_assert_eq!(seen_of_parts, seen);
        let beyond = Part { experts: 0..EXPERTS + 1, sums: &mut sums, last: true };
        prop_assert!(block.forward_part(&mut parts, beyond, Precision::Int8, None).is_err());
        for (i, alone) in x.chunks_exact(D).enumerate().take(3) {
            let mut alone = alone.to_vec();
            block.forward(&mut alone, Precision::Int8, None).expect("shapes that agree");
            prop_assert_eq!(bits(&alone), bits(&long[i * D..(i + 1) * D]), "token {} alone", i);
        }
    }
}
