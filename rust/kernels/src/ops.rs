//! Transformer blocks: what one layer computes, a whole block per call.
//!
//! Each block takes the residual stream `x` (`n` tokens of `d` floats), adds its result to it, and
//! shows every linear layer's input to an optional observer: that is how calibration sees it.
//! Blocks know weights and numbers; which tensor plays which part is the model file's business.

pub mod attention;
pub mod ffn;
pub mod head;
pub mod rope;

use crate::dispatch::{Op, dispatch};
use crate::error::{Error, expect_len};
use crate::isa::Isa;
use crate::math;
use crate::matrix::Matrix;
use crate::par;

/// The input of one linear layer, as an observer sees it.
pub struct Observation<'a> {
    /// The layer's part in its block: `attn_q_a`, `ffn_down_exps`, ...
    pub role: &'static str,
    /// Which matrix of a stack: the expert or the head; 0 otherwise.
    pub index: usize,
    /// Matrices in the stack.
    pub count: usize,
    /// Input features.
    pub cols: usize,
    /// Inputs of `cols` floats, one after the other.
    pub x: &'a [f32],
    /// Which inputs the layer takes; all when none.
    pub pick: Option<&'a [u32]>,
    /// What tells inputs apart, in ascending order, where they are those of some tokens only; their places when none.
    pub tokens: Option<&'a [u32]>,
}

impl Observation<'_> {
    /// How many inputs the layer takes.
    pub fn len(&self) -> usize {
        self.pick.map_or(self.x.len() / self.cols, <[u32]>::len)
    }

    /// Whether it takes none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of the inputs it takes, and what tells it apart: the same in every pass of the same tokens.
    pub fn input(&self, i: usize) -> (u32, &[f32]) {
        let place = self.pick.map_or(i as u32, |pick| pick[i]);
        let token = self.tokens.map_or(place, |tokens| tokens[i]);
        (token, &self.x[place as usize * self.cols..][..self.cols])
    }
}

/// Receives the inputs of linear layers.
pub type Observer<'a> = dyn FnMut(Observation<'_>) + 'a;

/// RMS norm with its weight.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// One factor per feature.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

impl Norm<'_> {
    /// Normalizes rows of `stride` floats, of which the first `weight.len()` count; the result is dense.
    pub(crate) fn apply(&self, x: &[f32], stride: usize) -> Vec<f32> {
        let d = self.weight.len();
        let mut out = vec![0.0; x.len() / stride * d];
        par::for_chunks(&mut out, d * (4096 / d).max(1), |task, out| {
            let first = task * (4096 / d).max(1);
            dispatch(NormRows { norm: self, x: &x[first * stride..], stride, out });
        });
        out
    }
}

struct NormRows<'a, 'b> {
    norm: &'b Norm<'a>,
    x: &'b [f32],
    stride: usize,
    out: &'b mut [f32],
}

impl Op for NormRows<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let d = self.norm.weight.len();
        for (out, x) in self.out.chunks_exact_mut(d).zip(self.x.chunks(self.stride)) {
            math::rms_norm(isa, &x[..d], self.norm.weight, self.norm.eps, out);
        }
    }
}

/// `x += y`, element by element.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// Checks a weight against the shape its part demands.
pub(crate) fn expect_shape(
    what: &'static str,
    w: &Matrix<'_>,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    expect_len(what, w.rows(), rows)?;
    expect_len(what, w.cols(), cols)
}

/// Checks that a stack holds `count` matrices of one shape.
pub(crate) fn expect_stack(
    what: &'static str,
    stack: &[Matrix<'_>],
    count: usize,
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    expect_len(what, stack.len(), count)?;
    stack.iter().try_for_each(|w| expect_shape(what, w, rows, cols))
}
