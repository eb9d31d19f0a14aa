//! ViDiT-Q's later configuration files (quantization.md §4.2): layers by regular expressions, each the first that is found in a
//! layer's path; linear layers only.

use super::default;
use super::fields::{Fields, MAX_ITEMS, ignored, width_fault};
use super::steps::METHOD;
use crate::config::entries::Raw;
use crate::config::rules::{Pattern, Rule};
use crate::config::transforms::{Smoothing, SmoothingRule};
use crate::config::{Activations, ConfigError, FLOAT, LayerSpec, QConfig, Weights, spec};
use regex::RegexBuilder;

/// Bytes that a compiled expression may take.
const MAX_REGEX: usize = 1 << 20;

/// Widths that layers may have, and which of them they have unless an expression says otherwise.
struct Widths<'a, T> {
    all: Vec<T>,
    usual: usize,
    /// Expressions for floats, then for each of the widths.
    layers: Vec<Vec<&'a str>>,
}

pub(super) fn read(file: &Fields) -> Result<QConfig, ConfigError> {
    file.refuse_others(&[
        "model",
        "remain_fp_regex",
        "mixed_precision",
        "smooth_quant",
        "quarot",
        "viditq",
        "calib_data",
        "weight",
        "act",
    ])?;
    let mut config = QConfig::empty(file.origin.into());
    let mixed = file.map("mixed_precision")?;
    mixed.refuse_others(&["weight", "act"])?;
    let (weight, act) = (file.map("weight")?, file.map("act")?);
    let rule = if weight.flag("sym")? == Some(true) { "sym_max" } else { METHOD };
    let weights = widths(&weight, &mixed.map("weight")?, &|bits| {
        Ok(spec::parse_value(&format!("{rule}-{bits}"), Activations::Float)?.weights)
    })?;
    let acts = widths(&act, &mixed.map("act")?, &|bits| spec::activations(&bits.to_string()))?;
    for pattern in file.texts("remain_fp_regex")? {
        config.rules.push(Rule::new(pattern, regex(file, "remain_fp_regex", pattern)?, FLOAT));
    }
    rules(file, &mut config, &weights, &acts)?;
    transforms(file, &mut config)?;
    config.linear_only = true;
    config.notes.push("convolutions stay f16, as there".into());
    if act.get("n_bits").is_some() {
        config.notes.push("activations have the range of each row, asymmetric, whatever act.sym says".into());
    }
    let idle = file.present(&["model", "calib_data"]);
    config.notes.extend(ignored(&idle, "the model is what is packed, and --calib what is known of its activations"));
    Ok(config)
}

/// The widths in `own`, and which layers have which of them in `mixed`.
fn widths<'a, T>(
    own: &Fields,
    mixed: &Fields<'a>,
    make: &dyn Fn(i64) -> Result<T, crate::config::SpecFault>,
) -> Result<Widths<'a, T>, ConfigError> {
    own.refuse_others(&["n_bits", "i_bitwidth", "sym"])?;
    mixed.refuse_others(&["layer_name_regex"])?;
    let int = |value: &Raw| match value {
        Raw::Int(bits) => make(*bits).map_err(|fault| width_fault(own, "n_bits", fault)),
        _ => Err(own.fault("n_bits", "must be a whole number, or a list of them")),
    };
    let all = match own.get("n_bits") {
        None => Vec::new(),
        Some(Raw::List(list)) => list.iter().map(int).collect::<Result<Vec<_>, _>>()?,
        Some(value) => vec![int(value)?],
    };
    let usual = own.int("i_bitwidth")?.unwrap_or(0);
    let usual = usize::try_from(usual).ok().filter(|&i| i < all.len().max(1));
    let usual = usual.ok_or_else(|| own.fault("i_bitwidth", "must be the place of one of n_bits, from 0 on"))?;
    let layers = match mixed.get("layer_name_regex") {
        None => Vec::new(),
        Some(Raw::List(list)) => {
            let one = |value: &'a Raw| match value {
                Raw::Text(text) => Ok(vec![text.as_str()]),
                Raw::List(texts) => texts
                    .iter()
                    .map(|text| match text {
                        Raw::Text(text) => Ok(text.as_str()),
                        _ => Err(mixed.fault("layer_name_regex", "must be texts")),
                    })
                    .collect(),
                Raw::Other("nothing") => Ok(Vec::new()),
                _ => Err(mixed.fault("layer_name_regex", "must be texts")),
            };
            let layers = list.iter().map(one).collect::<Result<Vec<_>, _>>()?;
            let count = layers.iter().map(Vec::len).sum::<usize>();
            if count > MAX_ITEMS {
                return Err(
                    mixed.fault("layer_name_regex", &format!("must have at most {MAX_ITEMS} texts, got {count}"))
                );
            }
            layers
        }
        Some(_) => return Err(mixed.fault("layer_name_regex", "must be a list of expressions")),
    };
    if layers.len() > all.len() + 1 {
        let reason = format!("must be for floats and {} widths, got {}", all.len(), layers.len());
        return Err(mixed.fault("layer_name_regex", &reason));
    }
    Ok(Widths { all, usual, layers })
}

/// A rule for every pair of what weights and activations may be. Each of the two has its own expressions.
fn rules(
    file: &Fields,
    config: &mut QConfig,
    weights: &Widths<Weights>,
    acts: &Widths<Activations>,
) -> Result<(), ConfigError> {
    let usual = (weights.all.get(weights.usual).copied(), acts.all.get(acts.usual).copied());
    let (Some(usual_weights), usual_act) = (usual.0, usual.1.unwrap_or(Activations::Float)) else {
        return Err(file.fault("weight", "must have n_bits"));
    };
    let expressions = |layers: &[Vec<&str>]| -> Result<Vec<(String, Pattern, usize)>, ConfigError> {
        let mut all = Vec::new();
        for (i, text) in layers.iter().enumerate().flat_map(|(i, texts)| texts.iter().map(move |text| (i, *text))) {
            all.push((text.to_owned(), regex(file, "mixed_precision", text)?, i));
        }
        Ok(all)
    };
    let of_weights = expressions(&weights.layers)?;
    let of_acts = expressions(&acts.layers)?;
    let act = |i: usize| i.checked_sub(1).map_or(Activations::Float, |i| acts.all[i]);
    for (key, pattern, i) in &of_weights {
        let Some(coded) = i.checked_sub(1).map(|i| weights.all[i]) else {
            config.rules.push(Rule::new(key, pattern.clone(), FLOAT));
            continue;
        };
        for (other, also, j) in &of_acts {
            let spec = LayerSpec { weights: coded, activations: act(*j) };
            config.rules.push(Rule::new(&format!("{key} and {other}"), pattern.clone().and(also.clone()), spec));
        }
        config.rules.push(Rule::new(key, pattern.clone(), LayerSpec { weights: coded, activations: usual_act }));
    }
    for (key, pattern, j) in of_acts {
        config.rules.push(Rule::new(&key, pattern, LayerSpec { weights: usual_weights, activations: act(j) }));
    }
    let spec = LayerSpec { weights: usual_weights, activations: usual_act };
    config.rules.push(Rule::new("weight", Pattern::Any, spec));
    config.default = default(spec);
    Ok(())
}

/// Smoothing and rotation that the file asks for.
fn transforms(file: &Fields, config: &mut QConfig) -> Result<(), ConfigError> {
    for section in ["smooth_quant", "viditq", "quarot"] {
        let fields = file.map(section)?;
        let known: &[&str] = if section == "quarot" { &["layer_name_regex"] } else { &["alpha", "layer_name_regex"] };
        fields.refuse_others(known)?;
        let layers: Vec<String> = fields.texts("layer_name_regex")?.into_iter().map(str::to_owned).collect();
        for layer in &layers {
            regex(&fields, "layer_name_regex", layer)?;
        }
        if layers.iter().all(String::is_empty) {
            continue;
        }
        if section != "quarot" {
            let alpha = match fields.get("alpha") {
                Some(Raw::Float(alpha)) => *alpha,
                Some(Raw::Int(alpha)) => *alpha as f64,
                _ => return Err(fields.fault("alpha", "must be a number")),
            };
            let smoothing =
                Smoothing { rule: SmoothingRule::Weights, alphas: vec![(alpha, None)], layers: layers.clone() };
            config.transforms.smooth.push(smoothing);
        }
        if section != "smooth_quant" {
            config.transforms.rotate.extend(layers);
        }
    }
    Ok(())
}

fn regex(fields: &Fields, key: &str, pattern: &str) -> Result<Pattern, ConfigError> {
    match RegexBuilder::new(pattern).size_limit(MAX_REGEX).build() {
        Ok(regex) => Ok(Pattern::Path(regex)),
        Err(fault) => {
            let fault = fault.to_string();
            let last = fault.lines().last().unwrap_or("it cannot be read").trim_start_matches("error: ");
            Err(fields
                .fault(key, &format!("has `{}`, which is no regular expression here: {last}", spec::shorten(pattern))))
        }
    }
}
