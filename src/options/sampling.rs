//! Steps, guidance and the sampler.

use super::describe::with_field;
use crate::error::{Error, Result};
use crate::pipeline::Request;
use crate::sampler::{Config, SamplerKind, Spacing, Variance};
use serde_json::Value;
use std::collections::BTreeMap;

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

impl Sigmas {
    fn set(self, config: &mut Config) {
        config.use_karras_sigmas = self == Sigmas::Karras;
        config.use_exponential_sigmas = self == Sigmas::Exponential;
        config.use_beta_sigmas = self == Sigmas::Beta;
        config.use_lu_lambdas = self == Sigmas::Lu;
    }
}

/// A sampler by the title that image tools show, with noise levels behind it as they have it: `DPM++ 2M Karras`.
pub(super) fn titled(title: &str) -> Option<(SamplerKind, Option<Sigmas>)> {
    let schedules = [(" karras", Sigmas::Karras), (" exponential", Sigmas::Exponential), (" beta", Sigmas::Beta)];
    let title = title.to_lowercase();
    let with = schedules.iter().find_map(|(end, sigmas)| Some((title.strip_suffix(end)?, *sigmas)));
    let name = with.map_or(title.as_str(), |(name, _)| name);
    let kind = SamplerKind::ALL.iter().find(|kind| kind.title().to_lowercase() == name || kind.name() == name)?;
    (with.is_none() || kind.has_sigmas()).then_some((*kind, with.map(|(_, sigmas)| sigmas)))
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
    /// The sampler in all its settings, instead of the model's own; what follows overrules it.
    pub config: Option<Config>,
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
    /// Fields of [`Config`](crate::sampler::Config) by name; the options above overrule them.
    pub fields: BTreeMap<String, Value>,
}

impl SamplingOptions {
    /// Sets these options in `request`.
    pub(super) fn apply(&self, request: &mut Request) -> Result<()> {
        request.steps = self.steps.unwrap_or(request.steps);
        request.guidance_scale = self.cfg_scale.unwrap_or(request.guidance_scale);
        request.guidance_rescale = self.guidance_rescale.unwrap_or(request.guidance_rescale);
        let config = &mut request.sampler;
        if let Some(whole) = &self.config {
            config.clone_from(whole);
        }
        if let Some(name) = &self.sampler {
            *config = match (config.named(name), titled(name)) {
                (Ok(named), _) => named,
                (Err(_), Some((kind, sigmas))) => {
                    let mut named = config.named(kind.name())?;
                    if let Some(sigmas) = sigmas {
                        sigmas.set(&mut named);
                    }
                    named
                }
                (Err(e), None) => return Err(e),
            };
        }
        for (field, value) in &self.fields {
            *config = with_field(config, field, value)?;
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
            sigmas.set(config);
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
