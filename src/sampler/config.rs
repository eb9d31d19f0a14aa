//! What a sampler is told: the model's noise schedule and the sampler's own settings.
//!
//! A [`Config`] comes from a diffusers `scheduler_config.json`, travels in the packed file as JSON, and may be switched
//! to another sampler at run time. Settings that would change the result and are not supported are refused by name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

/// An enum whose values have one spelling, used on the command line, in JSON and in messages.
macro_rules! words {
    ($(#[$doc:meta])* $type:ident, $what:literal { $($(#[$item:meta])* $name:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $type { $($(#[$item])* #[serde(rename = $text)] $name,)+ }

        impl $type {
            /// Every value, in the order of the documentation.
            pub const ALL: &[$type] = &[$($type::$name),+];

            /// The spelling on the command line and in JSON.
            pub fn name(self) -> &'static str {
                match self { $($type::$name => $text,)+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = Error;

            /// The value with this name; a request error that lists the names otherwise.
            fn from_str(text: &str) -> Result<Self> {
                let found = Self::ALL.iter().copied().find(|v| v.name() == text);
                let names: Vec<_> = Self::ALL.iter().map(|v| v.name()).collect();
                found.ok_or_else(|| Error::request($what, format!("one of {}", names.join(", ")), text))
            }
        }
    };
}

words! {
    /// A sampler, by its command line name.
    Kind, "sampler" {
        /// DDIM, deterministic or with noise ([`Config::eta`]).
        Ddim = "ddim",
        /// DPM-Solver++ multistep, of order 1 or 2 ([`Config::solver_order`]).
        DpmSolverPp2M = "dpm++2m",
    }
}

words! {
    /// How beta runs from `beta_start` to `beta_end` over the training steps.
    BetaSchedule, "beta_schedule" {
        /// Evenly spaced. What CompVis' latent diffusion calls "linear" is [`BetaSchedule::ScaledLinear`].
        Linear = "linear",
        /// The square of evenly spaced square roots.
        ScaledLinear = "scaled_linear",
    }
}

words! {
    /// What the model's output means.
    Prediction, "prediction_type" {
        /// The noise.
        Epsilon = "epsilon",
        /// The velocity, `alpha noise - sigma x0`.
        VPrediction = "v_prediction",
        /// The clean latents themselves.
        Sample = "sample",
    }
}

words! {
    /// How the timesteps of a run are spaced over the training steps.
    Spacing, "timestep_spacing" {
        /// Multiples of a whole stride, from 0 (plus `steps_offset`).
        Leading = "leading",
        /// Evenly from the first to the last training step, rounded.
        Linspace = "linspace",
        /// Evenly from the last training step down, rounded.
        Trailing = "trailing",
    }
}

words! {
    /// The second-order formula of DPM-Solver++.
    SolverType, "solver_type" {
        /// The midpoint rule.
        Midpoint = "midpoint",
        /// Heun's rule.
        Heun = "heun",
    }
}

words! {
    /// Where the last step of DPM-Solver++ ends.
    FinalSigma, "final_sigmas_type" {
        /// At no noise.
        Zero = "zero",
        /// At the noise of training step 0.
        SigmaMin = "sigma_min",
    }
}

impl Kind {
    /// The name that image tools show, as written into the `parameters` text of a PNG.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Ddim => "DDIM",
            Kind::DpmSolverPp2M => "DPM++ 2M",
        }
    }

    /// The class of diffusers that this sampler reproduces.
    fn class(self) -> &'static str {
        match self {
            Kind::Ddim => "DDIMScheduler",
            Kind::DpmSolverPp2M => "DPMSolverMultistepScheduler",
        }
    }
}

/// A sampler and its settings. Fields keep diffusers' names and defaults; a field that the sampler does not use is kept
/// for the one it may be switched to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which sampler.
    pub kind: Kind,
    /// Timesteps of the training schedule (`num_train_timesteps`).
    pub train_steps: usize,
    /// First beta, in (0, 1).
    pub beta_start: f64,
    /// Last beta, in (0, 1).
    pub beta_end: f64,
    /// The path between the two.
    pub beta_schedule: BetaSchedule,
    /// What the model predicts (`prediction_type`).
    pub prediction: Prediction,
    /// Timestep spacing; `None` is the sampler's own default (DDIM leading, DPM-Solver++ linspace).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spacing: Option<Spacing>,
    /// Added to every timestep of the leading spacing.
    pub steps_offset: usize,
    /// DDIM: whether the last step ends at no noise rather than at training step 0; `None` is the default, true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_alpha_to_one: Option<bool>,
    /// DDIM: whether x0 is clamped to +-`clip_sample_range`; `None` is the default, true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_sample: Option<bool>,
    /// DDIM: the largest magnitude of a clamped x0.
    pub clip_sample_range: f32,
    /// DDIM: 0 is deterministic, 1 is ancestral (DDPM). A pipeline argument in diffusers, not a scheduler field.
    pub eta: f32,
    /// DPM-Solver++: order, 1 or 2.
    pub solver_order: usize,
    /// DPM-Solver++: the second-order formula.
    pub solver_type: SolverType,
    /// DPM-Solver++: whether the last step is first order when there are fewer than 15.
    pub lower_order_final: bool,
    /// DPM-Solver++: whether the last step is always first order.
    pub euler_at_final: bool,
    /// DPM-Solver++: noise levels after Karras et al. instead of evenly spaced timesteps.
    pub use_karras_sigmas: bool,
    /// DPM-Solver++: where the last step ends (`final_sigmas_type`).
    pub final_sigma: FinalSigma,
}

impl Default for Config {
    /// DDIM with diffusers' defaults.
    fn default() -> Self {
        Config {
            kind: Kind::Ddim,
            train_steps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            prediction: Prediction::Epsilon,
            spacing: None,
            steps_offset: 0,
            set_alpha_to_one: None,
            clip_sample: None,
            clip_sample_range: 1.0,
            eta: 0.0,
            solver_order: 2,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            use_karras_sigmas: false,
            final_sigma: FinalSigma::Zero,
        }
    }
}

/// Fields of diffusers' schedulers that change the result and have no counterpart here: they must be absent, null or
/// false.
const REFUSED: [&str; 8] = [
    "trained_betas",
    "thresholding",
    "rescale_betas_zero_snr",
    "use_lu_lambdas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_flow_sigmas",
    "use_dynamic_shifting",
];

impl Config {
    /// The configuration in a diffusers `scheduler_config.json`.
    ///
    /// A field which is absent or null has the default of its class. Fields that no supported class knows are ignored,
    /// as diffusers does (old files carry `skip_prk_steps`, for example).
    ///
    /// # Errors
    /// A request error that names the field, what is supported and what the file has: an unsupported `_class_name` or
    /// `algorithm_type`, a value out of range, or an unsupported feature that is switched on.
    pub fn from_diffusers(json: &Value) -> Result<Config> {
        let class: String = field(json, "_class_name")?.unwrap_or_default();
        let kind = Kind::ALL.iter().copied().find(|k| k.class() == class).ok_or_else(|| {
            let classes: Vec<_> = Kind::ALL.iter().map(|k| k.class()).collect();
            Error::request("scheduler _class_name", format!("one of {}", classes.join(", ")), quoted(&class))
        })?;
        for name in REFUSED {
            let value = json.get(name).unwrap_or(&Value::Null);
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return Err(Error::request(format!("scheduler {name}"), "null or false (not supported)", value));
            }
        }
        // Python writes -Infinity, which is no JSON; see `parse_diffusers`.
        match json.get("lambda_min_clipped") {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.eq_ignore_ascii_case("-inf") || text == "-Infinity" => {}
            Some(other) => return Err(Error::request("scheduler lambda_min_clipped", "-Infinity or null", other)),
        }
        if kind == Kind::DpmSolverPp2M {
            let algorithm: Option<String> = field(json, "algorithm_type")?;
            if algorithm.as_deref().is_some_and(|a| a != "dpmsolver++") {
                return Err(Error::request("scheduler algorithm_type", "dpmsolver++", algorithm.unwrap_or_default()));
            }
            // Other samplers ignore it, and diffusers carries it along from one scheduler's file to another's.
            if let Some(variance) = field::<String>(json, "variance_type")? {
                return Err(Error::request("scheduler variance_type", "null (not supported)", variance));
            }
        }
        let base = Config::default();
        let config = Config {
            kind,
            train_steps: field(json, "num_train_timesteps")?.unwrap_or(base.train_steps),
            beta_start: field(json, "beta_start")?.unwrap_or(base.beta_start),
            beta_end: field(json, "beta_end")?.unwrap_or(base.beta_end),
            beta_schedule: named(json, "beta_schedule")?.unwrap_or(base.beta_schedule),
            prediction: named(json, "prediction_type")?.unwrap_or(base.prediction),
            spacing: named(json, "timestep_spacing")?,
            steps_offset: field(json, "steps_offset")?.unwrap_or(base.steps_offset),
            set_alpha_to_one: field(json, "set_alpha_to_one")?,
            clip_sample: field(json, "clip_sample")?,
            clip_sample_range: field(json, "clip_sample_range")?.unwrap_or(base.clip_sample_range),
            eta: base.eta,
            solver_order: field(json, "solver_order")?.unwrap_or(base.solver_order),
            solver_type: match field::<String>(json, "solver_type")?.as_deref() {
                // Names of other multistep schedulers, which diffusers maps to midpoint when it switches.
                None | Some("logrho" | "bh1" | "bh2") => base.solver_type,
                Some(name) => name.parse()?,
            },
            lower_order_final: field(json, "lower_order_final")?.unwrap_or(base.lower_order_final),
            euler_at_final: field(json, "euler_at_final")?.unwrap_or(base.euler_at_final),
            use_karras_sigmas: field(json, "use_karras_sigmas")?.unwrap_or(base.use_karras_sigmas),
            final_sigma: named(json, "final_sigmas_type")?.unwrap_or(base.final_sigma),
        };
        config.check(1)?;
        Ok(config)
    }

    /// The configuration in the text of a `scheduler_config.json`; like [`Config::from_diffusers`], and it also reads
    /// the `-Infinity` that Python writes for the default of `lambda_min_clipped`, which is not JSON.
    ///
    /// # Errors
    /// Those of [`Config::from_diffusers`], and a request error when the text is not JSON.
    pub fn parse_diffusers(text: &str) -> Result<Config> {
        let text = text.replace(": -Infinity", ": null");
        let json: Value =
            serde_json::from_str(&text).map_err(|e| Error::request("scheduler_config.json", "JSON", e))?;
        Config::from_diffusers(&json)
    }

    /// The same model under another sampler, like diffusers' `Other.from_config(scheduler.config)`: the settings that
    /// were given are kept, and what was left to the sampler takes the other one's default.
    ///
    /// Mind one consequence that diffusers shares: DDIM clamps x0 to +-1 unless the file says `clip_sample: false`, and
    /// files saved for DPM-Solver++ say nothing.
    pub fn with_kind(&self, kind: Kind) -> Config {
        Config { kind, ..self.clone() }
    }

    /// The magnitude that x0 is clamped to, if the sampler does so.
    pub(super) fn clamp(&self) -> Option<f32> {
        self.clip_sample.unwrap_or(true).then_some(self.clip_sample_range)
    }

    /// Refuses a number of steps or a field out of range.
    pub(super) fn check(&self, steps: usize) -> Result<()> {
        let wrong = |what: &str, expected: String, got: String| Err(Error::request(what, expected, got));
        let beta_ok = |b: f64| b > 0.0 && b < 1.0;
        if !(2..=MAX_TRAIN_STEPS).contains(&self.train_steps) {
            return wrong("num_train_timesteps", format!("2 to {MAX_TRAIN_STEPS}"), self.train_steps.to_string());
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
        if !(1..=2).contains(&self.solver_order) {
            return wrong("solver_order", "1 or 2".into(), self.solver_order.to_string());
        }
        if !(0.0..=1.0).contains(&self.eta) {
            return wrong("eta", "0 to 1".into(), self.eta.to_string());
        }
        if !(self.clip_sample_range > 0.0 && self.clip_sample_range.is_finite()) {
            return wrong("clip_sample_range", "a positive number".into(), self.clip_sample_range.to_string());
        }
        Ok(())
    }
}

/// Most training steps that a configuration may name; timesteps must be exact in f32, and a table of this size is small.
const MAX_TRAIN_STEPS: usize = 1 << 20;

/// The field `name` of a scheduler file; `None` when absent or null.
fn field<T: for<'de> Deserialize<'de>>(json: &Value, name: &str) -> Result<Option<T>> {
    let value = json.get(name).unwrap_or(&Value::Null);
    let kind = "the kind of value that diffusers writes";
    Option::<T>::deserialize(value)
        .map_err(|e| Error::request(format!("scheduler {name}"), kind, format!("{value} ({e})")))
}

/// The field `name` of a scheduler file, one of a set of words; `None` when absent or null.
fn named<T: FromStr<Err = Error>>(json: &Value, name: &str) -> Result<Option<T>> {
    field::<String>(json, name)?.map(|word| word.parse()).transpose()
}

/// `text`, or a word for its absence.
fn quoted(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}
