//! DPM-Solver++ 2M (Lu et al., arXiv 2211.01095, Algorithm 2), as diffusers' scheduling_dpmsolver_multistep.py has it.
//!
//! With the ratio s = sigma / alpha of a noise level and lambda = -ln s, a step from s to s' is
//! `x' = (sigma' / sigma) x + alpha' (1 - s' / s) (x0 + D / (2 r))`, where D = x0 - the x0 of the call before and r is
//! the last step's width in lambda over this one's (midpoint; `heun` weighs D otherwise). Without D it is first order,
//! which equals DDIM. exp(-h) of the paper is s' / s here: no cancellation, and a final s' of 0 needs no special case.
//! State 1 holds the x0 of the call before.

use super::config::{Config, FinalSigma, Prediction, SolverType, Spacing};
use super::{Row, Table, X0, schedule};
use crate::error::{Error, Result};

/// Below this many calls, `lower_order_final` makes the last step first order (diffusers' constant).
const FEW_CALLS: usize = 15;

/// The rows of DPM-Solver++ of order 1 (one state) or 2 (two states).
pub(super) fn table(config: &Config, steps: usize) -> Result<Table> {
    let (timesteps, sigmas) = noise_levels(config, steps)?;
    let calls = timesteps.len();
    let first_order_last = config.euler_at_final
        || (config.lower_order_final && calls < FEW_CALLS)
        || config.final_sigma == FinalSigma::Zero;
    let second_order = |i: usize| config.solver_order == 2 && i > 0 && !(i + 1 == calls && first_order_last);
    let row = |(i, &t): (usize, &usize)| {
        let before = second_order(i).then(|| sigmas[i - 1]);
        row(config, t, before, sigmas[i], sigmas[i + 1])
    };
    Ok(Table::new(timesteps.iter().enumerate().map(row).collect(), config.solver_order))
}

/// The step from ratio `s` (at timestep `t`) to `next`; second order when the ratio of the call `before` is given.
fn row(config: &Config, t: usize, before: Option<f64>, s: f64, next: f64) -> Row {
    let (signal, sigma) = split(s);
    let (next_signal, next_sigma) = split(next);
    let x0 = match config.prediction {
        Prediction::Epsilon => [1.0 / signal, -sigma / signal],
        Prediction::VPrediction => [signal, -sigma],
        Prediction::Sample => [0.0, 1.0],
    };
    // Weights of the newest x0 and of the difference D.
    let weight = next_signal * (1.0 - next / s);
    let difference = before.map_or(0.0, |before| {
        let h = (s / next).ln();
        let r = (before / s).ln() / h;
        match config.solver_type {
            // A last step of width 0 (final sigma = sigma_min with Karras' levels) has an infinite r, hence 0 here.
            SolverType::Midpoint => 0.5 * weight / r,
            SolverType::Heun if h == 0.0 => 0.0,
            SolverType::Heun => next_signal * ((next / s - 1.0) / h + 1.0) / r,
        }
    });

    let mut row = Row::new(t);
    row.x0 = x0.map(|c| c as f32);
    row.next[0][0] = (next_sigma / sigma) as f32;
    row.next[0][X0] = (weight + difference) as f32;
    if config.solver_order == 2 {
        row.next[0][1] = (0.0 - difference) as f32;
        row.next[1][X0] = 1.0;
    }
    row
}

/// (alpha, sigma) with alpha^2 + sigma^2 = 1 and sigma / alpha = `s`.
fn split(s: f64) -> (f64, f64) {
    let alpha = 1.0 / (s * s + 1.0).sqrt();
    (alpha, s * alpha)
}

/// The timesteps and the ratios sigma / alpha of a run, the latter with the final one appended.
///
/// The ratios are f32 numbers, as in diffusers.
fn noise_levels(config: &Config, steps: usize) -> Result<(Vec<usize>, Vec<f64>)> {
    let alphas = schedule::alphas_cumprod(config);
    let table: Vec<f32> = alphas.iter().map(|a| ((1.0 - a) / a).sqrt()).collect();
    let (timesteps, mut sigmas) = if config.use_karras_sigmas {
        let sigmas = karras(f64::from(table[0]), f64::from(table[table.len() - 1]), steps);
        let log_table: Vec<f32> = table.iter().map(|&s| f64::from(s).ln() as f32).collect();
        let timesteps = sigmas.iter().map(|&s| nearest(&log_table, s)).collect();
        (timesteps, sigmas.iter().map(|&s| f64::from(s as f32)).collect())
    } else {
        let spacing = config.spacing.unwrap_or(Spacing::Linspace);
        let timesteps = schedule::timesteps(config, spacing, steps, 1)?;
        let sigmas: Vec<f64> = timesteps.iter().map(|&t| f64::from(table[t])).collect();
        (timesteps, sigmas)
    };
    // Two calls at one noise level would divide 0 by 0 in the second-order step; diffusers yields NaN there.
    if sigmas.windows(2).any(|w| w[0] <= w[1]) {
        return Err(Error::request(
            "steps",
            format!("fewer than {} steps, or the trailing spacing", config.train_steps),
            format!("{steps} steps, of which two fall on the same timestep"),
        ));
    }
    sigmas.push(match config.final_sigma {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => f64::from(table[0]),
    });
    Ok((timesteps, sigmas))
}

/// The noise levels of Karras et al. (arXiv 2206.00364, formula 5, rho = 7), from `max` down to `min`.
fn karras(min: f64, max: f64, n: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (min, max) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
    schedule::linspace_f64(0.0, 1.0, n).iter().map(|ramp| (max + ramp * (min - max)).powf(RHO)).collect()
}

/// The timestep whose ln(sigma / alpha) is that of `sigma`, interpolated and rounded to a whole one; `log_table` grows.
fn nearest(log_table: &[f32], sigma: f64) -> usize {
    let log = sigma.max(1e-10).ln();
    let low = log_table.partition_point(|&s| f64::from(s) <= log).saturating_sub(1).min(log_table.len() - 2);
    let (a, b) = (f64::from(log_table[low]), f64::from(log_table[low + 1]));
    let w = ((a - log) / (a - b)).clamp(0.0, 1.0);
    ((1.0 - w) * low as f64 + w * (low + 1) as f64).round_ties_even() as usize
}
