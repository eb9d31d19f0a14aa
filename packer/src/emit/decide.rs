//! What becomes of every weight, before any is read: for packing, and for people who ask.

use super::Options;
use super::imported::{Wanted, check_effect, knows, leaves, split};
use super::size::PaperBytes;
use crate::config::QConfig;
use crate::error::Result;
use crate::import::Imported;
use crate::lower::{self, Lowered};
use crate::pass::{self, Starts};
use crate::recipe::{Change, Decision, Recipe, Requests};
use crate::source::diffusers::Model;
use crate::weight::{Weight, Weights};
use aquatint::raw::format::meta::PipelineMeta;
use aquatint::raw::program::{Dims, Program, Tensor};
use serde::Serialize;

/// Opens the model that `options` name, with its refiner.
///
/// # Errors
/// If it cannot be read or is not supported.
pub(super) fn open(options: &Options) -> Result<Model> {
    let model = Model::open_with(&options.model, &options.donors, &options.overrules)?;
    match &options.refiner {
        Some(refiner) => Ok(model.with_refiner(Model::open_with(refiner, &options.donors, &options.overrules)?)?),
        None => Ok(model),
    }
}

/// The sizes by which shapes are checked: one sample of the model's own size.
pub(crate) fn dims(pipeline: &PipelineMeta) -> Dims {
    let [height, width] = pipeline.latent_size.map(|n| n as usize);
    Dims { batch: 1, conditions: 1, height, width, tokens: 1 }
}

/// Splits what is to be split, and decides about every weight; opens the import, if there is one.
///
/// # Errors
/// Whatever is wrong with a configuration or the import.
pub(super) fn decide(
    (programs, weights): (&mut [Program], &mut Weights),
    model: &Model,
    pipeline: &PipelineMeta,
    options: &Options,
) -> Result<(Recipe, Option<Imported>)> {
    let imported = options.import.as_ref().map(|path| Imported::open(path)).transpose()?;
    // A fault in it is told where it is read for all layers.
    let config = options.q_config.as_deref().and_then(|arg| QConfig::parse(arg).ok());
    let wanted = Wanted { all: options.split, imported: imported.as_ref(), config: config.as_ref() };
    split(programs, weights, model, &dims(pipeline), wanted)?;
    let mut sites = pass::sites(programs, weights.len());
    for (site, weight) in sites.iter_mut().zip(weights.iter()) {
        let Some(imported) = &imported else { continue };
        site.left = leaves(imported, model, weight)?;
        site.imported = !site.left && knows(imported, model, weight);
    }
    let requests = Requests {
        denoiser: options.q_config.as_deref(),
        autoencoder: options.vae_q_config.as_deref(),
        text: options.text_q_config.as_deref(),
        activation_bits: options.activation_bits,
        tensor_types: options.tensor_types.as_deref(),
    };
    let mut recipe = Recipe::new(weights, &sites, requests)?;
    if let Some(imported) = &imported {
        check_effect(imported, &sites, &recipe)?;
        recipe.config += &format!(", weights of {}", imported.describe());
    }
    Ok((recipe, imported))
}

/// What becomes of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerPlan {
    /// Component and module path.
    pub name: String,
    /// How its weights are stored: `f16`, `kmeans-4`.
    pub method: String,
    /// Bits of its activations; 32 for floats.
    pub activation_bits: u8,
    /// What in the configuration decided.
    pub decided_by: Option<String>,
    /// Why it is not as that asks, if it is not.
    pub note: Option<String>,
    /// Number of weights.
    pub weights: u64,
}

/// What becomes of a layer in a phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhaseChange {
    /// Where the phase begins.
    pub from: f32,
    /// What that counts: `timestep` or `step fraction`.
    pub axis: &'static str,
    /// The layer as it is from there on.
    pub layer: LayerPlan,
}

/// What a configuration makes of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// One entry per quantizable layer, in program order.
    pub layers: Vec<LayerPlan>,
    /// What becomes of layers in phases after the first, where that is something else; by phase.
    pub changes: Vec<PhaseChange>,
    /// Average bits of the denoisers' layers as Qua2SeDiMo counts them.
    pub average_bits: f64,
    /// What of the configuration is taken otherwise or not at all.
    pub notes: Vec<String>,
}

/// What packing as `options` say would decide about each layer. No weight is read and nothing is written.
///
/// # Errors
/// As [`pack`](super::pack), as far as names and shapes tell.
pub fn explain(options: &Options) -> Result<Plan> {
    let model = open(options)?;
    let Lowered { mut programs, mut weights, pipeline, .. } = lower::lower(&model)?;
    let (recipe, _) = decide((&mut programs, &mut weights), &model, &pipeline, options)?;
    let (mut layers, mut size) = (Vec::new(), PaperBytes::default());
    for (weight, decision) in weights.iter().zip(&recipe.decisions).filter(|(weight, _)| weight.quantizable()) {
        size.add(weight, decision.treatment.store);
        layers.push(layer(weight, decision));
    }
    let Starts { axis, positions } = &recipe.starts;
    let changes = recipe.changes.iter().map(|Change { weight, phase, decision }| {
        let layer = layer(&weights[Tensor(*weight as u32)], decision);
        PhaseChange { from: positions[*phase], axis: axis.name(), layer }
    });
    Ok(Plan { layers, changes: changes.collect(), average_bits: size.average_bits(), notes: recipe.notes })
}

fn layer(weight: &Weight, decision: &Decision) -> LayerPlan {
    LayerPlan {
        name: format!("{}/{}", weight.component, weight.layer()),
        method: decision.treatment.store.name(),
        activation_bits: decision.treatment.activation_bits.unwrap_or(32),
        decided_by: decision.by.as_ref().map(ToString::to_string),
        note: decision.note.clone(),
        weights: weight.len() as u64,
    }
}
