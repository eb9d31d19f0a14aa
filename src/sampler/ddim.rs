//! DDIM (Song, Meng and Ermon, arXiv 2010.02502, formulas 12 and 16), as diffusers' scheduling_ddim.py has it.
//!
//! With a = alphas_cumprod at the timestep and a' one stride (`train_steps / steps`) earlier:
//! `x' = sqrt(a') x0 + sqrt(1 - a' - s^2) eps + s noise`, with `s^2 = eta^2 (1 - a') / (1 - a) (1 - a / a')`.
//! Like diffusers, eps is that of the unclamped prediction, and the stride is the same for every spacing but quad, whose
//! steps end where the next begins.

use super::config::Config;
use super::names::{Prediction, Spacing};
use super::{NOISE, OUTPUT, Row, Table, X0, schedule};
use crate::error::Result;

/// The rows of DDIM; one state.
pub(super) fn table(config: &Config, steps: usize) -> Result<Table> {
    let alphas = schedule::alphas_cumprod(config);
    let spacing = config.spacing();
    let stride = config.train_steps / steps;
    let final_alpha = if config.set_alpha_to_one.unwrap_or(true) { 1.0 } else { f64::from(alphas[0]) };
    let timesteps = schedule::timesteps(config, spacing, steps, 0)?;
    let previous = |i: usize| match spacing {
        // No stride to speak of. A repeated timestep makes a step that changes nothing.
        Spacing::Quad => timesteps.get(i + 1).copied(),
        _ => timesteps[i].checked_sub(stride),
    };
    let row = |(i, &t): (usize, &usize)| {
        let previous = previous(i).map_or(final_alpha, |t| f64::from(alphas[t]));
        row(config, t, f64::from(alphas[t]), previous)
    };
    Ok(Table::new(timesteps.iter().enumerate().map(row).collect(), 1))
}

/// Shares of clean latents and noise in latents of the noise level `a`, an alphas_cumprod.
pub(super) fn level(a: f64) -> [f64; 2] {
    [a.sqrt(), (1.0 - a).sqrt()]
}

/// Coefficients of (state, output) in x0 at the noise level `a`, an alphas_cumprod.
pub(super) fn x0(prediction: Prediction, a: f64) -> [f64; 2] {
    let [signal, sigma] = level(a);
    match prediction {
        Prediction::Epsilon => [1.0 / signal, -sigma / signal],
        Prediction::VPrediction => [signal, -sigma],
        Prediction::Sample => [0.0, 1.0],
    }
}

/// Coefficients of (state, output) in the noise at the noise level `a`, an alphas_cumprod.
pub(super) fn noise(prediction: Prediction, a: f64) -> [f64; 2] {
    let [signal, sigma] = level(a);
    match prediction {
        Prediction::Epsilon => [0.0, 1.0],
        Prediction::VPrediction => [sigma, signal],
        Prediction::Sample => [1.0 / sigma, -signal / sigma],
    }
}

/// The step from noise level `a` (at timestep `t`) to `previous`, both as alphas_cumprod.
fn row(config: &Config, t: usize, a: f64, previous: f64) -> Row {
    let eps = noise(config.prediction, a);
    let variance = (1.0 - previous) / (1.0 - a) * (1.0 - a / previous);
    let added = f64::from(config.eta) * variance.sqrt();
    // Not negative: for eta = 1 it is (1 - a')^2 a / (a' (1 - a)), and 0 - 0 at the clean end.
    let direction = (1.0 - previous - added * added).sqrt();

    let mut row = Row::new(t as f32, level(a));
    row.x0 = x0(config.prediction, a).map(|c| c as f32);
    row.clamp = config.clamp();
    row.next[0][0] = (direction * eps[0]) as f32;
    row.next[0][OUTPUT] = (direction * eps[1]) as f32;
    row.next[0][X0] = previous.sqrt() as f32;
    row.next[0][NOISE] = added as f32;
    row
}
