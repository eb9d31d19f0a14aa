//! Noise levels as ratios s = sigma / alpha, for the samplers that are solvers of the probability flow in s: the levels
//! of a run, spread over s in a way of their own if so configured, and the timesteps that belong to them.
//!
//! diffusers has two families. The [`solver()`] family (DPM-Solver++, UniPC, DEIS) spans Karras' levels over the whole schedule
//! and calls the model at whole timesteps; the [`sigma()`] family (Euler, Heun, LMS, DPM2, after k-diffusion) spans them over the
//! run's own timesteps and keeps fractions. In the second, latents are scaled so that alpha is 1 throughout.
//!
//! Levels are f32 numbers, as in diffusers.

use super::config::Config;
use super::names::{BetaSchedule, FinalSigma, Prediction, SamplerKind, Spacing};
use super::{Row, Table, beta, schedule};
use crate::error::{Error, Result};

/// The timesteps of a run and its noise levels.
pub(super) struct Levels {
    /// One per step.
    pub timesteps: Vec<f32>,
    /// One per step and the final one, decreasing.
    pub sigmas: Vec<f64>,
}

/// Levels for DPM-Solver++, UniPC and DEIS.
pub(super) fn solver(config: &Config, steps: usize) -> Result<Levels> {
    let table = ratios(config);
    let (min, max) = (f64::from(table[0]), f64::from(table[table.len() - 1]));
    let (timesteps, sigmas) = if let Some(sigmas) = respaced(config, min, max, steps) {
        let timesteps = timesteps_of(&table, &sigmas);
        // Timesteps of Karras' and Lu's levels are rounded, the others cut off.
        let rounded = config.use_karras_sigmas || config.lambdas();
        let cut = config.kind.is_multistep_dpm() && config.beta_schedule == BetaSchedule::SquaredCos;
        let whole = |t: f64| if rounded && !cut { t.round_ties_even() } else { t.trunc() };
        (timesteps.into_iter().map(whole).collect(), sigmas)
    } else {
        // The singlestep solver has no other spacing.
        let spacing = if config.kind == SamplerKind::DpmSolverPp2S { Spacing::Linspace } else { config.spacing() };
        let timesteps = schedule::timesteps_below(config, unclipped(config, &table), spacing, steps, 1)?;
        let sigmas = timesteps.iter().map(|&t| f64::from(table[t])).collect();
        (timesteps.into_iter().map(|t| t as f64).collect(), sigmas)
    };
    // UniPC and DEIS repeat their own last level, which is `min` but for rounding.
    let last = match (config.kind, sigmas.last()) {
        (SamplerKind::UniPc | SamplerKind::Deis, Some(&last)) if config.by_level() => last,
        _ => min,
    };
    finish(config, timesteps, sigmas, last, true)
}

/// Training steps whose lambda is not below the least that the configuration allows: those from the clean end on.
fn unclipped(config: &Config, table: &[f32]) -> usize {
    let least = config.lambda_min_clipped.filter(|_| config.kind.is_dpm());
    least.map_or(table.len(), |least| table.partition_point(|&s| -f64::from(s).ln() >= least))
}

/// Levels for Euler's, Heun's and the linear multistep method, and those that call at a level between.
pub(super) fn sigma(config: &Config, steps: usize) -> Result<Levels> {
    let table = ratios(config);
    let timesteps: Vec<f64> = match config.spacing() {
        Spacing::Linspace => {
            let t = schedule::linspace_f64(0.0, (config.train_steps - 1) as f64, steps);
            t.into_iter().rev().map(|t| f64::from(t as f32)).collect()
        }
        spacing => schedule::timesteps(config, spacing, steps, 0)?.into_iter().map(|t| t as f64).collect(),
    };
    let even: Vec<f64> = timesteps.iter().map(|&t| interpolated(&table, t)).collect();
    // The ancestral sampler of diffusers has neither these nor a choice of the last level.
    let ancestral = config.kind == SamplerKind::EulerAncestral;
    let respaced = respaced(config, even[even.len() - 1], even[0], steps).filter(|_| !ancestral);
    let (timesteps, sigmas) = match respaced {
        Some(sigmas) => {
            let timesteps = timesteps_of(&table, &sigmas);
            let rounded =
                config.use_karras_sigmas && matches!(config.kind, SamplerKind::Dpm2 | SamplerKind::Dpm2Ancestral);
            let whole = |t: f64| if rounded { t.round_ties_even() } else { t };
            (timesteps.into_iter().map(whole).collect(), sigmas)
        }
        None => (timesteps, even),
    };
    finish(config, timesteps, sigmas, f64::from(table[0]), config.kind == SamplerKind::Lms)
}

/// Rounds the levels as diffusers does and appends the final one, `last` if not 0.
///
/// Where levels must be `distinct`, two calls at one level would divide 0 by 0; diffusers yields NaN there.
fn finish(config: &Config, timesteps: Vec<f64>, sigmas: Vec<f64>, last: f64, distinct: bool) -> Result<Levels> {
    let mut sigmas: Vec<f64> = sigmas.into_iter().map(|s| f64::from(s as f32)).collect();
    if distinct && sigmas.windows(2).any(|w| w[0] <= w[1]) {
        return Err(Error::request(
            "steps",
            format!("fewer than {} steps, or the trailing spacing", config.train_steps),
            format!("{} steps, of which two fall on the same timestep", sigmas.len()),
        ));
    }
    let zero = match config.kind {
        SamplerKind::Deis => false,
        SamplerKind::EulerAncestral | SamplerKind::Lms => true,
        kind if kind.calls_twice() => true,
        _ => config.final_sigma == FinalSigma::Zero,
    };
    sigmas.push(if zero { 0.0 } else { f64::from(last as f32) });
    Ok(Levels { timesteps: timesteps.into_iter().map(|t| t as f32).collect(), sigmas })
}

/// sigma / alpha at each training step, growing.
fn ratios(config: &Config) -> Vec<f32> {
    schedule::alphas_cumprod(config).iter().map(|a| ((1.0 - a) / a).sqrt()).collect()
}

/// `n` levels from `max` down to `min` if the configuration wants them spaced by level rather than by timestep.
fn respaced(config: &Config, min: f64, max: f64, n: usize) -> Option<Vec<f64>> {
    let in_logarithms = |max: f64, min: f64| schedule::linspace_f64(max, min, n).into_iter().map(f64::exp).collect();
    if config.use_karras_sigmas {
        Some(karras(min, max, n))
    } else if config.lambdas() {
        // The same as exponential levels, but that logarithms are f32 numbers.
        Some(in_logarithms(f64::from(max.ln() as f32), f64::from(min.ln() as f32)))
    } else if config.use_exponential_sigmas {
        Some(in_logarithms(max.ln(), min.ln()))
    } else if config.use_beta_sigmas {
        let shares = schedule::linspace_f64(0.0, 1.0, n).into_iter().map(|share| beta::quantile(1.0 - share));
        Some(shares.map(|share| min + share * (max - min)).collect())
    } else {
        None
    }
}

/// The noise levels of Karras et al. (arXiv 2206.00364, formula 5, rho = 7), from `max` down to `min`.
fn karras(min: f64, max: f64, n: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (min, max) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
    schedule::linspace_f64(0.0, 1.0, n).iter().map(|ramp| (max + ramp * (min - max)).powf(RHO)).collect()
}

/// The level at the fractional timestep `t`.
fn interpolated(table: &[f32], t: f64) -> f64 {
    let low = (t as usize).min(table.len() - 2);
    let (a, b) = (f64::from(table[low]), f64::from(table[low + 1]));
    let w = t - low as f64;
    if w == 1.0 { b } else { (b - a) * w + a }
}

/// The fractional timesteps of the levels between, `middles`.
pub(super) fn between(config: &Config, middles: &[f64]) -> Vec<f32> {
    timesteps_of(&ratios(config), middles).into_iter().map(|t| t as f32).collect()
}

/// The fractional timesteps whose ln(sigma / alpha) are those of `sigmas`.
fn timesteps_of(table: &[f32], sigmas: &[f64]) -> Vec<f64> {
    let log_table: Vec<f32> = table.iter().map(|&s| f64::from(s).ln() as f32).collect();
    let timestep = |&sigma: &f64| {
        let log = sigma.max(1e-10).ln();
        let low = log_table.partition_point(|&s| f64::from(s) <= log).saturating_sub(1).min(log_table.len() - 2);
        let (a, b) = (log_table[low], log_table[low + 1]);
        let w = ((f64::from(a) - log) / f64::from(a - b)).clamp(0.0, 1.0);
        (1.0 - w) * low as f64 + w * (low + 1) as f64
    };
    sigmas.iter().map(timestep).collect()
}

/// (alpha, sigma) with alpha^2 + sigma^2 = 1 and sigma / alpha = `s`.
pub(super) fn split(s: f64) -> (f64, f64) {
    let alpha = 1.0 / (s * s + 1.0).sqrt();
    (alpha, s * alpha)
}

/// A row of the solver family: x0 from latents at level `s`; nothing in `next` yet.
pub(super) fn solver_row(config: &Config, timestep: f32, s: f64) -> Row {
    let (signal, sigma) = split(s);
    let x0 = match config.prediction {
        Prediction::Epsilon => [1.0 / signal, -sigma / signal],
        Prediction::VPrediction => [signal, -sigma],
        Prediction::Sample => [0.0, 1.0],
    };
    let mut row = Row::new(timestep, [signal, sigma]);
    row.x0 = x0.map(|c| c as f32);
    row
}

/// A row of the sigma family: the model's input and x0 from latents at level `s`; nothing in `next` yet.
pub(super) fn sigma_row(config: &Config, timestep: f32, s: f64) -> Row {
    let (signal, sigma) = split(s);
    let x0 = match config.prediction {
        Prediction::Epsilon => [1.0, -s],
        Prediction::VPrediction => [signal * signal, -sigma],
        Prediction::Sample => [0.0, 1.0],
    };
    let mut row = Row::new(timestep, [1.0, s]);
    row.input_scale = signal as f32;
    row.x0 = x0.map(|c| c as f32);
    row
}

/// A table of the sigma family, whose initial latents have the noise of the first level, in f32 as diffusers has it.
pub(super) fn sigma_table(config: &Config, rows: Vec<Row>, states: usize, first: f64) -> Table {
    let first = first as f32;
    let init_scale = match config.spacing() {
        Spacing::Leading => (first * first + 1.0).sqrt(),
        _ => first,
    };
    Table { init_scale, ..Table::new(rows, states) }
}
