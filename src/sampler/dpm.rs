//! DPM-Solver++ 2M and SDE-DPM-Solver++ 2M (Lu et al., arXiv 2211.01095, Algorithm 2 and Section 5), as diffusers'
//! scheduling_dpmsolver_multistep.py has them.
//!
//! With the ratio s = sigma / alpha of a noise level and lambda = -ln s, a step from s to s' is
//! `x' = (sigma' / sigma) x + alpha' (1 - s' / s) (x0 + D / (2 r))`, where D = x0 - the x0 of the call before and r is
//! the last step's width in lambda over this one's (midpoint; `heun` weighs D otherwise). Without D it is first order,
//! which equals DDIM. exp(-h) of the paper is s' / s here: no cancellation, and a final s' of 0 needs no special case.
//! The stochastic solver has twice the exponent, `q = (s' / s)^2` in place of s' / s, a state decayed by another s' / s,
//! and noise of `sigma' sqrt(1 - q)`. State 1 holds the x0 of the call before.

use super::config::Config;
use super::levels::{self, split};
use super::names::{FinalSigma, SamplerKind, SolverType};
use super::{NOISE, Row, Table, X0};
use crate::error::Result;

/// Below this many calls, `lower_order_final` makes the last step first order (diffusers' constant).
const FEW_CALLS: usize = 15;

/// The rows of DPM-Solver++ of order 1 (one state) or 2 (two states), from call `begin` on.
pub(super) fn table(config: &Config, steps: usize, begin: usize) -> Result<Table> {
    let levels = levels::solver(config, steps)?;
    let sigmas = &levels.sigmas;
    let calls = levels.timesteps.len();
    let first_order_last = config.euler_at_final
        || (config.lower_order_final && calls < FEW_CALLS)
        || config.final_sigma == FinalSigma::Zero;
    let second_order = |i: usize| config.solver_order == 2 && i > begin && !(i + 1 == calls && first_order_last);
    let row = |(i, &t): (usize, &f32)| {
        let before = second_order(i).then(|| sigmas[i - 1]);
        row(config, t, before, sigmas[i], sigmas[i + 1])
    };
    Ok(Table::new(levels.timesteps.iter().enumerate().skip(begin).map(row).collect(), config.solver_order))
}

/// The step from ratio `s` (at timestep `t`) to `next`; second order when the ratio of the call `before` is given.
fn row(config: &Config, t: f32, before: Option<f64>, s: f64, next: f64) -> Row {
    let (_, sigma) = split(s);
    let (next_signal, next_sigma) = split(next);
    // The exponent of the decay, in h.
    let times = if config.kind == SamplerKind::DpmSolverPp2MSde { 2 } else { 1 };
    let decay = (next / s).powi(times);
    // Weights of the newest x0 and of the difference D.
    let weight = next_signal * (1.0 - decay);
    let difference = before.map_or(0.0, |before| {
        let h = (s / next).ln();
        let r = (before / s).ln() / h;
        match config.solver_type {
            // A last step of width 0 (final sigma = sigma_min with Karras' levels) has an infinite r, hence 0 here.
            SolverType::Midpoint => 0.5 * weight / r,
            SolverType::Heun if h == 0.0 => 0.0,
            SolverType::Heun => next_signal * ((decay - 1.0) / (f64::from(times) * h) + 1.0) / r,
        }
    });

    let mut row = levels::solver_row(config, t, s);
    row.next[0][0] = (next_sigma / sigma) as f32;
    if times == 2 {
        row.next[0][0] = (next_sigma / sigma * next / s) as f32;
        row.next[0][NOISE] = (next_sigma * (1.0 - decay).sqrt()) as f32;
    }
    row.next[0][X0] = (weight + difference) as f32;
    if config.solver_order == 2 {
        row.next[0][1] = (0.0 - difference) as f32;
        row.next[1][X0] = 1.0;
    }
    row
}
