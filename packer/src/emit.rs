//! Model directory in, packed file out.
//!
//! [`pack`] runs the stages in order: open, lower, decide, passes, then weight by weight: read, turn, quantize, write.
//! One weight is in memory at a time. The same input gives the same bytes, whatever the number of threads.

use crate::error::Result;
use crate::lower::{self, Lowered, Part, Rows, Weight};
use crate::pass;
use crate::quantize::{Measured, Tables, average_bits, quantize_measured, quantized_bytes, raw_bytes};
use crate::recipe::{Recipe, Requests, Store, Treatment};
use crate::source::diffusers::Model;
use crate::weights::halves;
use aquatint::codec::layout;
use aquatint::error::Error;
use aquatint::format::meta::{LayerMeta, QuantizationMeta};
use aquatint::format::{Meta, TensorKind, TensorSpec, Writer};
use aquatint::program::{Dims, Role, shape};
use aquatint::whole_file::check_target;
use rayon::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

/// Bits per weight of the precision that average bits are relative to; the published sizes count 16.
const PRECISION: u64 = 16;

/// What to pack.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The model directory.
    pub model: PathBuf,
    /// Another one, whose denoiser does the last steps; see [`Model::with_refiner`].
    pub refiner: Option<PathBuf>,
    /// Quantization of the denoisers: a file or a specification; f16 if absent.
    pub q_config: Option<String>,
    /// Bits of the activations of the denoiser's layers whose weights are codes, whatever `q_config` says of them: 6 or 8.
    pub activation_bits: Option<u8>,
    /// Quantization of the autoencoder; if absent f16, or f32 where the denoiser's is f32.
    pub vae_q_config: Option<String>,
    /// Quantization of the text encoders; if absent f16, or f32 where the denoiser's is f32.
    pub text_q_config: Option<String>,
    /// Whether the denoisers' attentions between integer layers work in 8-bit codes too.
    pub int8_attention: bool,
    /// The packed file.
    pub output: PathBuf,
}

/// How far the work is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The weight that comes next.
    pub name: &'a str,
    /// Weights done, in elements.
    pub done: u64,
    /// All weights, in elements.
    pub total: u64,
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One entry per quantizable layer, in program order.
    pub layers: Vec<LayerLine>,
    /// Bytes of the packed file.
    pub file_bytes: u64,
    /// Bytes of the weight files it was made from, whatever is not used of them included.
    pub source_bytes: u64,
    /// `file_bytes / source_bytes`.
    pub ratio: f64,
    /// Average bits of the denoisers' layers as Qua2SeDiMo counts them: copies and codebooks included.
    pub average_bits: f64,
}

/// A layer's entry in the report.
#[derive(Clone, Debug, Serialize)]
pub struct LayerLine {
    /// `component/module path`.
    pub name: String,
    /// See [`Store::name`].
    pub method: String,
    /// Bits per weight, codebooks apart.
    pub bits: u8,
    /// Bits of the activations; 32 for floats.
    pub activation_bits: u8,
    /// Number of weights.
    pub weights: u64,
    /// `|W - Wq| / |W|` of the weights the runtime uses.
    pub error: f64,
    /// The same before codebooks were rounded to 8 bits.
    pub exact_error: f64,
    /// Bytes in the file.
    pub bytes: u64,
    /// Why this layer is not what the configuration asked for, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Packs `options.model` into `options.output`; tells `progress` about each weight before it is read.
///
/// # Errors
/// Whatever is wrong with the model, the configuration or the output, before anything appears at `options.output`.
pub fn pack(options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let configs =
        [&options.q_config, &options.vae_q_config, &options.text_q_config].into_iter().flatten().map(Path::new);
    let inputs: Vec<&Path> =
        options.refiner.iter().map(PathBuf::as_path).chain([&*options.model]).chain(configs).collect();
    check_target(&options.output, &inputs)?;
    let mut writer = Writer::create(&options.output)?;
    let mut model = Model::open(&options.model)?;
    if let Some(refiner) = &options.refiner {
        model = model.with_refiner(Model::open(refiner)?)?;
    }
    let Lowered { mut programs, weights, files, pipeline, .. } = lower::lower(&model)?;
    let requests = Requests {
        denoiser: options.q_config.as_deref(),
        autoencoder: options.vae_q_config.as_deref(),
        text: options.text_q_config.as_deref(),
        activation_bits: options.activation_bits,
    };
    let recipe = Recipe::new(&weights, requests)?;
    let mut attentions = 0;
    for program in &mut programs {
        pass::assign(program, &|tensor| recipe.treatments[tensor.0 as usize].activation_bits);
        if options.int8_attention && matches!(program.role, Role::Denoiser | Role::Refiner) {
            attentions += pass::attend_in_codes(program);
        }
        pass::fuse(program);
    }
    if options.int8_attention && attentions == 0 {
        let expected = "a denoiser with attention between layers of integer activations";
        return Err(Error::request("--int8-attention", expected, "none").into());
    }
    // The writer checks the same at the end; here it costs nothing and spares a wait.
    let types = recipe.types(&weights);
    let [height, width] = pipeline.latent_size.map(|n| n as usize);
    for program in &programs {
        shape::infer(program, &types, &Dims { batch: 1, conditions: 1, height, width, tokens: 1 })?;
    }

    let total = weights.iter().map(|w| w.dims.iter().product::<usize>() as u64).sum();
    let mut done = 0;
    let mut layers = Vec::new();
    let (mut quantized, mut raw) = (0, 0);
    for (i, weight) in weights.iter().enumerate() {
        let name = weight.name();
        progress(Progress { name: &name, done, total });
        let treatment = recipe.treatments[i];
        let values = model.component(weight.component).weights.read(&weight.key)?;
        let values = turn(weight, values);
        let stored = store(weight, &values, treatment)?;
        writer.tensor(TensorSpec { name, dims: weight.dims.clone(), kind: stored.kind }, &stored.bytes)?;
        done += values.len() as u64;
        if weight.quantizable() {
            if Part::of(weight.component) == Part::Denoiser {
                let copies = 1 + weight.copies.len() as u64;
                quantized += copies * paper_bytes(weight, treatment.store);
                raw += copies * raw_bytes(values.len() as u64, PRECISION);
            }
            layers.push(LayerLine {
                name: format!("{}/{}", weight.component, weight.layer()),
                method: treatment.store.name(),
                bits: treatment.store.bits(),
                activation_bits: treatment.activation_bits.unwrap_or(32),
                weights: values.len() as u64,
                error: stored.error,
                exact_error: stored.exact_error,
                bytes: stored.bytes.len() as u64,
                note: recipe.notes.get(&i).cloned(),
            });
        }
    }
    for (name, bytes) in &files {
        writer.bytes(name, bytes)?;
    }
    let average_bits = average_bits(quantized, raw, PRECISION);
    let source_bytes = model.sources.iter().filter(|s| s.weights).map(|s| s.meta.bytes).sum();
    let meta = Meta {
        tool: concat!("packer ", env!("CARGO_PKG_VERSION")).into(),
        pipeline,
        quantization: QuantizationMeta {
            config: recipe.config,
            average_bits,
            attention: (attentions > 0).then(|| "int8".into()),
            layers: layers.iter().map(LayerLine::meta).collect(),
        },
        sources: model.sources.iter().map(|s| s.meta.clone()).collect(),
        aliases: weights.iter().filter(|w| !w.copies.is_empty()).map(aliases).collect(),
    };
    writer.finish(&programs, &meta)?;
    let file_bytes = std::fs::metadata(&options.output).map_err(Error::io("read", &options.output))?.len();
    let ratio = file_bytes as f64 / source_bytes as f64;
    Ok(Report { layers, file_bytes, source_bytes, ratio, average_bits })
}

impl LayerLine {
    fn meta(&self) -> LayerMeta {
        LayerMeta {
            name: self.name.clone(),
            method: self.method.clone(),
            activation_bits: self.activation_bits,
            error: self.error,
            exact_error: self.exact_error,
            bytes: self.bytes,
        }
    }
}

fn aliases(weight: &Weight) -> (String, Vec<String>) {
    let names = weight.copies.iter().map(|key| format!("{}/{key}", weight.component));
    (weight.name(), names.collect())
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

/// Brings a weight from the checkpoint's order into the file's: axes `(o, i, h, w)` become `(o, h, w, i)`, and rows are
/// arranged.
fn turn(weight: &Weight, values: Vec<f32>) -> Vec<f32> {
    if weight.rows != Rows::AsIs {
        let (_, cols) = weight.matrix();
        return weight.rows.arrange(&values, cols).into_owned();
    }
    let [o, h, w, i] = weight.dims[..] else { return values };
    if h * w == 1 {
        return values;
    }
    let mut turned = vec![0.0; values.len()];
    turned.par_chunks_exact_mut(h * w * i).zip(values.par_chunks_exact(h * w * i)).for_each(|(to, from)| {
        for (channel, taps) in from.chunks_exact(h * w).enumerate() {
            taps.iter().enumerate().for_each(|(tap, &v)| to[tap * i + channel] = v);
        }
    });
    debug_assert_eq!(turned.len(), o * h * w * i);
    turned
}

/// A weight's bytes in the file, and what they cost.
struct Stored {
    kind: TensorKind,
    bytes: Vec<u8>,
    error: f64,
    exact_error: f64,
}

fn store(weight: &Weight, values: &[f32], treatment: Treatment) -> Result<Stored> {
    match treatment.store {
        Store::F32 => {
            Ok(Stored { kind: TensorKind::F32, bytes: values.as_bytes().to_vec(), error: 0.0, exact_error: 0.0 })
        }
        Store::F16 => {
            let halves = halves(&weight.name(), values)?;
            let (mut sse, mut energy) = (0.0, 0.0);
            for (&v, h) in values.iter().zip(&halves) {
                sse += f64::from(v - h.to_f32()).powi(2);
                energy += f64::from(v).powi(2);
            }
            let error = if sse == 0.0 { 0.0 } else { (sse / energy).sqrt() };
            Ok(Stored { kind: TensorKind::F16, bytes: halves.as_bytes().to_vec(), error, exact_error: error })
        }
        Store::Codes(method, bits) => {
            let (rows, cols) = weight.matrix();
            let tables = if treatment.activation_bits.is_some() { Tables::Int8 } else { Tables::Exact };
            let Measured { matrix, error, exact_error } = quantize_measured(values, rows, cols, method, bits, tables);
            let taps = if let [_, h, w, _] = weight.dims[..] { h * w } else { 1 };
            let (layout, bytes) = layout::pack(&matrix, taps);
            let kind = TensorKind::Codes { bits, grain: layout.grain, int8: layout.int8 };
            Ok(Stored { kind, bytes, error, exact_error })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::{Storage, VAE};

    #[test]
    fn kernels_turn_channels_last() {
        let weight = Weight {
            component: VAE,
            key: "conv.weight".into(),
            source_dims: vec![2, 3, 1, 2],
            dims: vec![2, 1, 2, 3],
            storage: Storage::Conv,
            rows: Rows::AsIs,
            copies: Vec::new(),
        };
        // Values say (o, i, w).
        let values = (0..2).flat_map(|o| (0..3).flat_map(move |i| (0..2).map(move |w| (o * 100 + i * 10 + w) as f32)));
        let turned = turn(&weight, values.collect());
        assert_eq!(turned, [0., 10., 20., 1., 11., 21., 100., 110., 120., 101., 111., 121.]);
    }
}
