//! Quantized weights that research projects saved: what their own code would multiply with, on integers.
//!
//! Files of these projects are read, what `torch.save` made of them, without running anything in them; which of them a file
//! is, its names say:
//!
//! * Q-Diffusion: step and zero point per output channel, and the learned direction of rounding of every weight;
//! * Qua2SeDiMo: for each of its six methods, steps and zero points or the weights as they become;
//! * ViDiT-Q: of its later code integers, steps and zero points per row, or the latter alone, of its first one steps and zero
//!   points, of activations too;
//! * TDQ: a whole model in training, with a step per weight and a network per input that makes its steps of timesteps.
//!
//! A layer is found by the name that its weight has in the model's own file; names in these files are that, mostly with
//! `model.` before it. The result is a weight, and the grid that it lies on, in the checkpoint's order: [`emit`](crate::emit) does
//! to both what it does to any weight, so fused and interleaved layers come out right.

mod attention;
mod qdiffusion;
mod qua2sedimo;
mod tdq;
mod viditq;

pub use attention::ImportedAttention;

use crate::error::Result;
use crate::quantize::Method;
use crate::source::Checkpoint;
use crate::source::layout::{self, Entry};
use crate::source::view::Part;
use crate::weight::{SECOND_HALF, Step, Weight};
use aquatint::error::Error;
use aquatint::raw::codec::Bits;
use aquatint::raw::program::CurveAxis;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// What stands between a layer's path and what a file says of its quantization.
const QUANTIZER: &str = ".weight_quantizer";

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Project {
    QDiffusion,
    Qua2SeDiMo,
    Tdq,
    /// Its later code.
    ViditQ,
    /// The same, from what it saves before weights become integers.
    ViditQParams,
    /// Its first code.
    ViditQSteps,
}

impl Project {
    const ALL: [Project; 6] = [
        Project::QDiffusion,
        Project::Qua2SeDiMo,
        Project::Tdq,
        Project::ViditQ,
        Project::ViditQParams,
        Project::ViditQSteps,
    ];

    fn name(self) -> &'static str {
        match self {
            Project::QDiffusion => "Q-Diffusion",
            Project::Qua2SeDiMo => "Qua2SeDiMo",
            Project::Tdq => "TDQ",
            Project::ViditQ | Project::ViditQParams | Project::ViditQSteps => "ViDiT-Q",
        }
    }

    /// What follows a layer's path in every one of its files.
    fn mark(self) -> &'static str {
        match self {
            Project::QDiffusion => ".weight_quantizer.alpha",
            Project::Qua2SeDiMo => ".weight_quantizer.quant_params.",
            Project::Tdq => ".act_func.n_lv",
            Project::ViditQ => ".zp_weight",
            Project::ViditQParams => ".w_quantizer.delta",
            Project::ViditQSteps => ".weight_quantizer.0.delta_list",
        }
    }

    /// The path of the layer that tensor `key` is a quantizer of.
    fn layer(self, key: &str) -> Option<&str> {
        match self {
            Project::QDiffusion | Project::Qua2SeDiMo => Some(key.split_once(QUANTIZER)?.0),
            Project::Tdq | Project::ViditQ | Project::ViditQParams | Project::ViditQSteps => {
                key.strip_suffix(self.mark())
            }
        }
    }
}

/// A file of quantized weights, opened. Nothing of a layer is read before it is asked for.
pub struct Imported {
    file: Checkpoint,
    project: Project,
    /// By the names that weights may have in a model's file, the layers' paths in this one.
    layers: HashMap<String, String>,
}

/// The levels of rows: `step * (q - zero)`, q from 0 to `2^bits - 1`.
#[derive(Clone, Debug, PartialEq)]
pub struct RowGrid {
    /// One per row.
    pub step: Vec<f32>,
    /// One per row.
    pub zero: Vec<f32>,
}

/// The range of a layer's input.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportedRange {
    /// Bits of codes, 2 to 8.
    pub bits: u8,
    /// What positions count.
    pub axis: CurveAxis,
    /// Rows `(position, scale, zero)`.
    pub points: Vec<[f32; 3]>,
    /// The greatest code; 0 for all of the bits.
    pub top: u8,
}

/// A layer's weight as it becomes, in the checkpoint's order.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportedWeight {
    /// Axes, outermost first.
    pub dims: Vec<usize>,
    /// As many as the axes say.
    pub values: Vec<f32>,
    /// The grid that they lie on; of free levels there is none, they are the values that occur.
    pub grid: Option<RowGrid>,
}

/// One quantizer of a layer, and which of its elements are meant.
struct Quantizer<'a> {
    file: &'a Checkpoint,
    /// `model.<path>.weight_quantizer`, perhaps with `_0`.
    name: String,
    /// `model.<path>`.
    layer: &'a str,
    /// `model.<path>.weight`.
    weight: String,
    part: &'a Part,
    /// Axes of the elements that are meant.
    dims: &'a [usize],
}

impl Imported {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// If it cannot be read, or is no file of these projects.
    pub fn open(path: &Path) -> Result<Self> {
        let mut sources = Vec::new();
        let file = layout::open_file(path, &mut sources)?;
        let is = |project: &Project| file.keys().any(|key| key.contains(project.mark()));
        let Some(project) = Project::ALL.into_iter().find(is) else {
            let marks = Project::ALL.map(|p| format!("{} ({})", p.mark(), p.name())).join(" or ");
            let got = file.keys().next().map_or("none".into(), |key| format!("{key} and others"));
            return Err(
                Error::request(format!("--import {}", path.display()), format!("tensors with {marks}"), got).into()
            );
        };
        let mut layers = HashMap::new();
        for layer in file.keys().filter_map(|key| project.layer(key)) {
            let path = layer.strip_prefix("model.").unwrap_or(layer);
            let path = path.strip_prefix("diffusion_model.").unwrap_or(path);
            // Of diffusers and of the DDIM authors; of latent diffusion's; of the averages that its checkpoints keep.
            for name in [
                format!("{path}.weight"),
                format!("model.diffusion_model.{path}.weight"),
                format!("model_ema.diffusion_model{}weight", path.replace('.', "")),
            ] {
                layers.entry(name).or_insert_with(|| layer.to_owned());
            }
        }
        Ok(Imported { file, project, layers })
    }

    /// How many layers the file has.
    pub fn layer_count(&self) -> usize {
        self.layers.values().collect::<HashSet<_>>().len()
    }

    /// In words: project and file.
    pub fn describe(&self) -> String {
        format!("{} ({})", self.file.component(), self.project.name())
    }

    /// Whether the file has the layer with this weight, of the component whose tensors are `model`.
    pub fn knows(&self, model: &Checkpoint, weight: &Weight) -> bool {
        self.layers.contains_key(model.published(weight.key()).0)
    }

    /// Whether the file is of a whole model, as TDQ's are, and has the layer with this weight in floats.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn leaves(&self, model: &Checkpoint, weight: &Weight) -> Result<bool> {
        let (source, _) = model.published(weight.key());
        match (self.project, self.layers.get(source)) {
            (Project::Tdq, Some(layer)) => Ok(!self.tdq(layer, source).is_quantized()?),
            (project, layer) => Ok(project == Project::Tdq && layer.is_none()),
        }
    }

    /// Whether the layer with this weight, of the component whose tensors are `model`, has two quantizers.
    pub fn is_split(&self, model: &Checkpoint, weight: &Weight) -> bool {
        let Some(layer) = self.layers.get(model.published(weight.key()).0) else { return false };
        let half = format!("{layer}{SECOND_HALF}.");
        self.file.keys().any(|key| key.starts_with(&half))
    }

    /// The range of the input of the layer with this weight, `bits` of which are asked for; none if the file has none, or
    /// has none that is one number. `features` are the model's sinusoids of a timestep. A quantizer counts from the `middle`
    /// of the codes, or does not: if nobody says, as its project does.
    ///
    /// # Errors
    /// If it is none that codes can have.
    pub fn activation(
        &self,
        model: &Checkpoint,
        weight: &Weight,
        bits: u8,
        (features, middle): (Option<usize>, Option<bool>),
    ) -> Result<Option<ImportedRange>> {
        let (source, _) = model.published(weight.key());
        let Some(layer) = self.layers.get(source) else { return Ok(None) };
        if self.project == Project::Tdq {
            return self.tdq(layer, source).range(features, middle.unwrap_or(true));
        }
        if self.project == Project::ViditQSteps {
            return viditq::range(&self.file, layer, bits, middle.unwrap_or(false));
        }
        let second = weight.steps.iter().any(|step| matches!(step, Step::Split { first: 1.., .. }));
        let quantizer = format!("{layer}.act_quantizer{}", if second { "_0" } else { "" });
        let Some([scale, zero]) = self.quantizer(&quantizer)? else { return Ok(None) };
        let zero = if middle == Some(true) { f32::from(1u16 << (bits - 1)) } else { zero };
        let points = vec![[0.0, scale, zero]];
        Ok(Some(ImportedRange { bits, axis: CurveAxis::StepFraction, points, top: 0 }))
    }

    /// Layer `layer` of a file of TDQ, for a model that has its weight under `source`.
    fn tdq<'a>(&'a self, layer: &'a str, source: &str) -> tdq::Layer<'a> {
        tdq::Layer { file: &self.file, path: layer, averaged: source.starts_with("model_ema.") }
    }

    /// `weight` as it becomes by `method` at `bits`; none if the file does not have its layer, or not in this way.
    ///
    /// # Errors
    /// If what the file has does not fit the weight.
    pub fn weight(
        &self,
        model: &Checkpoint,
        weight: &Weight,
        method: Method,
        bits: Bits,
    ) -> Result<Option<ImportedWeight>> {
        let (source, part) = model.published(weight.key());
        let Some(layer) = self.layers.get(source) else { return Ok(None) };
        let mut dims = weight.source_dims().to_vec();
        let mut second = false;
        let split = weight.steps.iter().find_map(|step| match step {
            Step::Split { first, count, .. } => Some((*first, *count)),
            _ => None,
        });
        if let Some((first, count)) = split {
            (dims[1], second) = (count as usize, first > 0);
        } else if self.is_split(model, weight) {
            let expected = "a layer that is split as well: a shortcut over a skip connection";
            return Err(
                Error::request(format!("{layer} of {}", self.file.component()), expected, "one that is not").into()
            );
        }
        let quantizer = Quantizer {
            file: &self.file,
            name: format!("{layer}{}", if second { SECOND_HALF } else { QUANTIZER }),
            layer,
            weight: match self.project {
                Project::Tdq => self.tdq(layer, source).name("weight")?,
                _ => format!("{layer}.weight"),
            },
            part,
            dims: &dims,
        };
        match self.project {
            Project::QDiffusion => qdiffusion::weight(&quantizer, split, bits),
            Project::Qua2SeDiMo => qua2sedimo::weight(&quantizer, split, method, bits),
            Project::Tdq => self.tdq(layer, source).weight(&quantizer, split, bits),
            Project::ViditQ => viditq::integers(&quantizer, &model.read(weight.key())?, bits).map(Some),
            Project::ViditQParams => viditq::params(&quantizer, &model.read(weight.key())?, bits).map(Some),
            Project::ViditQSteps => viditq::steps(&quantizer, &model.read(weight.key())?, bits).map(Some),
        }
    }
}

impl Quantizer<'_> {
    /// The elements that are meant of the tensor called `name`, which has so many inputs in all.
    fn read(&self, name: &str, inputs: usize) -> Result<Vec<f32>> {
        self.read_as(name, &[&[inputs], &self.dims[2.min(self.dims.len())..]].concat())
    }

    /// One number per row.
    fn rows(&self, name: &str) -> Result<Vec<f32>> {
        self.read_as(name, &vec![1; self.dims.len() - 1])
    }

    /// The rows that are meant of a tensor with these axes behind the first.
    fn read_as(&self, name: &str, inner: &[usize]) -> Result<Vec<f32>> {
        let with = |rows: usize| [&[rows], inner].concat();
        let rows = self.file.shape(name).and_then(|shape| shape.first().copied()).unwrap_or(self.dims[0]);
        let entry = Entry {
            key: name.to_owned(),
            dims: with(self.dims[0]),
            source: name.to_owned(),
            source_dims: with(rows),
            part: self.part.clone(),
        };
        Ok(self.file.renamed(self.file.component(), &[entry])?.read(name)?)
    }

    /// Refuses what the file has.
    fn refuse(&self, expected: impl std::fmt::Display, got: impl std::fmt::Display) -> Error {
        Error::request(format!("{} of {}", self.name, self.file.component()), expected, got)
    }
}
