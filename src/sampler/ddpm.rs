//! Ancestral sampling of DDPM (Ho, Jain and Abbeel, arXiv 2006.11239, formulas 6 and 7), as diffusers'
//! scheduling_ddpm.py has it.
//!
//! With a = alphas_cumprod at a timestep, a' at the next of the run and beta = 1 - a / a':
//! `x' = sqrt(a') beta / (1 - a) x0 + sqrt(a / a') (1 - a') / (1 - a) x + noise`, the noise of variance
//! `(1 - a') / (1 - a) beta` (fixed_small) or `beta` (fixed_large), and none at timestep 0. A model of learned variance
//! mixes the logarithms of the two by a second output v in -1..1 (Nichol and Dhariwal, arXiv 2102.09672, formula 15):
//! its noise is `exp(log(small) / 4 + log(large) / 4 + (log(large) - log(small)) / 4 v)` times normal. On the linspace
//! spacing that is the respaced process of the same authors' code, and of DiT's.

use super::config::Config;
use super::names::Variance;
use super::{NOISE, Row, Table, X0, ddim, schedule};
use crate::error::Result;

/// diffusers' least variance.
const LEAST: f64 = 1e-20;

/// The rows of DDPM; one state.
pub(super) fn table(config: &Config, steps: usize) -> Result<Table> {
    let alphas = schedule::alphas_cumprod(config);
    let timesteps = schedule::timesteps(config, config.spacing(), steps, 0)?;
    let alpha = |t: &usize| f64::from(alphas[*t]);
    let row = |(i, t): (usize, &usize)| row(config, *t, alpha(t), timesteps.get(i + 1).map_or(1.0, alpha));
    Ok(Table::new(timesteps.iter().enumerate().map(row).collect(), 1))
}

/// The step from noise level `a` (at timestep `t`) to `previous`, both as alphas_cumprod.
fn row(config: &Config, t: usize, a: f64, previous: f64) -> Row {
    let beta = 1.0 - a / previous;
    let small = ((1.0 - previous) / (1.0 - a) * beta).max(LEAST);
    let variance = match config.variance {
        Some(Variance::FixedLarge) => beta,
        Some(Variance::LearnedRange) => 1.0,
        _ => small,
    };
    let mut row = Row::new(t as f32, ddim::level(a));
    row.x0 = ddim::x0(config.prediction, a).map(|c| c as f32);
    row.clamp = config.clamp();
    row.next[0][0] = ((a / previous).sqrt() * (1.0 - previous) / (1.0 - a)) as f32;
    row.next[0][X0] = (previous.sqrt() * beta / (1.0 - a)) as f32;
    row.next[0][NOISE] = if t > 0 { variance.sqrt() as f32 } else { 0.0 };
    if config.variance == Some(Variance::LearnedRange) {
        let (low, high) = (small.ln(), beta.ln());
        row.gain = Some([(low + high) / 4.0, (high - low) / 4.0].map(|c| c as f32));
    }
    row
}
