//! A format's encoder in halves, so that plain rounding and error feedback share both.
//!
//! *Choose the scales* of a block knows its weights and what their errors cost. *Choose codes* of eight neighbours knows
//! their scales; plain rounding gives it a diagonal cost and the groups of one block side by side, feedback a
//! whole metric and sixteen rows side by side.

use super::Encode;
use super::lanes::{LANES, Lanes};
use super::octet::{Octet, Row};
use super::steps::unbiased;
use super::target::{Frame, Target};
use bytemuck::{Pod, Zeroable};
use kizami_kernels::isa::Isa;

/// Weights whose codes are chosen together.
pub(super) const OCTET: usize = crate::curvature::OCTET;
/// Groups of eight in the largest block.
pub(super) const MOST_OCTETS: usize = 32;

/// What the codes of eight weights stand for: `scale * value + start`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) scale: f32,
    pub(super) start: f32,
    /// What else the sub-block says about its codes: IQ1_S has two shifts.
    pub(super) variant: u8,
}

/// All scales of one block, as the file stores them.
pub(super) trait Scales: Copy {
    /// Those of one group of eight, in the frame they were chosen in.
    fn line(&self, octet: usize) -> Line;
    /// Multiplies all of them by a factor, as far as an f16 can hold the result.
    fn refit(&mut self, frame: &Frame, factor: f32);
}

/// How the eight weights of an octet get their codes.
pub(super) trait Search {
    /// The codes of eight weights.
    type Code: Copy + Default;
    /// Whether the codes are off by so much that plain rounding's scales must make up for what they shrink, and that other
    /// scales suit weights with feedback on top than without.
    const COARSE: bool;
    /// Whether drafts are codes, too, if not the best: good enough to go over them again.
    const DRAFTS_HAVE_CODES: bool;

    /// Plain rounding: the codes of a whole block.
    fn choose_plain<I: Isa, const N: usize>(
        isa: I,
        target: &Target<N>,
        scales: &impl Scales,
        codes: &mut [Self::Code],
    );

    /// What codes stand for, before scale and start.
    fn values(code: Self::Code) -> [f32; OCTET];

    /// The codes of sixteen rows' weights under a whole metric, and what they stand for. Those of a draft only serve to
    /// fit scales, and need not be the best.
    fn choose_whole<I: Isa>(
        isa: I,
        octet: &Octet,
        row: &Row,
        draft: bool,
        codes: &mut [Self::Code; LANES],
    ) -> [Lanes; OCTET];
}

/// A format whose halves can be called apart. All functions must be `#[inline(always)]`.
pub(super) trait Split<const N: usize> {
    /// The block as it lies in the file.
    type Block: Pod;
    type Scales: Scales;
    type Search: Search;

    /// The best scales found for a block that is not all zeros.
    fn choose_scales<I: Isa>(isa: I, target: &Target<N>) -> Self::Scales;

    /// Scales for a draft, found in less time where that can be.
    #[inline(always)]
    fn draft_scales<I: Isa>(isa: I, target: &Target<N>) -> Self::Scales {
        Self::choose_scales(isa, target)
    }

    /// The block made of scales and the codes of its `N / 8` groups.
    fn pack(scales: &Self::Scales, codes: &[<Self::Search as Search>::Code]) -> Self::Block;
}

impl<F: Split<N>, const N: usize> Encode<N> for F {
    type Block = F::Block;

    #[inline(always)]
    fn encode<I: Isa>(isa: I, target: &Target<N>) -> F::Block {
        if target.empty {
            return F::Block::zeroed();
        }
        let mut scales = F::choose_scales(isa, target);
        let mut codes = [Default::default(); MOST_OCTETS];
        let codes = &mut codes[..N / OCTET];
        F::Search::choose_plain(isa, target, &scales, codes);
        if F::Search::COARSE {
            let mut decoded = [0.0; N];
            for (g, code) in codes.iter().enumerate() {
                let line = scales.line(g);
                for (i, value) in F::Search::values(*code).into_iter().enumerate() {
                    decoded[OCTET * g + i] = value * line.scale;
                }
            }
            scales.refit(&target.frame, unbiased(target, &decoded));
        }
        F::pack(&scales, codes)
    }
}
