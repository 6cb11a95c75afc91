//! Spending a budget of bytes: one choice per item so that the costs add up to the least.
//!
//! A multiple-choice knapsack. The relaxation (convex hulls, steepest segments first) gives a start
//! and a price per byte λ; every choice then has a *reduced cost*, what it loses against the
//! relaxation. All reduced costs of the best selection together stay below the gap between the
//! best selection known and the relaxation's bound, which leaves few items open; those are
//! searched as a list of undominated (bytes, cost) states. The result is optimal unless that list
//! outgrows [`STATES`]; then it is thinned, and the result is still never worse than the greedy
//! one, whose distance from the optimum is at most one segment of one item's hull.
//!
//! Knows nothing of tensors, types or files.

use crate::error::Error;

/// States kept at once.
const STATES: usize = 1 << 12;

/// One choice per item, as an index into its list, with `bytes` adding up to at most `budget` and
/// `cost` as small as can be. The same input gives the same answer; among equals the smaller.
///
/// The error for a budget that is too small names the smallest possible total.
pub fn solve(bytes: &[Vec<u64>], cost: &[Vec<f64>], budget: u64) -> Result<Vec<usize>, Error> {
    let items = items(bytes, cost)?;
    let smallest: u64 = items.iter().map(|choices| choices[0].bytes).sum();
    if smallest > budget {
        return Err(Error::Budget { budget, smallest });
    }
    let (base, price) = relax(&items, budget - smallest);
    let chosen = improve(&items, &base, price, budget, STATES);
    Ok(items.iter().zip(chosen).map(|(choices, at)| choices[at].index).collect())
}

/// A choice worth considering: no other is as small and as cheap.
#[derive(Debug, Clone, Copy)]
struct Choice {
    index: usize,
    bytes: u64,
    cost: f64,
}

/// Each item's undominated choices by growing bytes and falling cost.
fn items(bytes: &[Vec<u64>], cost: &[Vec<f64>]) -> Result<Vec<Vec<Choice>>, Error> {
    crate::error::expect_len("items with costs", cost.len(), bytes.len())?;
    let mut largest = 0u64;
    let mut items = Vec::with_capacity(bytes.len());
    for (item, (bytes, cost)) in bytes.iter().zip(cost).enumerate() {
        if bytes.is_empty() || bytes.len() != cost.len() {
            return Err(Error::Choices { item, bytes: bytes.len(), costs: cost.len() });
        }
        if let Some(choice) = cost.iter().position(|c| !c.is_finite()) {
            return Err(Error::Cost { item, choice, value: cost[choice] });
        }
        let most = bytes.iter().copied().max().unwrap_or_default();
        largest = largest.checked_add(most).ok_or(Error::Overflow)?;
        let mut all: Vec<Choice> = (bytes.iter().zip(cost).enumerate())
            .map(|(index, (&bytes, &cost))| Choice { index, bytes, cost })
            .collect();
        all.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)));
        let mut kept: Vec<Choice> = Vec::with_capacity(all.len());
        for choice in all {
            if kept.last().is_none_or(|last| choice.cost < last.cost) {
                kept.push(choice);
            }
        }
        items.push(kept);
    }
    Ok(items)
}

/// A step along an item's lower convex hull.
struct Segment {
    item: usize,
    from: usize,
    to: usize,
    bytes: u64,
    /// Cost saved per byte.
    slope: f64,
}

fn segments(items: &[Vec<Choice>]) -> Vec<Segment> {
    let mut segments = Vec::new();
    for (item, choices) in items.iter().enumerate() {
        let slope = |a: usize, b: usize| {
            (choices[a].cost - choices[b].cost) / (choices[b].bytes - choices[a].bytes) as f64
        };
        let mut hull = vec![0];
        for next in 1..choices.len() {
            while let [.., before, last] = hull[..]
                && slope(last, next) >= slope(before, last)
            {
                hull.pop();
            }
            hull.push(next);
        }
        for pair in hull.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let bytes = choices[to].bytes - choices[from].bytes;
            segments.push(Segment { item, from, to, bytes, slope: slope(from, to) });
        }
    }
    // Stable: equal slopes stay in order of items, and along a hull in order of bytes.
    segments.sort_by(|a, b| b.slope.total_cmp(&a.slope));
    segments
}

/// Takes the steepest segments while they fit. Returns the choices, and the slope of the first
/// segment that did not fit: the price of a byte.
fn relax(items: &[Vec<Choice>], mut spare: u64) -> (Vec<usize>, f64) {
    let mut chosen = vec![0; items.len()];
    for segment in segments(items) {
        if segment.bytes > spare {
            return (chosen, segment.slope);
        }
        debug_assert_eq!(chosen[segment.item], segment.from);
        chosen[segment.item] = segment.to;
        spare -= segment.bytes;
    }
    (chosen, 0.0)
}

/// A change of some items against the base.
#[derive(Debug, Clone, Copy)]
struct State {
    bytes: i128,
    cost: f64,
    /// What the relaxation would have paid less.
    reduced: f64,
    /// The last item taken off the base, in the trail; none at the base.
    step: Option<usize>,
    /// A choice of the item at hand, not yet in the trail.
    new: Option<usize>,
}

/// One item taken off the base, and the step before.
struct Step {
    item: usize,
    choice: usize,
    before: Option<usize>,
}

/// The best selection reachable from `base` with at most `most` states at a time.
fn improve(items: &[Vec<Choice>], base: &[usize], price: f64, budget: u64, most: usize) -> Vec<usize> {
    let used: u64 = items.iter().zip(base).map(|(choices, &at)| choices[at].bytes).sum();
    let spare = i128::from(budget - used);
    let (filled, saved) = greedy(items, base, budget - used);
    // What a selection may lose against the bound and still beat one that saves so much; a little
    // more, for rounding.
    let gap = |saved: f64| (price * spare as f64 - saved).max(0.0) * (1.0 + 1e-9) + f64::MIN_POSITIVE;
    let moves = moves(items, base, price, gap(saved));
    let start = State { bytes: 0, cost: 0.0, reduced: 0.0, step: None, new: None };
    let (mut best, mut states) = (start, vec![start]);
    let mut trail: Vec<Step> = Vec::new();
    // How many bytes the items still to come can give back.
    let mut relief = vec![0i128; moves.len() + 1];
    for (m, (_, changes)) in moves.iter().enumerate().rev() {
        relief[m] = relief[m + 1] + changes.iter().map(|c| -c.bytes).max().unwrap_or(0).max(0);
    }
    for (m, (item, changes)) in moves.iter().enumerate() {
        let (gap, room) = (gap(saved.max(-best.cost)), spare + relief[m + 1]);
        let mut next: Vec<State> = states.iter().copied().filter(|s| s.bytes <= room).collect();
        for change in changes {
            for state in &states {
                let (bytes, reduced) = (state.bytes + change.bytes, state.reduced + change.reduced);
                if reduced <= gap && bytes <= room {
                    let (cost, new) = (state.cost + change.cost, Some(change.choice));
                    next.push(State { bytes, cost, reduced, step: state.step, new });
                }
            }
        }
        next.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)));
        let mut least = f64::INFINITY;
        next.retain(|s| {
            let undominated = s.cost < least;
            least = s.cost.min(least);
            undominated
        });
        states = thin(next, most);
        for state in &mut states {
            if let Some(choice) = state.new.take() {
                trail.push(Step { item: *item, choice, before: state.step });
                state.step = Some(trail.len() - 1);
            }
            if state.bytes <= spare && state.cost < best.cost {
                best = *state;
            }
        }
    }
    if best.cost > -saved {
        return filled;
    }
    let mut chosen = base.to_vec();
    let mut step = best.step;
    while let Some(Step { item, choice, before }) = step.map(|s| &trail[s]) {
        chosen[*item] = *choice;
        step = *before;
    }
    chosen
}

/// At most `most` states, of each stretch of bytes the one that loses least.
fn thin(states: Vec<State>, most: usize) -> Vec<State> {
    let [first, .., last] = states[..] else { return states };
    if states.len() <= most {
        return states;
    }
    let width = (last.bytes - first.bytes) / most as i128 + 1;
    let mut kept: Vec<State> = Vec::with_capacity(most);
    let mut stretch = -1;
    for state in states {
        let here = (state.bytes - first.bytes) / width;
        match kept.last_mut() {
            Some(last) if here == stretch => {
                if state.reduced < last.reduced {
                    *last = state;
                }
            }
            _ => kept.push(state),
        }
        stretch = here;
    }
    kept
}

/// A choice of an item against its choice in the base.
struct Change {
    choice: usize,
    bytes: i128,
    cost: f64,
    reduced: f64,
}

/// The open items with the choices that lose at most `gap`; the most promising first.
fn moves(items: &[Vec<Choice>], base: &[usize], price: f64, gap: f64) -> Vec<(usize, Vec<Change>)> {
    let mut moves = Vec::new();
    for (item, (choices, &at)) in items.iter().zip(base).enumerate() {
        let mut changes = Vec::new();
        for (choice, c) in choices.iter().enumerate().filter(|(choice, _)| *choice != at) {
            let bytes = i128::from(c.bytes) - i128::from(choices[at].bytes);
            let cost = c.cost - choices[at].cost;
            // Rounding may leave a hull's own choices a little below zero.
            let reduced = (cost + price * bytes as f64).max(0.0);
            if reduced <= gap {
                changes.push(Change { choice, bytes, cost, reduced });
            }
        }
        if !changes.is_empty() {
            moves.push((item, changes));
        }
    }
    let promise = |changes: &[Change]| changes.iter().map(|c| c.reduced).fold(f64::INFINITY, f64::min);
    moves.sort_by(|a, b| promise(&a.1).total_cmp(&promise(&b.1)));
    moves
}

/// Fills the spare bytes with the largest saving that fits, until none does. Returns the choices
/// and what they save against the base.
fn greedy(items: &[Vec<Choice>], base: &[usize], mut spare: u64) -> (Vec<usize>, f64) {
    let mut chosen = base.to_vec();
    let mut saved = 0.0;
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (item, choices) in items.iter().enumerate() {
            let here = choices[chosen[item]];
            for (choice, c) in choices.iter().enumerate().skip(chosen[item] + 1) {
                let saving = here.cost - c.cost;
                if c.bytes - here.bytes <= spare && best.is_none_or(|(most, ..)| saving > most) {
                    best = Some((saving, item, choice));
                }
            }
        }
        let Some((saving, item, choice)) = best else { return (chosen, saved) };
        spare -= items[item][choice].bytes - items[item][chosen[item]].bytes;
        chosen[item] = choice;
        saved += saving;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(bytes: &[Vec<u64>], cost: &[Vec<f64>], chosen: &[usize]) -> (u64, f64) {
        let bytes = bytes.iter().zip(chosen).map(|(b, &at)| b[at]).sum();
        (bytes, cost.iter().zip(chosen).map(|(c, &at)| c[at]).sum())
    }

    /// The naive twin: every selection.
    fn brute_force(bytes: &[Vec<u64>], cost: &[Vec<f64>], budget: u64) -> Option<f64> {
        let mut sums = vec![(0u64, 0f64)];
        for (bytes, cost) in bytes.iter().zip(cost) {
            sums = sums
                .iter()
                .flat_map(|&(b, c)| bytes.iter().zip(cost).map(move |(&db, &dc)| (b + db, c + dc)))
                .collect();
        }
        sums.iter().filter(|(b, _)| *b <= budget).map(|(_, c)| *c).reduce(f64::min)
    }

    type Instance = (Vec<Vec<u64>>, Vec<Vec<f64>>, f64);

    fn instance() -> impl Strategy<Value = Instance> {
        let choice = (1u64..1000, 0u32..10_000);
        let item = prop::collection::vec(choice, 1..5);
        (prop::collection::vec(item, 1..8), -0.1f64..1.1).prop_map(|(items, share)| {
            let bytes = items.iter().map(|i| i.iter().map(|c| c.0).collect()).collect();
            let cost = items.iter().map(|i| i.iter().map(|c| f64::from(c.1) * 1e-3).collect()).collect();
            (bytes, cost, share)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn small_instances_are_solved_exactly((bytes, cost, share) in instance()) {
            let low: u64 = bytes.iter().map(|b| b.iter().min().unwrap()).sum();
            let high: u64 = bytes.iter().map(|b| b.iter().max().unwrap()).sum();
            let budget = (low as f64 + share * (high - low) as f64).max(0.0) as u64;
            match (solve(&bytes, &cost, budget), brute_force(&bytes, &cost, budget)) {
                (Ok(chosen), Some(least)) => {
                    let (used, found) = total(&bytes, &cost, &chosen);
                    prop_assert!(used <= budget);
                    prop_assert!(found <= least + 1e-9, "{found} against {least}");
                }
                (Err(Error::Budget { smallest, .. }), None) => prop_assert_eq!(smallest, low),
                (found, expected) => prop_assert!(false, "{:?} against {:?}", found, expected),
            }
        }
    }

    /// A model of 1,100 tensors and 12 types: sizes repeat, costs fall by 6 dB a bit with noise.
    fn large() -> (Vec<Vec<u64>>, Vec<Vec<f64>>) {
        let bpw = [1.5625, 1.75, 2.0625, 2.3125, 2.5625, 3.0625, 3.4375, 4.25, 4.5, 5.5, 6.5625, 8.5];
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        let mut bytes = Vec::new();
        let mut cost = Vec::new();
        for tensor in 0..1100u64 {
            let weights = [58_720_256, 3_670_016, 14_680_064, 1_048_576][(tensor % 4) as usize];
            let sensitivity = 10f64.powf(-2.0 * noise());
            bytes.push(bpw.iter().map(|b| (b * weights as f64 / 8.0) as u64).collect());
            cost.push(bpw.iter().map(|b| sensitivity * (1.0 + 0.2 * noise()) * 4f64.powf(-b)).collect());
        }
        (bytes, cost)
    }

    #[test]
    fn a_large_model_comes_close_to_the_bound() {
        let (bytes, cost) = large();
        let low: u64 = bytes.iter().map(|b| b[0]).sum();
        for budget in [low, low + 12_345_678, low * 3 / 2, low * 2, low * 7] {
            let chosen = solve(&bytes, &cost, budget).unwrap();
            let (used, found) = total(&bytes, &cost, &chosen);
            assert!(used <= budget);
            // The relaxation's bound: the base, and every spare byte at its price.
            let items = items(&bytes, &cost).unwrap();
            let (base, price) = relax(&items, budget - low);
            let (base_used, base_cost): (u64, f64) =
                items.iter().zip(&base).fold((0, 0.0), |(b, c), (i, &at)| (b + i[at].bytes, c + i[at].cost));
            let bound = base_cost - price * (budget - base_used) as f64;
            assert!(found <= bound * 1.0005, "{found} against {bound} at {budget}");
        }
    }

    #[test]
    fn crowded_states_are_thinned_and_still_close() {
        let mut state = 7u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 34
        };
        let (mut bytes, mut cost) = (Vec::new(), Vec::new());
        for _ in 0..60 {
            bytes.push((0..12).map(|_| 1 << 50 | noise()).collect::<Vec<u64>>());
            cost.push((0..12).map(|_| noise() as f64).collect::<Vec<f64>>());
        }
        let low: u64 = bytes.iter().map(|b| b.iter().min().unwrap()).sum();
        let budget = low + (1 << 33);
        let items = items(&bytes, &cost).unwrap();
        let (base, price) = relax(&items, budget - low);
        let sum = |chosen: &[usize]| -> (u64, f64) {
            items.iter().zip(chosen).fold((0, 0.0), |(b, c), (i, &at)| (b + i[at].bytes, c + i[at].cost))
        };
        let (base_used, base_cost) = sum(&base);
        let bound = base_cost - price * (budget - base_used) as f64;
        for most in [1, 8, STATES] {
            let (used, found) = sum(&improve(&items, &base, price, budget, most));
            assert!(used <= budget && found <= base_cost);
            assert!(found <= bound * 1.003, "{found} against {bound} with {most} states");
        }
    }

    #[test]
    fn equal_choices_go_to_the_smaller() {
        assert_eq!(solve(&[vec![5, 3, 4]], &[vec![1.0, 1.0, 1.0]], 10).unwrap(), [1]);
        assert_eq!(solve(&[], &[], 0).unwrap(), Vec::<usize>::new());
    }

    #[test]
    fn bad_input_is_named() {
        let budget = solve(&[vec![5, 3], vec![7]], &[vec![1.0, 2.0], vec![0.0]], 9);
        assert_eq!(budget, Err(Error::Budget { budget: 9, smallest: 10 }));
        assert_eq!(solve(&[vec![]], &[vec![]], 9), Err(Error::Choices { item: 0, bytes: 0, costs: 0 }));
        assert!(matches!(
            solve(&[vec![1]], &[vec![f64::NAN]], 9),
            Err(Error::Cost { item: 0, choice: 0, .. })
        ));
        assert_eq!(solve(&[vec![u64::MAX], vec![1]], &[vec![0.0], vec![0.0]], 9), Err(Error::Overflow));
        assert!(matches!(solve(&[vec![1]], &[], 9), Err(Error::Length { .. })));
    }
}
