//! DPM-Solver-2 on the probability flow, plain or ancestral (Karras et al., arXiv 2206.00364, Algorithm 2; k-diffusion), as
//! diffusers' scheduling_k_dpm_2_discrete.py and scheduling_k_dpm_2_ancestral_discrete.py have it.
//!
//! A step from level s to s' takes two calls. The first, at s, goes to the level between, `m = sqrt(s s')`, by Euler's
//! method; the second takes the derivative there for the whole step: `x' = x + (x1 - x0) / m (s' - s)`. State 1 holds x.
//! The ancestral one goes down to `s'^2 / s` instead, as Euler's does, and comes up by fresh noise after the second call.
//! The last step, to no noise, has the first call only.
//!
//! Inpainting departs from diffusers, which noises what is kept to the level s' after the first call already; here it has
//! the level of the latents, m.

use super::config::Config;
use super::euler::ancestral;
use super::levels;
use super::names::SamplerKind;
use super::{NOISE, Table, X0};
use crate::error::Result;

/// The rows of DPM-Solver-2, `2 steps - 1`; two states.
pub(super) fn table(config: &Config, steps: usize) -> Result<Table> {
    let levels = levels::sigma(config, steps)?;
    let down_and_up = |step: &[f64]| match config.kind {
        SamplerKind::Dpm2Ancestral => ancestral(step[0], step[1]),
        _ => (step[1], 0.0),
    };
    let ends: Vec<(f64, f64)> = levels.sigmas.windows(2).map(down_and_up).collect();
    let middles: Vec<f64> = levels.sigmas.iter().zip(&ends).map(|(s, (down, _))| (s * down).sqrt()).collect();
    let between = levels::between(config, &middles);
    let mut rows = Vec::with_capacity(2 * steps - 1);
    for (i, &t) in levels.timesteps.iter().enumerate() {
        let (s, middle, (down, up)) = (levels.sigmas[i], middles[i], ends[i]);
        let mut first = levels::sigma_row(config, t, s);
        first.next[0][0] = (middle / s) as f32;
        first.next[0][X0] = (1.0 - middle / s) as f32;
        first.next[1][0] = 1.0;
        rows.push(first);
        if i + 1 < ends.len() {
            let mut second = levels::sigma_row(config, between[i], middle);
            let slope = (down - s) / middle;
            second.next[0][0] = slope as f32;
            second.next[0][1] = 1.0;
            second.next[0][X0] = (0.0 - slope) as f32;
            second.next[0][NOISE] = up as f32;
            rows.push(second);
        }
    }
    Ok(levels::sigma_table(config, rows, 2, levels.sigmas[0]))
}
