//! NVFP4: of the UE4M3 scales around the free one, that which leaves 16 weights the smallest error.

use super::Encode;
use super::e2m1::{choose_code, errors};
use super::lanes::{LANES, Lanes};
use super::target::{Target, inverse};
use bytemuck::Zeroable;
use kizami_kernels::formats::nvfp4::{BlockNvfp4, Nvfp4, SCALES};
use kizami_kernels::isa::Isa;

/// The largest scale; the byte after it is none.
const LAST: usize = 0x7e;
/// How far below the scale that maps the largest weight to the largest code the search begins.
const BELOW: usize = 6;

impl Encode<64> for Nvfp4 {
    type Block = BlockNvfp4;

    #[inline(always)]
    fn encode<I: Isa>(_: I, target: &Target<64>) -> BlockNvfp4 {
        let mut block = BlockNvfp4::zeroed();
        if target.empty {
            return block;
        }
        for s in 0..4 {
            let (x, w) = (&target.x.as_chunks::<16>().0[s], &target.w.as_chunks::<16>().0[s]);
            let mut most = 0f32;
            for x in x {
                most = if x.abs() > most { x.abs() } else { most };
            }
            // Scales ascend with their bytes.
            let wanted = target.frame.restored(most / 12.0);
            let first = SCALES[..LAST].partition_point(|scale| *scale < wanted).saturating_sub(BELOW);
            let first = first.min(LAST + 1 - LANES);
            let (mut scales, mut inverses) = (Lanes::ZERO, Lanes::ZERO);
            for l in 0..LANES {
                scales.0[l] = target.frame.normalized(SCALES[first + l]);
                inverses.0[l] = inverse(scales.0[l]);
            }
            let best = errors(x, w, scales, inverses).argmin();
            block.d[s] = (first + best) as u8;
            for i in 0..8 {
                let id = inverses.0[best];
                block.qs[8 * s + i] = choose_code(id, x[i]) | choose_code(id, x[8 + i]) << 4;
            }
        }
        block
    }
}
