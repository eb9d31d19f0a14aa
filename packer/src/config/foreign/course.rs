//! The course project's `config.yaml` (quantization.md §6): symmetric levels per output channel, fixed symmetric ranges of
//! activations, and parts of the network that are left alone.

use super::default;
use super::fields::{Fields, width_fault};
use crate::config::rules::{Pattern, Rule};
use crate::config::{ActivationRanges, Activations, ConfigError, FLOAT, LayerSpec, QConfig, Weights, spec};
use crate::quantize::{RangeRule, Rule as Uniform};
use aquatint::raw::program::CurveAxis;

/// Of a range so far, hundredths that stay when a call is seen: `activation_mom`.
const MOMENTUM: u8 = 90;

pub(super) fn read(file: &Fields) -> Result<QConfig, ConfigError> {
    file.refuse_others(&[
        "EXP_NAME",
        "MODEL",
        "SEED",
        "USE_CUDA",
        "LOG_TO_WANDB",
        "CALIBRATION_PROMPTS_PATH",
        "TEST_PROMPTS_PATH",
        "PRETRAINED_WEIGHTS_PATH",
        "CLIP_MERGES_PATH",
        "CLIP_VOCAB_PATH",
        "QUANTISATION_PARAMS",
        "CALIBRATION_PARAMS",
        "GENERATION_PARAMS",
        "TEST_PARAMS",
    ])?;
    let params = file.map("QUANTISATION_PARAMS")?;
    params.refuse_others(&[
        "WEIGHT_QUANT_PARAMS",
        "ACT_QUANT_PARAMS",
        "K",
        "QUANT_FILTERS",
        "USE_ACT_QUANT",
        "USE_WEIGHT_QUANT",
    ])?;
    let timed =
        file.word("MODEL", &["QuantModel", "TimeStepCalibratedQuantModel"])? == Some("TimeStepCalibratedQuantModel");
    let mut config = QConfig::empty(file.origin.into());
    let weights = weights(&params.map("WEIGHT_QUANT_PARAMS")?, &mut config.notes)?;
    let quantized = params.flag("USE_WEIGHT_QUANT")?.unwrap_or(false);
    let coded = params.flag("USE_ACT_QUANT")?.unwrap_or(false);
    if !quantized {
        let reason = "must be true: activations alone are not quantized here";
        return Err(params.fault("USE_WEIGHT_QUANT", reason));
    }
    let activations = match coded {
        true => activations(&params.map("ACT_QUANT_PARAMS")?)?,
        false => Activations::Float,
    };
    for filter in params.texts("QUANT_FILTERS")? {
        config.rules.push(Rule::new(filter, Pattern::Course(filter.to_owned()), FLOAT));
    }
    // As there, whatever else is left to f16 or 8 bits unless it is named.
    let spec = LayerSpec { weights, activations };
    config.rules.push(Rule::new("QUANTISATION_PARAMS", Pattern::Any, spec));
    config.default = default(spec);
    if coded {
        config.ranges = Some(ranges(file, &params, timed)?);
    }
    notes(file, timed && coded, coded, &mut config.notes)?;
    Ok(config)
}

/// What weights become.
fn weights(params: &Fields, notes: &mut Vec<String>) -> Result<Weights, ConfigError> {
    params.refuse_others(&["n_bits", "channel_wise", "scale_method", "activation_mom"])?;
    let rule = match params.word("scale_method", &["max", "max_scale", "mse"])? {
        Some("mse") => Uniform::SymMse,
        Some("max_scale") => Uniform::SymMaxScale,
        _ => Uniform::SymMax,
    };
    if params.flag("channel_wise")? == Some(false) {
        notes.push(
            "WEIGHT_QUANT_PARAMS.channel_wise: false is not honoured; every output channel has a step of its own"
                .into(),
        );
    }
    let bits = params.int("n_bits")?.ok_or_else(|| params.fault("n_bits", "is missing"))?;
    match spec::parse_value(&format!("{}-{bits}", rule.name()), Activations::Float) {
        Ok(spec) => Ok(spec.weights),
        Err(fault) => Err(width_fault(params, "n_bits", fault)),
    }
}

fn activations(params: &Fields) -> Result<Activations, ConfigError> {
    params.refuse_others(&["n_bits", "channel_wise", "scale_method", "activation_mom"])?;
    let bits = params.int("n_bits")?.ok_or_else(|| params.fault("n_bits", "is missing"))?;
    match spec::activations(&bits.to_string()) {
        Ok(Activations::Int(bits)) => Ok(Activations::Int(bits)),
        Ok(Activations::Float) => Err(params.fault("n_bits", "must be 2 to 8, got 16")),
        Err(fault) => Err(width_fault(params, "n_bits", fault)),
    }
}

/// The ranges of activations; `timed` ones are of parts of the run.
fn ranges(file: &Fields, params: &Fields, timed: bool) -> Result<ActivationRanges, ConfigError> {
    let calibration = file.map("CALIBRATION_PARAMS")?;
    calibration.refuse_others(&[
        "ACT_SCALE_POLICY",
        "ACT_UPDATE_POLICY",
        "NUM_CALIBRATION_SAMPLES",
        "USE_CALIBRATION",
    ])?;
    let rule = match calibration.word("ACT_SCALE_POLICY", &["max", "mse"])? {
        Some("mse") => RangeRule::Mse,
        _ => RangeRule::MinMax,
    };
    let momentum = match calibration.word("ACT_UPDATE_POLICY", &["momentum", "maximum"])? {
        Some("maximum") => None,
        _ => Some(MOMENTUM),
    };
    let intervals = match (timed, params.int("K")?) {
        (false, _) => 1,
        (true, Some(k)) if k > 0 => usize::try_from(k).unwrap_or(usize::MAX),
        (true, Some(k)) => return Err(params.fault("K", &format!("must be 1 or more, got {k}"))),
        (true, None) => return Err(params.fault("K", "is missing")),
    };
    Ok(ActivationRanges { rule, intervals, axis: CurveAxis::StepFraction, symmetric: true, momentum })
}

/// What of the file is taken otherwise, or not at all.
fn notes(file: &Fields, timed: bool, coded: bool, notes: &mut Vec<String>) -> Result<(), ConfigError> {
    if file.text("MODEL")? == Some("QuantModel") {
        notes.push(
            "MODEL: QuantModel: in the project's code its weights get one step per tensor, and activations the bits of the \
             weights, because both share one dict; here each has what the file says, weights a step per output channel"
                .into(),
        );
    }
    if !timed {
        notes.push("QUANTISATION_PARAMS.K counts for activations of TimeStepCalibratedQuantModel only".into());
    }
    if coded {
        let calibration = file.map("CALIBRATION_PARAMS")?;
        notes.push(
            "ranges of activations come from --calib, whose calls stand in the order of steps, prompts together; the \
             project's code updates a range after every prompt's step"
                .into(),
        );
        if calibration.text("ACT_SCALE_POLICY")? == Some("mse") {
            notes.push("ACT_SCALE_POLICY: mse tries 80 ranges on a histogram here, 30 on the values there".into());
        }
        if calibration.flag("USE_CALIBRATION")? == Some(false) {
            notes.push(
                "USE_CALIBRATION: false is not honoured: the project's code then takes ranges of random noise; here they \
                 come from --calib"
                    .into(),
            );
        }
    }
    notes.push(
        "GENERATION_PARAMS, TEST_PARAMS, NUM_CALIBRATION_SAMPLES, prompts, SEED and paths are for `packer calibrate` and \
         `aquatint run`; nothing is taken from them"
            .into(),
    );
    Ok(())
}
