//! DPM-Solver++ singlestep (Lu et al., arXiv 2211.01095, Algorithm 1), as diffusers'
//! scheduling_dpmsolver_singlestep.py has it: a call counts as a step, and pairs of them make a step of order 2.
//!
//! Of a pair, the first call at ratio s goes to s1 by the first-order formula of `dpm.rs`. The second, at s1, goes to s'
//! from the latents at s again, with `D = (x0 at s1 - x0 at s) / r` and r the width of s to s1 in lambda over that of s
//! to s'. State 1 holds the part of the second formula that is known after the first call.

use super::config::Config;
use super::levels::{self, split};
use super::names::{FinalSigma, SolverType};
use super::{Table, X0};
use crate::error::Result;

/// The rows of the singlestep solver of order 1 (one state) or 2 (two states), from call `begin` on. Where that is the
/// second of a pair, it stands alone.
pub(super) fn table(config: &Config, steps: usize, begin: usize) -> Result<Table> {
    let levels = levels::solver(config, steps)?;
    let sigmas = &levels.sigmas;
    // Pairs of calls from the first on; the last call stands alone if it is left over, and the last two if need be.
    let alone = config.lower_order_final || config.final_sigma == FinalSigma::Zero;
    let pairs = match config.order() {
        1 => 0,
        _ if steps.is_multiple_of(2) && alone => steps / 2 - 1,
        _ => steps / 2,
    };
    let mut rows = Vec::with_capacity(steps);
    for (i, &t) in levels.timesteps.iter().enumerate().skip(begin) {
        let (s, next) = (sigmas[i], sigmas[i + 1]);
        let mut row = levels::solver_row(config, t, s);
        if i >= 2 * pairs || i % 2 == 0 || i == begin {
            row.next[0] = first_order(s, next);
            if i < 2 * pairs && i % 2 == 0 {
                // First order all the way, less the share of this x0 that D takes off.
                row.next[1] = first_order(s, sigmas[i + 2]);
                row.next[1][X0] = (weight(s, sigmas[i + 2]) - difference(config, s, next, sigmas[i + 2])) as f32;
            }
        } else {
            row.next[0][1] = 1.0;
            row.next[0][X0] = difference(config, sigmas[i - 1], s, next) as f32;
        }
        rows.push(row);
    }
    Ok(Table::new(rows, config.order()))
}

/// The first-order step from `s` to `next`.
fn first_order(s: f64, next: f64) -> [f32; super::COLUMNS] {
    let mut to = [0.0; super::COLUMNS];
    to[0] = (split(next).1 / split(s).1) as f32;
    to[X0] = weight(s, next) as f32;
    to
}

/// The weight of x0 in a step from `s` to `next`.
fn weight(s: f64, next: f64) -> f64 {
    split(next).0 * (1.0 - next / s)
}

/// The weight of x0 at `middle`, less x0 at `s`, in a step from `s` to `next`.
fn difference(config: &Config, s: f64, middle: f64, next: f64) -> f64 {
    let h = (s / next).ln();
    let r = (s / middle).ln() / h;
    match config.solver_type {
        SolverType::Midpoint => 0.5 * weight(s, next) / r,
        SolverType::Heun => split(next).0 * ((next / s - 1.0) / h + 1.0) / r,
    }
}
