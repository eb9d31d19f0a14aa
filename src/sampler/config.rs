//! What a sampler is told: the model's noise schedule and the sampler's own settings.
//!
//! A [`Config`] comes from a diffusers `scheduler_config.json`, travels in the packed file as JSON, and may be switched
//! to another sampler at run time. Settings that would change the result and are not supported are refused by name.

use serde::{Deserialize, Serialize};

use super::names::{BetaSchedule, FinalSigma, Prediction, SamplerKind, SolverType, Spacing, Variance};
use super::threshold::Threshold;
use crate::error::{Error, Result};

/// A sampler and its settings. Fields keep diffusers' names and defaults; a field that the sampler does not use is kept
/// for the one it may be switched to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which sampler.
    pub kind: SamplerKind,
    /// Timesteps of the training schedule (`num_train_timesteps`).
    pub train_steps: usize,
    /// First beta, in (0, 1).
    pub beta_start: f64,
    /// Last beta, in (0, 1).
    pub beta_end: f64,
    /// The path between the two.
    pub beta_schedule: BetaSchedule,
    /// All betas, one per training step, instead of those three.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained_betas: Option<Vec<f32>>,
    /// Whether betas are rescaled so that the last training step leaves no signal. As in diffusers not for PNDM, Heun, LMS
    /// and DPM-Solver++ singlestep.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rescale_betas_zero_snr: bool,
    /// What the model predicts (`prediction_type`).
    pub prediction: Prediction,
    /// Timestep spacing; `None` is the sampler's own default: leading for DDIM, DDPM, PNDM and LCM, else linspace.
    /// DPM-Solver++ singlestep has only linspace, LCM only its own; uniform and quad are DDIM's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spacing: Option<Spacing>,
    /// Added to every timestep of the leading spacing.
    pub steps_offset: usize,
    /// DDIM, PNDM: whether the last step ends at no noise rather than at training step 0; `None` is the sampler's own
    /// default, true for DDIM and false for PNDM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_alpha_to_one: Option<bool>,
    /// DDIM, DDPM, Heun, LCM: whether x0 is clamped to +-`clip_sample_range`; `None` is the sampler's own default, true
    /// for the first two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_sample: Option<bool>,
    /// The largest magnitude of a clamped x0.
    pub clip_sample_range: f32,
    /// DDIM, DDPM, DPM-Solver++, UniPC, DEIS, LCM: whether x0 is thresholded ([`Threshold`]) rather than clamped. Meant for
    /// pixels.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub thresholding: bool,
    /// The share of an image's values that the threshold leaves alone; `None` is the default, 0.995.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_thresholding_ratio: Option<f64>,
    /// The largest threshold; `None` is the default, 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_max_value: Option<f32>,
    /// DDIM, TCD: 0 is deterministic, 1 is ancestral (DDPM) or, for TCD, all noise anew (its gamma). A pipeline argument in diffusers, not a scheduler field.
    pub eta: f32,
    /// DDPM: the noise that a step adds (`variance_type`); `None` is the default, fixed_small.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variance: Option<Variance>,
    /// DPM-Solver++, UniPC, DEIS: order, 1 to 3. The solvers of one order at most have no more than that, and those of order 3
    /// have 3.
    pub solver_order: usize,
    /// DPM-Solver++: the second-order formula.
    pub solver_type: SolverType,
    /// Whether the last step is first order: DPM-Solver++ multistep and DEIS, when there are fewer than 15; UniPC, always;
    /// DPM-Solver++ singlestep, the last two of an even number (which a run that ends at no noise has anyway).
    pub lower_order_final: bool,
    /// DPM-Solver++ multistep: whether the last step is always first order.
    pub euler_at_final: bool,
    /// DPM-Solver++, Euler, Heun, LMS, UniPC, DEIS, DPM2: noise levels after Karras et al. instead of evenly spaced timesteps.
    pub use_karras_sigmas: bool,
    /// The same samplers: noise levels of evenly spaced logarithms.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub use_exponential_sigmas: bool,
    /// The same samplers: noise levels distributed as the beta distribution of (0.6, 0.6).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub use_beta_sigmas: bool,
    /// DPM-Solver++ multistep: noise levels of evenly spaced lambdas, which are logarithms too. Karras' levels go before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub use_lu_lambdas: bool,
    /// DPM-Solver++: timesteps whose lambda is below this are left out; `None` is no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_min_clipped: Option<f64>,
    /// DPM-Solver++, Euler, UniPC: where the last step ends (`final_sigmas_type`).
    pub final_sigma: FinalSigma,
    /// What the model was saved with, in words, where that is not run here and this sampler takes its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
    /// LCM, TCD: timesteps of the schedule that the model was distilled on; `None` is the default, 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_inference_steps: Option<usize>,
    /// LCM: what timesteps are multiplied by in the boundary condition; `None` is the default, 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_scaling: Option<f64>,
}

impl Default for Config {
    /// DDIM with diffusers' defaults.
    fn default() -> Self {
        Config {
            kind: SamplerKind::Ddim,
            train_steps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            rescale_betas_zero_snr: false,
            prediction: Prediction::Epsilon,
            spacing: None,
            steps_offset: 0,
            set_alpha_to_one: None,
            clip_sample: None,
            clip_sample_range: 1.0,
            thresholding: false,
            dynamic_thresholding_ratio: None,
            sample_max_value: None,
            eta: 0.0,
            variance: None,
            solver_order: 2,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            use_lu_lambdas: false,
            lambda_min_clipped: None,
            final_sigma: FinalSigma::Zero,
            replaces: None,
            original_inference_steps: None,
            timestep_scaling: None,
        }
    }
}

impl Config {
    /// The same model under another sampler, like diffusers' `Other.from_config(scheduler.config)`: the settings that
    /// were given are kept, and what was left to the sampler takes the other one's default.
    ///
    /// Mind one consequence that diffusers shares: DDIM clamps x0 to +-1 unless the file says `clip_sample: false`, and
    /// files saved for DPM-Solver++ say nothing.
    pub fn with_kind(&self, kind: SamplerKind) -> Config {
        // The singlestep solver's own default, false, is no wish for the others.
        let lower_order_final = self.lower_order_final || self.kind == SamplerKind::DpmSolverPp2S;
        Config { kind, lower_order_final, replaces: None, ..self.clone() }
    }

    /// The same model under the sampler of a name: of a [`SamplerKind`], or with `-karras` behind it, or `iddpm`, which is DDPM
    /// with learned variance over evenly spaced timesteps (Nichol and Dhariwal, arXiv 2102.09672), as DiT's own code
    /// samples.
    ///
    /// # Errors
    /// A request error that lists the names.
    pub fn named(&self, name: &str) -> Result<Config> {
        if name == "iddpm" {
            return Ok(Config {
                variance: Some(Variance::LearnedRange),
                spacing: Some(Spacing::Linspace),
                clip_sample: Some(false),
                ..self.with_kind(SamplerKind::Ddpm)
            });
        }
        let base =
            name.strip_suffix("-karras").and_then(|base| base.parse::<SamplerKind>().ok()).filter(|k| k.has_sigmas());
        let kind = base.map_or_else(|| name.parse(), Ok)?;
        let mut config = if kind == self.kind { self.clone() } else { self.with_kind(kind) };
        config.replaces = None;
        if base.is_some() {
            (config.use_karras_sigmas, config.use_exponential_sigmas, config.use_beta_sigmas) = (true, false, false);
        }
        Ok(config)
    }

    /// Whether the schedule asks to be rescaled and this sampler, like its class in diffusers, takes it as it was.
    pub fn leaves_signal(&self) -> bool {
        self.rescale_betas_zero_snr && self.kind.least_signal().is_none()
    }

    /// The order of the solver.
    pub(super) fn order(&self) -> usize {
        match self.kind {
            SamplerKind::DpmSolverPp3M | SamplerKind::DpmSolverPp3MSde => 3,
            kind if kind.is_dpm() => self.solver_order.min(2),
            _ => self.solver_order,
        }
    }

    /// Whether noise levels are evenly spaced in lambda.
    pub(super) fn lambdas(&self) -> bool {
        self.use_lu_lambdas && self.kind.has_lambdas()
    }

    /// Whether noise levels are spaced by themselves rather than by timesteps.
    pub(super) fn by_level(&self) -> bool {
        let asked = self.use_karras_sigmas || self.use_exponential_sigmas || self.use_beta_sigmas;
        self.lambdas() || asked && self.kind.has_sigmas()
    }

    /// The magnitude that x0 is clamped to, if the sampler does so.
    pub(super) fn clamp(&self) -> Option<f32> {
        let default = matches!(self.kind, SamplerKind::Ddim | SamplerKind::Ddpm);
        let clip = self.clip_sample.unwrap_or(default) && self.threshold().is_none();
        clip.then_some(self.clip_sample_range)
    }

    /// How x0 is thresholded, if the sampler does so.
    pub(super) fn threshold(&self) -> Option<Threshold> {
        let own = matches!(self.kind, SamplerKind::Ddim | SamplerKind::Ddpm | SamplerKind::Lcm);
        let solver = self.kind.is_dpm() || matches!(self.kind, SamplerKind::UniPc | SamplerKind::Deis);
        let (ratio, most) = (self.dynamic_thresholding_ratio.unwrap_or(0.995), self.sample_max_value.unwrap_or(1.0));
        (self.thresholding && (own || solver)).then_some(Threshold { ratio, most })
    }

    /// The spacing of timesteps, the sampler's own if none is given.
    pub(super) fn spacing(&self) -> Spacing {
        self.spacing.unwrap_or(self.kind.spacing())
    }

    /// Timesteps of the schedule that an LCM was distilled on.
    pub(super) fn original_steps(&self) -> usize {
        self.original_inference_steps.unwrap_or(50)
    }

    /// Refuses a number of steps or a field out of range.
    pub(super) fn check(&self, steps: usize) -> Result<()> {
        let wrong = |what: &str, expected: String, got: String| Err(Error::request(what, expected, got));
        let beta_ok = |b: f64| b > 0.0 && b < 1.0;
        let share = |b: f32| (0.0..=1.0).contains(&b);
        if !(2..=MAX_TRAIN_STEPS).contains(&self.train_steps) {
            return wrong("num_train_timesteps", format!("2 to {MAX_TRAIN_STEPS}"), self.train_steps.to_string());
        }
        if let Some(betas) = &self.trained_betas {
            let wrong_one = betas.iter().position(|&b| !share(b));
            let got = wrong_one.map(|i| format!("{} at step {i}", betas[i]));
            let got = got.or_else(|| (betas.len() != self.train_steps).then(|| format!("{} values", betas.len())));
            if let Some(got) = got {
                let expected = format!("{} values of 0 to 1, one for each training step", self.train_steps);
                return wrong("trained_betas", expected, got);
            }
        }
        if !beta_ok(self.beta_start) || !beta_ok(self.beta_end) {
            let got = format!("{} and {}", self.beta_start, self.beta_end);
            return wrong("beta_start and beta_end", "values between 0 and 1".into(), got);
        }
        if steps == 0 || steps > self.train_steps {
            return wrong("steps", format!("1 to {}, the training steps", self.train_steps), steps.to_string());
        }
        if self.steps_offset >= self.train_steps {
            return wrong("steps_offset", format!("less than {}", self.train_steps), self.steps_offset.to_string());
        }
        let has_order = self.kind.is_dpm() || matches!(self.kind, SamplerKind::UniPc | SamplerKind::Deis);
        if has_order && !(1..=3).contains(&self.solver_order) {
            return wrong("solver_order", "1 to 3".into(), self.solver_order.to_string());
        }
        let levels = [self.use_karras_sigmas, self.use_exponential_sigmas, self.use_beta_sigmas];
        if levels.iter().filter(|&&asked| asked).count() > 1 {
            let what = "use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas";
            return wrong(what, "at most one of them".into(), "more".into());
        }
        if !(0.0..=1.0).contains(&self.eta) {
            return wrong("eta", "0 to 1".into(), self.eta.to_string());
        }
        if !(self.clip_sample_range > 0.0 && self.clip_sample_range.is_finite()) {
            return wrong("clip_sample_range", "a positive number".into(), self.clip_sample_range.to_string());
        }
        if let Some(Threshold { ratio, most }) = self.threshold() {
            if !(0.0..=1.0).contains(&ratio) {
                return wrong("dynamic_thresholding_ratio", "0 to 1".into(), ratio.to_string());
            }
            if !(most > 0.0 && most.is_finite()) {
                return wrong("sample_max_value", "a positive number".into(), most.to_string());
            }
        }
        self.check_kind(steps)
    }

    /// Refuses what this sampler in particular cannot do.
    fn check_kind(&self, steps: usize) -> Result<()> {
        let wrong = |what: &str, expected: String, got: String| Err(Error::request(what, expected, got));
        let (kind, spacing) = (self.kind, self.spacing());
        if kind != SamplerKind::Ddim && matches!(spacing, Spacing::Uniform | Spacing::Quad) {
            return wrong(
                "timestep_spacing",
                format!("leading, linspace or trailing with {kind}"),
                spacing.to_string(),
            );
        }
        let no_sample = matches!(kind, SamplerKind::Pndm | SamplerKind::EulerAncestral);
        if no_sample && self.prediction == Prediction::Sample {
            return wrong("prediction_type", format!("epsilon or v_prediction with {kind}"), "sample".into());
        }
        if kind == SamplerKind::UniPc && !self.lower_order_final && self.final_sigma == FinalSigma::Zero {
            return wrong("lower_order_final", "true where final_sigmas_type is zero".into(), "false".into());
        }
        if kind.is_distilled() {
            let (original, scaling) = (self.original_steps(), self.timestep_scaling.unwrap_or(1.0));
            if !(1..=self.train_steps).contains(&original) {
                let expected = format!("1 to {}, the training steps", self.train_steps);
                return wrong("original_inference_steps", expected, original.to_string());
            }
            if !(scaling > 0.0 && scaling.is_finite()) {
                return wrong("timestep_scaling", "a positive number".into(), scaling.to_string());
            }
            if steps > original {
                return wrong("steps", format!("1 to {original}, original_inference_steps"), steps.to_string());
            }
        }
        Ok(())
    }
}

/// Most training steps that a configuration may name; timesteps must be exact in f32, and a table of this size is small.
const MAX_TRAIN_STEPS: usize = 1 << 20;
