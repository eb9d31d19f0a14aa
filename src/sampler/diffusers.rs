//! Reading diffusers' `scheduler_config.json`.

use std::str::FromStr;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::Config;
use super::names::{BetaSchedule, SamplerKind};
use crate::error::{Error, Result};

/// Fields of diffusers' schedulers that change the result and have no counterpart here: they must be absent, null or
/// false.
const REFUSED: [&str; 7] = [
    "trained_betas",
    "thresholding",
    "rescale_betas_zero_snr",
    "use_lu_lambdas",
    "use_beta_sigmas",
    "use_flow_sigmas",
    "use_dynamic_shifting",
];

impl Config {
    /// The configuration in a diffusers `scheduler_config.json`.
    ///
    /// A field which is absent or null has the default of its class. Fields that the class does not know are ignored, as
    /// diffusers does (files carry fields of a scheduler that they were converted from).
    ///
    /// # Errors
    /// A request error that names the field, what is supported and what the file has: an unsupported `_class_name` or
    /// `algorithm_type`, a value out of range, or an unsupported feature that is switched on.
    pub fn from_diffusers(json: &Value) -> Result<Config> {
        let kind = kind(json)?;
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
        // Other samplers ignore it, and diffusers carries it along from one scheduler's file to another's.
        if let Some(variance) = field::<String>(json, "variance_type")?.filter(|_| kind.is_dpm()) {
            return Err(Error::request("scheduler variance_type", "null (not supported)", variance));
        }
        for (name, only) in fixed(kind) {
            let value = json.get(name).unwrap_or(&Value::Null);
            if !(value.is_null() && name != "skip_prk_steps") && *value != only {
                return Err(Error::request(format!("scheduler {name}"), only, value));
            }
        }
        let base = defaults(kind);
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
            variance: match kind {
                SamplerKind::Ddpm => named(json, "variance_type")?,
                _ => field::<String>(json, "variance_type")?.and_then(|word| word.parse().ok()),
            },
            solver_order: field(json, "solver_order")?.unwrap_or(base.solver_order),
            solver_type: match field::<String>(json, "solver_type")?.as_deref() {
                None => base.solver_type,
                Some("bh1") if kind == SamplerKind::UniPc => {
                    return Err(Error::request("scheduler solver_type", "bh2", "bh1"));
                }
                // Names of other multistep schedulers, which diffusers maps to midpoint when it switches.
                Some("logrho" | "bh1" | "bh2") => base.solver_type,
                Some(name) => name.parse()?,
            },
            lower_order_final: field(json, "lower_order_final")?.unwrap_or(base.lower_order_final),
            euler_at_final: field(json, "euler_at_final")?.unwrap_or(base.euler_at_final),
            use_karras_sigmas: field(json, "use_karras_sigmas")?.unwrap_or(base.use_karras_sigmas),
            use_exponential_sigmas: field(json, "use_exponential_sigmas")?.unwrap_or(base.use_exponential_sigmas),
            final_sigma: named(json, "final_sigmas_type")?.unwrap_or(base.final_sigma),
            original_inference_steps: field(json, "original_inference_steps")?,
            timestep_scaling: field(json, "timestep_scaling")?,
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
}

/// The sampler of a scheduler file: that of its `_class_name`, and of its `algorithm_type` where a class has several.
fn kind(json: &Value) -> Result<SamplerKind> {
    let class: String = field(json, "_class_name")?.unwrap_or_default();
    let found = SamplerKind::ALL.iter().copied().find(|k| k.class() == class).ok_or_else(|| {
        let mut classes: Vec<_> = SamplerKind::ALL.iter().map(|k| k.class()).collect();
        classes.dedup();
        Error::request("scheduler _class_name", format!("one of {}", classes.join(", ")), quoted(&class))
    })?;
    if !found.is_dpm() {
        return Ok(found);
    }
    let algorithm: Option<String> = field(json, "algorithm_type")?;
    match (found, algorithm.as_deref()) {
        // diffusers reads "deis", the word of another class, so.
        (_, None | Some("dpmsolver++" | "deis")) => Ok(found),
        (SamplerKind::DpmSolverPp2M, Some("sde-dpmsolver++")) => Ok(SamplerKind::DpmSolverPp2MSde),
        (_, Some(other)) => {
            let sde = if found == SamplerKind::DpmSolverPp2M { " or sde-dpmsolver++" } else { "" };
            Err(Error::request("scheduler algorithm_type", format!("dpmsolver++{sde}"), other))
        }
    }
}

/// Fields that must have one value, or be absent where that is the class's default.
fn fixed(kind: SamplerKind) -> Vec<(&'static str, Value)> {
    match kind {
        // The Runge-Kutta start is not supported, and it is the class's default.
        SamplerKind::Pndm => vec![("skip_prk_steps", json!(true))],
        SamplerKind::Euler => vec![
            ("interpolation_type", json!("linear")),
            ("timestep_type", json!("discrete")),
            ("sigma_min", json!(null)),
            ("sigma_max", json!(null)),
        ],
        SamplerKind::UniPc => vec![
            ("predict_x0", json!(true)),
            ("disable_corrector", json!([])),
            ("solver_p", json!(null)),
            ("sigma_min", json!(null)),
            ("sigma_max", json!(null)),
        ],
        _ => vec![],
    }
}

/// What the class of a sampler has where a file is silent.
fn defaults(kind: SamplerKind) -> Config {
    let base = Config { kind, ..Config::default() };
    match kind {
        SamplerKind::Heun => Config { beta_start: 0.00085, beta_end: 0.012, ..base },
        SamplerKind::Lcm => {
            Config { beta_start: 0.00085, beta_end: 0.012, beta_schedule: BetaSchedule::ScaledLinear, ..base }
        }
        SamplerKind::DpmSolverPp2S => Config { lower_order_final: false, ..base },
        _ => base,
    }
}

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
