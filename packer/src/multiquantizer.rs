//! Every layer of a denoiser quantized by several methods, in one safetensors file with the names of Qua2SeDiMo's `*_mq.pt`
//! (quantization.md §1.4): [`import`](crate::import) reads it back, and a configuration picks a method per layer.
//!
//! Per layer `L`: `model.L.weight` and `model.L.bias`; `model.L.weight_quantizer.quant_params.<method>-<bits>`, for `mse` the steps
//! and zero points (2, outputs, 1, ..), for `kmeans` and `kmeans_all` the weights as they become; and
//! `model.L.weight_quantizer.loss_dict.<method>-<bits>`, f16 (1). `L` is the layer's path in the model's own file.
//!
//! Of a split layer over a skip connection both halves are quantized, the second as `weight_quantizer_0`.
//!
//! Losses are the project's: of `mse` and `kmeans` the sum over output channels of the mean |w - q|^2.4, of `kmeans_all` the
//! sum over inputs in the mean over everything else, so the two are not comparable; beyond f16 they are its largest number.

use crate::emit;
use crate::error::Result;
use crate::lower::{self, Lowered, Part};
use crate::pass::{self, Split};
use crate::quantize::{Exact, Method, Rule, exact, power_loss, quantized_bytes, raw_bytes};
use crate::source::Checkpoint;
use crate::source::diffusers::Model;
use crate::source::view;
use crate::weight::{Step, Weight, Weights};
use crate::weights::{Float, write_as};
use aquatint::error::Error;
use aquatint::raw::codec::Bits;
use aquatint::raw::whole_file::check_target;
use half::f16;
use serde::Serialize;
use std::ops::Range;
use std::path::PathBuf;

/// Bits per weight of the precision that sizes are relative to.
const PRECISION: u64 = 16;

/// What to quantize, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model directory, or a checkpoint file.
    pub model: PathBuf,
    /// Methods: `mse`, `kmeans`, `kmeans_all`.
    pub methods: Vec<Method>,
    /// Widths.
    pub bits: Vec<Bits>,
    /// Type of weights and parameters. With f16, weights are rounded first, and `mse` works in f16 arithmetic, as the project's code
    /// does on such weights.
    pub float: Float,
    /// Layers over two values side by side whose halves are quantized apart.
    pub split: Vec<Split>,
    /// The safetensors file.
    pub output: PathBuf,
}

/// What one method makes of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The layer's path in the file; of a second half with `.weight_quantizer_0`.
    pub layer: String,
    /// `mse-4`, `kmeans-3`..
    pub method: String,
    /// Bytes of the layer's weights in 16 bits.
    pub fp_bytes: u64,
    /// Bytes by the paper's accounting, codebooks included.
    pub quantized_bytes: u64,
    /// The loss, as the project's caches have it.
    pub error: f64,
    /// How often the checkpoint has the layer.
    pub copies: usize,
}

/// A layer that is quantized.
struct Layer<'a> {
    file: &'a Checkpoint,
    /// Its path in the file, and the name of its weight and bias here.
    path: String,
    key: &'a str,
    bias: Option<String>,
    /// Axes of the whole weight.
    whole: &'a [usize],
    /// The inputs that are meant of a split one.
    half: Option<Range<usize>>,
    /// Axes of what is meant.
    dims: Vec<usize>,
    copies: usize,
}

/// A tensor that is written.
#[derive(Clone, Copy)]
enum Tensor {
    Weight,
    Bias,
    Parameters(Method, Bits),
    Loss,
}

/// Quantizes and writes; tells `progress` of each layer before it is read, with weights done and in all. One layer and what one
/// method makes of it are in memory at a time.
///
/// # Errors
/// If the model cannot be read or has fused projections, nothing is to be done, f16 cannot hold a weight, or the file cannot be
/// written.
pub fn multiquantize(settings: &Settings, progress: &mut dyn FnMut(&str, u64, u64)) -> Result<Vec<Row>> {
    check(settings)?;
    check_target(&settings.output, &[&settings.model])?;
    let model = Model::open(&settings.model)?;
    let Lowered { mut programs, mut weights, pipeline, .. } = lower::lower(&model)?;
    let wanted = |weights: &Weights, tensor, split| {
        settings.split.contains(&split) && Part::of(weights[tensor].component) == Part::Denoiser
    };
    let halves = pass::split_layers(&mut programs, &mut weights, &emit::dims(&pipeline), &wanted)?;
    emit::check_split(&settings.split, &halves, &programs)?;
    let denoiser = |w: &&Weight| Part::of(w.component) == Part::Denoiser && w.quantizable() && !w.is_made();
    let layers = weights.iter().filter(denoiser).map(|w| layer(&model, w)).collect::<Result<Vec<_>>>()?;
    let kinds: Vec<(Method, Bits)> =
        settings.methods.iter().flat_map(|&m| settings.bits.iter().map(move |&b| (m, b))).collect();
    let (mut plan, mut tensors) = (Vec::new(), Vec::new());
    for (i, layer) in layers.iter().enumerate() {
        for (part, name, dims) in parts(layer, &kinds) {
            let float = if matches!(part, Tensor::Loss) { Float::F16 } else { settings.float };
            plan.push((i, part));
            tensors.push((name, dims, float));
        }
    }
    let total = layers.iter().map(|l| l.dims.iter().product::<usize>() as u64).sum();
    let (mut rows, mut done, mut held) = (Vec::new(), 0, (usize::MAX, Vec::new()));
    write_as(&settings.output, &tensors, &mut |at| {
        let (i, part) = plan[at];
        let layer = &layers[i];
        match part {
            Tensor::Weight => read(layer.file, layer.key, settings.float),
            Tensor::Bias => layer.bias.as_ref().map_or(Ok(Vec::new()), |bias| read(layer.file, bias, settings.float)),
            Tensor::Parameters(method, bits) => {
                if held.0 != i {
                    progress(&layer.path, done, total);
                    held = (i, layer.read(settings.float)?);
                    done += held.1.len() as u64;
                }
                let Exact { values, grid } = quantized(&held.1, &layer.dims, (method, bits), settings.float);
                rows.push(row(layer, &held.1, &values, method, bits));
                Ok(grid.map_or(values, |(step, zero)| [step, zero].concat()))
            }
            Tensor::Loss => {
                let loss = rows.last().map_or(0.0, |row: &Row| row.error);
                Ok(vec![loss.min(f64::from(f16::MAX)) as f32])
            }
        }
    })?;
    Ok(rows)
}

/// Refuses settings that make nothing.
fn check(settings: &Settings) -> Result<()> {
    let known = [Method::UAQ, Method::KMeansRow, Method::KMeansTensor];
    if let Some(other) = settings.methods.iter().find(|method| !known.contains(method)) {
        return Err(Error::request("--methods", "mse, kmeans or kmeans_all", other).into());
    }
    for (option, count) in [("--methods", settings.methods.len()), ("--bits", settings.bits.len())] {
        if count == 0 {
            return Err(Error::request(option, "one at least", "none").into());
        }
    }
    let twice = |n: usize, same: &dyn Fn(usize, usize) -> bool| (0..n).any(|i| (0..i).any(|j| same(i, j)));
    if twice(settings.bits.len(), &|i, j| settings.bits[i] == settings.bits[j]) {
        return Err(Error::request("--bits", "each width once", "one twice").into());
    }
    if twice(settings.methods.len(), &|i, j| settings.methods[i] == settings.methods[j]) {
        return Err(Error::request("--methods", "each method once", "one twice").into());
    }
    Ok(())
}

fn layer<'a>(model: &'a Model, weight: &'a Weight) -> Result<Layer<'a>> {
    let file = &model.component(weight.component).weights;
    let (source, part) = file.published(weight.key());
    if *part != view::Part::Whole {
        let expected = "layers with tensors of their own; convert the model to a diffusers directory";
        return Err(Error::request(file.describe(weight.key()), expected, format!("a part of {source}")).into());
    }
    let path = source.strip_suffix(".weight").unwrap_or(source);
    let path = path.strip_prefix("model.diffusion_model.").unwrap_or(path).to_owned();
    let bias = weight.key().strip_suffix(".weight").map(|key| format!("{key}.bias")).filter(|key| file.has(key));
    let (whole, mut dims) = (weight.source_dims(), weight.source_dims().to_vec());
    let half = weight.steps.iter().find_map(|step| match step {
        Step::Split { first, count, .. } => Some(*first as usize..(first + count) as usize),
        _ => None,
    });
    if let Some(half) = &half {
        dims[1] = half.len();
    }
    Ok(Layer { file, path, key: weight.key(), bias, whole, half, dims, copies: 1 + weight.copies.len() })
}

impl Layer<'_> {
    /// Whether it is the second half of a split layer.
    fn is_second(&self) -> bool {
        self.half.as_ref().is_some_and(|half| half.start > 0)
    }

    /// What the file calls its quantizer.
    fn quantizer(&self) -> String {
        format!("{}.weight_quantizer{}", self.path, if self.is_second() { "_0" } else { "" })
    }

    /// Its weights, rounded to the type that they are written in.
    fn read(&self, float: Float) -> Result<Vec<f32>> {
        let values = read(self.file, self.key, float)?;
        let Some(half) = &self.half else { return Ok(values) };
        let inner: usize = self.whole[2..].iter().product();
        let rows = values.chunks_exact(self.whole[1] * inner);
        Ok(rows.flat_map(|row| &row[half.start * inner..half.end * inner]).copied().collect())
    }
}

/// A layer's tensors in the order of the file: what they are, their names and axes.
fn parts(layer: &Layer, kinds: &[(Method, Bits)]) -> Vec<(Tensor, String, Vec<usize>)> {
    let (path, quantizer) = (&layer.path, layer.quantizer());
    let mut parts = Vec::new();
    if !layer.is_second() {
        parts.push((Tensor::Weight, format!("model.{path}.weight"), layer.whole.to_vec()));
    }
    if layer.bias.is_some() && !layer.is_second() {
        parts.push((Tensor::Bias, format!("model.{path}.bias"), vec![layer.dims[0]]));
    }
    for &(method, bits) in kinds {
        let dims = match method {
            Method::Uniform(_) => [&[2, layer.dims[0]], &vec![1; layer.dims.len() - 1][..]].concat(),
            _ => layer.dims.clone(),
        };
        let of = |what: &str| format!("model.{quantizer}.{what}.{method}-{bits}");
        parts.push((Tensor::Parameters(method, bits), of("quant_params"), dims));
        parts.push((Tensor::Loss, of("loss_dict"), vec![1]));
    }
    parts
}

/// A tensor, rounded to the type that it is written in.
fn read(file: &Checkpoint, key: &str, float: Float) -> Result<Vec<f32>> {
    let mut values = file.read(key)?;
    if float == Float::F16 {
        values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
    }
    Ok(values)
}

/// A layer's weight by one method.
fn quantized(weights: &[f32], dims: &[usize], (method, bits): (Method, Bits), float: Float) -> Exact {
    let half = float == Float::F16;
    let method = if half && method == Method::UAQ { Method::Uniform(Rule::MseHalf) } else { method };
    let mut made = exact(weights, dims[0], dims[1..].iter().product(), method, bits);
    if half {
        made.values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
    }
    made
}

fn row(layer: &Layer, weights: &[f32], values: &[f32], method: Method, bits: Bits) -> Row {
    let (outputs, inputs) = (layer.dims[0], layer.dims[1..].iter().product::<usize>());
    // What the sum of all errors is divided by.
    let over = match method {
        Method::KMeansTensor => weights.len() / layer.dims[1].max(1),
        _ => inputs,
    };
    Row {
        layer: if layer.is_second() { layer.quantizer() } else { layer.path.clone() },
        method: format!("{method}-{bits}"),
        fp_bytes: raw_bytes(weights.len() as u64, PRECISION),
        quantized_bytes: quantized_bytes(outputs as u64, inputs as u64, method, bits, PRECISION),
        error: power_loss(weights, values) / over.max(1) as f64,
        copies: layer.copies,
    }
}
