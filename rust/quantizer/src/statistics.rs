//! What calibration remembers of each linear layer's inputs: the imatrix and, where asked for, second moments.
//!
//! Per matrix of a tensor (per expert, per head): the sum of squared inputs of each column and the
//! number of inputs. Sums are f64, in token order, so that they do not depend on threads or batches.

use crate::Moments;
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

/// Sums for all tensors, by name.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    entries: BTreeMap<String, Entry>,
    /// Tensors whose second moments are kept too, a matrix of them for each of its own.
    wanted: BTreeSet<String>,
    moments: BTreeMap<String, Vec<Moments>>,
}

impl Statistics {
    /// Nothing seen yet; second moments will be kept for the tensors that `wanted` names.
    pub fn with_moments(wanted: impl IntoIterator<Item = String>) -> Self {
        Self { wanted: wanted.into_iter().collect(), ..Self::default() }
    }

    /// Adds what one linear layer takes in.
    pub fn add(&mut self, name: &str, seen: &Observation<'_>) {
        if self.wanted.contains(name) {
            if !self.moments.contains_key(name) {
                self.moments.insert(name.to_owned(), vec![Moments::new(seen.cols); seen.count]);
            }
            self.moments.get_mut(name).expect("just inserted")[seen.index].add(seen.x, seen.pick);
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
}
