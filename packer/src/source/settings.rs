//! What a model's files say of its sampler beside the weights, and who decides.
//!
//! A single file has the scheduler of the published models of its kind, unless something beside the weights says otherwise:
//! the metadata of a safetensors file, tensors that are marks and no weights, or a configuration of the same name. A person
//! can overrule all of them.

use super::diffusers::Object;
use super::{SourceFile, read_json};
use aquatint::error::{Error, Result};
use aquatint::sampler::Prediction;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Settings that a person gives, whatever the files say.
#[derive(Clone, Debug, Default)]
pub struct Overrules {
    /// What the denoiser predicts.
    pub prediction: Option<Prediction>,
    /// A `scheduler_config.json` of diffusers.
    pub scheduler_config: Option<PathBuf>,
}

/// A setting that a file has, under diffusers' name of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// The field of a `scheduler_config.json`.
    pub field: &'static str,
    /// Its value there.
    pub value: Value,
    /// Who says so, for people.
    pub by: String,
}

/// The settings of a model's sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Contents of a `scheduler_config.json`.
    pub scheduler: Object,
    /// Who decided, by field; `scheduler` stands for the rest.
    pub decided_by: BTreeMap<String, String>,
}

/// The field of what the denoiser predicts.
const PREDICTION: &str = "prediction_type";
/// The field of schedules that end in no signal.
const ZERO_SNR: &str = "rescale_betas_zero_snr";

/// The prediction that `text` names, as programs of all kinds spell it.
pub fn prediction(text: &str) -> Option<Prediction> {
    match text.trim().to_ascii_lowercase().as_str() {
        "epsilon" | "eps" => Some(Prediction::Epsilon),
        "v" | "v_prediction" | "v-prediction" | "vpred" | "v_pred" => Some(Prediction::VPrediction),
        "sample" | "x0" => Some(Prediction::Sample),
        _ => None,
    }
}

impl Statement {
    fn new(field: &'static str, value: impl Into<Value>, by: impl Into<String>) -> Self {
        Statement { field, value: value.into(), by: by.into() }
    }

    /// That the model predicts what the word `text` names.
    fn predicts(text: &str, by: String) -> Result<Self> {
        match prediction(text) {
            Some(prediction) => Ok(Statement::new(PREDICTION, prediction.name(), by)),
            None => Err(Error::request(by, "epsilon, v or sample; --prediction decides", format!("{text:?}"))),
        }
    }
}

impl Settings {
    /// The settings of a model whose scheduler is `scheduler` by the word of `by`, but for what `statements` say and what
    /// `overrules` overrule; a file that is read for them is appended to `sources`.
    ///
    /// # Errors
    /// [`Error::Request`] if two statements contradict each other and nobody overrules them, naming both;
    /// [`Error::Io`] if a file cannot be read.
    pub fn new(
        scheduler: Object,
        by: &str,
        mut statements: Vec<Statement>,
        overrules: &Overrules,
        sources: &mut Vec<SourceFile>,
    ) -> Result<Self> {
        let mut settings = Settings { scheduler, decided_by: [("scheduler".to_owned(), by.to_owned())].into() };
        if let Some(path) = &overrules.scheduler_config {
            settings.scheduler = read_scheduler(path, sources)?;
            settings.decided_by.insert("scheduler".into(), "--scheduler-config".into());
            let silent = |field: &str| settings.scheduler.get(field).is_none_or(Value::is_null);
            statements.retain(|statement| silent(statement.field));
        }
        if let Some(prediction) = overrules.prediction {
            statements.retain(|statement| statement.field != PREDICTION);
            statements.push(Statement::new(PREDICTION, prediction.name(), "--prediction"));
        }
        for Statement { field, value, by } in statements {
            let (said, who) = (settings.scheduler.get(field), settings.decided_by.get(field));
            if let (Some(said), Some(who)) = (said, who) {
                if *said == value {
                    continue;
                }
                let flag = if field == PREDICTION { "--prediction" } else { "--scheduler-config" };
                let got = format!("{value} by {by}; {flag} decides");
                return Err(Error::request(field, format!("{said}, as {who} says"), got));
            }
            // A schedule without signal at its end is for runs that begin there (arXiv 2305.08891, section 3.3).
            if field == ZERO_SNR && value == true && overrules.scheduler_config.is_none() {
                settings.scheduler.insert("timestep_spacing".into(), "trailing".into());
                settings.decided_by.insert("timestep_spacing".into(), by.clone());
            }
            settings.scheduler.insert(field.into(), value);
            settings.decided_by.insert(field.into(), by);
        }
        Ok(settings)
    }

    /// What the denoiser predicts, by diffusers' word.
    pub fn prediction(scheduler: &Value) -> &str {
        scheduler.get(PREDICTION).and_then(Value::as_str).unwrap_or("epsilon")
    }
}

fn read_scheduler(path: &Path, sources: &mut Vec<SourceFile>) -> Result<Object> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    match (name, path.is_file()) {
        (Some(name), true) => read_json(path.parent().unwrap_or(Path::new("")), &name, sources),
        _ => {
            let what = format!("--scheduler-config {}", path.display());
            Err(Error::request(what, "a scheduler_config.json as diffusers saves it", "no such file"))
        }
    }
}

/// What the metadata of the safetensors file at `path` says; nothing of another file. The words for the prediction are
/// looked at only if they count.
///
/// # Errors
/// [`Error::Request`] if a word is unknown; [`Error::Io`] if the file cannot be read.
pub fn of_metadata(path: &Path, overrules: &Overrules) -> Result<Vec<Statement>> {
    let metadata = read_metadata(path)?;
    let mut statements = Vec::new();
    let said = |key: &str| metadata.get(key).and_then(Value::as_str).map(|text| (text, format!("metadata {key}")));
    for key in ["modelspec.prediction_type", "modelspec.predict_key"] {
        if let Some((text, by)) = said(key).filter(|_| overrules.prediction.is_none()) {
            statements.push(Statement::predicts(text, by)?);
        }
    }
    // What trainers of sd-scripts note.
    for (key, field, value) in [
        ("ss_v_parameterization", PREDICTION, json!(Prediction::VPrediction.name())),
        ("ss_zero_terminal_snr", ZERO_SNR, json!(true)),
    ] {
        statements
            .extend(said(key).filter(|(text, _)| *text == "True").map(|(_, by)| Statement::new(field, value, by)));
    }
    Ok(statements)
}

/// The `__metadata__` of a safetensors file. What is wrong with such a file is for its reader to say.
fn read_metadata(path: &Path) -> Result<Map<String, Value>> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    let mut length = [0; 8];
    let mut header = Vec::new();
    if file.read_exact(&mut length).is_ok() && u64::from_le_bytes(length) <= size {
        file.take(u64::from_le_bytes(length)).read_to_end(&mut header).map_err(Error::io("read", path))?;
    }
    let mut header: Object = serde_json::from_slice(&header).unwrap_or_default();
    match header.remove("__metadata__") {
        Some(Value::Object(metadata)) => Ok(metadata),
        _ => Ok(Map::new()),
    }
}

/// Tensors that are marks: their being there says something of the model.
pub const MARKS: [&str; 2] = ["v_pred", "ztsnr"];

/// What the marks among tensors of the names `keys` say.
pub fn of_marks<'a>(keys: impl IntoIterator<Item = &'a str>) -> Vec<Statement> {
    let statement = |key| match key {
        "v_pred" => Some(Statement::new(PREDICTION, Prediction::VPrediction.name(), "tensor v_pred")),
        "ztsnr" => Some(Statement::new(ZERO_SNR, true, "tensor ztsnr")),
        _ => None,
    };
    keys.into_iter().filter_map(statement).collect()
}

/// What the configuration beside a single file says.
#[derive(Debug, Default)]
pub struct Companion {
    /// Of the sampler.
    pub statements: Vec<Statement>,
    /// What the autoencoder's latents are multiplied with, and who says so.
    pub scale_factor: Option<(f64, String)>,
}

/// Reads the configuration of CompVis' kind that lies beside the file at `path` under its name with `.yaml` or `.yml`, and
/// appends it to `sources`; nothing if there is none, or it is no model's.
///
/// # Errors
/// [`Error::Request`] if it is malformed, or asks for what no scheduler here does; [`Error::Io`] if it cannot be read.
pub fn of_companion(path: &Path, overrules: &Overrules, sources: &mut Vec<SourceFile>) -> Result<Companion> {
    let Some(path) = ["yaml", "yml"].iter().map(|e| path.with_extension(e)).find(|path| path.is_file()) else {
        return Ok(Companion::default());
    };
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let yaml: Value = serde_norway::from_slice(&bytes)
        .map_err(|e| Error::request(path.display().to_string(), "YAML, a model's configuration", e))?;
    let Some(params) = yaml.pointer("/model/params").filter(|params| params.is_object()) else {
        return Ok(Companion::default());
    };
    sources.push(SourceFile::of(file.clone(), &bytes));
    let mut companion = Companion::default();
    let by = |field: &str| format!("{file}: {field}");
    if overrules.prediction.is_none()
        && let Some((text, field)) = prediction_word(params, &by)?
    {
        companion.statements.push(Statement::predicts(text, by(field))?);
    }
    let discretization = "denoiser_config/params/discretization_config/params";
    for (path, field) in [
        ("linear_start", "beta_start"),
        ("linear_end", "beta_end"),
        ("timesteps", "num_train_timesteps"),
        (&format!("{discretization}/linear_start"), "beta_start"),
        (&format!("{discretization}/linear_end"), "beta_end"),
        (&format!("{discretization}/num_timesteps"), "num_train_timesteps"),
        (ZERO_SNR, ZERO_SNR),
        ("zero_terminal_snr", ZERO_SNR),
    ] {
        let value = params.pointer(&format!("/{path}")).filter(|value| !value.is_null());
        companion.statements.extend(value.map(|value| Statement::new(field, value.clone(), by(path))));
    }
    // The authors' word for roots of betas in equal steps.
    if let Some(other) = params.get("beta_schedule").filter(|&value| !value.is_null() && value != "linear") {
        return Err(Error::request(by("beta_schedule"), "linear; --scheduler-config decides", other));
    }
    let factor = params.get("scale_factor").and_then(Value::as_f64);
    companion.scale_factor = factor.map(|factor| (factor, by("scale_factor")));
    Ok(companion)
}

/// The word for what the denoiser predicts in a configuration of CompVis' or Stability's kind, and its field.
fn prediction_word<'a>(params: &'a Value, by: &dyn Fn(&str) -> String) -> Result<Option<(&'a str, &'static str)>> {
    if let Some(text) = params.get("parameterization").and_then(Value::as_str) {
        return Ok(Some((text, "parameterization")));
    }
    let field = "denoiser_config/params/scaling_config/target";
    let Some(target) = params.pointer(&format!("/{field}")).and_then(Value::as_str) else { return Ok(None) };
    match target.rsplit('.').next() {
        Some("EpsScaling") => Ok(Some(("epsilon", field))),
        Some("VScaling") => Ok(Some(("v", field))),
        _ => Err(Error::request(by(field), "EpsScaling or VScaling; --prediction decides", target)),
    }
}
