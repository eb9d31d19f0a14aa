//! Samplers and schedules by the names that the Stable Diffusion web UI has for them, in pictures' texts and in requests.

use super::sampling::{SamplingOptions, Sigmas, titled};
use crate::error::{Error, Result};
use crate::sampler::{SamplerKind, Spacing};

/// Names of schedules in requests, beside those in pictures' texts.
const SCHEDULES: [(&str, &str); 7] = [
    ("uniform", "Uniform"),
    ("normal", "Uniform"),
    ("karras", "Karras"),
    ("exponential", "Exponential"),
    ("beta", "Beta"),
    ("lu", "Lu"),
    ("sgm_uniform", "SGM Uniform"),
];

impl SamplingOptions {
    /// Takes a sampler by its title and a schedule by its name or label. For a sampler without a schedule, or with an automatic one,
    /// the web UI has noise levels of its own; without a sampler, all is as the model was saved.
    ///
    /// # Errors
    /// [`Error::Request`] for names that nothing here has.
    pub fn take_web_ui(&mut self, sampler: Option<&str>, schedule: Option<&str>) -> Result<()> {
        if let Some(title) = sampler.filter(|title| !self.recall_sampler(title)) {
            return Err(Error::request("sampler", format!("one of {}", titles()), title));
        }
        let schedule = schedule.map(|name| name.to_lowercase().replace(' ', "_"));
        match schedule.as_deref() {
            None | Some("automatic") => {
                if sampler.is_some() {
                    self.recall_automatic();
                }
            }
            Some(name) => match SCHEDULES.iter().find(|(known, _)| *known == name) {
                Some((_, label)) => _ = self.recall_schedule(label),
                None => {
                    let names: Vec<_> = SCHEDULES.iter().map(|(name, _)| *name).collect();
                    return Err(Error::request("scheduler", format!("automatic or one of {}", names.join(", ")), name));
                }
            },
        }
        Ok(())
    }

    /// A sampler by its title, with the schedule behind it as older texts have it; tells whether it is one.
    pub(super) fn recall_sampler(&mut self, title: &str) -> bool {
        if self.sampler.is_some() {
            return true;
        }
        let Some((kind, sigmas)) = titled(title) else { return false };
        self.sampler = Some(kind.name().to_owned());
        self.sigmas = self.sigmas.or(sigmas);
        true
    }

    /// A schedule by its label; tells whether it is one.
    pub(super) fn recall_schedule(&mut self, label: &str) -> bool {
        let sigmas = match label {
            "Karras" => Sigmas::Karras,
            "Exponential" => Sigmas::Exponential,
            "Beta" => Sigmas::Beta,
            "Lu" => Sigmas::Lu,
            "Uniform" | "Normal" => Sigmas::Normal,
            "SGM Uniform" => {
                self.fields.entry("spacing".into()).or_insert(Spacing::Trailing.name().into());
                Sigmas::Normal
            }
            other => return other == "Automatic",
        };
        self.sigmas.get_or_insert(sigmas);
        true
    }

    /// The noise levels that the web UI takes for the sampler when nothing names any.
    pub(super) fn recall_automatic(&mut self) {
        let automatic = match self.sampler.as_deref().and_then(|name| name.parse().ok()) {
            Some(SamplerKind::DpmSolverPp2M) => Some(Sigmas::Karras),
            Some(SamplerKind::DpmSolverPp2MSde) => Some(Sigmas::Exponential),
            _ => None,
        };
        self.sigmas = self.sigmas.or(automatic);
    }
}

/// The titles of all samplers.
pub(super) fn titles() -> String {
    let titles: Vec<_> = SamplerKind::ALL.iter().map(|kind| kind.title()).collect();
    titles.join(", ")
}
