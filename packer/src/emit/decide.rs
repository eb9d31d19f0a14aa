//! What becomes of every weight, before any is read: for packing, and for people who ask.

use super::Options;
use super::imported::{Wanted, check_effect, knows, leaves, split};
use super::ranges::rule_of;
use super::size::average_bits;
use crate::config::{ActivationRanges, QConfig};
use crate::error::Result;
use crate::import::Imported;
use crate::lower::{self, Lowered, Part};
use crate::pass::{self, Starts};
use crate::quantize::{CodebookType, Method};
use crate::recipe::{Change, Decision, Recipe, Requests, Store, Treatment};
use crate::reconstruct::Reconstruction;
use crate::source::SourceFile;
use crate::source::diffusers::Model;
use crate::weight::{Step, Weight, Weights};
use aquatint::raw::codec::Bits;
use aquatint::raw::format::meta::{PipelineMeta, SourceMeta};
use aquatint::raw::program::{Dims, Program, Tensor};
use serde::Serialize;
use std::ops::Range;

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
    Dims { height, width, frames: pipeline.frames as usize, ..Dims::ONE }
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
    let trained = options.import.as_ref().map(|path| Reconstruction::open(path)).transpose()?.flatten();
    let imported = match &options.import {
        Some(path) if trained.is_none() => Some(Imported::open(path)?),
        _ => None,
    };
    // A fault in it is told where it is read for all layers.
    let config = options.q_config.as_deref().and_then(|arg| QConfig::parse(arg).ok());
    let wanted = Wanted {
        kinds: &options.split,
        imported: imported.as_ref(),
        trained: trained.as_ref(),
        config: config.as_ref(),
    };
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
    if options.narrow_codebooks {
        recipe.narrow_codebooks();
    }
    if let Some(imported) = &imported {
        check_effect(imported, &sites, &recipe)?;
        recipe.config += &format!(", weights of {}", imported.describe());
    }
    Ok((recipe, imported))
}

/// A layer of a denoiser that becomes codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodedLayer {
    /// Its weight's name in the packed file.
    pub name: String,
    /// How levels are chosen.
    pub method: Method,
    /// Width of a code.
    pub bits: Bits,
    /// The codebooks that codes get.
    pub codebook: CodebookType,
    /// What it is of another layer, if it is one of two halves.
    pub half: Option<Half>,
    /// Bits of its input, if that becomes codes, too.
    pub activation_bits: Option<u8>,
}

/// One of two halves of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// The whole weight's name, as it would be in the packed file.
    pub whole: String,
    /// The input channels that are meant.
    pub inputs: Range<usize>,
    /// How many there are in the whole.
    pub of: usize,
}

impl Half {
    fn of(weight: &Weight) -> Option<Half> {
        weight.steps.iter().find_map(|step| match step {
            Step::Split { whole, first, count } => {
                let inputs = *first as usize..(first + count) as usize;
                Some(Half { whole: whole.clone(), inputs, of: weight.source_dims()[1] })
            }
            _ => None,
        })
    }

    /// The places of its `cols` inputs per output, some of each tap, among those of the whole.
    pub fn columns(&self, cols: usize) -> Vec<usize> {
        let taps = 0..cols / self.inputs.len();
        taps.flat_map(|tap| self.inputs.clone().map(move |channel| tap * self.of + channel)).collect()
    }
}

/// The layers of a model's denoisers that become codes.
#[derive(Clone, Debug)]
pub struct Coded {
    /// In the file's order.
    pub layers: Vec<CodedLayer>,
    /// Ranges of activations that the configuration fixes.
    pub activation_ranges: Option<ActivationRanges>,
    /// The model.
    pub pipeline: PipelineMeta,
    /// What it is made from.
    pub sources: Vec<SourceMeta>,
}

/// The layers of denoisers that packing as `options` say would make codes of. No weight is read and nothing is written.
///
/// # Errors
/// As [`explain`].
pub fn coded_layers(options: &Options) -> Result<Coded> {
    let model = open(options)?;
    let Lowered { mut programs, mut weights, pipeline, .. } = lower::lower(&model)?;
    let (recipe, _) = decide((&mut programs, &mut weights), &model, &pipeline, options)?;
    let mut layers = Vec::new();
    for (weight, decision) in weights.iter().zip(&recipe.decisions) {
        let Store::Codes(method, bits) = decision.treatment.store else { continue };
        if Part::of(weight.component) != Part::Denoiser {
            continue;
        }
        let Treatment { codebook, activation_bits, .. } = decision.treatment;
        layers.push(CodedLayer {
            name: weight.name(),
            method,
            bits,
            codebook,
            half: Half::of(weight),
            activation_bits,
        });
    }
    Ok(Coded {
        layers,
        activation_ranges: recipe.activation_ranges,
        pipeline,
        sources: model.sources.iter().map(SourceFile::meta).collect(),
    })
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
    /// Where the range of their codes comes from; none for floats.
    pub range: Option<String>,
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
    let mut layers = Vec::new();
    for (weight, decision) in weights.iter().zip(&recipe.decisions).filter(|(weight, _)| weight.quantizable()) {
        layers.push(layer((options, &recipe), weight, decision));
    }
    let average_bits = average_bits(&weights, &recipe.starts, &|phase, Tensor(i)| {
        let changed = recipe.changes.iter().find(|change| (change.phase, change.weight) == (phase, i as usize));
        changed.map_or(&recipe.decisions[i as usize], |change| &change.decision).treatment.store
    });
    let Starts { axis, positions } = &recipe.starts;
    let changes = recipe.changes.iter().map(|Change { weight, phase, decision }| {
        let layer = layer((options, &recipe), &weights[Tensor(*weight as u32)], decision);
        PhaseChange { from: positions[*phase], axis: axis.name(), layer }
    });
    Ok(Plan { layers, changes: changes.collect(), average_bits, notes: recipe.notes })
}

fn layer((options, recipe): (&Options, &Recipe), weight: &Weight, decision: &Decision) -> LayerPlan {
    LayerPlan {
        name: format!("{}/{}", weight.component, weight.layer()),
        method: decision.treatment.store.name(),
        activation_bits: decision.treatment.activation_bits.unwrap_or(32),
        range: rule_of(options, recipe, weight, decision.treatment.activation_bits),
        decided_by: decision.by.as_ref().map(ToString::to_string),
        note: decision.note.clone(),
        weights: weight.len() as u64,
    }
}
