//! The noise schedule and the spacings of timesteps, as diffusers computes them.
//!
//! The schedule must agree with diffusers' to the last bit of f32: at the clean end 1 - alpha is about 1e-4, so one unit
//! in the last place of alpha moves sigma by 3e-4 of itself. Hence the f32 steps below, each of which mirrors torch.

use std::f64::consts::PI;

use super::config::Config;
use super::names::{BetaSchedule, Spacing};
use crate::error::{Error, Result};

/// `alphas_cumprod`: the share of signal variance left at each of the `train_steps` timesteps, decreasing.
pub(super) fn alphas_cumprod(config: &Config) -> Vec<f32> {
    let betas = betas(config);
    let Some(least) = config.kind.least_signal().filter(|_| config.rescale_betas_zero_snr) else {
        return products(&betas);
    };
    let mut alphas = products(&rescaled(&betas));
    if let Some(last) = alphas.last_mut().filter(|_| least > 0.0) {
        *last = least;
    }
    alphas
}

/// The share of variance that each training step adds as noise.
fn betas(config: &Config) -> Vec<f32> {
    let (start, end, n) = (config.beta_start, config.beta_end, config.train_steps);
    if let Some(betas) = &config.trained_betas {
        return betas.clone();
    }
    match config.beta_schedule {
        BetaSchedule::Linear => linspace(start as f32, end as f32, n),
        BetaSchedule::ScaledLinear => {
            linspace(start.sqrt() as f32, end.sqrt() as f32, n).into_iter().map(|b| b * b).collect()
        }
        BetaSchedule::SquaredCos => of_signal(n, |t| ((t + 0.008) / 1.008 * PI / 2.0).cos().powi(2)),
        BetaSchedule::Exp => of_signal(n, |t| (t * -12.0).exp()),
        BetaSchedule::Laplace => of_signal(n, |t| {
            let lambda = -0.5 * 1.0f64.copysign(0.5 - t) * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
            let ratio = lambda.exp();
            (ratio / (1.0 + ratio)).sqrt()
        }),
        BetaSchedule::Sigmoid => {
            let logistic = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp() as f32);
            linspace(-6.0, 6.0, n).into_iter().map(|x| logistic(x) * (end - start) as f32 + start as f32).collect()
        }
    }
}

/// The betas by which the share of signal follows `signal` over the time from 0 to 1, none above 0.999.
fn of_signal(n: usize, signal: impl Fn(f64) -> f64) -> Vec<f32> {
    let beta = |i: usize| 1.0 - signal((i + 1) as f64 / n as f64) / signal(i as f64 / n as f64);
    (0..n).map(|i| beta(i).min(0.999) as f32).collect()
}

/// Betas shifted and stretched so that the last leaves no signal and the first stays what it was (Lin et al., arXiv
/// 2305.08891, Algorithm 1).
fn rescaled(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = products(betas).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let signal: Vec<f32> = roots.iter().map(|root| (root - last) * (first / (first - last))).map(|r| r * r).collect();
    let steps = std::iter::once(signal[0]).chain(signal.windows(2).map(|w| w[1] / w[0]));
    steps.map(|alpha| 1.0 - alpha).collect()
}

/// `torch.cumprod(1 - betas)`, which accumulates f32 tensors in f64 on the CPU and rounds each element.
fn products(betas: &[f32]) -> Vec<f32> {
    let product = |product: &mut f64, beta: &f32| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    };
    betas.iter().scan(1.0, product).collect()
}

/// `torch.linspace` in f32: each half counts from its own end, with a fused multiply-add.
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    if n == 1 {
        return vec![start];
    }
    let step = (end - start) / (n - 1) as f32;
    let value = |i: usize| match i < n / 2 {
        true => step.mul_add(i as f32, start),
        false => (-step).mul_add((n - i - 1) as f32, end),
    };
    (0..n).map(value).collect()
}

/// `numpy.linspace(start, end, n)` in f64: counts from the start, and the last value is `end` itself.
pub(super) fn linspace_f64(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = (end - start) / n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| if i > 0 && i + 1 == n { end } else { i as f64 * step + start }).collect()
}

/// The timesteps of a run, noisiest first (`set_timesteps` of the diffusers schedulers).
///
/// `extra` is how many points a sampler spaces out beyond `steps`, to drop the cleanest: DDIM none, the DPM solvers one
/// with the leading and linspace spacings. The first three names are those of Table 2 of Lin et al., "Common Diffusion Noise
/// Schedules and Sample Steps are Flawed" (arXiv 2305.08891).
pub(super) fn timesteps(config: &Config, spacing: Spacing, steps: usize, extra: usize) -> Result<Vec<usize>> {
    timesteps_below(config, config.train_steps, spacing, steps, extra)
}

/// The same, of the training steps below `train` alone.
pub(super) fn timesteps_below(
    config: &Config,
    train: usize,
    spacing: Spacing,
    steps: usize,
    extra: usize,
) -> Result<Vec<usize>> {
    let points = steps + extra;
    let mut t: Vec<usize> = match spacing {
        // numpy rounds halves to even.
        Spacing::Linspace => {
            linspace_f64(0.0, (train - 1) as f64, points).iter().map(|t| t.round_ties_even() as usize).collect()
        }
        Spacing::Leading => (0..points).map(|i| i * (train / points) + config.steps_offset).collect(),
        Spacing::Trailing => trailing(train, config.train_steps as f64 / steps as f64, steps),
        Spacing::Uniform => (0..train).step_by(train / steps).map(|t| t + config.steps_offset).collect(),
        // `numpy.linspace(0, sqrt(0.8 T), S) ** 2`, cut to whole numbers.
        Spacing::Quad => {
            let roots = linspace_f64(0.0, (0.8 * train as f64).sqrt(), steps);
            roots.iter().map(|r| (r * r) as usize + config.steps_offset).collect()
        }
    };
    if spacing != Spacing::Trailing {
        t.reverse();
    }
    if matches!(spacing, Spacing::Leading | Spacing::Linspace) {
        t.truncate(steps);
    }
    match t.iter().find(|&&t| t >= train) {
        Some(bad) => Err(Error::request(
            "steps",
            format!(
                "fewer steps: {spacing} spacing with steps_offset {} must stay below {train} train steps",
                config.steps_offset
            ),
            format!("{steps} steps, which reach timestep {bad}"),
        )),
        None => Ok(t),
    }
}

/// `numpy.arange(train, 0, -stride).round() - 1`, cut to `steps` values.
///
/// For some step counts (61, 103, 998, ...) `train / steps` rounds down and numpy's range has one value more, a
/// timestep of -1. diffusers then indexes its table from the end, so that its last call destroys the picture; leaving
/// that call out is the only departure from diffusers here.
fn trailing(train: usize, stride: f64, steps: usize) -> Vec<usize> {
    let start = train as f64;
    // numpy's arange works out its first two values and goes on with their difference.
    let delta = (start - stride) - start;
    let points = ((start / stride).ceil() as usize).min(steps);
    (0..points).map(|i| (start + i as f64 * delta).round_ties_even() as usize).map(|t| t.saturating_sub(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::SamplerKind;

    #[test]
    fn schedules_are_torch_bit_for_bit() {
        let bytes = ["schedules", "schedules_more"].map(|name| {
            let path = format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
            std::fs::read(&path).expect(&path)
        });
        let files = bytes.each_ref().map(|bytes| safetensors::SafeTensors::deserialize(bytes).expect("a fixture"));
        let scaled = Config {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            ..Config::default()
        };
        let of = |beta_schedule| Config { beta_schedule, ..Config::default() };
        let others =
            [BetaSchedule::SquaredCos, BetaSchedule::Exp, BetaSchedule::Laplace, BetaSchedule::Sigmoid].map(of);
        let rescaled = |kind| Config { rescale_betas_zero_snr: true, kind, ..scaled.clone() };
        let named = [Config::default(), scaled.clone()].into_iter().chain(others);
        let named = named.map(|config| (config.beta_schedule.to_string(), config));
        let zero = [("zero_snr", SamplerKind::Ddim), ("least_snr", SamplerKind::Euler)];
        let zero = zero.map(|(name, kind)| (name.to_owned(), rescaled(kind)));
        for (name, config) in named.chain(zero) {
            let name = format!("{name}.alphas_cumprod");
            let found = files.iter().find_map(|file| file.tensor(&name).ok()).expect(&name);
            let want: Vec<f32> = found.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            assert_eq!(alphas_cumprod(&config), want, "{name}");
        }
    }

    #[test]
    fn linspace_ends_where_it_should() {
        assert_eq!(linspace(1.0, 3.0, 5), [1.0, 1.5, 2.0, 2.5, 3.0]);
        assert_eq!(linspace(0.25, 3.0, 1), [0.25]);
        assert_eq!(linspace_f64(0.0, 999.0, 1), [0.0]);
        assert_eq!(linspace_f64(0.0, 999.0, 3), [0.0, 499.5, 999.0]);
    }

    #[test]
    fn trailing_keeps_the_ends() {
        for steps in 1..=1000 {
            let t = trailing(1000, 1000.0 / steps as f64, steps);
            assert_eq!(t[0], 999, "{steps} steps");
            assert_eq!(t.len(), steps);
            assert!(t[steps - 1] <= 1000 / steps, "{steps} steps end at {}", t[steps - 1]);
            assert!(t.windows(2).all(|w| w[0] > w[1]), "{steps} steps: not decreasing");
        }
    }
}
