//! DEIS in log-rho, multistep (Zhang and Chen, arXiv 2204.13902), as diffusers' scheduling_deis_multistep.py has it.
//!
//! With the ratio s = sigma / alpha and the noise e that each call predicts, a step is
//! `x' = alpha' (x / alpha + sum_k c_k e_k)`, where c_k is the integral from s to s' of the Lagrange polynomial in ln s
//! that is 1 at the level of e_k and 0 at the others'. Levels never end at 0. States 1 and 2 hold the noise of the calls
//! before, newest first.

use super::config::Config;
use super::dpm::FEW_CALLS;
use super::levels::{self, split};
use super::{Table, X0};
use crate::error::Result;

/// The rows of DEIS of order 1 to 3, with as many states, from call `begin` on.
pub(super) fn table(config: &Config, steps: usize, begin: usize) -> Result<Table> {
    let levels = levels::solver(config, steps)?;
    let sigmas = &levels.sigmas;
    let (calls, most) = (levels.timesteps.len(), config.order());
    let few = config.lower_order_final && calls < FEW_CALLS;
    let order = |i: usize| if few { most.min(calls - i) } else { most }.min(i - begin + 1);
    let row = |(i, &t): (usize, &f32)| {
        let (s, next) = (sigmas[i], sigmas[i + 1]);
        let (signal, sigma) = split(s);
        let mut row = levels::solver_row(config, t, s);
        // Newest first.
        let nodes: Vec<f64> = sigmas[i + 1 - order(i)..=i].iter().rev().copied().collect();
        let scale = split(next).0;
        let newest = integral(&nodes, 0, next);
        row.next[0][0] = (scale * (1.0 / signal + newest / sigma)) as f32;
        row.next[0][X0] = (0.0 - scale * newest * signal / sigma) as f32;
        for k in 1..nodes.len() {
            row.next[0][k] = (scale * integral(&nodes, k, next)) as f32;
        }
        if most > 1 {
            row.next[1][0] = (1.0 / sigma) as f32;
            row.next[1][X0] = (0.0 - signal / sigma) as f32;
        }
        if most > 2 && i > begin {
            row.next[2][1] = 1.0;
        }
        row
    };
    Ok(Table::new(levels.timesteps.iter().enumerate().skip(begin).map(row).collect(), most))
}

/// The integral from `nodes[0]` to `end`, over s, of the polynomial in ln s that is 1 at `nodes[k]` and 0 at the others.
fn integral(nodes: &[f64], k: usize, end: f64) -> f64 {
    let others: Vec<f64> = (0..nodes.len()).filter(|&j| j != k).map(|j| nodes[j].ln()).collect();
    // Antiderivatives of the products of (ln s - ln c) over the other nodes c.
    let primitive = |s: f64| {
        let l = s.ln();
        match others[..] {
            [] => s,
            [c] => s * (l - c - 1.0),
            [c, d] => s * (l * l - (2.0 + c + d) * l + 2.0 + c + d + c * d),
            _ => unreachable!("order 3 at most"),
        }
    };
    let width: f64 = others.iter().map(|c| nodes[k].ln() - c).product();
    (primitive(end) - primitive(nodes[0])) / width
}
