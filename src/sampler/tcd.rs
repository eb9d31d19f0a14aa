//! Strategic stochastic sampling of trajectory consistency models (Zheng et al., arXiv 2402.19159, Algorithm 4), as
//! diffusers' scheduling_tcd.py has it.
//!
//! The model's x0 and noise e give latents at a level s between clean and the next of the run, at timestep
//! `(1 - eta) t'`: `x_s = sqrt(a_s) x0 + sqrt(1 - a_s) e`, and fresh noise takes them up to the next level:
//! `x' = sqrt(a' / a_s) x_s + sqrt(1 - a' / a_s) noise`. The last call ends at training step 0.

use super::config::Config;
use super::{NOISE, OUTPUT, Row, Table, X0, ddim, lcm, schedule};
use crate::error::Result;

/// The rows of TCD; one state.
pub(super) fn table(config: &Config, steps: usize) -> Result<Table> {
    let alphas = schedule::alphas_cumprod(config);
    let timesteps = lcm::timesteps(config, steps);
    let alpha = |t: usize| f64::from(alphas[t]);
    let row = |(i, &t): (usize, &usize)| {
        let next = timesteps.get(i + 1).copied();
        // In f32, as diffusers rounds it down.
        let kept = (1.0 - f64::from(config.eta)) as f32;
        let between = (kept * next.unwrap_or(0) as f32).floor() as usize;
        row(config, t, alpha(t), alpha(between), next.map(alpha))
    };
    Ok(Table::new(timesteps.iter().enumerate().map(row).collect(), 1))
}

/// The step from noise level `a` (at timestep `t`) to `between`, and up again to `next` if any, all as alphas_cumprod.
fn row(config: &Config, t: usize, a: f64, between: f64, next: Option<f64>) -> Row {
    // Without noise the level between is the next one.
    let back = next.filter(|_| config.eta > 0.0).map_or(1.0, |next| next / between);
    let [signal, sigma] = ddim::level(between);
    let eps = ddim::noise(config.prediction, a);
    let mut row = Row::new(t as f32, ddim::level(a));
    row.x0 = ddim::x0(config.prediction, a).map(|c| c as f32);
    row.next[0][0] = (back.sqrt() * sigma * eps[0]) as f32;
    row.next[0][OUTPUT] = (back.sqrt() * sigma * eps[1]) as f32;
    row.next[0][X0] = (back.sqrt() * signal) as f32;
    row.next[0][NOISE] = (1.0 - back).sqrt() as f32;
    row
}
