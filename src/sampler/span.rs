//! Which part of a run to make, as diffusers' image-to-image and refiner pipelines choose it.

use std::fmt;
use std::ops::Range;

use super::config::Config;
use super::names::Spacing;
use crate::error::{Error, Result};

/// Where a run begins.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Start {
    /// At its first call, from noise.
    #[default]
    Noise,
    /// Image to image: late enough that `strength` of the steps, rounded down, is left. 1 is the whole run, which then
    /// begins with a noised image instead of noise.
    Strength(f64),
    /// A refiner: at this share of the training steps, counted from the noisy end (`denoising_start`). The latents are
    /// those that another run has left.
    Fraction(f64),
}

/// A part of a run, from its beginning to its end unless told otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Span {
    /// Where it begins.
    pub start: Start,
    /// Where it ends: at this share of the training steps, counted from the noisy end (`denoising_end`).
    pub end: Option<f64>,
}

impl Span {
    /// The calls of this part, given the timestep of each call of the whole run.
    ///
    /// `get_timesteps` of diffusers' StableDiffusionXLImg2ImgPipeline, and the loops of the XL pipelines. With our own
    /// uniform spacing, which may have more calls than steps, strength counts from the clean end as CompVis' does.
    pub(super) fn calls(&self, config: &Config, steps: usize, timesteps: &[f32]) -> Result<Range<usize>> {
        self.check()?;
        let all = timesteps.len();
        let cutoff = |share: f64| {
            let train = config.train_steps as f64;
            (train - share * train).round_ties_even() as f32
        };
        let begin = match self.start {
            Start::Noise => 0,
            Start::Strength(strength) => {
                let kept = ((steps as f64 * strength) as usize).min(steps);
                match (config.kind.calls_twice(), config.spacing()) {
                    (true, _) => (2 * (steps - kept)).min(all),
                    (_, Spacing::Uniform) if kept < steps => all - kept,
                    _ => steps - kept,
                }
            }
            Start::Fraction(share) => {
                let left = timesteps.iter().filter(|&&t| t < cutoff(share)).count();
                // Not between the two calls of a step.
                let whole = config.kind.calls_twice() && left.is_multiple_of(2);
                all - (left + usize::from(whole)).min(all)
            }
        };
        let calls = match self.end {
            None => all - begin,
            Some(share) => timesteps[begin..].iter().filter(|&&t| t >= cutoff(share)).count(),
        };
        match calls {
            0 => Err(Error::request("steps", format!("enough that one falls {self}"), steps)),
            _ => Ok(begin..begin + calls),
        }
    }

    /// Refuses numbers that are no shares.
    fn check(&self) -> Result<()> {
        let wrong = |what: &str, expected: &str, got: f64| Err(Error::request(what, expected, got));
        let start = match self.start {
            Start::Noise => 0.0,
            Start::Strength(strength) if (0.0..=1.0).contains(&strength) => 0.0,
            Start::Strength(strength) => return wrong("strength", "0 to 1", strength),
            Start::Fraction(share) if (0.0..1.0).contains(&share) => share,
            Start::Fraction(share) => return wrong("denoising start", "0 to below 1", share),
        };
        match self.end {
            Some(end) if !(end > 0.0 && end <= 1.0) => wrong("denoising end", "above 0 to 1", end),
            Some(end) if end <= start => {
                Err(Error::request("denoising end", format!("more than the start, {start}"), end))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.start {
            Start::Noise if self.end.is_none() => write!(f, "into the run")?,
            Start::Noise => {}
            Start::Strength(strength) => write!(f, "into what strength {strength} makes anew")?,
            Start::Fraction(start) => write!(f, "after {start} of the run")?,
        }
        let space = if self.start == Start::Noise { "" } else { " " };
        self.end.map_or(Ok(()), |end| write!(f, "{space}before {end} of the run"))
    }
}
