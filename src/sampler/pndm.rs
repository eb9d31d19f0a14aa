//! Pseudo linear multistep sampling, "PLMS" (Liu et al., arXiv 2202.09778), as diffusers' scheduling_pndm.py has it with
//! `skip_prk_steps`, and CompVis' Stable Diffusion.
//!
//! Each step is one of DDIM's with a mean of the last four outputs, by the Adams-Bashforth formulas. The first step is
//! improved by a second call at its end, hence one call more than steps. With a = alphas_cumprod at the timestep and a'
//! one stride earlier, formula 11: `x' = sqrt(a' / a) x - (a' - a) eps / (a sqrt(1 - a') + sqrt(a (1 - a) a'))`.
//!
//! States 1, 2 and 3 hold the outputs of the calls before, newest first; state 2 holds the initial latents until the
//! second call has used them.

use super::config::Config;
use super::names::Prediction;
use super::{COLUMNS, OUTPUT, Row, Table, ddim, schedule};
use crate::error::Result;

/// Weights of the newest output and of those in states 1, 2 and 3, by the number of outputs that there are.
const WEIGHTS: [[f64; 4]; 4] = [
    [1.0, 0.0, 0.0, 0.0],
    [3.0 / 2.0, -1.0 / 2.0, 0.0, 0.0],
    [23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0, 0.0],
    [55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// The rows of PLMS, `steps + 1` (one for a single step), four states; or those from call `begin` on, of which the second
/// then improves the first although it is a step ahead, as in diffusers.
pub(super) fn table(config: &Config, steps: usize, begin: usize) -> Result<Table> {
    let alphas = schedule::alphas_cumprod(config);
    let stride = config.train_steps / steps;
    let last = if config.set_alpha_to_one.unwrap_or(false) { 1.0 } else { f64::from(alphas[0]) };
    let mut timesteps = schedule::timesteps(config, config.spacing(), steps, 0)?;
    if let Some(&second) = timesteps.get(1) {
        timesteps.insert(1, second);
    }
    let row = |(call, &t): (usize, &usize)| {
        let (from, to) = if call == 1 { (t + stride, Some(t)) } else { (t, t.checked_sub(stride)) };
        let step =
            Step { from: f64::from(alphas[from.min(alphas.len() - 1)]), to: to.map_or(last, |t| f64::from(alphas[t])) };
        let mut row = Row::new(t as f32, ddim::level(f64::from(alphas[t])));
        // Not used below; what it is worth knowing for is the same as in every other sampler.
        row.x0 = ddim::x0(config.prediction, f64::from(alphas[t])).map(|c| c as f32);
        match call {
            0 => {
                step.fill(config, &mut row.next[0], 0, WEIGHTS[0]);
                row.next[1][OUTPUT] = 1.0;
                row.next[2][0] = 1.0;
            }
            1 => {
                step.fill(config, &mut row.next[0], 2, [0.5, 0.5, 0.0, 0.0]);
                row.next[1][1] = 1.0;
            }
            _ => {
                step.fill(config, &mut row.next[0], 0, WEIGHTS[(call - 1).min(3)]);
                row.next[1][OUTPUT] = 1.0;
                row.next[2][1] = 1.0;
                row.next[3][2] = 1.0;
            }
        }
        row
    };
    Ok(Table::new(timesteps[begin..].iter().enumerate().map(row).collect(), 4))
}

/// One step between two noise levels, both as alphas_cumprod.
struct Step {
    from: f64,
    to: f64,
}

impl Step {
    /// Fills `next` with the step of the latents in `state` along the mean of the outputs with these `weights`.
    fn fill(&self, config: &Config, next: &mut [f32; COLUMNS], state: usize, weights: [f64; 4]) {
        let Step { from, to } = *self;
        let eps = -(to - from) / (from * (1.0 - to).sqrt() + (from * (1.0 - from) * to).sqrt());
        let mut latents = (to / from).sqrt();
        let mut output = eps;
        // The noise is then sqrt(a) v + sqrt(1 - a) x, with the latents that the step starts from.
        if config.prediction == Prediction::VPrediction {
            latents += eps * (1.0 - from).sqrt();
            output *= from.sqrt();
        }
        for (column, weight) in [OUTPUT, 1, 2, 3].into_iter().zip(weights) {
            next[column] = (output * weight) as f32;
        }
        next[state] = latents as f32;
    }
}
