//! Reading diffusers' `scheduler_config.json`.

use std::str::FromStr;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde_json::{Value, json};

use super::config::Config;
use super::names::{BetaSchedule, SamplerKind};
use crate::error::{Error, Result};

/// Fields of diffusers' schedulers that change what the model's output means and have no counterpart here: they must be
/// absent, null or false.
const REFUSED: [&str; 2] = ["use_flow_sigmas", "use_dynamic_shifting"];

impl Config {
    /// The configuration in a diffusers `scheduler_config.json`.
    ///
    /// A field which is absent or null has the default of its class. Fields that the class does not know are ignored, as
    /// diffusers does (files carry fields of a scheduler that they were converted from). A scheduler that is not run here
    /// leaves its schedule to one that is; [`Config::replaces`] then names it.
    ///
    /// # Errors
    /// A request error that names the field, what is supported and what the file has: a `_class_name` whose schedule is
    /// not one of betas, a value out of range, or an unsupported feature that is switched on.
    pub fn from_diffusers(json: &Value) -> Result<Config> {
        let (kind, replaces) = super::substitute::kind(json)?;
        for name in REFUSED {
            let value = json.get(name).unwrap_or(&Value::Null);
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return Err(Error::request(format!("scheduler {name}"), "null or false (not supported)", brief(value)));
            }
        }
        // Minus infinity is no bound.
        let lambda_min_clipped = field(json, "lambda_min_clipped")?.filter(|least: &f64| *least != f64::NEG_INFINITY);
        for (name, only) in fixed(kind) {
            let value = json.get(name).unwrap_or(&Value::Null);
            if !value.is_null() && *value != only {
                return Err(Error::request(format!("scheduler {name}"), only, brief(value)));
            }
        }
        let base = defaults(kind);
        let thresholding = field(json, "thresholding")?.unwrap_or(false);
        let config = Config {
            kind,
            train_steps: field(json, "num_train_timesteps")?.unwrap_or(base.train_steps),
            beta_start: field(json, "beta_start")?.unwrap_or(base.beta_start),
            beta_end: field(json, "beta_end")?.unwrap_or(base.beta_end),
            beta_schedule: named(json, "beta_schedule")?.unwrap_or(base.beta_schedule),
            trained_betas: field(json, "trained_betas")?,
            rescale_betas_zero_snr: field(json, "rescale_betas_zero_snr")?.unwrap_or(false),
            prediction: named(json, "prediction_type")?.unwrap_or(base.prediction),
            spacing: named(json, "timestep_spacing")?,
            steps_offset: field(json, "steps_offset")?.unwrap_or(base.steps_offset),
            set_alpha_to_one: field(json, "set_alpha_to_one")?,
            clip_sample: field(json, "clip_sample")?,
            clip_sample_range: field(json, "clip_sample_range")?.unwrap_or(base.clip_sample_range),
            thresholding,
            dynamic_thresholding_ratio: field(json, "dynamic_thresholding_ratio")?.filter(|_| thresholding),
            // No sample exceeds the largest number, which META can hold as infinity it cannot.
            sample_max_value: field(json, "sample_max_value")?
                .filter(|_| thresholding)
                .map(|most: f32| most.min(f32::MAX)),
            eta: base.eta,
            variance: match kind {
                SamplerKind::Ddpm => named(json, "variance_type")?,
                _ => field::<String>(json, "variance_type")?.and_then(|word| word.parse().ok()),
            },
            solver_order: field(json, "solver_order")?.unwrap_or(base.solver_order),
            solver_type: match field::<String>(json, "solver_type")?.as_deref() {
                None => base.solver_type,
                // Names of other multistep schedulers, which diffusers maps to midpoint when it switches.
                Some("logrho" | "bh1" | "bh2") => base.solver_type,
                Some(name) => name.parse()?,
            },
            lower_order_final: field(json, "lower_order_final")?.unwrap_or(base.lower_order_final),
            euler_at_final: field(json, "euler_at_final")?.unwrap_or(base.euler_at_final),
            use_karras_sigmas: field(json, "use_karras_sigmas")?.unwrap_or(base.use_karras_sigmas),
            use_exponential_sigmas: field(json, "use_exponential_sigmas")?.unwrap_or(base.use_exponential_sigmas),
            use_beta_sigmas: field(json, "use_beta_sigmas")?.unwrap_or(false),
            use_lu_lambdas: field(json, "use_lu_lambdas")?.unwrap_or(false),
            lambda_min_clipped,
            replaces,
            final_sigma: named(json, "final_sigmas_type")?.unwrap_or(base.final_sigma),
            original_inference_steps: field(json, "original_inference_steps")?,
            timestep_scaling: field(json, "timestep_scaling")?,
        };
        config.check(1)?;
        Ok(config)
    }
}

/// Fields that must have one value or be absent, which means that value.
fn fixed(kind: SamplerKind) -> Vec<(&'static str, Value)> {
    match kind {
        SamplerKind::Euler => {
            vec![("timestep_type", json!("discrete")), ("sigma_min", json!(null)), ("sigma_max", json!(null))]
        }
        SamplerKind::UniPc => vec![("sigma_min", json!(null)), ("sigma_max", json!(null))],
        _ => vec![],
    }
}

/// What the class of a sampler has where a file is silent.
fn defaults(kind: SamplerKind) -> Config {
    let base = Config { kind, ..Config::default() };
    match kind {
        kind if kind.calls_twice() => Config { beta_start: 0.00085, beta_end: 0.012, ..base },
        kind if kind.is_distilled() => {
            Config { beta_start: 0.00085, beta_end: 0.012, beta_schedule: BetaSchedule::ScaledLinear, ..base }
        }
        SamplerKind::DpmSolverPp2S => Config { lower_order_final: false, ..base },
        _ => base,
    }
}

/// The infinity whose text `value` is, as readers of Python's JSON hand it on.
fn infinity(value: &Value) -> Option<f64> {
    match value.as_str()? {
        "Infinity" | "inf" => Some(f64::INFINITY),
        "-Infinity" | "-inf" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

/// The field `name` of a scheduler file; `None` when absent or null.
pub(super) fn field<T: for<'de> Deserialize<'de>>(json: &Value, name: &str) -> Result<Option<T>> {
    let value = json.get(name).unwrap_or(&Value::Null);
    if let Some(infinite) = infinity(value) {
        // JSON has none; where a number is wanted, its text is one.
        let number = IntoDeserializer::<serde::de::value::Error>::into_deserializer(infinite);
        if let Ok(number) = T::deserialize(number) {
            return Ok(Some(number));
        }
    }
    let kind = "the kind of value that diffusers writes";
    Option::<T>::deserialize(value)
        .map_err(|e| Error::request(format!("scheduler {name}"), kind, format!("{} ({e})", brief(value))))
}

/// The field `name` of a scheduler file, one of a set of words; `None` when absent or null.
fn named<T: FromStr<Err = Error>>(json: &Value, name: &str) -> Result<Option<T>> {
    field::<String>(json, name)?.map(|word| word.parse()).transpose()
}

/// `value` as messages show it: the beginning of a long one.
pub(super) fn brief(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
