//! What calibration remembers of each linear layer's inputs: the imatrix and, where asked for, second moments; and
//! inputs themselves for as long as it takes to compare them with those of another pass.
//!
//! Per matrix of a tensor (per expert, per head): the sum of squared inputs of each column and the
//! number of inputs. Sums are f64, in token order, so that they do not depend on threads or batches.

use crate::{Drift, Moments};
use kizami_kernels::ops::Observation;
use std::collections::{BTreeMap, BTreeSet};

/// Sums for one tensor.
#[derive(Debug, Clone)]
pub struct Entry {
    cols: usize,
    sums: Vec<f64>,
    tokens: Vec<f64>,
}

impl Entry {
    /// Matrices in the tensor.
    pub fn count(&self) -> usize {
        self.tokens.len()
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `[count][cols]` sums of squares.
    pub fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// Inputs seen by each matrix.
    pub fn tokens(&self) -> &[f64] {
        &self.tokens
    }
}

/// Inputs themselves, of some tensors' matrices, to be compared with others.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    wanted: BTreeSet<String>,
    /// By name, matrix and features.
    seen: BTreeMap<(String, usize, usize), Kept>,
}

/// What tells inputs apart, ascending, and the inputs.
type Kept = (Vec<u32>, Vec<f32>);

impl Inputs {
    /// Nothing seen yet; inputs of the tensors that `wanted` names will be kept.
    pub fn of(wanted: impl IntoIterator<Item = String>) -> Self {
        Self { wanted: wanted.into_iter().collect(), ..Self::default() }
    }

    /// Keeps what one linear layer takes in: of each matrix once.
    pub fn add(&mut self, name: &str, seen: &Observation<'_>) {
        if self.wanted.contains(name) {
            let mut kept = (Vec::with_capacity(seen.len()), Vec::with_capacity(seen.len() * seen.cols));
            for (token, input) in (0..seen.len()).map(|i| seen.input(i)) {
                kept.0.push(token);
                kept.1.extend_from_slice(input);
            }
            self.seen.insert((name.to_owned(), seen.index, seen.cols), kept);
        }
    }

    /// Shows every input of `seen` that was kept, too, with what it was then.
    fn compare(&self, name: &str, seen: &Observation<'_>, mut show: impl FnMut(&[f32], &[f32])) {
        let key = (name.to_owned(), seen.index, seen.cols);
        let Some((tokens, inputs)) = self.seen.get(&key) else { return };
        let mut at = 0;
        for (token, input) in (0..seen.len()).map(|i| seen.input(i)) {
            while at < tokens.len() && tokens[at] < token {
                at += 1;
            }
            if tokens.get(at) == Some(&token) {
                show(input, &inputs[at * seen.cols..][..seen.cols]);
            }
        }
    }
}

/// Sums for all tensors, by name.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    entries: BTreeMap<String, Entry>,
    /// Tensors whose second moments are kept too, a matrix of them for each of its own.
    wanted: BTreeSet<String>,
    moments: BTreeMap<String, Vec<Moments>>,
    /// What inputs are compared with, and how they differ: as many as there are moments.
    followed: Inputs,
    drifts: BTreeMap<String, Vec<Drift>>,
}

impl Statistics {
    /// Nothing seen yet; second moments will be kept for the tensors that `wanted` names.
    pub fn with_moments(wanted: impl IntoIterator<Item = String>) -> Self {
        Self { wanted: wanted.into_iter().collect(), ..Self::default() }
    }

    /// What the same tokens' inputs, which are added from now on, are compared with.
    pub fn follow(&mut self, inputs: Inputs) {
        self.followed = inputs;
    }

    /// Adds what one linear layer takes in.
    pub fn add(&mut self, name: &str, seen: &Observation<'_>) {
        if self.wanted.contains(name) {
            if !self.moments.contains_key(name) {
                self.moments.insert(name.to_owned(), vec![Moments::new(seen.cols); seen.count]);
            }
            self.moments.get_mut(name).expect("just inserted")[seen.index].add(seen.x, seen.pick);
            if !self.followed.seen.is_empty() {
                if !self.drifts.contains_key(name) {
                    self.drifts.insert(name.to_owned(), vec![Drift::new(seen.cols); seen.count]);
                }
                let drift = &mut self.drifts.get_mut(name).expect("just inserted")[seen.index];
                self.followed.compare(name, seen, |input, followed| drift.add(input, followed));
            }
        }
        if !self.entries.contains_key(name) {
            let entry = Entry {
                cols: seen.cols,
                sums: vec![0.0; seen.cols * seen.count],
                tokens: vec![0.0; seen.count],
            };
            self.entries.insert(name.to_owned(), entry);
        }
        let entry = self.entries.get_mut(name).expect("just inserted");
        let sums = &mut entry.sums[seen.index * seen.cols..][..seen.cols];
        let mut add = |row: &[f32]| {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += f64::from(x) * f64::from(x);
            }
        };
        let n = match seen.pick {
            Some(pick) => {
                pick.iter().for_each(|&i| add(&seen.x[i as usize * seen.cols..][..seen.cols]));
                pick.len()
            }
            None => {
                seen.x.chunks_exact(seen.cols).for_each(add);
                seen.x.len() / seen.cols
            }
        };
        entry.tokens[seen.index] += n as f64;
    }

    /// All entries in name order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, e)| (name.as_str(), e))
    }

    /// The second moments of a tensor's inputs, if they were wanted and there were any: of each of its matrices.
    pub fn moments(&mut self, name: &str) -> Option<&mut [Moments]> {
        self.moments.get_mut(name).map(Vec::as_mut_slice)
    }

    /// How a tensor's inputs differ from those that were followed, if they were compared: of each of its matrices.
    pub fn drifts(&mut self, name: &str) -> Option<&mut [Drift]> {
        self.drifts.get_mut(name).map(Vec::as_mut_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen<'a>(x: &'a [f32], pick: Option<&'a [u32]>, tokens: Option<&'a [u32]>) -> Observation<'a> {
        Observation { role: "a", index: 1, count: 2, cols: 2, x, pick, tokens }
    }

    #[test]
    fn inputs_of_the_same_tokens_are_compared() {
        let mut inputs = Inputs::of(["a".to_owned()]);
        // Tokens 0, 2 and 3.
        inputs.add("a", &seen(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], None, Some(&[0, 2, 3])));
        inputs.add("b", &seen(&[9.0, 9.0], None, None));
        let mut statistics = Statistics::with_moments(["a".to_owned(), "b".to_owned()]);
        statistics.follow(inputs);
        // Tokens 1, 2, 3 and 4 of five; the second and the third were seen.
        statistics.add("a", &seen(&[0.0; 10].map(|_: f32| 1.0), Some(&[1, 2, 3, 4]), None));
        statistics.add("b", &seen(&[1.0, 1.0], None, None));
        let drifts = statistics.drifts("a").unwrap();
        assert_eq!([drifts[0].pairs(), drifts[1].pairs()], [0, 2]);
        // (2, 3) and (4, 5) times (1, 1).
        assert_eq!(drifts[1].take(), [6.0, 6.0, 8.0, 8.0]);
        assert_eq!(statistics.drifts("b").unwrap()[1].pairs(), 0, "was not wanted");
        assert_eq!(statistics.moments("a").unwrap()[1].tokens(), 4);
    }

    #[test]
    fn what_is_not_compared_has_no_drift() {
        let mut statistics = Statistics::with_moments(["a".to_owned()]);
        statistics.add("a", &seen(&[1.0, 2.0], None, None));
        assert!(statistics.drifts("a").is_none());
    }
}
