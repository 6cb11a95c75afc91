//! Eight columns of a whole metric, and sixteen rows' weights in them side by side.
//!
//! `M = L D Lᵀ`, where `L = I + U` of these columns. With `f` what the errors of earlier columns feed into them, the
//! cost of rounding `w` to `q` is
//!
//! ```text
//! sum over j of d[j] * (f[j] + sum over i <= j of (w[i] - q[i]) * L[i][j])²
//!     = q M qᵀ - 2 q z + a constant,   z = L D (w L + f)ᵀ
//! ```

use super::lanes::Lanes;
use super::split::OCTET;

/// The metric of eight columns, which all rows share.
pub(super) struct Octet {
    /// `U`, strictly upper.
    pub(super) u: [[f32; OCTET]; OCTET],
    /// `D`
    pub(super) d: [f32; OCTET],
    /// `M` of the first four columns where the others will make up for them.
    pub(super) leading: [[f32; OCTET / 2]; OCTET / 2],
    /// `M` of all.
    pub(super) m: [[f32; OCTET]; OCTET],
}

impl Octet {
    /// The diagonal block of `U` and its part of `D`.
    pub(super) fn new(u: &[[f32; OCTET]; OCTET], d: &[f32; OCTET]) -> Octet {
        let mut octet =
            Octet { u: *u, d: *d, leading: [[0.0; OCTET / 2]; OCTET / 2], m: [[0.0; OCTET]; OCTET] };
        let l = |i: usize, k: usize| if i == k { 1.0 } else { u[i][k] };
        for i in 0..OCTET {
            for j in 0..OCTET {
                for k in i.max(j)..OCTET {
                    let share = l(i, k) * d[k] * l(j, k);
                    octet.m[i][j] += share;
                    if k < OCTET / 2 {
                        octet.leading[i][j] += share;
                    }
                }
            }
        }
        octet
    }

    /// `w L + f`: what remains of `w` in these columns as the loss counts it.
    #[inline(always)]
    pub(super) fn residual(&self, w: &[Lanes; OCTET], fed: &[Lanes; OCTET]) -> [Lanes; OCTET] {
        let mut sums = *fed;
        for j in 0..OCTET {
            sums[j] = sums[j] + w[j];
            for i in 0..j {
                sums[j] = sums[j] + w[i] * Lanes::splat(self.u[i][j]);
            }
        }
        sums
    }

    /// The errors that leave no residuals, each making up for what is fed in and for those before it: `-f L⁻¹`.
    #[inline(always)]
    pub(super) fn given(&self, fed: &[Lanes; OCTET]) -> [Lanes; OCTET] {
        let mut given = [Lanes::ZERO; OCTET];
        for j in 0..OCTET {
            let mut sum = fed[j];
            for i in 0..j {
                sum = sum + given[i] * Lanes::splat(self.u[i][j]);
            }
            given[j] = Lanes::ZERO - sum;
        }
        given
    }

    /// What errors elsewhere would have to feed in to pull like this: `f` where `L D f` is the pull.
    #[inline(always)]
    pub(super) fn pulled_by(&self, pull: &[Lanes; OCTET]) -> [Lanes; OCTET] {
        let mut weighted = *pull;
        for i in (0..OCTET).rev() {
            for k in i + 1..OCTET {
                weighted[i] = weighted[i] - weighted[k] * Lanes::splat(self.u[i][k]);
            }
        }
        for i in 0..OCTET {
            weighted[i] = weighted[i] * Lanes::splat(1.0 / self.d[i]);
        }
        weighted
    }

    /// `L D r` of residuals in columns `from..to`; others are as if they were none.
    #[inline(always)]
    pub(super) fn pull(&self, r: &[Lanes; OCTET], from: usize, to: usize) -> [Lanes; OCTET] {
        let mut weighted = [Lanes::ZERO; OCTET];
        for k in from..to {
            weighted[k] = r[k] * Lanes::splat(self.d[k]);
        }
        let mut sums = weighted;
        for i in from..to {
            for k in i + 1..to {
                sums[i] = sums[i] + weighted[k] * Lanes::splat(self.u[i][k]);
            }
        }
        sums
    }
}

/// Sixteen rows' weights in eight columns.
pub(super) struct Row {
    pub(super) w: [Lanes; OCTET],
    /// What the errors of earlier columns feed into these.
    pub(super) fed: [Lanes; OCTET],
    /// Codes stand for `scale * value + start`.
    pub(super) scale: Lanes,
    pub(super) start: Lanes,
    pub(super) variant: Lanes,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::encode::lanes::LANES;
    use crate::encode::split::Search;
    use crate::encode::tests::{gaussian, lognormal};
    use kizami_kernels::formats::{iq1_s, iq2_s, iq2_xxs};
    use kizami_kernels::isa::scalar::Scalar;

    /// Some metric and sixteen rows' weights.
    fn problem(seed: u64, scale: f32) -> (Octet, Row) {
        let (couplings, d) = (gaussian(seed, 64), lognormal(seed + 1, OCTET));
        let mut u = [[0.0; OCTET]; OCTET];
        for i in 0..OCTET {
            for j in i + 1..OCTET {
                u[i][j] = 0.3 * couplings[OCTET * i + j];
            }
        }
        let lanes = |seed| {
            let x = gaussian(seed, OCTET * LANES);
            let mut lanes = [Lanes::ZERO; OCTET];
            lanes.iter_mut().zip(x.chunks(LANES)).for_each(|(lanes, x)| lanes.0.copy_from_slice(x));
            lanes
        };
        let (w, fed) = (lanes(seed + 2), lanes(seed + 3));
        let (scale, variant) = (Lanes::splat(scale), Lanes::splat((seed % 2) as f32));
        (Octet::new(&u, &d.try_into().unwrap()), Row { w, fed, scale, start: Lanes::ZERO, variant })
    }

    /// The loss as it is defined.
    fn loss(octet: &Octet, row: &Row, lane: usize, values: &[f32; OCTET]) -> f64 {
        let error =
            |i: usize| f64::from(row.w[i].0[lane]) - f64::from(row.scale.0[lane]) * f64::from(values[i]);
        let residual = |j: usize| {
            let before: f64 = (0..j).map(|i| error(i) * f64::from(octet.u[i][j])).sum();
            f64::from(row.fed[j].0[lane]) + error(j) + before
        };
        (0..OCTET).map(|j| f64::from(octet.d[j]) * residual(j).powi(2)).sum()
    }

    /// What a search finds, checked to be what it says, and the best of all candidates, summed over problems. A draft is
    /// to come close to that.
    fn compare<S: Search>(scale: f32, candidates: impl Fn(u64) -> Vec<[f32; OCTET]>) -> (f64, f64) {
        let (mut found, mut best, mut drafted) = (0.0, 0.0, 0.0);
        for seed in 40..44 {
            let (octet, row) = problem(seed, scale);
            let mut codes = [S::Code::default(); LANES];
            let draft = S::choose_whole(Scalar, &octet, &row, true, &mut codes);
            let values = S::choose_whole(Scalar, &octet, &row, false, &mut codes);
            for l in 0..LANES {
                let of_code = S::values(codes[l]);
                assert!((0..OCTET).all(|i| of_code[i] == values[i].0[l]));
                found += loss(&octet, &row, l, &of_code);
                drafted += loss(&octet, &row, l, &draft.map(|value| value.0[l]));
                best += candidates(seed)
                    .iter()
                    .map(|values| loss(&octet, &row, l, values))
                    .fold(f64::INFINITY, f64::min);
            }
        }
        assert!(drafted < 1.6 * best, "a draft of {drafted} against {best}");
        (found, best)
    }

    #[test]
    fn free_weights_leave_no_residual() {
        for seed in 50..54 {
            let (octet, row) = problem(seed, 1.0);
            let given = octet.given(&row.fed);
            for l in 0..LANES {
                let values = std::array::from_fn(|i| row.w[i].0[l] - given[i].0[l]);
                let zeros = loss(&octet, &row, l, &[0.0; OCTET]);
                assert!(loss(&octet, &row, l, &values) < 1e-10 * zeros, "{seed}, {l}");
            }
        }
    }

    #[test]
    fn what_is_fed_in_pulls_as_asked_for() {
        for seed in 60..64 {
            let (octet, row) = problem(seed, 1.0);
            let back = octet.pull(&octet.pulled_by(&row.w), 0, OCTET);
            for l in 0..LANES {
                let most = (0..OCTET).map(|i| row.w[i].0[l].abs()).fold(0.0, f32::max);
                assert!((0..OCTET).all(|i| (back[i].0[l] - row.w[i].0[l]).abs() < 1e-4 * most));
            }
        }
    }

    /// Every entry with every choice of signs.
    fn signed(grid: &[[i8; OCTET]], parity: bool) -> Vec<[f32; OCTET]> {
        let mut all = Vec::new();
        for entry in grid {
            for signs in (0..256u32).filter(|signs| !parity || signs.count_ones() % 2 == 0) {
                let sign = |i: usize| if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
                all.push(std::array::from_fn(|i| f32::from(entry[i]) * sign(i)));
            }
        }
        all
    }

    #[test]
    fn ternary_search_finds_what_every_entry_would() {
        let shifted = |shift: f32| iq1_s::GRID.iter().map(move |e| e.map(|x| f32::from(x) + shift));
        let (found, best) = compare::<crate::encode::iq1_s::Ternary>(1.3, |seed| {
            shifted(if seed % 2 == 0 { 0.125 } else { -0.125 }).collect()
        });
        assert!((found - best).abs() < 1e-4 * best, "{found} against {best}");
        let (found, best) = compare::<crate::encode::iq1_m::Shifting>(1.3, |_| {
            shifted(0.125).chain(shifted(-0.125)).collect()
        });
        assert!((found - best).abs() < 1e-4 * best, "{found} against {best}");
    }

    #[test]
    fn signed_search_comes_close_to_what_every_entry_with_all_signs_would_find() {
        use crate::encode::octets::OctetSearch;
        use kizami_kernels::formats::iq2_s::Iq2S;
        use kizami_kernels::formats::iq2_xxs::Iq2Xxs;
        let even = signed(&iq2_xxs::GRID, true);
        let (found, best) = compare::<OctetSearch<Iq2Xxs, 256, true>>(0.05, |_| even.clone());
        assert!(found < 1.05 * best, "{found} against {best}");
        let free = signed(&iq2_s::GRID[..], false);
        let (found, best) = compare::<OctetSearch<Iq2S, 1024, false>>(0.05, |_| free.clone());
        assert!(found < 1.1 * best, "{found} against {best}");
    }
}
