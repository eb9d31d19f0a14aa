//! Model directory in, packed file out.
//!
//! [`Packing::open`] opens and lowers the model; what it holds then, programs and weights, is for passes to change.
//! [`Packing::write`] decides about every weight, runs the passes of integer layers, and goes through the list of
//! weights: read, apply steps, quantize, write. One weight is in memory at a time. The same input gives the same bytes,
//! whatever the number of threads. [`pack`] is the two in one.

mod calibrated;
mod decide;
mod imported;
mod ranges;
mod reconstructed;
mod report;
mod store;

pub use decide::{Coded, CodedLayer, LayerPlan, Plan, coded_layers, explain};
pub use ranges::{ActivationRanges, RangeSource};
pub use report::{LayerLine, Progress, Report};

use crate::config::QConfig;
use crate::error::Result;
use crate::import::Imported;
use crate::lower::{self, Lowered, Part};
use crate::pass;
use crate::quantize::{average_bits, quantized_bytes, raw_bytes};
use crate::recipe::{Decision, Recipe, Store, Treatment};
use crate::reconstruct::Reconstruction;
use crate::source::diffusers::Model;
use crate::source::donors::Donors;
use crate::source::settings::Overrules;
use crate::weight::{Elements, Misfit, Origin, Weight, Weights, step};
use aquatint::error::Error;
use aquatint::pipeline::{Plans, Prompts, Request};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cpu::simd::scalar::Scalar;
use aquatint::raw::format::meta::{LayerMeta, PipelineMeta, QuantizationMeta};
use aquatint::raw::format::{Meta, Packed, TensorSpec, Writer};
use aquatint::raw::program::{Program, QuantizeRange, Role, Tensor, shape};
use aquatint::raw::whole_file::check_target;
use calibrated::Known;
use decide::{decide, dims};
use imported::in_file_order;
use ranges::{curves, imported_ranges};
use reconstructed::Reconstructed;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use store::{Stored, store, store_imported};

/// Bits per weight of the precision that average bits are relative to; the published sizes count 16.
const PRECISION: u64 = 16;

/// What to pack.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The model directory, or a checkpoint file.
    pub model: PathBuf,
    /// Another one, whose denoiser does the last steps; see [`Model::with_refiner`].
    pub refiner: Option<PathBuf>,
    /// Models that give the autoencoder and the text encoders, instead of the model's own.
    pub donors: Donors,
    /// Quantization of the denoisers: a file or a specification; f16 if absent.
    pub q_config: Option<String>,
    /// Bits of the activations of the denoiser's layers whose weights are codes, whatever `q_config` says of them: 6 or 8.
    pub activation_bits: Option<u8>,
    /// Quantization of the autoencoder; if absent f16, or f32 where the denoiser's floats are f32.
    pub vae_q_config: Option<String>,
    /// Quantization of the text encoders; if absent f16, or f32 where the denoiser's floats are f32.
    pub text_q_config: Option<String>,
    /// Statistics of the inputs of layers, as [`calibrate`](crate::calibrate) makes them: where they are known, codes are chosen
    /// for the layer's output; elsewhere weights are rounded to the nearest level.
    pub calibration: Option<PathBuf>,
    /// Ranges of activations that are fixed when packing; where there are none, and without this, each row has its own while
    /// running.
    pub activation_ranges: Option<RangeSource>,
    /// A file of quantized weights that [`reconstruct`](crate::reconstruct) made, or that a research project saved: layers of the denoiser that become codes and that it has
    /// are as it has them.
    pub import: Option<PathBuf>,
    /// Whether shortcuts over skip connections become two products, each with levels of its own.
    pub split: bool,
    /// Settings of the sampler that the model's files say otherwise, or do not say.
    pub overrules: Overrules,
    /// Whether the denoisers' attentions between integer layers work in 8-bit codes too.
    pub int8_attention: bool,
    /// The packed file.
    pub output: PathBuf,
}

/// Packs `options.model` into `options.output`; tells `progress` about each weight before it is read.
///
/// # Errors
/// Whatever is wrong with the model, the configuration or the output, before anything appears at `options.output`.
pub fn pack(options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    Packing::open(options)?.write(progress)
}

/// A model on its way into a file, lowered to programs of floats and not yet quantized.
pub struct Packing {
    /// Programs, for passes to change.
    pub programs: Vec<Program>,
    /// The weights that programs use, for passes to change.
    pub weights: Weights,
    options: Options,
    writer: Writer,
    model: Model,
    files: Vec<(String, Vec<u8>)>,
    pipeline: PipelineMeta,
}

impl Packing {
    /// Opens and lowers `options.model`, and starts a file that will appear at `options.output` once it is whole.
    ///
    /// # Errors
    /// If the model cannot be read or is not supported, or the output cannot be written.
    pub fn open(options: &Options) -> Result<Self> {
        check_target(&options.output, &inputs(options))?;
        let writer = Writer::create(&options.output)?;
        let model = decide::open(options)?;
        let Lowered { programs, weights, files, pipeline, .. } = lower::lower(&model)?;
        Ok(Packing { programs, weights, options: options.clone(), writer, model, files, pipeline })
    }

    /// Quantizes and writes; tells `progress` about each weight before it is read.
    ///
    /// # Errors
    /// If the configuration does not fit the model, a weight does not fit its steps or its storage, programs and weights
    /// do not fit each other, or the output cannot be written. Then nothing has appeared at it.
    pub fn write(mut self, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
        let options = &self.options;
        let (programs, weights) = (&mut self.programs, &mut self.weights);
        let (mut recipe, imported) = decide((programs, weights), &self.model, &self.pipeline, options)?;
        let sources: Vec<_> = self.model.sources.iter().map(|s| s.meta.clone()).collect();
        let open = |path: &PathBuf| Known::open(path, (&self.pipeline, &sources), programs, weights, &mut recipe);
        let known = options.calibration.as_ref().map(open).transpose()?;
        let trained = options.import.as_ref().map(|path| Reconstruction::open(path)).transpose()?.flatten();
        let trained = trained
            .map(|file| Reconstructed::new(file, (&self.pipeline, &sources), programs, weights, &mut recipe))
            .transpose()?;
        let mut ranges = vec![QuantizeRange::Dynamic; self.weights.len()];
        match (&options.activation_ranges, &known, &imported) {
            (None, ..) => {}
            (Some(RangeSource::Calibration(wanted)), Some(known), _) => {
                ranges = curves(wanted, known, &mut self.weights, &mut recipe)?;
                recipe.config += &format!(", {}", wanted.describe());
            }
            (Some(RangeSource::Import { symmetric }), _, Some(imported)) => {
                ranges = imported_ranges(imported, &self.model, &mut self.weights, &mut recipe, *symmetric)?;
                recipe.config += ", activations in its ranges";
            }
            (Some(RangeSource::Calibration(_)), None, _) => {
                let expected = "--calib FILE: a calibration knows what ranges activations have";
                return Err(Error::request("--act-range", expected, "none").into());
            }
            (Some(RangeSource::Import { .. }), _, None) => {
                return Err(Error::request("--act-range import", "--import FILE, which has them", "none").into());
            }
        }
        let attentions = self.use_codes(&recipe, &ranges)?;
        // The writer checks the same at the end; here it costs nothing and spares a wait.
        let types = recipe.types(&self.weights);
        for program in &self.programs {
            shape::infer(program, &types, &dims(&self.pipeline))?;
        }
        let (layers, average_bits) =
            self.write_weights(&recipe, (known.as_ref(), imported.as_ref(), trained.as_ref()), progress)?;
        for (name, bytes) in &self.files {
            self.writer.bytes(name, bytes)?;
        }
        let sources = &self.model.sources;
        let source_bytes = sources.iter().filter(|s| s.weights).map(|s| s.meta.bytes).sum();
        let sampler = &self.pipeline.sampler;
        let replaced = |other: &String| format!("{other} is not run here; {} takes its place", sampler.kind);
        let notes = sampler.replaces.iter().map(replaced).collect();
        let steps = self.weights.iter().filter(|w| !w.steps.is_empty());
        let meta = Meta {
            tool: concat!("packer ", env!("CARGO_PKG_VERSION")).into(),
            pipeline: self.pipeline,
            quantization: QuantizationMeta {
                config: recipe.config,
                average_bits,
                attention: (attentions > 0).then(|| "int8".into()),
                calibration: known.as_ref().map(Known::meta).transpose()?,
                layers: layers.iter().map(|line| line.meta.clone()).collect(),
            },
            sources: sources.iter().map(|s| s.meta.clone()).collect(),
            aliases: self.weights.iter().filter(|w| !w.copies.is_empty()).map(aliases).collect(),
            steps: steps.map(|w| (w.name(), w.steps.clone())).collect(),
            made: self.weights.iter().filter(|w| w.is_made()).map(Weight::name).collect(),
        };
        self.writer.finish_with(&self.programs, &meta, prove)?;
        let output = &self.options.output;
        let file_bytes = std::fs::metadata(output).map_err(Error::io("read", output))?.len();
        let ratio = file_bytes as f64 / source_bytes as f64;
        Ok(Report { layers, notes, file_bytes, source_bytes, ratio, average_bits })
    }

    /// Lets programs make and use codes where `recipe` asks for integer activations; returns how many attentions work in
    /// codes.
    fn use_codes(&mut self, recipe: &Recipe, ranges: &[QuantizeRange]) -> Result<usize> {
        let mut attentions = 0;
        for program in &mut self.programs {
            pass::assign(program, &|Tensor(i)| {
                let bits = recipe.decisions[i as usize].treatment.activation_bits?;
                Some((bits, ranges.get(i as usize).copied().unwrap_or(QuantizeRange::Dynamic)))
            });
            if self.options.int8_attention && matches!(program.role, Role::Denoiser | Role::Refiner) {
                attentions += pass::attend_in_codes(program);
            }
            pass::fuse(program);
        }
        if self.options.int8_attention && attentions == 0 {
            let expected = "a denoiser with attention between layers of integer activations";
            return Err(Error::request("--int8-attention", expected, "none").into());
        }
        Ok(attentions)
    }

    /// Writes all weights in order; returns the layers' entries of the report, and the average bits of the denoisers.
    fn write_weights(
        &mut self,
        recipe: &Recipe,
        (known, imported, trained): From,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<LayerLine>, f64)> {
        let total = self.weights.iter().map(|w| w.len() as u64).sum();
        let (mut done, mut size) = (0, PaperBytes::default());
        let mut layers = Vec::new();
        let mut corrections = trained.map_or_else(HashMap::new, |trained| trained.corrections.clone());
        // Weights that were stored before their turn, because their biases come first.
        let mut early: HashMap<usize, Prepared> = HashMap::new();
        for (i, (weight, decision)) in self.weights.iter().zip(&recipe.decisions).enumerate() {
            let name = weight.name();
            progress(Progress { name: &name, done, total });
            let prepare = |i: usize, corrections: &mut HashMap<usize, Vec<f64>>| -> Result<Prepared> {
                let treatment = recipe.decisions[i].treatment;
                let prepared = self.prepare(i, treatment, (known, imported, trained), corrections.remove(&i))?;
                if let (Some(bias), Some(output)) = (known.and_then(|k| k.bias_of(i)), &prepared.stored.calibrated)
                    && !output.bias.is_empty()
                {
                    corrections.insert(bias, output.bias.clone());
                }
                Ok(prepared)
            };
            if let Some(later) = known.and_then(|k| k.weight_of(i)).filter(|&w| w > i) {
                early.insert(later, prepare(later, &mut corrections)?);
            }
            let prepared = early.remove(&i).map_or_else(|| prepare(i, &mut corrections), Ok)?;
            let Prepared { dims, stored } = prepared;
            let count = dims.iter().map(|&n| n as u64).product();
            self.writer.tensor(TensorSpec { name, dims, kind: stored.kind }, &stored.bytes)?;
            done += count;
            if !weight.quantizable() {
                continue;
            }
            size.add(weight, decision.treatment.store);
            layers.push(line(weight, decision, &stored, count));
        }
        Ok((layers, size.average_bits()))
    }

    /// Weight `i` as it is stored; a bias with what it must take up.
    fn prepare(
        &self,
        i: usize,
        treatment: Treatment,
        (known, imported, trained): From,
        correction: Option<Vec<f64>>,
    ) -> Result<Prepared> {
        let weight = &self.weights[Tensor(i as u32)];
        let name = weight.name();
        let mut elements = elements(&self.model, &self.weights, weight)?;
        for (to, by) in elements.values.iter_mut().zip(correction.iter().flatten()) {
            *to = (f64::from(*to) + by) as f32;
        }
        if let (Some(imported), Store::Codes(method, bits)) = (imported, treatment.store)
            && Part::of(weight.component) == Part::Denoiser
        {
            let model = &self.model.component(weight.component).weights;
            if let Some(got) = imported.weight(model, weight, method, bits)? {
                let stored = store_imported(&name, &elements, in_file_order(weight, got)?, treatment)?;
                return Ok(Prepared { dims: elements.dims, stored });
            }
        }
        if let Some(stored) = trained.map_or(Ok(None), |trained| trained.stored(weight, &elements, treatment))? {
            return Ok(Prepared { dims: elements.dims, stored });
        }
        let moments = known.map_or(Ok(None), |known| known.moments(i, weight))?;
        let mut stored = store(&name, &elements, treatment, moments.as_ref())?;
        if imported.is_some() && weight.quantizable() && matches!(treatment.store, Store::Codes(..)) {
            stored.note = Some("not in the imported file by this method at this width: quantized here".into());
        }
        Ok(Prepared { dims: elements.dims, stored })
    }
}

/// Where codes may come from.
type From<'a> = (Option<&'a Known>, Option<&'a Imported>, Option<&'a Reconstructed>);

/// A weight ready to be written.
struct Prepared {
    dims: Vec<usize>,
    stored: Stored,
}

/// Proves that META and programs agree, and that a run with the model's own settings can be planned: what a file must do
/// before it appears. The plan is that of the plainest back end, so it depends on no machine.
fn prove<D: AsRef<[u8]>>(packed: &Packed<D>) -> aquatint::Result<()> {
    let model = aquatint::Model::prove(packed)?;
    let request = Request::new(&model, Prompts::blank(&model, 1));
    Plans::new(&Cpu::new(Scalar), &model, &request).map(|_| ())
}

/// Files and folders that the output must not be.
fn inputs(options: &Options) -> Vec<&Path> {
    let configs = [&options.q_config, &options.vae_q_config, &options.text_q_config].into_iter().flatten();
    let configs = configs.filter_map(|arg| QConfig::file(arg));
    let models = [&options.model].into_iter().chain(&options.refiner);
    let models = models.chain(&options.donors.autoencoder).chain(&options.donors.text);
    let scheduler = options.overrules.scheduler_config.as_deref();
    let calibration = options.calibration.as_deref().into_iter().chain(options.import.as_deref());
    models.map(PathBuf::as_path).chain(configs).chain(scheduler).chain(calibration).collect()
}

/// The elements of `weight` in the file's order, after all its steps.
fn elements(model: &Model, weights: &Weights, weight: &Weight) -> Result<Elements> {
    let (dims, values) = match &weight.origin {
        Origin::Checkpoint { key, dims } => (dims, model.component(weight.component).weights.read(key)?),
        Origin::Made { dims, values, .. } => (dims, values.clone()),
    };
    let source = Elements { dims: dims.clone(), values };
    let misfit = |Misfit { expected, got }| Error::request(format!("steps of {}", weight.name()), expected, got);
    Ok(step::apply(&weight.steps, source, &|name| weights.parameter(name)).map_err(misfit)?)
}

/// A layer's entry in the report.
fn line(weight: &Weight, decision: &Decision, stored: &Stored, weights: u64) -> LayerLine {
    let Decision { treatment, by, note } = decision;
    let meta = LayerMeta {
        name: format!("{}/{}", weight.component, weight.layer()),
        method: treatment.store.name(),
        decided_by: by.as_ref().map(ToString::to_string),
        note: notes(note.as_deref(), stored),
        activation_bits: treatment.activation_bits.unwrap_or(32),
        error: stored.error,
        exact_error: stored.exact_error,
        output_error: stored.calibrated.as_ref().map(|output| output.error),
        nearest_output_error: stored.calibrated.as_ref().map(|output| output.nearest),
        bytes: stored.bytes.len() as u64,
    };
    LayerLine { meta, bits: treatment.store.bits(), weights }
}

/// What the recipe and the choice of codes have to say of a layer.
fn notes(recipe: Option<&str>, stored: &Stored) -> Option<String> {
    let all: Vec<&str> = recipe.into_iter().chain(stored.note.as_deref()).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn aliases(weight: &Weight) -> (String, Vec<String>) {
    let names = weight.copies.iter().map(|key| format!("{}/{key}", weight.component));
    (weight.whole_name(), names.collect())
}

/// Bytes of the denoisers' layers by the paper's accounting, after and before.
#[derive(Default)]
struct PaperBytes {
    quantized: u64,
    raw: u64,
}

impl PaperBytes {
    /// Counts a layer, as often as the checkpoint has it.
    fn add(&mut self, weight: &Weight, store: Store) {
        if Part::of(weight.component) == Part::Denoiser {
            let copies = 1 + weight.copies.len() as u64;
            self.quantized += copies * paper_bytes(weight, store);
            self.raw += copies * raw_bytes(weight.len() as u64, PRECISION);
        }
    }

    fn average_bits(&self) -> f64 {
        average_bits(self.quantized, self.raw, PRECISION)
    }
}

/// Bytes of one copy of a layer by the paper's accounting.
fn paper_bytes(weight: &Weight, store: Store) -> u64 {
    let (rows, cols) = weight.matrix();
    let (rows, cols) = (rows as u64, cols as u64);
    match store {
        Store::F32 => raw_bytes(rows * cols, 32),
        Store::F16 => raw_bytes(rows * cols, 16),
        Store::Codes(method, bits) => quantized_bytes(rows, cols, method, bits, PRECISION),
    }
}
