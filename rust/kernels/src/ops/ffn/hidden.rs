//! The wide middle of feed-forward networks: `silu(W_gate h) * W_up h`.
//!
//! ```text
//! task: a multiple of 256 rows of gate and of up  x  some columns
//!   gate rows . h --+
//!                   +-- silu * --> 256 numbers a column --quantize--> a chunk for W_down
//!   up rows   . h --+
//! ```
//!
//! A task makes whole chunks of what `W_down` multiplies, so nothing wide is ever stored as floats and nobody
//! waits between the steps. Where floats are wanted (float weights, calibration) they are computed the long way.

use super::Group;
use crate::chunk::{ActChunk, CHUNK};
use crate::columns::{self, Form, form};
use crate::dispatch::{Op, dispatch};
use crate::error::Error;
use crate::format::Family;
use crate::isa::{Isa, LANES};
use crate::math;
use crate::matmul::{Columns, Job, Precision, Rows, read_column, run};
use crate::matrix::Matrix;
use crate::par;

/// What a network's `W_down` takes.
pub(super) enum Hidden {
    /// `[tokens][ff]`.
    Floats(Vec<f32>),
    /// `[chunks][tokens]`, and whose weights they are for.
    Codes(Vec<ActChunk>, Family),
}

/// Chunks times columns of one task: their gate and up values stay in the second-level cache.
const PRODUCTS: usize = 256;

impl Hidden {
    /// One for each group; floats for all if `floats`.
    pub(super) fn compute(
        groups: &[Group<'_>],
        columns: &Columns<'_>,
        precision: Precision,
        floats: bool,
    ) -> Vec<Hidden> {
        for g in groups {
            columns.prepare(g.ffn.gate.ty());
            columns.prepare(g.ffn.up.ty());
        }
        let codes = |g: &Group<'_>| match form(g.ffn.down.ty(), precision) {
            Form::Codes(family) if !floats => Some(family),
            _ => None,
        };
        let long: Vec<&Group<'_>> = groups.iter().filter(|g| codes(g).is_none()).collect();
        let mut long = plain(&long, columns).into_iter();
        let mut out: Vec<Hidden> = groups
            .iter()
            .map(|g| match codes(g) {
                None => Hidden::Floats(long.next().expect("one for each group without codes")),
                Some(family) => {
                    let chunks = g.ffn.gate.rows().div_ceil(CHUNK);
                    Hidden::Codes(vec![ActChunk::default(); chunks * g.tokens.len()], family)
                }
            })
            .collect();
        let work_of = |g: &Group<'_>| 2 * g.ffn.gate.rows() * g.ffn.gate.cols() * g.tokens.len();
        let work: usize = groups.iter().filter(|g| codes(g).is_some()).map(work_of).sum();
        // Few tasks, because every change from one matrix to the other is a new stream from memory.
        let per_task = work / (par::threads() * 8);
        let mut tasks = Vec::new();
        for (g, hidden) in groups.iter().zip(&mut out) {
            let Hidden::Codes(codes, family) = hidden else { continue };
            let n = g.tokens.len();
            let fit = per_task / (2 * CHUNK * g.ffn.gate.cols() * n).max(1);
            let chunks = fit.min(PRODUCTS / n).max(1);
            for (i, out) in codes.chunks_mut(chunks * n).enumerate() {
                // More than one chunk only where all columns go together.
                for (pick, out) in g.tokens.chunks(PRODUCTS).zip(out.chunks_mut(PRODUCTS)) {
                    let (gate, up, family) = (g.ffn.gate, g.ffn.up, *family);
                    tasks.push(Fused { gate, up, x: columns, pick, start: i * chunks * CHUNK, family, out });
                }
            }
        }
        par::for_each(tasks, work, dispatch);
        out
    }

    /// The floats, if there are any.
    pub(super) fn floats(&self) -> &[f32] {
        match self {
            Hidden::Floats(x) => x,
            Hidden::Codes(..) => &[],
        }
    }

    /// As columns of the group's `W_down`; takes the codes away.
    pub(super) fn columns(&mut self, group: &Group<'_>, precision: Precision) -> Result<Columns<'_>, Error> {
        let ff = group.ffn.down.cols();
        match self {
            Hidden::Floats(x) => Columns::new(x, ff, precision),
            Hidden::Codes(codes, family) => {
                Ok(Columns::quantized(std::mem::take(codes), group.tokens.len(), ff, *family))
            }
        }
    }
}

struct Fused<'a> {
    gate: Matrix<'a>,
    up: Matrix<'a>,
    x: &'a Columns<'a>,
    pick: &'a [u32],
    /// First row.
    start: usize,
    family: Family,
    /// `[chunks][columns]`.
    out: &'a mut [ActChunk],
}

impl Op for Fused<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { gate, up, x, pick, start, family, out } = self;
        let n = pick.len();
        let rows = (out.len() / n * CHUNK).min(gate.rows() - start);
        let (mut a, mut b) = (vec![0.0; rows * n], vec![0.0; rows * n]);
        isa.enter(Rows { w: gate, x, pick: Some(pick), start, out: &mut a });
        isa.enter(Rows { w: up, x, pick: Some(pick), start, out: &mut b });
        swiglu(&mut a, &b);
        for (out, a) in out.chunks_exact_mut(n).zip(a.chunks(CHUNK * n)) {
            let mut padded = [0.0; CHUNK];
            for (c, out) in out.iter_mut().enumerate() {
                read_column(a, n, c, &mut padded[..a.len() / n]);
                columns::quantize(&padded, family, out);
            }
        }
    }
}

/// `gate = silu(gate) * up`, element by element.
#[inline(always)]
fn swiglu(gate: &mut [f32], up: &[f32]) {
    let (gate_lanes, gate_rest) = gate.as_chunks_mut::<LANES>();
    let (up_lanes, up_rest) = up.as_chunks::<LANES>();
    for k in 0..gate_lanes.len().min(up_lanes.len()) {
        for i in 0..LANES {
            gate_lanes[k][i] = math::swiglu(gate_lanes[k][i], up_lanes[k][i]);
        }
    }
    for i in 0..gate_rest.len().min(up_rest.len()) {
        gate_rest[i] = math::swiglu(gate_rest[i], up_rest[i]);
    }
}

/// `[tokens][ff]` of each group.
fn plain(groups: &[&Group<'_>], x: &Columns<'_>) -> Vec<Vec<f32>> {
    let size = |g: &&Group<'_>| g.tokens.len() * g.ffn.gate.rows();
    let mut gates: Vec<Vec<f32>> = groups.iter().map(|g| vec![0.0; size(g)]).collect();
    let mut ups = gates.clone();
    let mut jobs = Vec::new();
    for ((g, gate), up) in groups.iter().zip(&mut gates).zip(&mut ups) {
        let pick = Some(g.tokens.as_slice());
        jobs.push(Job { w: g.ffn.gate, x, pick, out: gate });
        jobs.push(Job { w: g.ffn.up, x, pick, out: up });
    }
    run(jobs);
    let (mut tasks, mut work) = (Vec::new(), 0);
    for (gate, up) in gates.iter_mut().zip(&ups) {
        work += 16 * gate.len();
        let parts = gate.chunks_mut(1 << 14).zip(up.chunks(1 << 14));
        tasks.extend(parts.map(|(gate, up)| Swiglu { gate, up }));
    }
    par::for_each(tasks, work, dispatch);
    par::map(groups.iter().zip(&gates).collect(), |(g, gate)| {
        let (ff, n) = (g.ffn.gate.rows(), g.tokens.len());
        let mut out = vec![0.0; gate.len()];
        out.chunks_exact_mut(ff).enumerate().for_each(|(c, out)| read_column(gate, n, c, out));
        out
    })
}

struct Swiglu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Op for Swiglu<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        swiglu(self.gate, self.up);
    }
}
