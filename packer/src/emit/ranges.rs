//! Ranges of activations that are fixed when packing: curves over time, made from a calibration.

use super::Options;
use super::calibrated::{Known, input_factors};
use crate::calibrate::CallRange;
use crate::config::ActivationRanges;
use crate::error::Result;
use crate::import::{Imported, ImportedRange};
use crate::lower::Part;
use crate::quantize::{Intervals, MovingRange, RangeRule};
use crate::recipe::Recipe;
use crate::source::diffusers::Model;
use crate::weight::{Storage, Weight, Weights};
use aquatint::error::Error;
use aquatint::raw::program::{CurveAxis, InputKind, Op, Program, QuantizeRange, RangeCurve, Role, Tensor};
use std::collections::HashMap;

/// Where ranges of activations come from that are fixed when packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSource {
    /// From the calibration.
    Calibration(ActivationRanges),
    /// From the imported file.
    Import {
        /// Whether its quantizers count from the middle of the codes, which it does not say; if nobody does, as is usual
        /// in its project.
        symmetric: Option<bool>,
    },
    /// Each row has its own while running, whatever a configuration says.
    Dynamic,
}

/// The ranges in words, after "in": `a fixed range by min-max`.
fn words(ranges: &ActivationRanges) -> String {
    let rule = match ranges.rule {
        RangeRule::MinMax => "min-max",
        RangeRule::Mse => "mse",
    };
    let axis = match ranges.axis {
        CurveAxis::StepFraction => "steps",
        CurveAxis::Timestep => "timesteps",
    };
    let symmetric = if ranges.symmetric { "symmetric " } else { "" };
    let momentum = ranges.momentum.map(|hundredths| format!(" averaged over calls with momentum 0.{hundredths:02}"));
    let momentum = momentum.unwrap_or_default();
    match ranges.intervals {
        1 => format!("a fixed {symmetric}range by {rule}{momentum}"),
        n => format!("{symmetric}ranges by {rule}{momentum} over {n} intervals of {axis}"),
    }
}

/// Where the range of the input of `weight` comes from, whose codes have as many bits as `recipe` says, in words; none for
/// floats.
pub(super) fn rule_of(options: &Options, recipe: &Recipe, weight: &Weight, bits: Option<u8>) -> Option<String> {
    bits?;
    let denoiser = Part::of(weight.component) == Part::Denoiser;
    let of_config = recipe.activation_ranges.map(RangeSource::Calibration);
    Some(match options.activation_ranges.or(of_config).filter(|_| denoiser) {
        Some(RangeSource::Calibration(ranges)) => format!("{} of --calib", words(&ranges)),
        Some(RangeSource::Import { .. }) => "the imported file's".into(),
        Some(RangeSource::Dynamic) | None if weight.storage == Storage::Conv => {
            "each sample's own, while running".into()
        }
        Some(RangeSource::Dynamic) | None => "each row's own, while running".into(),
    })
}

/// The range of each weight's input: fixed as `options` say, or the configuration that made `recipe`.
///
/// # Errors
/// If nothing knows ranges of that kind, and those of making them.
pub(super) fn fixed_ranges(
    options: &Options,
    (known, imported): (Option<&Known>, Option<&Imported>),
    model: (&Model, &[Program]),
    weights: &mut Weights,
    recipe: &mut Recipe,
) -> Result<Vec<QuantizeRange>> {
    let of_config = recipe.activation_ranges.map(RangeSource::Calibration);
    match (&options.activation_ranges.or(of_config), known, imported) {
        (None | Some(RangeSource::Dynamic), ..) => Ok(vec![QuantizeRange::Dynamic; weights.len()]),
        (Some(RangeSource::Calibration(wanted)), Some(known), _) => {
            recipe.config += &format!(", activations in {}", words(wanted));
            curves(wanted, known, weights, recipe)
        }
        (Some(RangeSource::Import { symmetric }), _, Some(imported)) => {
            recipe.config += ", activations in its ranges";
            imported_ranges(imported, model, weights, recipe, *symmetric)
        }
        (Some(RangeSource::Calibration(_)), None, _) => {
            let subject =
                if options.activation_ranges.is_some() { "--act-range" } else { "ranges that --q-config fixes" };
            let expected = "--calib FILE: a calibration knows what ranges activations have";
            Err(Error::request(subject, expected, "none").into())
        }
        (Some(RangeSource::Import { .. }), _, None) => {
            Err(Error::request("--act-range import", "--import FILE, which has them", "none").into())
        }
    }
}

/// Makes the curves of all layers with integer activations whose inputs `known` has; returns the range of each weight's
/// input. Layers that share an input share its curve.
///
/// # Errors
/// If there are more intervals than calls that were looked at.
fn curves(
    ranges: &ActivationRanges,
    known: &Known,
    weights: &mut Weights,
    recipe: &mut Recipe,
) -> Result<Vec<QuantizeRange>> {
    // By inputs, what they are divided by, and bits.
    let mut made: HashMap<(Vec<usize>, Vec<String>, u8), Tensor> = HashMap::new();
    let mut of_weight = vec![QuantizeRange::Dynamic; weights.len()];
    for (i, of_weight) in of_weight.iter_mut().enumerate() {
        let weight = &weights[Tensor(i as u32)];
        let Some(bits) = recipe.decisions[i].treatment.activation_bits else { continue };
        let (name, component, layer) = (weight.whole_name(), weight.component, weight.layer_in_file());
        let Some(inputs) = known.inputs(&name) else {
            recipe.decisions[i]
                .add_note("activations in the range of each row: the calibration does not know its inputs");
            continue;
        };
        let factors = weight.steps.iter().filter_map(input_factors).map(str::to_owned).collect();
        let key = (inputs.to_vec(), factors, bits);
        let tensor = match made.get(&key) {
            Some(&tensor) => tensor,
            None => {
                // What does not change in a run has one range.
                let intervals = if known.constant(inputs) { 1 } else { ranges.intervals };
                let ranges = ActivationRanges { intervals, ..*ranges };
                let points = points(&ranges, known.ranges(inputs, weight, weights)?, bits)?;
                let count = points.len();
                let values = points.into_iter().flatten().collect();
                let tensor = weights.make(component, format!("{layer}.activation_range"), &[count, 3], values);
                made.insert(key, tensor);
                tensor
            }
        };
        *of_weight = QuantizeRange::curve(tensor, ranges.axis);
    }
    recipe.extend(weights.len());
    of_weight.resize(weights.len(), QuantizeRange::Dynamic);
    Ok(of_weight)
}

/// Makes the ranges that `imported` has of the inputs of layers with integer activations, which then have as many bits as it
/// says; returns the range of each weight's input. Equal ranges are one tensor.
///
/// # Errors
/// If it has none, or ranges that codes cannot have.
fn imported_ranges(
    imported: &Imported,
    (model, programs): (&Model, &[Program]),
    weights: &mut Weights,
    recipe: &mut Recipe,
    symmetric: Option<bool>,
) -> Result<Vec<QuantizeRange>> {
    let features = time_features(programs);
    let mut made: Vec<(&'static str, ImportedRange, Tensor)> = Vec::new();
    let mut of_weight = vec![QuantizeRange::Dynamic; weights.len()];
    for (i, of_weight) in of_weight.iter_mut().enumerate() {
        let weight = &weights[Tensor(i as u32)];
        let Some(bits) = recipe.decisions[i].treatment.activation_bits else { continue };
        if Part::of(weight.component) != Part::Denoiser {
            continue;
        }
        let own = &model.component(weight.component).weights;
        let Some(range) = imported.activation(own, weight, bits, (features, symmetric))? else {
            recipe.decisions[i].add_note("activations in the range of each row: the imported file has none for them");
            continue;
        };
        recipe.decisions[i].treatment.activation_bits = Some(range.bits);
        let (component, key) = (weight.component, format!("{}.activation_range", weight.layer_in_file()));
        let known = made.iter().find(|(of, other, _)| *of == component && *other == range).map(|(.., tensor)| *tensor);
        let (axis, top) = (range.axis, range.top);
        let tensor = known.unwrap_or_else(|| {
            let values = range.points.iter().flatten().copied().collect();
            let tensor = weights.make(component, key, &[range.points.len(), 3], values);
            made.push((component, range, tensor));
            tensor
        });
        *of_weight = QuantizeRange::Curve(RangeCurve { points: tensor, axis, top });
    }
    if of_weight.iter().all(|range| *range == QuantizeRange::Dynamic) {
        let expected = "a file with act_quantizer.delta or act_func of layers with integer activations";
        return Err(Error::request("--act-range import", expected, imported.describe()).into());
    }
    recipe.extend(weights.len());
    of_weight.resize(weights.len(), QuantizeRange::Dynamic);
    Ok(of_weight)
}

/// Features of the denoiser's embedding of timesteps.
fn time_features(programs: &[Program]) -> Option<usize> {
    let denoiser = programs.iter().find(|program| program.role == Role::Denoiser)?;
    let t = denoiser.input(InputKind::Timestep)?;
    denoiser.nodes.iter().find_map(|node| match node.op {
        Op::TimestepEmbedding(embedding) if embedding.t == t => Some(embedding.dim as usize),
        _ => None,
    })
}

/// The rows `(position, scale, zero)` of a curve, by what was seen at calls, of `all` that a run has.
fn points(ranges: &ActivationRanges, (of_calls, all): (Vec<CallRange>, usize), bits: u8) -> Result<Vec<[f32; 3]>> {
    let count = ranges.intervals;
    if count == 0 || count > of_calls.len().max(1) {
        let expected =
            format!("1 to {}, the calls that were looked at; more of --cali-st allow more", of_calls.len().max(1));
        return Err(Error::request("--act-intervals", expected, count).into());
    }
    let time = Intervals { count, axis: ranges.axis, calls: all };
    let mut intervals = vec![MovingRange::new(ranges.rule, bits, ranges.symmetric, ranges.momentum); count];
    for call in &of_calls {
        intervals[time.of(call.index, call.timestep)].see(&call.seen);
    }
    // An interval that no call was looked at in has the range of the one before.
    let points = intervals.iter().enumerate().filter_map(|(i, range)| {
        let (scale, zero) = range.scale_and_zero()?;
        Some([time.position(i), scale, zero])
    });
    Ok(points.collect())
}
