//! ViDiT-Q's first configuration files (quantization.md §4.1): one width for all weights, one for all activations, and a list
//! of layers that are left alone.

use super::default;
use super::fields::{Fields, MAX_ITEMS, ignored, width_fault};
use super::steps::METHOD;
use crate::config::entries::Raw;
use crate::config::rules::{Pattern, Rule};
use crate::config::transforms::{Smoothing, SmoothingRule};
use crate::config::{ActivationRanges, Activations, ConfigError, FLOAT, LayerSpec, QConfig, Weights, spec};
use crate::quantize::RangeRule;
use crate::source::text;
use aquatint::raw::program::CurveAxis;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Longest list of layers that is read.
const MAX_LIST: u64 = 1 << 20;
/// Layers of PixArt that the project's scripts leave in floats, whatever a file says.
const PIXART_FLOATS: [&str; 6] = ["x_embedder", "t_embedder", "t_block", "y_embedder", "csize_embedder", "ar_embedder"];
/// The layer of PixArt that they smooth, and no other.
const PIXART_SMOOTHED: &str = "blocks.27.mlp.fc2";
/// Of a range so far, hundredths that stay when a call is seen: `running_stat`.
const MOMENTUM: u8 = 95;

pub(super) fn read(path: &Path, file: &Fields) -> Result<QConfig, ConfigError> {
    file.refuse_others(&[
        "part_fp_list",
        "smooth_quant_list",
        "model",
        "conditional",
        "cfg_split",
        "mixed_precision",
        "timestep_wise",
        "calib_data",
        "quant",
        "resume_with_w_quantized",
    ])?;
    let quant = file.map("quant")?;
    quant.refuse_others(&["weight", "activation", "grad_checkpoint"])?;
    let mut config = QConfig::empty(file.origin.into());
    let weights = weights(&quant.map("weight")?, &mut config.notes)?;
    let activation = quant.map("activation")?;
    activation.refuse_others(&["optimization", "quantizer"])?;
    let quantizer = activation.map("quantizer")?;
    let activations = activations(&quantizer, &mut config)?;
    smooth(file, &quantizer.map("smooth_quant")?, &mut config)?;
    if let Some(list) = file.text("part_fp_list")?.filter(|list| !list.is_empty()) {
        for layer in read_list(path, list).map_err(|reason| file.fault("part_fp_list", &reason))? {
            config.rules.push(Rule::new(&layer, Pattern::Components(layer.clone()), FLOAT));
        }
    }
    if is_pixart(file)? {
        let note = "x_embedder, t_embedder, t_block, y_embedder, csize_embedder and ar_embedder stay f16, as the project's \
                    scripts for PixArt have them";
        let floats = PIXART_FLOATS.map(|name| Rule::new(name, Pattern::Components(name.into()), FLOAT).unwritten(note));
        config.rules.extend(floats);
    }
    let spec = LayerSpec { weights, activations };
    config.rules.push(Rule::new("quant", Pattern::Any, spec));
    config.default = default(spec);
    refuse_timestep_wise(file)?;
    if let Some(Raw::Text(checkpoint)) = file.map("resume_with_w_quantized")?.get("path") {
        let checkpoint = spec::shorten(checkpoint);
        config.notes.push(format!("resume_with_w_quantized: {checkpoint} is not read; weights are quantized here"));
    }
    if file.flag("cfg_split")? == Some(true) {
        config
            .notes
            .push("cfg_split is not honoured: both halves of guidance are one batch, each row by itself".into());
    }
    if file.get("mixed_precision").is_some() {
        config
            .notes
            .push("mixed_precision names widths that layers may be set to; all have those of the quantizers".into());
    }
    let weight = quant.map("weight")?;
    let mut idle = file.present(&["model", "conditional", "calib_data"]);
    idle.extend(quant.present(&["grad_checkpoint"]));
    idle.extend([&weight, &activation].into_iter().flat_map(|fields| fields.present(&["optimization"])));
    let reason = "they are about calibration and training, which --calib and packer reconstruct do in their own way";
    config.notes.extend(ignored(&idle, reason));
    Ok(config)
}

/// Whether the file is for PixArt, of which the project's scripts know more than it says.
fn is_pixart(file: &Fields) -> Result<bool, ConfigError> {
    let model = file.map("model")?;
    Ok(matches!(model.get("model_id"), Some(Raw::Text(id)) if id.contains("pixart")))
}

/// Refuses levels or ranges for every timestep.
fn refuse_timestep_wise(fields: &Fields) -> Result<(), ConfigError> {
    match fields.flag("timestep_wise")? {
        Some(true) => Err(fields
            .fault("timestep_wise", "must be false: ranges by timestep come from --act-intervals, levels have none")),
        _ => Ok(()),
    }
}

/// What weights become.
fn weights(weight: &Fields, notes: &mut Vec<String>) -> Result<Weights, ConfigError> {
    weight.refuse_others(&["optimization", "quantizer"])?;
    let quantizer = weight.map("quantizer")?;
    quantizer.refuse_others(&[
        "n_bits",
        "per_group",
        "channel_wise",
        "channel_dim",
        "scale_method",
        "round_mode",
        "sym",
        "timestep_wise",
    ])?;
    refuse_timestep_wise(&quantizer)?;
    if quantizer.word("per_group", &["channel", "group", "token"])?.is_some_and(|group| group != "channel") {
        return Err(quantizer.fault("per_group", "must be channel: a step per output channel"));
    }
    let rule = match (quantizer.flag("sym")?, quantizer.word("scale_method", &["min_max", "grid_search_lp"])?) {
        (Some(true), _) => "sym_max",
        (_, Some("grid_search_lp")) => "mse_80",
        _ => METHOD,
    };
    if quantizer.word("round_mode", &["nearest", "nearest_ste", "learned_hard_sigmoid"])?
        == Some("learned_hard_sigmoid")
    {
        notes.push(
            "round_mode: learned_hard_sigmoid is not honoured: codes are the nearest, or chosen by --calib".into(),
        );
    }
    let idle = quantizer.present(&["channel_wise", "channel_dim"]);
    notes.extend(ignored(&idle, "weights have a step per output channel"));
    coded(&quantizer, rule)
}

/// Weights of the width that a quantizer says.
fn coded(quantizer: &Fields, rule: &str) -> Result<Weights, ConfigError> {
    let bits = quantizer.int("n_bits")?.ok_or_else(|| quantizer.fault("n_bits", "is missing"))?;
    match spec::parse_value(&format!("{rule}-{bits}"), Activations::Float) {
        Ok(spec) => Ok(spec.weights),
        Err(fault) => Err(width_fault(quantizer, "n_bits", fault)),
    }
}

/// What activations become, and their ranges if they are fixed.
fn activations(quantizer: &Fields, config: &mut QConfig) -> Result<Activations, ConfigError> {
    quantizer.refuse_others(&[
        "n_bits",
        "per_group",
        "channel_wise",
        "dynamic",
        "scale_method",
        "round_mode",
        "running_stat",
        "sym",
        "n_spatial_token",
        "n_temporal_token",
        "n_prompt",
        "smooth_quant",
        "softmax",
        "timestep_wise",
    ])?;
    refuse_timestep_wise(quantizer)?;
    let Some(bits) = quantizer.int("n_bits")? else { return Ok(Activations::Float) };
    let activations = spec::activations(&bits.to_string()).map_err(|fault| width_fault(quantizer, "n_bits", fault))?;
    let symmetric = quantizer.flag("sym")?.unwrap_or(false);
    let by_token = match quantizer.get("per_group") {
        Some(Raw::Bool(false)) | None => false,
        _ => quantizer.word("per_group", &["token"])?.is_some(),
    };
    let dynamic = quantizer.flag("dynamic")?.unwrap_or(false);
    if quantizer.map("softmax")?.get("n_bits").is_some() {
        config
            .notes
            .push("softmax is not honoured: what attention multiplies stays float, or see --int8-attention".into());
    }
    let idle = quantizer.present(&["channel_wise", "round_mode", "n_spatial_token", "n_temporal_token", "n_prompt"]);
    config
        .notes
        .extend(ignored(&idle, "codes of activations are the nearest, and ranges of rows need no number of tokens"));
    if activations == Activations::Float {
        let idle = quantizer.present(&["per_group", "dynamic", "scale_method", "running_stat", "sym"]);
        config.notes.extend(ignored(&idle, "activations stay floats"));
        return Ok(activations);
    }
    match (dynamic, by_token) {
        (true, _) => {
            let idle = quantizer.present(&["scale_method", "running_stat", "sym"]);
            config.notes.extend(ignored(&idle, "ranges are taken while running, by the extremes of each row"));
            let whole = if by_token { "token of a batch" } else { "tensor" };
            config.notes.push(format!(
                "activations have the range of each row here, asymmetric, where the project's code takes that of each {whole}"
            ));
        }
        (false, true) => {
            let reason = "must be false where dynamic is false: fixed ranges are of whole tensors here";
            return Err(quantizer.fault("per_group", reason));
        }
        (false, false) => {
            let rule = match quantizer.word("scale_method", &["min_max", "grid_search_lp"])? {
                Some("grid_search_lp") => RangeRule::Mse,
                _ => RangeRule::MinMax,
            };
            let momentum = (quantizer.flag("running_stat")? == Some(true)).then_some(MOMENTUM);
            let axis = CurveAxis::StepFraction;
            config.ranges = Some(ActivationRanges { rule, intervals: 1, axis, symmetric, momentum });
        }
    }
    Ok(activations)
}

/// The smoothing that a file asks for.
fn smooth(file: &Fields, smooth: &Fields, config: &mut QConfig) -> Result<(), ConfigError> {
    smooth.refuse_others(&["enable", "channel_wise_scale_type", "momentum", "alpha", "timerange"])?;
    let on = smooth.flag("enable")? == Some(true);
    smooth.word("channel_wise_scale_type", &["momentum_act_max", "dynamic"])?;
    if !on {
        let idle = smooth.present(&["channel_wise_scale_type", "momentum", "alpha", "timerange"]);
        config.notes.extend(ignored(&idle, "smoothing is not enabled"));
        return Ok(());
    }
    let number = |value: &Raw| match value {
        Raw::Float(alpha) => Ok(*alpha),
        Raw::Int(alpha) => Ok(*alpha as f64),
        _ => Err(smooth.fault("alpha", "must be numbers")),
    };
    let alphas = match (smooth.get("alpha"), smooth.get("timerange")) {
        (None, _) => return Err(smooth.fault("alpha", "is missing")),
        (Some(Raw::List(list)), _) => list.iter().map(number).collect::<Result<Vec<_>, _>>()?,
        // One for all ranges, which have greatest magnitudes of their own.
        (Some(value), Some(Raw::List(ranges))) => vec![number(value)?; ranges.len()],
        (Some(value), _) => vec![number(value)?],
    };
    let step = |value: &Raw| match value {
        Raw::Int(t) => u32::try_from(*t).ok(),
        _ => None,
    };
    let span = |value: &Raw| match value {
        Raw::List(ends) if ends.len() == 2 => Some([step(&ends[0])?, step(&ends[1])?]),
        _ => None,
    };
    let spans = match smooth.get("timerange") {
        None => vec![None; alphas.len()],
        Some(Raw::List(list)) if list.len() == alphas.len() && list.iter().all(|v| span(v).is_some()) => {
            list.iter().map(span).collect()
        }
        Some(_) => return Err(smooth.fault("timerange", "must be as many [first, last] as there are alphas")),
    };
    let idle = smooth.present(&["channel_wise_scale_type", "momentum"]);
    config.notes.extend(ignored(&idle, "factors follow from the greatest magnitudes that --calib has seen"));
    let listed = file.text("smooth_quant_list")?.filter(|list| !list.is_empty());
    let of_code = is_pixart(file)?.then_some(PIXART_SMOOTHED);
    if listed.is_none()
        && let Some(layer) = of_code
    {
        config.notes.push(format!("{layer} alone is smoothed, as the project's scripts for PixArt have it"));
    }
    let layers = listed.or(of_code).into_iter().map(str::to_owned).collect();
    let alphas = alphas.into_iter().zip(spans).collect();
    config.transforms.smooth.push(Smoothing { rule: SmoothingRule::Activations, alphas, layers });
    Ok(())
}

/// The lines of a list of layers, which lies where its path says, down from the configuration's folder or the current one, or
/// beside the configuration: a configuration reads no file elsewhere.
fn read_list(config: &Path, list: &str) -> Result<Vec<String>, String> {
    let folder = config.parent().unwrap_or(Path::new(""));
    let beside = Path::new(list).file_name().map(|name| folder.join(name));
    let below = Path::new(list).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let below = below.then(|| [folder.join(list), list.into()]).into_iter().flatten();
    let places: Vec<PathBuf> = below.chain(beside).collect();
    let Some(found) = places.iter().find(|place| place.is_file()) else {
        return Err(format!("names {}, which is not there nor beside the configuration", spec::shorten(list)));
    };
    let length = fs::metadata(found).map_err(|e| e.to_string())?.len();
    if length > MAX_LIST {
        return Err(format!("names a list of {length} bytes; at most {MAX_LIST} are read"));
    }
    let bytes = fs::read(found).map_err(|e| format!("names {}: {e}", spec::shorten(list)))?;
    let lines = text::decode(&bytes).map_err(|_| "must name a list of layers, one a line".to_owned())?;
    let layers: Vec<String> = lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    match layers.len() {
        0..=MAX_ITEMS => Ok(layers),
        count => Err(format!("names a list of {count} layers; at most {MAX_ITEMS} are read")),
    }
}
