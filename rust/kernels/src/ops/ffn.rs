//! Feed-forward blocks: dense, and mixture of experts with shared experts.
//!
//! ```text
//! h = norm(x)
//! ffn(h) = W_down (silu(W_gate h) * W_up h)
//! dense  x += ffn(h)
//! MoE    x += sum over the chosen e of weight_e * ffn_e(h)  +  ffn_shared(h)
//! ```
//!
//! Tokens are sorted by expert, so each expert's weights are decoded once for all of them, and all networks
//! of the block, shared ones included, run together: one parallel region for gate and up (`hidden.rs`), one
//! for down. A token's experts are summed in ascending order, so a block may also run some experts at a time ([`Part`]).

mod hidden;
mod router;

use super::{Norm, Observation, Observer, add, expect_shape};
use crate::error::{Error, expect_len};
use crate::matmul::{Columns, Job, Precision, read_column, run};
use crate::matrix::Matrix;
use crate::{par, profile};
use hidden::Hidden;
use std::ops::Range;

pub use router::{GroupScore, Router, Scoring};

/// Gate, up and down projections of one feed-forward network.
#[derive(Clone, Copy)]
pub struct Ffn<'a> {
    /// `ff` x `d`.
    pub gate: Matrix<'a>,
    /// `ff` x `d`.
    pub up: Matrix<'a>,
    /// `d` x `ff`.
    pub down: Matrix<'a>,
}

/// The routed experts of a block; only those that tokens choose are looked at.
#[derive(Clone, Copy)]
pub struct Experts<'a> {
    /// How many there are.
    pub count: usize,
    /// Expert `i` of them.
    pub get: &'a (dyn Fn(usize) -> Ffn<'a> + Sync + 'a),
}

/// A feed-forward block.
pub struct FfnBlock<'a> {
    /// Norm of the block's input.
    pub norm: Norm<'a>,
    /// The network every token passes: the dense one, or the shared experts.
    pub shared: Option<Ffn<'a>>,
    /// Router and routed experts.
    pub routed: Option<(Router<'a>, Experts<'a>)>,
}

/// Some experts of a block: those before them have run, the others follow. The parts together have the bits of the
/// whole.
pub struct Part<'a> {
    /// Which.
    pub experts: Range<usize>,
    /// What the experts so far gave each token, `[n][d]`; zeros before the first part.
    pub sums: &'a mut [f32],
    /// Whether no part follows: then the sums go to `x`, and with them what all tokens pass.
    pub last: bool,
}

/// What a block does with hidden states.
enum Mode<'a> {
    /// It adds its result.
    Pass(&'a mut [f32]),
    /// It shows what gate and up take in, and, where `hidden`, down; states stay.
    Show { x: &'a [f32], hidden: bool },
}

impl Mode<'_> {
    fn states(&self) -> &[f32] {
        match self {
            Mode::Pass(x) => x,
            Mode::Show { x, .. } => x,
        }
    }
}

/// A network and the tokens that pass it, ascending.
struct Group<'a> {
    ffn: Ffn<'a>,
    tokens: Vec<u32>,
}

impl FfnBlock<'_> {
    /// Adds the block's result for every token to `x`.
    pub fn forward(
        &self,
        x: &mut [f32],
        precision: Precision,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<(), Error> {
        self.run(Mode::Pass(x), None, precision, observer)
    }

    /// Shows an observer what some experts would take in, and, in the `last` part, what router and shared network would:
    /// gate and up, and with `hidden`, which multiplies them, down.
    pub fn show(
        &self,
        x: &[f32],
        experts: Range<usize>,
        last: bool,
        hidden: bool,
        precision: Precision,
        observer: &mut Observer<'_>,
    ) -> Result<(), Error> {
        self.check_part(&experts)?;
        self.run(
            Mode::Show { x, hidden },
            Some(Part { experts, sums: &mut [], last }),
            precision,
            Some(observer),
        )
    }

    fn check_part(&self, experts: &Range<usize>) -> Result<(), Error> {
        let count = self.routed.as_ref().map_or(0, |(_, experts)| experts.count);
        if experts.start > experts.end || experts.end > count {
            let expected = "first to last of the block's";
            return Err(Error::Range { what: "experts of a part", found: experts.end, expected });
        }
        Ok(())
    }

    /// Runs some of the experts; `x` is what it was until the last part. The router and the shared network are shown to
    /// the observer in the last part, experts in theirs.
    pub fn forward_part(
        &self,
        x: &mut [f32],
        part: Part<'_>,
        precision: Precision,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<(), Error> {
        self.check_part(&part.experts)?;
        expect_len("sums of experts", part.sums.len(), x.len())?;
        self.run(Mode::Pass(x), Some(part), precision, observer)
    }

    fn run(
        &self,
        x: Mode<'_>,
        part: Option<Part<'_>>,
        precision: Precision,
        mut observer: Option<&mut Observer<'_>>,
    ) -> Result<(), Error> {
        let d = self.norm.weight.len();
        let norm = profile::span("ffn_norm", 0, 0);
        let h = self.norm.apply(x.states(), d);
        drop(norm);
        let columns = Columns::new(&h, d, precision)?;
        let n = columns.len();
        expect_len("hidden states", x.states().len(), n * d)?;
        if n == 0 {
            return Ok(());
        }
        let mut groups = Vec::new();
        let mut places = Places::default();
        let count = self.routed.as_ref().map_or(0, |(_, experts)| experts.count);
        let (range, last) = part.as_ref().map_or((0..count, true), |p| (p.experts.clone(), p.last));
        if let Some((router, experts)) = &self.routed {
            let span = profile::linear("ffn_gate_inp", &router.weight, n);
            let chosen = router.choose(&columns, experts.count)?;
            places = Places::sort(&chosen, experts, range.clone(), &mut groups);
            drop(span);
        }
        let routed = groups.len();
        if let Some(ffn) = self.shared.filter(|_| last) {
            groups.push(Group { ffn, tokens: (0..n as u32).collect() });
        }
        for (i, group) in groups.iter().enumerate() {
            let suffix = match (i < routed, self.routed.is_some()) {
                (true, _) => Suffix::Experts,
                (false, true) => Suffix::Shared,
                (false, false) => Suffix::Dense,
            };
            group.ffn.check(d, suffix)?;
        }
        let see = |observer: &mut Option<&mut Observer<'_>>, part: usize, inputs: &[&[f32]]| {
            if let Some(observer) = observer {
                let seen = Seen { part, count, range: range.clone(), inputs };
                self.observe(observer, &seen, &places, &groups, routed);
            }
        };
        if let (Some(observer), true) = (&mut observer, self.routed.is_some() && last) {
            // What the router takes in, and with it every network of the block.
            let (x, pick, tokens) = (&h[..], None, None);
            observer(Observation { role: "ffn_gate_inp", index: 0, count: 1, cols: d, x, pick, tokens });
        }
        see(&mut observer, 0, &[&h]);
        see(&mut observer, 1, &[&h]);
        if let Mode::Show { hidden: false, .. } = x {
            return Ok(());
        }

        let span = self.span("ffn_up", &groups, |ffn| [&ffn.gate, &ffn.up]);
        let mut hidden = Hidden::compute(&groups, &columns, precision, observer.is_some());
        drop(span);
        if observer.is_some() {
            let inputs: Vec<&[f32]> = hidden.iter().map(Hidden::floats).collect();
            see(&mut observer, 2, &inputs);
        }
        let Mode::Pass(x) = x else { return Ok(()) };

        let span = self.span("ffn_down", &groups, |ffn| [&ffn.down]);
        let columns: Vec<Columns<'_>> =
            hidden.iter_mut().zip(&groups).map(|(h, g)| h.columns(g, precision)).collect::<Result<_, _>>()?;
        let mut outs: Vec<Vec<f32>> = groups.iter().map(|g| vec![0.0; g.tokens.len() * d]).collect();
        let jobs = groups.iter().zip(&columns).zip(&mut outs);
        run(jobs.map(|((g, x), out)| Job { w: g.ffn.down, x, pick: None, out }).collect());
        drop(span);

        let _span = profile::span("ffn_sum", 0, 0);
        // Each token gathers its experts, then the network all tokens share.
        let gather = |token: usize, sum: &mut [f32]| {
            let mut row = vec![0.0; d];
            for &(group, column, weight) in places.of(token) {
                read_column(&outs[group], groups[group].tokens.len(), column, &mut row);
                for (sum, x) in sum.iter_mut().zip(&row) {
                    *sum += weight * x;
                }
            }
        };
        let finish = |token: usize, sum: &[f32], x: &mut [f32]| {
            if self.routed.is_some() {
                add(x, sum);
            }
            if let Some(out) = outs.get(routed) {
                let mut row = vec![0.0; d];
                read_column(out, n, token, &mut row);
                add(x, &row);
            }
        };
        match part {
            None => par::for_chunks(x, d, |token, x| {
                let mut sum = vec![0.0; d];
                gather(token, &mut sum);
                finish(token, &sum, x);
            }),
            Some(Part { sums, .. }) => {
                par::for_chunks(sums, d, gather);
                if last {
                    par::for_chunks(x, d, |token, x| finish(token, &sums[token * d..][..d], x));
                }
            }
        }
        Ok(())
    }

    /// Opens a span for some of the matrices of all groups.
    fn span<'m, const N: usize>(
        &self,
        name: &'static str,
        groups: &'m [Group<'_>],
        matrices: impl Fn(&'m Ffn<'m>) -> [&'m Matrix<'m>; N],
    ) -> profile::Span {
        let (mut macs, mut bytes) = (0, 0);
        for g in groups {
            for w in matrices(&g.ffn) {
                macs += w.rows() * w.cols() * g.tokens.len();
                bytes += w.nbytes();
            }
        }
        profile::span(name, macs, bytes)
    }

    /// Shows the inputs of one part of all networks.
    fn observe(
        &self,
        observer: &mut Observer<'_>,
        seen: &Seen<'_>,
        places: &Places,
        groups: &[Group<'_>],
        routed: usize,
    ) {
        let &Seen { part, count, inputs, .. } = seen;
        let role = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"][part];
        for index in seen.range.clone() {
            let Some((_, experts)) = &self.routed else { break };
            let cols = if part < 2 { self.norm.weight.len() } else { (experts.get)(index).down.cols() };
            let (x, pick, tokens) = match places.group_of[index] {
                // Experts that no token chose are seen too, with nothing.
                None => (&[][..], Some(&[][..]), None),
                Some(g) if part < 2 => (inputs[0], Some(groups[g].tokens.as_slice()), None),
                Some(g) => (inputs[g], None, Some(groups[g].tokens.as_slice())),
            };
            observer(Observation { role, index, count, cols, x, pick, tokens });
        }
        if let Some(shared) = groups.get(routed) {
            let roles = match self.routed {
                Some(_) => ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"],
                None => ["ffn_gate", "ffn_up", "ffn_down"],
            };
            let x = if part < 2 { inputs[0] } else { inputs[routed] };
            let cols = if part < 2 { shared.ffn.gate.cols() } else { shared.ffn.down.cols() };
            observer(Observation {
                role: roles[part],
                index: 0,
                count: 1,
                cols,
                x,
                pick: None,
                tokens: None,
            });
        }
    }
}

/// What is shown of a step: gate, up or down (0, 1, 2) of these experts out of `count`.
struct Seen<'a> {
    part: usize,
    count: usize,
    range: Range<usize>,
    /// One for all networks, or one per group.
    inputs: &'a [&'a [f32]],
}

/// Which network of a block a matrix belongs to, for messages.
#[derive(Clone, Copy)]
enum Suffix {
    Dense,
    Shared,
    Experts,
}

impl Ffn<'_> {
    fn check(&self, d: usize, suffix: Suffix) -> Result<(), Error> {
        let [gate, up, down] = match suffix {
            Suffix::Dense => ["ffn_gate", "ffn_up", "ffn_down"],
            Suffix::Shared => ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"],
            Suffix::Experts => ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"],
        };
        expect_shape(gate, &self.gate, self.gate.rows(), d)?;
        expect_shape(up, &self.up, self.gate.rows(), d)?;
        expect_shape(down, &self.down, d, self.gate.rows())
    }
}

/// Where the results of every token's experts are.
#[derive(Default)]
struct Places {
    /// Group, column in it and weight, by ascending expert, token after token.
    slots: Vec<(usize, usize, f32)>,
    /// Where each token's slots begin, and where the last ones end.
    starts: Vec<usize>,
    /// The group of each expert, none where no token chose it.
    group_of: Vec<Option<usize>>,
}

impl Places {
    /// Sorts (token, choice) pairs by expert; makes a group for each expert of `range` that some token chose.
    fn sort<'a>(
        chosen: &router::Chosen,
        experts: &Experts<'a>,
        range: Range<usize>,
        groups: &mut Vec<Group<'a>>,
    ) -> Self {
        let mut tokens_of = vec![Vec::new(); experts.count];
        let mut places = Self { starts: vec![0], ..Self::default() };
        let choices = chosen.experts.chunks_exact(chosen.used).zip(chosen.weights.chunks_exact(chosen.used));
        for (token, (of, weights)) in choices.enumerate() {
            let mut slots: Vec<(usize, f32)> =
                of.iter().map(|&e| e as usize).zip(weights.iter().copied()).collect();
            slots.sort_by_key(|&(expert, _)| expert);
            for (expert, weight) in slots.into_iter().filter(|(expert, _)| range.contains(expert)) {
                places.slots.push((expert, tokens_of[expert].len(), weight));
                tokens_of[expert].push(token as u32);
            }
            places.starts.push(places.slots.len());
        }
        for (expert, tokens) in tokens_of.into_iter().enumerate() {
            let used = !tokens.is_empty();
            places.group_of.push(used.then_some(groups.len()));
            if used {
                groups.push(Group { ffn: (experts.get)(expert), tokens });
            }
        }
        for slot in &mut places.slots {
            slot.0 = places.group_of[slot.0].expect("a chosen expert has a group");
        }
        places
    }

    fn of(&self, token: usize) -> &[(usize, usize, f32)] {
        match self.starts.get(token..token + 2) {
            Some(&[start, end]) => &self.slots[start..end],
            _ => &[],
        }
    }
}
