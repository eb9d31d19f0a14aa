//! Linear multistep of order 4 on the probability flow (k-diffusion), as diffusers' scheduling_lms_discrete.py has it.
//!
//! With the derivatives `d = (x - x0) / s` of this call and up to three before, a step is `x' = x + sum_k c_k d_k`, where
//! c_k is the integral from s to s' of the Lagrange polynomial that is 1 at the level of d_k and 0 at the others'.
//! States 1, 2 and 3 hold the derivatives of the calls before, newest first.

use super::config::Config;
use super::{Table, X0, levels};
use crate::error::Result;

/// Most derivatives that a step is made of.
const ORDER: usize = 4;

/// The rows of linear multistep, four states, from call `begin` on.
///
/// Like diffusers, the weights of a part's first calls are those of the whole run, less the derivatives that are not there.
pub(super) fn table(config: &Config, steps: usize, begin: usize) -> Result<Table> {
    let levels = levels::sigma(config, steps)?;
    let row = |(i, &t): (usize, &f32)| {
        let (s, next) = (levels.sigmas[i], levels.sigmas[i + 1]);
        // Newest first.
        let nodes: Vec<f64> = levels.sigmas[..=i].iter().rev().take(ORDER).copied().collect();
        let mut row = levels::sigma_row(config, t, s);
        let newest = integral(&nodes, 0, next) / s;
        row.next[0][0] = (1.0 + newest) as f32;
        row.next[0][X0] = (0.0 - newest) as f32;
        for k in 1..nodes.len().min(i - begin + 1) {
            row.next[0][k] = integral(&nodes, k, next) as f32;
        }
        row.next[1][0] = (1.0 / s) as f32;
        row.next[1][X0] = (-1.0 / s) as f32;
        for k in 2..ORDER.min(i - begin + 2) {
            row.next[k][k - 1] = 1.0;
        }
        row
    };
    let rows = levels.timesteps.iter().enumerate().skip(begin).map(row).collect();
    Ok(levels::sigma_table(config, rows, ORDER, levels.sigmas[0]))
}

/// The integral from `nodes[0]` to `end` of the polynomial that is 1 at `nodes[k]` and 0 at the others, by the
/// Gauss-Legendre rule of two points, which is exact up to degree 3.
fn integral(nodes: &[f64], k: usize, end: f64) -> f64 {
    let (middle, half) = ((nodes[0] + end) / 2.0, (end - nodes[0]) / 2.0);
    let lagrange = |x: f64| -> f64 {
        let others = nodes.iter().enumerate().filter(|(j, _)| *j != k);
        others.map(|(_, node)| (x - node) / (nodes[k] - node)).product()
    };
    let offset = half / 3.0f64.sqrt();
    half * (lagrange(middle - offset) + lagrange(middle + offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integrals_are_exact_for_cubics() {
        let nodes = [2.0, 3.5, 4.0, 7.0];
        let cubic = |x: f64| 1.0 - x + 0.5 * x * x - 0.25 * x * x * x;
        let sum: f64 = (0..4).map(|k| integral(&nodes, k, 0.5) * cubic(nodes[k])).sum();
        let primitive = |x: f64| x - x * x / 2.0 + x.powi(3) / 6.0 - x.powi(4) / 16.0;
        assert!((sum - (primitive(0.5) - primitive(2.0))).abs() < 1e-12, "{sum}");
    }
}
