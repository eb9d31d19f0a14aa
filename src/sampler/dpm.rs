//! DPM-Solver++ 2M and 3M, and SDE-DPM-Solver++ of both (Lu et al., arXiv 2211.01095, Algorithm 2 and Section 5), as diffusers'
//! scheduling_dpmsolver_multistep.py has them.
//!
//! With the ratio s = sigma / alpha of a noise level and lambda = -ln s, a step from s to s' is
//! `x' = (sigma' / sigma) x + alpha' (1 - s' / s) (x0 + D / (2 r))`, where D = x0 - the x0 of the call before and r is
//! the last step's width in lambda over this one's (midpoint; `heun` weighs D otherwise). Without D it is first order,
//! which equals DDIM. exp(-h) of the paper is s' / s here: no cancellation, and a final s' of 0 needs no special case.
//! The stochastic solver has twice the exponent, `k = 2 h` in place of h, a state decayed by another s' / s, and noise of
//! `sigma' sqrt(1 - exp(-k))`. State 1 holds the x0 of the call before.
//!
//! Order 3 has a second difference too, and state 2 the x0 before that. Where the difference of differences counts, the
//! stochastic solver of diffusers has 1/2 with the other sign than the ordinary one; it is kept, for equal pictures.

use super::config::Config;
use super::levels::{self, split};
use super::names::{FinalSigma, SolverType};
use super::{NOISE, Row, Table, X0};
use crate::error::Result;

/// Below this many calls, `lower_order_final` makes the last step first order and the one before second (diffusers'
/// constant).
pub(super) const FEW_CALLS: usize = 15;

/// The rows of DPM-Solver++ of order 1 to 3, with as many states, from call `begin` on.
pub(super) fn table(config: &Config, steps: usize, begin: usize) -> Result<Table> {
    let levels = levels::solver(config, steps)?;
    let sigmas = &levels.sigmas;
    let (calls, most) = (levels.timesteps.len(), config.order());
    let few = config.lower_order_final && calls < FEW_CALLS;
    let first_order_last = config.euler_at_final || few || config.final_sigma == FinalSigma::Zero;
    let order = |i: usize| match calls - i {
        1 if first_order_last => 1,
        2 if few => most.min(2),
        _ => most,
    };
    let row = |(i, &t): (usize, &f32)| {
        let order = order(i).min(i - begin + 1);
        let mut row = row(config, t, &sigmas[i + 1 - order..i], sigmas[i], sigmas[i + 1]);
        if most > 1 {
            row.next[1][X0] = 1.0;
        }
        if most > 2 && i > begin {
            row.next[2][1] = 1.0;
        }
        row
    };
    Ok(Table::new(levels.timesteps.iter().enumerate().skip(begin).map(row).collect(), most))
}

/// The step from ratio `s` (at timestep `t`) to `next`; of second or third order when the ratios of so many calls
/// `before` are given, newest last.
fn row(config: &Config, t: f32, before: &[f64], s: f64, next: f64) -> Row {
    let (_, sigma) = split(s);
    let (next_signal, next_sigma) = split(next);
    let stochastic = config.kind.is_stochastic_dpm();
    // The exponent of the decay, in h.
    let times = if stochastic { 2 } else { 1 };
    let decay = (next / s).powi(times);
    let h = (s / next).ln();
    let k = f64::from(times) * h;
    // Weights of the newest x0, of the first and of the second difference.
    let weight = next_signal * (1.0 - decay);
    let heun = next_signal * ((decay - 1.0) / k + 1.0);
    let half = if stochastic { -0.5 } else { 0.5 };
    let second = next_signal * (half - (decay - 1.0 + k) / (k * k));

    let mut row = levels::solver_row(config, t, s);
    let mut weights = [weight, 0.0, 0.0];
    // A last step of width 0 (final sigma = sigma_min with Karras' levels) goes nowhere.
    match before {
        _ if h == 0.0 => {}
        [] => {}
        [one] => {
            let r = (one / s).ln() / h;
            let difference = match config.solver_type {
                SolverType::Midpoint => 0.5 * weight / r,
                SolverType::Heun => heun / r,
            };
            weights = [weight + difference, 0.0 - difference, 0.0];
        }
        [two, one, ..] => {
            let (r0, r1) = ((one / s).ln() / h, (two / one).ln() / h);
            // D1 = (1 + r) d0 - r d1 and D2 = (d0 - d1) / (r0 + r1), with r = r0 / (r0 + r1) and the differences
            // d0 = (x0 - the one before) / r0, d1 = (the one before - the one before that) / r1.
            let (r, per) = (r0 / (r0 + r1), second / (r0 + r1));
            let (newer, older) = ((heun * (1.0 + r) + per) / r0, (heun * r + per) / r1);
            weights = [weight + newer, 0.0 - newer - older, older];
        }
    }
    row.next[0][0] = (next_sigma / sigma) as f32;
    if stochastic {
        row.next[0][0] = (next_sigma / sigma * next / s) as f32;
        row.next[0][NOISE] = (next_sigma * (1.0 - decay).sqrt()) as f32;
    }
    row.next[0][X0] = weights[0] as f32;
    row.next[0][1] = weights[1] as f32;
    row.next[0][2] = weights[2] as f32;
    row
}
