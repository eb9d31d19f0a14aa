//! Which sampler runs the schedule of a scheduler file: the one that the file names, or what takes its place.

use serde_json::Value;

use super::diffusers::{brief, field};
use super::names::SamplerKind;
use crate::error::{Error, Result};

/// The sampler of a scheduler file, and what it stands for if not for the file's own.
///
/// # Errors
/// A request error if the file names no scheduler, or one that is unknown and says nothing of betas: what its model
/// predicts at which timestep is then unknown too.
pub(super) fn kind(json: &Value) -> Result<(SamplerKind, Option<String>)> {
    let class: String = field(json, "_class_name")?.unwrap_or_default();
    let Some(kind) = SamplerKind::ALL.iter().copied().find(|k| k.class() == class) else {
        return match ["trained_betas", "beta_schedule", "beta_start"].iter().any(|&name| is_set(json, name)) {
            true if !class.is_empty() => Ok((nearest(&class), Some(class))),
            _ => Err(unknown(&class)),
        };
    };
    match kind {
        kind if kind.is_dpm() => solver(json, kind, class),
        SamplerKind::Pndm if field(json, "skip_prk_steps")? != Some(true) => {
            Ok((kind, Some(format!("{class} with steps of Runge and Kutta"))))
        }
        _ => Ok((kind, other_setting(json, kind).map(|(name, value)| format!("{class} with {name} {}", brief(value))))),
    }
}

/// A solver of the DPM classes, which one class has several of.
fn solver(json: &Value, kind: SamplerKind, class: String) -> Result<(SamplerKind, Option<String>)> {
    let algorithm: Option<String> = field(json, "algorithm_type")?;
    // diffusers reads "deis", the word of another class, as its default.
    let algorithm = algorithm.as_deref().filter(|&word| word != "deis").unwrap_or("dpmsolver++");
    let stochastic = match algorithm {
        "dpmsolver++" | "dpmsolver" => false,
        "sde-dpmsolver++" | "sde-dpmsolver" => true,
        other => {
            let expected = "dpmsolver++, sde-dpmsolver++, dpmsolver or sde-dpmsolver";
            return Err(Error::request("scheduler algorithm_type", expected, other));
        }
    };
    let third = field::<usize>(json, "solver_order")? == Some(3);
    let multistep = kind != SamplerKind::DpmSolverPp2S;
    let runs = match (multistep || stochastic, stochastic, third && multistep) {
        (false, ..) => kind,
        (_, false, false) => SamplerKind::DpmSolverPp2M,
        (_, false, true) => SamplerKind::DpmSolverPp3M,
        (_, true, false) => SamplerKind::DpmSolverPp2MSde,
        (_, true, true) => SamplerKind::DpmSolverPp3MSde,
    };
    let replaces = if !algorithm.ends_with("++") || stochastic && !multistep {
        Some(format!("{class} with algorithm_type {algorithm}"))
    } else if third && !multistep {
        Some(format!("{class} with solver_order 3"))
    } else {
        None
    };
    Ok((runs, replaces))
}

/// A setting that makes the class of `kind` another solver than the one here, on the same schedule.
fn other_setting(json: &Value, kind: SamplerKind) -> Option<(&'static str, &Value)> {
    let own = |name: &str, value: &Value| match (kind, name) {
        (SamplerKind::Euler, "interpolation_type") => value == "linear",
        // Names of other multistep schedulers mean bh2.
        (SamplerKind::UniPc, "solver_type") => ["bh2", "midpoint", "heun", "logrho"].iter().any(|word| value == word),
        (SamplerKind::UniPc, "predict_x0") => *value == true,
        (SamplerKind::UniPc, "disable_corrector") => value.as_array().is_some_and(Vec::is_empty),
        (SamplerKind::UniPc, "solver_p") => false,
        _ => true,
    };
    let names = ["interpolation_type", "solver_type", "predict_x0", "disable_corrector", "solver_p"];
    let mut set = names.into_iter().filter_map(|name| Some((name, json.get(name).filter(|value| !value.is_null())?)));
    set.find(|(name, value)| !own(name, value))
}

/// The sampler nearest to a scheduler that is not run here, by the words of its name.
fn nearest(class: &str) -> SamplerKind {
    let has = |word: &str| class.contains(word);
    match () {
        _ if has("Ancestral") => SamplerKind::EulerAncestral,
        _ if has("SDE") || has("SASolver") => SamplerKind::DpmSolverPp2MSde,
        _ if has("DDPM") => SamplerKind::Ddpm,
        _ if has("DDIM") => SamplerKind::Ddim,
        _ if has("PNDM") => SamplerKind::Pndm,
        _ if has("DPM") => SamplerKind::DpmSolverPp2M,
        _ => SamplerKind::Euler,
    }
}

fn is_set(json: &Value, name: &str) -> bool {
    json.get(name).is_some_and(|value| !value.is_null())
}

fn unknown(class: &str) -> Error {
    let mut classes: Vec<_> = SamplerKind::ALL.iter().map(|k| k.class()).collect();
    classes.dedup();
    let expected = format!("one of {}, or another with a schedule of betas", classes.join(", "));
    Error::request("scheduler _class_name", expected, if class.is_empty() { "none" } else { class })
}
