//! Steps, guidance and the sampler.

use crate::error::{Error, Result};
use crate::pipeline::Request;
use crate::sampler::{SamplerKind, Spacing, Variance};

/// How noise levels are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sigmas {
    /// Those of the timesteps.
    Normal,
    /// After Karras et al. 2022.
    Karras,
    /// Evenly spaced logarithms.
    Exponential,
    /// After the beta distribution of (0.6, 0.6).
    Beta,
    /// Evenly spaced lambdas, as Lu et al. 2022 have them.
    Lu,
}

/// Settings of the sampler; what is absent is as the model was saved.
#[derive(Clone, Debug, Default)]
pub struct SamplingOptions {
    /// Sampler steps.
    pub steps: Option<usize>,
    /// Guidance scale; 1 or less turns guidance off.
    pub cfg_scale: Option<f32>,
    /// How much of the contrast that guidance adds is taken back, 0 to 1.
    pub guidance_rescale: Option<f32>,
    /// A sampler's name, as [`Config::named`](crate::sampler::Config::named) knows them.
    pub sampler: Option<String>,
    /// DDIM, TCD: noise added at each step, from 0, none, to 1, as much as DDPM.
    pub eta: Option<f32>,
    /// How timesteps are spread.
    pub timestep_spacing: Option<Spacing>,
    /// How noise levels are spread.
    pub sigmas: Option<Sigmas>,
    /// DDPM: the noise of each step.
    pub variance: Option<Variance>,
    /// Whether predicted clean latents are kept within -1 to 1.
    pub clip_sample: Option<bool>,
}

impl SamplingOptions {
    /// Sets these options in `request`.
    pub(super) fn apply(&self, request: &mut Request) -> Result<()> {
        request.steps = self.steps.unwrap_or(request.steps);
        request.guidance_scale = self.cfg_scale.unwrap_or(request.guidance_scale);
        request.guidance_rescale = self.guidance_rescale.unwrap_or(request.guidance_rescale);
        let config = &mut request.sampler;
        if let Some(name) = &self.sampler {
            *config = config.named(name)?;
        }
        let kind = config.kind;
        if let Some(eta) = self.eta {
            if eta != 0.0 {
                only("eta", kind, &[SamplerKind::Ddim, SamplerKind::Tcd])?;
            }
            config.eta = eta;
        }
        if let Some(spacing) = self.timestep_spacing {
            if matches!(kind, SamplerKind::Lcm | SamplerKind::Tcd | SamplerKind::DpmSolverPp2S) {
                return Err(Error::request("timestep-spacing", "a sampler that has a choice of it", kind));
            }
            config.spacing = Some(spacing);
        }
        if let Some(sigmas) = self.sigmas {
            if sigmas != Sigmas::Normal {
                let has = if sigmas == Sigmas::Lu { SamplerKind::has_lambdas } else { SamplerKind::has_sigmas };
                let kinds: Vec<_> = SamplerKind::ALL.iter().copied().filter(|&kind| has(kind)).collect();
                only("sigmas", kind, &kinds)?;
            }
            config.use_karras_sigmas = sigmas == Sigmas::Karras;
            config.use_exponential_sigmas = sigmas == Sigmas::Exponential;
            config.use_beta_sigmas = sigmas == Sigmas::Beta;
            config.use_lu_lambdas = sigmas == Sigmas::Lu;
        }
        if let Some(variance) = self.variance {
            only("variance", kind, &[SamplerKind::Ddpm])?;
            config.variance = Some(variance);
        }
        if let Some(clip) = self.clip_sample {
            if clip {
                let kinds = [SamplerKind::Ddim, SamplerKind::Ddpm, SamplerKind::Heun, SamplerKind::Lcm];
                only("clip-sample", kind, &kinds)?;
            }
            config.clip_sample = Some(clip);
        }
        Ok(())
    }
}

/// Refuses an option that the sampler does not know.
fn only(option: &str, kind: SamplerKind, kinds: &[SamplerKind]) -> Result<()> {
    if kinds.contains(&kind) {
        return Ok(());
    }
    let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
    Err(Error::request(option, format!("a sampler that knows it ({})", names.join(", ")), kind))
}
