//! DPM-Solver++ for the stochastic equation with a call between (k-diffusion's `sample_dpmpp_sde`), as diffusers'
//! scheduling_dpmsolver_sde.py has it, but for the noise: theirs is of a Brownian tree, so that the two calls of a step see
//! one path; here each call has noise of its own.
//!
//! A step from level s to s' takes two calls. Each goes from x, the latents at s, down to the ancestral level of its end and
//! up by noise: `x + (1 - d / s) (x0 - x) + u noise`. The first ends at `m = sqrt(s s')`, and its x0 is that at s; the
//! second ends at s', and its x0 is that at m. State 1 holds x. The last step, to no noise, has the first call only.
//! Inpainting departs from diffusers as that of `dpm2.rs` does.

use super::config::Config;
use super::euler::ancestral;
use super::levels;
use super::{NOISE, Table, X0};
use crate::error::Result;

/// The rows of DPM-Solver++ SDE, `2 steps - 1`; two states.
pub(super) fn table(config: &Config, steps: usize) -> Result<Table> {
    let levels = levels::sigma(config, steps)?;
    let middles: Vec<f64> = levels.sigmas.windows(2).map(|w| (w[0] * w[1]).sqrt()).collect();
    let between = levels::between(config, &middles);
    let mut rows = Vec::with_capacity(2 * steps - 1);
    for (i, &t) in levels.timesteps.iter().enumerate() {
        let (s, next, middle) = (levels.sigmas[i], levels.sigmas[i + 1], middles[i]);
        let (down, up) = ancestral(s, middle);
        let mut first = levels::sigma_row(config, t, s);
        first.next[0][0] = (down / s) as f32;
        first.next[0][X0] = (1.0 - down / s) as f32;
        first.next[0][NOISE] = up as f32;
        first.next[1][0] = 1.0;
        rows.push(first);
        if i + 1 < middles.len() {
            let (down, up) = ancestral(s, next);
            let mut second = levels::sigma_row(config, between[i], middle);
            second.next[0][1] = (down / s) as f32;
            second.next[0][X0] = (1.0 - down / s) as f32;
            second.next[0][NOISE] = up as f32;
            rows.push(second);
        }
    }
    Ok(levels::sigma_table(config, rows, 2, levels.sigmas[0]))
}
