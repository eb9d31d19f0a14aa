//! Model directory in, packed file out.
//!
//! [`Packing::open`] opens and lowers the model; what it holds then, programs and weights, is for passes to change.
//! [`Packing::write`] decides about every weight, runs the passes of integer layers, and goes through the list of
//! weights: read, apply steps, quantize, write. One weight is in memory at a time. The same input gives the same bytes,
//! whatever the number of threads. [`pack`] is the two in one.

mod attention;
mod calibrated;
mod decide;
mod imported;
mod layers;
mod phases;
mod pruned;
mod ranges;
mod reconstructed;
mod report;
mod size;
mod smoothing;
mod store;
mod timed;
mod transform;
mod turns;
mod write;

pub use crate::config::ActivationRanges;
pub use attention::AttentionBits;
pub(crate) use decide::dims;
pub use decide::{Coded, CodedLayer, Half, LayerPlan, PhaseChange, Plan, coded_layers, explain};
pub(crate) use imported::check_split;
pub use layers::Layers;
pub use ranges::RangeSource;
pub use report::{LayerLine, Progress, Report};
pub use smoothing::Smoothing;

use crate::config::QConfig;
use crate::error::Result;
use crate::lower::{self, Lowered};
use crate::pass::{self, AttentionGrid, Layer, Split, Starts};
use crate::quantize::Pruning;
use crate::recipe::Recipe;
use crate::reconstruct::Reconstruction;
use crate::source::SourceFile;
use crate::source::diffusers::Model;
use crate::source::donors::Donors;
use crate::source::settings::Overrules;
use crate::weight::{Weight, Weights};
use aquatint::error::Error;
use aquatint::pipeline::{Plans, Prompts, Request};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cpu::simd::scalar::Scalar;
use aquatint::raw::format::meta::{PipelineMeta, QuantizationMeta};
use aquatint::raw::format::{Meta, Packed, Writer};
use aquatint::raw::program::{Program, QuantizeRange, Role, describe_attention, shape};
use aquatint::raw::whole_file::check_target;
use calibrated::Known;
use decide::decide;
use phases::PhaseWeights;
use pruned::Pruned;
use ranges::fixed_ranges;
use reconstructed::Reconstructed;
use report::sparsity_note;
pub use size::average_bits;
use std::path::{Path, PathBuf};
use timed::Timed;
use transform::transform;
use turns::Turns;
use write::Changes;

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
    /// Bits of the activations of the denoiser's layers whose weights are codes, whatever `q_config` says of them: 2 to 8.
    pub activation_bits: Option<u8>,
    /// Types of tensors by stable-diffusion.cpp's rules, `PATTERN=TYPE,..`: they go before all other requests.
    pub tensor_types: Option<String>,
    /// Quantization of the autoencoder; if absent f16, or f32 where the denoiser's floats are f32.
    pub vae_q_config: Option<String>,
    /// Quantization of the text encoders; if absent f16, or f32 where the denoiser's floats are f32.
    pub text_q_config: Option<String>,
    /// Statistics of the inputs of layers, as [`calibrate`](crate::calibrate) makes them: where they are known, codes are chosen
    /// for the layer's output; elsewhere weights are rounded to the nearest level.
    pub calibration: Option<PathBuf>,
    /// Ranges of activations that are fixed when packing; without this those that `import` has learned, or that `q_config` fixes.
    /// Where there are none, each row has its own while running.
    pub activation_ranges: Option<RangeSource>,
    /// Whether learned tables of up to 16 integers keep to 7 bits.
    pub narrow_codebooks: bool,
    /// Factors that inputs of the denoiser's layers are divided by, and their weights multiplied with.
    pub smoothing: Option<Smoothing>,
    /// Layers of the denoiser whose inputs, where they become integers, and weights are rotated.
    pub rotation: Option<Layers>,
    /// A file of quantized weights that [`reconstruct`](crate::reconstruct) made, or that a research project saved: layers of
    /// the denoiser that become codes and that it has
    /// are as it has them.
    pub import: Option<PathBuf>,
    /// What of the denoiser's layers becomes 0 before anything is quantized, and stays 0 exactly.
    pub pruning: Option<Pruning>,
    /// Layers over two values side by side that become two products, each with levels of its own.
    pub split: Vec<Split>,
    /// Settings of the sampler that the model's files say otherwise, or do not say.
    pub overrules: Overrules,
    /// Whether the denoisers' attentions between integer layers work in 8-bit codes too.
    pub int8_attention: bool,
    /// Grids that the denoisers' attentions are rounded to while they stay in floats; not with `int8_attention`. Ranges are
    /// those of the imported file with [`RangeSource::Import`], else they are taken while running.
    pub attention: AttentionBits,
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
        if options.smoothing.is_some() {
            smoothing::check(options, None)?;
        }
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
        let mut phases = PhaseWeights::make(weights, &mut recipe)?;
        let timed = Timed::new(options, &recipe)?;
        if let Some(timed) = &timed {
            timed.vary(options, &mut phases, (weights, &mut recipe))?;
        }
        let sources: Vec<_> = self.model.sources.iter().map(SourceFile::meta).collect();
        let open = |path: &PathBuf| Known::open(path, (&self.pipeline, &sources), programs, weights, &mut recipe);
        let mut known = options.calibration.as_ref().map(open).transpose()?;
        let trained = options.import.as_ref().map(|path| Reconstruction::open(path)).transpose()?.flatten();
        let trained = trained
            .map(|file| Reconstructed::new(file, (&self.pipeline, &sources), programs, weights, &mut recipe))
            .transpose()?;
        if let Some(known) = &mut known {
            phases.give_biases(known, weights, &mut recipe);
        }
        let pruned = Pruned::plan(options, &self.model, weights)?;
        if let Some(pruned) = &pruned {
            recipe.config += &format!(", {}", pruned.describe());
        }
        let graph = (&mut programs[..], &mut *weights, &mut recipe);
        let model = (&self.model, &self.pipeline, pruned.as_ref());
        let (transformed, turns) =
            transform(options, graph, model, (known.as_ref(), &phases, timed.as_ref()), progress)?;
        let (known, imported) = (known.as_ref(), imported.as_ref());
        let learned = trained.as_ref().filter(|file| file.has_ranges() && options.activation_ranges.is_none());
        let ranges = match learned {
            Some(file) => file.ranges(weights, &mut recipe)?,
            None => fixed_ranges(options, (known, imported), (&self.model, programs), weights, &mut recipe)?,
        };
        let grids = attention::grids(options, imported, (&self.model, programs), weights, &mut recipe)?;
        phases.check((&self.weights, &recipe), &ranges, &turns)?;
        self.use_codes(&recipe, &phases, &ranges, &turns, &grids)?;
        let attention = describe_attention(&self.programs);
        if let Some(words) = attention.as_ref().filter(|_| self.options.attention != AttentionBits::default()) {
            recipe.config += &format!(", attention in {words}");
        }
        // The writer checks the same at the end; here it costs nothing and spares a wait.
        let types = recipe.types(&self.weights);
        for program in &self.programs {
            shape::infer(program, &types, &dims(&self.pipeline))?;
        }
        let changes = Changes { known, imported, trained: trained.as_ref(), pruned: pruned.as_ref() };
        let average_bits = average_bits(&self.weights, &recipe.starts, &|phase, weight| {
            recipe.decisions[phases.weight(phase, weight).0 as usize].treatment.store
        });
        let layers = self.write_weights(&recipe, changes, progress)?;
        for (name, bytes) in &self.files {
            self.writer.bytes(name, bytes)?;
        }
        let source_bytes = self.model.sources.iter().filter(|s| s.weights).map(|s| s.bytes).sum();
        let sampler = &self.pipeline.sampler;
        let replaced = |other: &String| format!("{other} is not run here; {} takes its place", sampler.kind);
        let notes = sampler.replaces.iter().map(replaced).chain(transformed);
        let notes = notes.chain(sparsity_note(&layers)).chain(recipe.notes).collect();
        let steps = self.weights.iter().filter(|w| !w.steps.is_empty());
        let meta = Meta {
            tool: concat!("packer ", env!("CARGO_PKG_VERSION")).into(),
            pipeline: self.pipeline,
            quantization: QuantizationMeta {
                config: recipe.config,
                average_bits,
                attention,
                calibration: known.map(Known::meta).transpose()?,
                layers: layers.iter().map(|line| line.meta.clone()).collect(),
            },
            sources,
            aliases: self.weights.iter().filter(|w| !w.copies.is_empty()).map(aliases).collect(),
            steps: steps.map(|w| (w.name(), w.steps.clone())).collect(),
            made: self.weights.iter().filter(|w| w.is_made() || w.phase.is_some()).map(Weight::name).collect(),
        };
        self.writer.finish_with(&self.programs, &meta, prove)?;
        let output = &self.options.output;
        let file_bytes = std::fs::metadata(output).map_err(Error::io("read", output))?.len();
        let ratio = file_bytes as f64 / source_bytes as f64;
        Ok(Report { layers, notes, file_bytes, source_bytes, ratio, average_bits })
    }

    /// Lets programs make and use codes where `recipe` asks for integer activations, and attentions `grids`.
    fn use_codes(
        &mut self,
        recipe: &Recipe,
        phases: &PhaseWeights,
        ranges: &[QuantizeRange],
        turns: &Turns,
        grids: &[Vec<AttentionGrid>],
    ) -> Result<()> {
        let mut attentions = 0;
        for (program, grids) in self.programs.iter_mut().zip(grids) {
            let denoiser = matches!(program.role, Role::Denoiser | Role::Refiner);
            let starts = if denoiser { phases.starts.clone() } else { Starts::default() };
            pass::assign(program, &starts, &|phase, weight| {
                let bits = recipe.decisions[weight.0 as usize].treatment.activation_bits;
                let layer = phases.layer(phase, weight, bits, ranges);
                Layer { turn: turns.of(layer.weight), ..layer }
            });
            if self.options.int8_attention && denoiser {
                attentions += pass::attend_in_codes(program);
            }
            pass::fuse(program);
            pass::round_attentions(program, grids);
        }
        if self.options.int8_attention && attentions == 0 {
            let expected = "a denoiser with attention between layers of integer activations";
            return Err(Error::request("--int8-attention", expected, "none").into());
        }
        Ok(())
    }
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

fn aliases(weight: &Weight) -> (String, Vec<String>) {
    let names = weight.copies.iter().map(|key| format!("{}/{key}", weight.component));
    (weight.whole_name(), names.collect())
}
