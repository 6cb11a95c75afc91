//! How fast this machine reads memory: the ceiling of everything that streams weights.
//!
//! The buffer is summed as whole vectors by all threads of the pool, each on a stretch of its own, which is as
//! simple as reading gets. Knows no weights.

use crate::dispatch::{Op, dispatch};
use crate::isa::{Isa, LANES};
use crate::par;
use bytemuck::{Pod, Zeroable};
use std::time::Instant;

/// Lines that are summed at a time, each into a register of its own.
const GROUP: usize = 4;
/// Lines of one task: large against what starting it takes.
const TASK: usize = 1 << 15;

/// A cache line. Loads that straddle two would measure the load unit.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Bytes per second at which the pool's threads read `memory`, the best of `passes`. Larger than the last cache, or
/// it is the cache that is measured; what stands in it is lost.
pub fn read(memory: &mut [u8], passes: usize) -> f64 {
    let (_, buffer, _) = bytemuck::pod_align_to_mut::<u8, Line>(memory);
    // Every page is written, or all of them would be one page of zeros.
    par::for_chunks(buffer, TASK, |task, part| part.fill(Line([task as f32; LANES])));
    let mut best = f64::INFINITY;
    for _ in 0..passes.max(1) {
        let start = Instant::now();
        let sums = par::map(buffer.chunks(TASK).collect(), |part| dispatch(Sum(part)));
        std::hint::black_box(sums);
        best = best.min(start.elapsed().as_secs_f64());
    }
    size_of_val(buffer) as f64 / best
}

struct Sum<'a>(&'a [Line]);

impl Op for Sum<'_> {
    type Out = f32;

    // Through the primitives: left to itself the compiler keeps a plain loop's sums in memory.
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let one = isa.splat(1.0);
        let mut sums = [isa.splat(0.0); GROUP];
        let (groups, rest) = self.0.as_chunks::<GROUP>();
        for group in groups {
            for i in 0..GROUP {
                sums[i] = isa.fma(isa.load(&group[i].0), one, sums[i]);
            }
        }
        for line in rest {
            sums[0] = isa.fma(isa.load(&line.0), one, sums[0]);
        }
        let mut sum = 0.0;
        for part in sums {
            sum += isa.sum(part);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{dispatch_at, levels};

    #[test]
    fn every_float_is_read_on_every_level() {
        // Small whole numbers: their sum is exact in any order.
        let lines: Vec<Line> =
            (0..100).map(|i| Line(std::array::from_fn(|j| (i * LANES + j) as f32 % 1009.0))).collect();
        for len in [0, 1, 3, 4, 5, 8, 100] {
            let expected: f32 = lines[..len].iter().flat_map(|line| line.0).sum();
            for level in levels() {
                assert_eq!(dispatch_at(level, Sum(&lines[..len])), Some(expected));
            }
        }
    }

    #[test]
    fn a_rate_is_found() {
        assert!(read(&mut vec![0; 1 << 22], 2) > 0.0);
    }
}
