//! Euler's method on the probability flow, plain or ancestral (Karras et al., arXiv 2206.00364; k-diffusion), as
//! diffusers' scheduling_euler_discrete.py and scheduling_euler_ancestral_discrete.py have it.
//!
//! With alpha = 1 a step from level s to s' is `x' = x + (x - x0) / s (s' - s)`. The ancestral one goes further down, to
//! `s'^2 / s`, and comes back up by fresh noise of `sqrt(s'^2 (s^2 - s'^2)) / s`.

use super::config::Config;
use super::names::SamplerKind;
use super::{NOISE, Table, X0, levels};
use crate::error::Result;

/// The rows of Euler's method; one state.
pub(super) fn table(config: &Config, steps: usize) -> Result<Table> {
    let levels = levels::sigma(config, steps)?;
    let row = |(i, &t): (usize, &f32)| {
        let (s, next) = (levels.sigmas[i], levels.sigmas[i + 1]);
        let (down, up) = match config.kind {
            SamplerKind::EulerAncestral => ancestral(s, next),
            _ => (next, 0.0),
        };
        let mut row = levels::sigma_row(config, t, s);
        row.next[0][0] = (down / s) as f32;
        row.next[0][X0] = (1.0 - down / s) as f32;
        row.next[0][NOISE] = up as f32;
        row
    };
    let rows = levels.timesteps.iter().enumerate().map(row).collect();
    Ok(levels::sigma_table(config, rows, 1, levels.sigmas[0]))
}

/// Where an ancestral step from level `s` to `next` goes down to, and how much noise takes it up again.
pub(super) fn ancestral(s: f64, next: f64) -> (f64, f64) {
    (next * next / s, next * ((s - next) * (s + next)).sqrt() / s)
}
