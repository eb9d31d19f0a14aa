//! What is done to layers before they are quantized, and leaves the network what it is: smoothing, then rotations.

use super::calibrated::Known;
use super::layers::Layers;
use super::phases::PhaseWeights;
use super::pruned::Pruned;
use super::timed::Timed;
use super::turns::Turns;
use super::{Options, Progress, decide, smoothing};
use crate::error::Result;
use crate::pass::smoothables;
use crate::recipe::Recipe;
use crate::source::diffusers::Model;
use crate::weight::Weights;
use aquatint::error::Error;
use aquatint::raw::format::meta::PipelineMeta;
use aquatint::raw::program::Program;

/// Smooths and rotates as `options` say, or the configuration that made `recipe`; returns what to tell of it, and what inputs
/// of layers go through before they become codes.
///
/// # Errors
/// If what is asked for does not go together, or has no effect.
pub(super) fn transform(
    options: &Options,
    (programs, weights, recipe): (&mut [Program], &mut Weights, &mut Recipe),
    model: (&Model, &PipelineMeta, Option<&Pruned>),
    (known, phases, timed): (Option<&Known>, &PhaseWeights, Option<&Timed>),
    progress: &mut dyn FnMut(Progress),
) -> Result<(Vec<String>, Turns)> {
    let (mut notes, mut turns, mut divided) = (Vec::new(), Turns::default(), Vec::new());
    let smoothings = if timed.is_some() { Vec::new() } else { smoothing::wanted(options, recipe)? };
    for wanted in smoothings {
        let Some(known) = known else { continue };
        let graph = (&mut *programs, &mut *weights, &mut *recipe);
        let (smoothed, more) = smoothing::smooth(&wanted, graph, model, known, progress)?;
        notes.push(smoothed.describe());
        divided.extend(more);
    }
    // What was folded into weights of the first phase holds for the others'.
    phases.follow(weights);
    for (layers, factors) in divided {
        let layers = phases.with_variants(&layers, recipe);
        turns.divide(weights, &layers, factors);
    }
    if let (Some(timed), Some(known)) = (timed, known) {
        let sites = smoothables(programs, weights, &decide::dims(model.1))?;
        let graph = (&mut *weights, &mut *recipe, &mut turns);
        notes.push(timed.smooth(&sites, graph, (model.0, model.2), (known, phases))?);
    }
    recipe.extend(weights.len());
    let of_config = (!recipe.transforms.rotate.is_empty()).then(|| Layers::Regex(recipe.transforms.rotate.clone()));
    if let Some(layers) = options.rotation.clone().or(of_config) {
        let refuse = |expected: &str, got: &str| Err(Error::request("--rotate", expected, got).into());
        if options.import.is_some() {
            return refuse("weights that are quantized here: those of --import are what they are", "--import");
        }
        if options.activation_ranges.is_some() || recipe.activation_ranges.is_some() {
            return refuse("--act-range dynamic: what was seen is of inputs that are not rotated", "fixed ranges");
        }
        if options.pruning.is_some() {
            return refuse("no --prune: a rotation mixes the zeros with other weights", "both");
        }
        let count = turns.rotate(&layers, weights, recipe)?;
        notes.push(format!("inputs of {count} layers are rotated in runs of channels"));
        recipe.config += &format!(", rotated{}", layers.describe());
    }
    Ok((notes, turns))
}
