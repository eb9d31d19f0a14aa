//! UniPC of order 1 to 3 with B(h) = exp(-h) - 1, "bh2" (Zhao et al., arXiv 2302.04867), predicting x0, as diffusers'
//! scheduling_unipc_multistep.py has it.
//!
//! A step from ratio s to s' (see `dpm.rs`) has a predictor, `x' = (sigma' / sigma) x - alpha' B (-x0 + sum_k w_k D_k)`,
//! with D_k the difference to the k-th x0 before over that of their lambdas, and a corrector that comes with the next
//! call: knowing x0 at s', it takes the same step again with weights that make it exact to one order more. So each call
//! first corrects the latents that it was given, then predicts on from the corrected ones, and both are linear in what
//! is known.
//! States: 1 the corrected latents of the call before, 2 to 4 the x0 of the calls before, newest first.

use super::config::Config;
use super::levels::{self, split};
use super::{COLUMNS, Table, X0};
use crate::error::Result;

/// Columns of the corrected latents and the x0 of the call before; those of earlier calls follow.
const LAST: usize = 1;
const BEFORE: usize = 2;
/// Most differences of a step.
const MOST: usize = 3;

/// The rows of UniPC of order 1 to 3, with two states more, from call `begin` on.
pub(super) fn table(config: &Config, steps: usize, begin: usize) -> Result<Table> {
    let levels = levels::solver(config, steps)?;
    let (sigmas, most) = (&levels.sigmas, config.order());
    let order = |i: usize| match config.lower_order_final {
        true => most.min(levels.timesteps.len() - i).min(i - begin + 1),
        false => most.min(i - begin + 1),
    };
    let row = |(i, &t): (usize, &f32)| {
        let mut row = levels::solver_row(config, t, sigmas[i]);
        // The corrected latents, as weights of the columns; at the first call there is nothing to correct.
        let mut latents = [0.0; COLUMNS];
        match i - begin {
            0 => latents[0] = 1.0,
            _ => correct(&mut latents, &sigmas[..=i], order(i - 1)),
        }
        let mut predicted = latents.map(|c| c * split(sigmas[i + 1]).1 / split(sigmas[i]).1);
        predict(&mut predicted, &sigmas[..i + 2], order(i));
        row.next[0] = predicted.map(|c| c as f32);
        row.next[LAST] = latents.map(|c| c as f32);
        row.next[BEFORE][X0] = 1.0;
        for older in 1..most.min(i - begin + 1) {
            row.next[BEFORE + older][BEFORE + older - 1] = 1.0;
        }
        row
    };
    Ok(Table::new(levels.timesteps.iter().enumerate().skip(begin).map(row).collect(), most + 2))
}

/// Adds what x0 and those before it weigh in a step of `order` from the last but one of `sigmas` to the last.
fn predict(to: &mut [f64; COLUMNS], sigmas: &[f64], order: usize) {
    let step = Step::new(sigmas, order);
    to[X0] -= step.factor;
    let weights = match order {
        2 => [0.5, 0.0, 0.0],
        _ => step.weights(order - 1),
    };
    for k in 0..order - 1 {
        let share = step.factor * weights[k] / step.nodes[k];
        to[BEFORE + k] -= share;
        to[X0] += share;
    }
}

/// The weights of the latents at the last of `sigmas`, corrected with the x0 there: a step of `order` from the level
/// before.
fn correct(to: &mut [f64; COLUMNS], sigmas: &[f64], order: usize) {
    let (n, step) = (sigmas.len(), Step::new(sigmas, order));
    to[LAST] = split(sigmas[n - 1]).1 / split(sigmas[n - 2]).1;
    to[BEFORE] = -step.factor;
    let weights = match order {
        1 => [0.5, 0.0, 0.0],
        _ => step.weights(order),
    };
    for k in 0..order - 1 {
        let share = step.factor * weights[k] / step.nodes[k];
        to[BEFORE + k + 1] -= share;
        to[BEFORE] += share;
    }
    let newest = step.factor * weights[order - 1];
    to[X0] -= newest;
    to[BEFORE] += newest;
}

/// A step in lambda.
struct Step {
    /// Minus its width.
    width: f64,
    /// alpha' B.
    factor: f64,
    /// Where the differences end, in widths from the step's beginning: those before it, and 1.
    nodes: [f64; MOST],
}

impl Step {
    /// The step of `order` between the last two of `sigmas`.
    fn new(sigmas: &[f64], order: usize) -> Step {
        let n = sigmas.len();
        let (s, next) = (sigmas[n - 2], sigmas[n - 1]);
        let h = (s / next).ln();
        let mut nodes = [1.0; MOST];
        for (k, node) in nodes[..order - 1].iter_mut().enumerate() {
            *node = (s / sigmas[n - 3 - k]).ln() / h;
        }
        Step { width: -h, factor: split(next).0 * (next / s - 1.0), nodes }
    }

    /// The weights of the first `count` differences that make the step exact for as many powers: the solution of
    /// `sum_j nodes[j]^i w_j = i! phi_(i + 1) / B` for i below `count`, by elimination.
    fn weights(&self, count: usize) -> [f64; MOST] {
        let b = self.width.exp_m1();
        let mut phi = b / self.width - 1.0;
        let mut factorial = 1.0;
        let mut rows = [[0.0; MOST + 1]; MOST];
        for (i, row) in rows[..count].iter_mut().enumerate() {
            for (to, node) in row.iter_mut().zip(&self.nodes[..count]) {
                *to = node.powi(i as i32);
            }
            row[MOST] = phi * factorial / b;
            factorial *= (i + 2) as f64;
            phi = phi / self.width - 1.0 / factorial;
        }
        // Nodes differ, so no pivot is 0.
        for pivot in 0..count {
            let lead = rows[pivot].map(|c| c / rows[pivot][pivot]);
            rows[pivot] = lead;
            for (_, row) in rows[..count].iter_mut().enumerate().filter(|(i, _)| *i != pivot) {
                let factor = row[pivot];
                row.iter_mut().zip(&lead).for_each(|(to, c)| *to -= factor * c);
            }
        }
        std::array::from_fn(|i| rows[i][MOST])
    }
}
