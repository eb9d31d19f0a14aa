//! Heun's method on the probability flow (Karras et al., arXiv 2206.00364, Algorithm 1 without churn), as diffusers'
//! scheduling_heun_discrete.py has it.
//!
//! A step from level s to s' takes two calls. The first, at s, is Euler's: `x1 = x + h d(x, s)` with h = s' - s and
//! `d(x, s) = (x - x0) / s`. The second, at s', is `x' = x + h (d(x, s) + d(x1, s')) / 2`. State 1 holds the part of it
//! that is known after the first call, `x + h d(x, s) / 2`. The last step, to no noise, has the first call only.

use super::config::Config;
use super::{Table, X0, levels};
use crate::error::Result;

/// The rows of Heun's method, `2 steps - 1`; two states.
pub(super) fn table(config: &Config, steps: usize) -> Result<Table> {
    let levels = levels::sigma(config, steps)?;
    let mut rows = Vec::with_capacity(2 * steps - 1);
    for i in 0..steps {
        let (s, next) = (levels.sigmas[i], levels.sigmas[i + 1]);
        let mut first = levels::sigma_row(config, levels.timesteps[i], s);
        first.clamp = config.clamp();
        first.next[0][0] = (next / s) as f32;
        first.next[0][X0] = (1.0 - next / s) as f32;
        let half = (1.0 - next / s) / 2.0;
        first.next[1][0] = (1.0 - half) as f32;
        first.next[1][X0] = half as f32;
        rows.push(first);
        if i + 1 < steps {
            let mut second = levels::sigma_row(config, levels.timesteps[i + 1], next);
            second.clamp = config.clamp();
            let half = (next - s) / next / 2.0;
            second.next[0][0] = half as f32;
            second.next[0][1] = 1.0;
            second.next[0][X0] = (0.0 - half) as f32;
            rows.push(second);
        }
    }
    Ok(levels::sigma_table(config, rows, 2, levels.sigmas[0]))
}
