//! Multistep sampling of latent consistency models (Luo et al., arXiv 2310.04378, Algorithm 3), as diffusers'
//! scheduling_lcm.py has it.
//!
//! The model jumps to `d = c_out x0 + c_skip x`, and fresh noise takes it to the next level:
//! `x' = sqrt(a') d + sqrt(1 - a') noise`. The last call ends at d. With T the timestep times `timestep_scaling`,
//! `c_skip = 0.25 / (T^2 + 0.25)` and `c_out = T / sqrt(T^2 + 0.25)`.

use super::config::Config;
use super::{NOISE, Row, Table, X0, ddim, schedule};
use crate::error::Result;

/// The square of diffusers' sigma_data.
const DATA_VARIANCE: f64 = 0.25;

/// The rows of LCM; one state.
pub(super) fn table(config: &Config, steps: usize) -> Result<Table> {
    let alphas = schedule::alphas_cumprod(config);
    let timesteps = timesteps(config, steps);
    let alpha = |t: &usize| f64::from(alphas[*t]);
    let row = |(i, t): (usize, &usize)| row(config, *t, alpha(t), timesteps.get(i + 1).map(alpha));
    Ok(Table::new(timesteps.iter().enumerate().map(row).collect(), 1))
}

/// Evenly chosen timesteps of those that the model was distilled on.
pub(super) fn timesteps(config: &Config, steps: usize) -> Vec<usize> {
    let original = config.original_steps();
    let stride = config.train_steps / original;
    let step = original as f64 / steps as f64;
    (0..steps).map(|i| (original - (i as f64 * step) as usize) * stride - 1).collect()
}

/// The jump from noise level `a` (at timestep `t`) and back to `next` if any, both as alphas_cumprod.
fn row(config: &Config, t: usize, a: f64, next: Option<f64>) -> Row {
    let scaled = t as f64 * config.timestep_scaling.unwrap_or(10.0);
    let whole = scaled * scaled + DATA_VARIANCE;
    let signal = next.map_or(1.0, f64::sqrt);
    let mut row = Row::new(t as f32, ddim::level(a));
    row.x0 = ddim::x0(config.prediction, a).map(|c| c as f32);
    row.clamp = config.clamp();
    row.next[0][0] = (signal * DATA_VARIANCE / whole) as f32;
    row.next[0][X0] = (signal * scaled / whole.sqrt()) as f32;
    row.next[0][NOISE] = next.map_or(0.0, |a| (1.0 - a).sqrt()) as f32;
    row
}
