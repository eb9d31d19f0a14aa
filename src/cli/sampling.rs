//! Options of the sampler, for commands that run one.

use aquatint::pipeline::Request;
use aquatint::sampler::{Kind, Spacing, Variance};
use aquatint::{Error, Result};
use clap::{Args, ValueEnum};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sigmas {
    /// Those of the timesteps
    Normal,
    /// After Karras et al. 2022
    Karras,
    /// Evenly spaced logarithms
    Exponential,
}

/// Settings of the sampler; what is not given is as the model was saved.
#[derive(Args, Clone)]
pub struct Sampling {
    /// ddim, ddpm, pndm, euler, euler-a, heun, dpm++2m, dpm++2m-sde, dpm++2s, lms, unipc, lcm or iddpm (ddpm with
    /// learned variance) [default: the one the model was saved with]
    #[arg(long, alias = "sampling-method", value_name = "NAME")]
    sampler: Option<String>,
    /// ddim: noise added at each step, from 0, none, to 1, as much as ddpm
    #[arg(long, aliases = ["ddim-eta", "ddim_eta"], value_name = "ETA")]
    eta: Option<f32>,
    /// How timesteps are spread: leading, linspace or trailing, with ddim also uniform or quad
    #[arg(long, alias = "timestep_spacing", value_name = "NAME")]
    timestep_spacing: Option<Spacing>,
    /// How noise levels are spread (dpm++, euler, heun, lms, unipc)
    #[arg(long, value_enum, value_name = "NAME")]
    sigmas: Option<Sigmas>,
    /// ddpm: noise of each step, fixed_small, fixed_large or learned_range
    #[arg(long, alias = "variance-type", value_name = "NAME")]
    variance: Option<Variance>,
    /// Keep predicted clean latents within -1 to 1 (ddim, ddpm, heun, lcm)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    clip_sample: Option<bool>,
    /// How much of the contrast that guidance adds is taken back, 0 to 1 (0.7 is common) [default: 0]
    #[arg(long, alias = "guidance_rescale", value_name = "PHI")]
    guidance_rescale: Option<f32>,
}

impl Sampling {
    /// Sets these options in `request`.
    pub fn apply(&self, request: &mut Request) -> Result<()> {
        let config = &mut request.sampler;
        if let Some(name) = &self.sampler {
            *config = config.named(name)?;
        }
        let kind = config.kind;
        let only = |option: &str, kinds: &[Kind]| match kinds.contains(&kind) {
            true => Ok(()),
            false => {
                let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
                Err(Error::request(option, format!("a sampler that knows it ({})", names.join(", ")), kind))
            }
        };
        if let Some(eta) = self.eta {
            if eta != 0.0 {
                only("--eta", &[Kind::Ddim])?;
            }
            config.eta = eta;
        }
        if let Some(spacing) = self.timestep_spacing {
            if matches!(kind, Kind::Lcm | Kind::DpmSolverPp2S) {
                return Err(Error::request("--timestep-spacing", "a sampler that has a choice of it", kind));
            }
            config.spacing = Some(spacing);
        }
        if let Some(sigmas) = self.sigmas {
            if sigmas != Sigmas::Normal {
                let kinds: Vec<_> = Kind::ALL.iter().copied().filter(|kind| kind.has_sigmas()).collect();
                only("--sigmas", &kinds)?;
            }
            config.use_karras_sigmas = sigmas == Sigmas::Karras;
            config.use_exponential_sigmas = sigmas == Sigmas::Exponential;
        }
        if let Some(variance) = self.variance {
            only("--variance", &[Kind::Ddpm])?;
            config.variance = Some(variance);
        }
        if let Some(clip) = self.clip_sample {
            if clip {
                only("--clip-sample", &[Kind::Ddim, Kind::Ddpm, Kind::Heun, Kind::Lcm])?;
            }
            config.clip_sample = Some(clip);
        }
        request.guidance_rescale = self.guidance_rescale.unwrap_or(request.guidance_rescale);
        Ok(())
    }
}
