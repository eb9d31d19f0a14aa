//! The noise schedule and the spacings of timesteps, as diffusers computes them.
//!
//! The schedule must agree with diffusers' to the last bit of f32: at the clean end 1 - alpha is about 1e-4, so one unit
//! in the last place of alpha moves sigma by 3e-4 of itself. Hence the f32 steps below, each of which mirrors torch.

use super::config::Config;
use super::names::{BetaSchedule, Spacing};
use crate::error::{Error, Result};

/// `alphas_cumprod`: the share of signal variance left at each of the `train_steps` timesteps, decreasing.
pub(super) fn alphas_cumprod(config: &Config) -> Vec<f32> {
    let (start, end, n) = (config.beta_start, config.beta_end, config.train_steps);
    let betas = match config.beta_schedule {
        BetaSchedule::Linear => linspace(start as f32, end as f32, n),
        BetaSchedule::ScaledLinear => {
            linspace(start.sqrt() as f32, end.sqrt() as f32, n).into_iter().map(|b| b * b).collect()
        }
    };
    // torch.cumprod accumulates f32 tensors in f64 on the CPU and rounds each element.
    let product = |product: &mut f64, beta: f32| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    };
    betas.into_iter().scan(1.0, product).collect()
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
    let train = config.train_steps;
    let points = steps + extra;
    let mut t: Vec<usize> = match spacing {
        // numpy rounds halves to even.
        Spacing::Linspace => {
            linspace_f64(0.0, (train - 1) as f64, points).iter().map(|t| t.round_ties_even() as usize).collect()
        }
        Spacing::Leading => (0..points).map(|i| i * (train / points) + config.steps_offset).collect(),
        Spacing::Trailing => trailing(train, steps),
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

/// `numpy.arange(train, 0, -train / steps).round() - 1`, cut to `steps` values.
///
/// For some step counts (61, 103, 998, ...) `train / steps` rounds down and numpy's range has one value more, a
/// timestep of -1. diffusers then indexes its table from the end, so that its last call destroys the picture; leaving
/// that call out is the only departure from diffusers here.
fn trailing(train: usize, steps: usize) -> Vec<usize> {
    let start = train as f64;
    // numpy's arange works out its first two values and goes on with their difference.
    let delta = (start - start / steps as f64) - start;
    (0..steps).map(|i| (start + i as f64 * delta).round_ties_even() as usize).map(|t| t.saturating_sub(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_torch_bit_for_bit() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/schedules.safetensors");
        let bytes = std::fs::read(path).expect(path);
        let file = safetensors::SafeTensors::deserialize(&bytes).expect(path);
        let scaled = Config {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            ..Config::default()
        };
        for config in [Config::default(), scaled] {
            let name = format!("{}.alphas_cumprod", config.beta_schedule);
            let want: Vec<f32> =
                file.tensor(&name).expect(&name).data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
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
            let t = trailing(1000, steps);
            assert_eq!(t[0], 999, "{steps} steps");
            assert_eq!(t.len(), steps);
            assert!(t[steps - 1] <= 1000 / steps, "{steps} steps end at {}", t[steps - 1]);
            assert!(t.windows(2).all(|w| w[0] > w[1]), "{steps} steps: not decreasing");
        }
    }
}
