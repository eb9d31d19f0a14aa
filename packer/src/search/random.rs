//! Random configurations: what Qua2SeDiMo learns from, and what a search has to beat.

use super::layer::bits_of;
use super::problem::Problem;
use fastrand::Rng;

/// Qua2SeDiMo's distribution (its `*_eval_random.py`, quantization.md §1.5): a share `p` is drawn for the whole configuration, evenly
/// between two bounds; each layer has the fewer bits with that probability, and any of the methods of these bits. Its own bits are 3
/// and 4; of more widths, `p` decides about each step from one to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    /// Bounds of the share of fewer bits (`a_l` and `a_u`).
    pub bounds: [f64; 2],
    /// Tells the sequence of configurations apart from others.
    pub seed: u64,
}

/// Numbers of the configuration of this number.
fn rng(seed: u64, number: u64) -> Rng {
    // Neighbouring seeds of the generator begin alike: they are spread by an odd factor.
    Rng::with_seed(seed.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

impl Distribution {
    /// The configuration of this number.
    pub fn draw(&self, problem: &Problem, number: u64) -> Vec<usize> {
        let mut draws = rng(self.seed, number);
        let share = self.bounds[0] + (self.bounds[1] - self.bounds[0]) * draws.f64();
        self.layers(problem, share, &mut draws)
    }

    fn layers(&self, problem: &Problem, share: f64, draws: &mut Rng) -> Vec<usize> {
        let layer = |layer: &super::Layer| {
            let width = |&choice: &usize| bits_of(&layer.specs[choice]);
            let mut widths: Vec<u8> = layer.allowed.iter().map(width).collect();
            widths.sort_unstable();
            widths.dedup();
            let up = (1..widths.len()).filter(|_| draws.f64() >= share).count();
            let of_width: Vec<usize> = layer.allowed.iter().copied().filter(|c| width(c) == widths[up]).collect();
            of_width[draws.usize(..of_width.len())]
        };
        problem.layers.iter().map(layer).collect()
    }

    /// The configuration of this number among those that take `budget` bytes: one is drawn, then layers are drawn whose choice becomes
    /// smaller until it fits, and larger while it still fits. None if the smallest choices do not fit.
    pub fn draw_within(&self, problem: &Problem, budget: u64, number: u64) -> Option<Vec<usize>> {
        let mut draws = rng(self.seed, number);
        // Where between the smallest and the largest the budget lies tells how often choices are small.
        let bytes = |largest: bool| -> u64 {
            let of = |layer: &super::Layer| {
                let sizes = layer.allowed.iter().map(|&choice| layer.bytes[choice]);
                if largest { sizes.max() } else { sizes.min() }
            };
            problem.layers.iter().filter_map(of).sum()
        };
        let (least, most) = (bytes(false), bytes(true));
        if least > budget {
            return None;
        }
        let share = 1.0 - (budget - least) as f64 / (most - least).max(1) as f64;
        let mut assignment = self.layers(problem, share.clamp(0.0, 1.0), &mut draws);
        let mut total = problem.bytes(&assignment);
        while total > budget {
            let at = draws.usize(..assignment.len());
            if let Some(next) = neighbour(problem, at, assignment[at], false) {
                total = total - problem.bytes_of(at, assignment[at]) + problem.bytes_of(at, next);
                assignment[at] = next;
            }
        }
        // Each layer gets one chance to grow, in a random order.
        let mut order: Vec<usize> = (0..assignment.len()).collect();
        draws.shuffle(&mut order);
        for at in order {
            if let Some(next) = neighbour(problem, at, assignment[at], true) {
                let grown = total - problem.bytes_of(at, assignment[at]) + problem.bytes_of(at, next);
                if grown <= budget {
                    (total, assignment[at]) = (grown, next);
                }
            }
        }
        Some(assignment)
    }
}

/// The next larger or smaller choice of a layer.
fn neighbour(problem: &Problem, at: usize, choice: usize, larger: bool) -> Option<usize> {
    let layer = &problem.layers[at];
    let own = layer.bytes[choice];
    let others = layer.allowed.iter().copied().map(|other| (layer.bytes[other], other));
    let next = match larger {
        true => others.filter(|(bytes, _)| *bytes > own).min(),
        false => others.filter(|(bytes, _)| *bytes < own).max(),
    };
    next.map(|(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::super::problem::tests::problem;
    use super::*;

    #[test]
    fn shares_of_widths_follow_the_bounds() {
        let problem = problem(200);
        let few = |bounds: [f64; 2]| {
            let distribution = Distribution { bounds, seed: 42 };
            let drawn = (0..50).flat_map(|number| distribution.draw(&problem, number));
            drawn.filter(|&choice| choice < 1).count() as f64 / 10_000.0
        };
        // Three widths: both steps fail with the square of the share.
        for (bounds, expected) in [([0.0, 0.0], 0.0), ([1.0, 1.0], 1.0), ([0.5, 0.5], 0.25), ([0.0, 1.0], 1.0 / 3.0)] {
            assert!((few(bounds) - expected).abs() < 0.08, "{bounds:?}: {} for {expected}", few(bounds));
        }
        let distribution = Distribution { bounds: [0.0, 1.0], seed: 42 };
        assert_eq!(distribution.draw(&problem, 7), distribution.draw(&problem, 7));
        assert_ne!(distribution.draw(&problem, 7), distribution.draw(&problem, 8));
    }

    #[test]
    fn a_budget_is_kept_and_used() {
        let problem = problem(40);
        let distribution = Distribution { bounds: [0.0, 1.0], seed: 1 };
        let sizes = [0, 2].map(|choice| problem.bytes(&[choice; 40]));
        for budget in [sizes[0], (sizes[0] + sizes[1]) / 2, sizes[1], sizes[1] + 5] {
            for number in 0..20 {
                let drawn = distribution.draw_within(&problem, budget, number).unwrap();
                let bytes = problem.bytes(&drawn);
                assert!(bytes <= budget && bytes + sizes[1] / 20 >= budget.min(sizes[1]), "{bytes} of {budget}");
            }
        }
        assert_eq!(distribution.draw_within(&problem, sizes[0] - 1, 0), None);
    }
}
