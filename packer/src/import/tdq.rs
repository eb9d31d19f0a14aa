//! TDQ's checkpoints (quantization.md §5; So et al. 2023, §4): a network trained with its quantizers, of each layer `n_lv`, the
//! number of levels, and `s`, the step of its weight; and under `act_func` the same of its input, whose step a small network
//! makes of the timestep's sinusoids, or which is `s` where that was not trained (`dynamic`).
//!
//! A step that depends on the timestep alone needs no network when it runs: it is a table.

use super::qdiffusion::original;
use super::{ImportedRange, ImportedWeight, Quantizer, RowGrid};
use crate::error::Result;
use crate::source::Checkpoint;
use aquatint::error::Error;
use aquatint::raw::codec::Bits;
use aquatint::raw::program::CurveAxis;
use std::fmt::Display;

/// Timesteps that models are trained on.
const TIMESTEPS: usize = 1000;
/// The least value of SiLU, as the project's code has it.
const LEAST_SILU: f32 = -0.2785;
/// The longest wave of the timestep's sinusoids.
const LONGEST: f32 = 10_000.0;
/// The layers of a generator that have weights.
const GENERATOR: [u8; 4] = [0, 2, 4, 7];

/// A layer of the file.
pub(super) struct Layer<'a> {
    pub(super) file: &'a Checkpoint,
    /// `model.diffusion_model.<path>`.
    pub(super) path: &'a str,
    /// Whether the running averages are meant, where the file has them.
    pub(super) averaged: bool,
}

impl Layer<'_> {
    /// What the file calls tensor `what` of the layer.
    ///
    /// # Errors
    /// If the average has another shape.
    pub(super) fn name(&self, what: &str) -> Result<String> {
        let name = format!("{}.{what}", self.path);
        let average = if self.averaged { self.file.ema(&name)? } else { None };
        Ok(average.unwrap_or(name))
    }

    fn refuse(&self, what: &str, expected: impl Display, got: impl Display) -> Error {
        Error::request(format!("{}.{what} of {}", self.path, self.file.component()), expected, got)
    }

    /// A tensor of one whole number. Those are counters, of which there are no averages.
    fn whole(&self, what: &str) -> Result<i64> {
        match self.file.read_ints(&format!("{}.{what}", self.path))?[..] {
            [number] => Ok(number),
            ref other => Err(self.refuse(what, "one number", format!("{} numbers", other.len())).into()),
        }
    }

    /// How many levels `what` has on either side of the middle one; none if it is not quantized.
    fn half(&self, what: &str) -> Result<Option<u8>> {
        match self.whole(what)? {
            0 => Ok(None),
            levels @ 4..=255 => Ok(Some((levels / 2 - 1) as u8)),
            other => Err(self.refuse(what, "0, or 4 to 255 levels", other).into()),
        }
    }

    /// Whether its weight is quantized.
    ///
    /// # Errors
    /// If the file does not say so in a number.
    pub(super) fn is_quantized(&self) -> Result<bool> {
        Ok(self.file.has(&format!("{}.n_lv", self.path)) && self.half("n_lv")?.is_some())
    }

    /// A tensor of one number.
    fn number(&self, what: &str) -> Result<f32> {
        match self.file.read(&self.name(what)?)?[..] {
            [number] => Ok(number),
            ref other => Err(self.refuse(what, "one number", format!("{} numbers", other.len())).into()),
        }
    }

    fn step(&self, what: &str) -> Result<f32> {
        let step = self.number(what)?;
        if step > 0.0 { Ok(step) } else { Err(self.refuse(what, "a positive step", step).into()) }
    }

    /// The weight as it becomes, `round(clamp(w / s))` steps; none if it is not quantized.
    ///
    /// # Errors
    /// If its levels are more than `bits` have, or tensors do not fit.
    pub(super) fn weight(
        &self,
        quantizer: &Quantizer,
        split: Option<(u64, u64)>,
        bits: Bits,
    ) -> Result<Option<ImportedWeight>> {
        let Some(half) = self.half("n_lv")? else { return Ok(None) };
        if 2 * usize::from(half) + 1 > bits.levels() {
            let expected = format!("{} levels at most, as {bits} bits have; of files with more, say so", bits.levels());
            return Err(self.refuse("n_lv", expected, 2 * u16::from(half) + 1).into());
        }
        let (step, end) = (self.step("s")?, f32::from(half));
        let on_grid = |w: f32| (w / step).clamp(-end, end).round_ties_even() * step;
        let values = original(quantizer, split)?.into_iter().map(on_grid).collect();
        let rows = quantizer.dims[0];
        let grid = RowGrid { step: vec![step; rows], zero: vec![end; rows] };
        Ok(Some(ImportedWeight { dims: quantizer.dims.to_vec(), values, grid: Some(grid) }))
    }

    /// The range of the layer's input, over the timesteps if it depends on them; none if it is not quantized. `features`
    /// are the sinusoids that the model makes of a timestep.
    ///
    /// Codes are those of the file, the last one too; zero lies between two of them where the file has an offset.
    ///
    /// # Errors
    /// If tensors do not fit each other or the model.
    pub(super) fn range(&self, features: Option<usize>, middle: bool) -> Result<Option<ImportedRange>> {
        let Some(half) = self.half("act_func.n_lv")? else { return Ok(None) };
        let steps = match self.whole("act_func.dynamic")? {
            0 => vec![self.step("act_func.s")?],
            _ => self.generated(features)?,
        };
        // What a residual block's convolutions read is SiLU's.
        let silu = [".in_layers.2", ".out_layers.3"].iter().any(|end| self.path.ends_with(end));
        let (top, lowest) = match (silu, middle) {
            (true, _) => ((self.whole("act_func.n_lv")? - 1) as u8, LEAST_SILU),
            (false, true) => (2 * half, 0.0),
            (false, false) => (2 * half, self.number("act_func.b")?),
        };
        let zero = |step: f32| match silu {
            true => -lowest / step,
            false => f32::from(half) - lowest / step,
        };
        let mut points: Vec<[f32; 3]> = Vec::new();
        for (timestep, &step) in steps.iter().enumerate() {
            if points.last().is_none_or(|&[_, before, _]| before != step) {
                points.push([timestep as f32, step, zero(step)]);
            }
        }
        let bits = (8 - top.leading_zeros()).max(2) as u8;
        Ok(Some(ImportedRange { bits, axis: CurveAxis::Timestep, points, top }))
    }

    /// The step at every timestep, from the generator: linear layers with ReLU between them, and softplus. (Dropout is of
    /// training.)
    fn generated(&self, features: Option<usize>) -> Result<Vec<f32>> {
        let mut layers = Vec::new();
        for number in GENERATOR {
            let what = format!("act_func.tdq_module.s_gen.{number}");
            let [weight, bias] = [format!("{what}.weight"), format!("{what}.bias")];
            let inputs = match layers.last() {
                None => features.or(self.file.shape(&self.name(&weight)?).and_then(|shape| shape.get(1).copied())),
                Some(Linear { bias, .. }) => Some(bias.len()),
            };
            let shape = self.file.shape(&self.name(&weight)?).unwrap_or(&[]).to_vec();
            let fits =
                matches!(shape[..], [rows, cols] if rows > 0 && Some(cols) == inputs && (number != 7 || rows == 1));
            if !fits {
                let expected = match (number, inputs) {
                    (0, Some(inputs)) => format!("a generator for this model's {inputs} features of timesteps"),
                    (_, inputs) => format!("a layer of {} inputs", inputs.unwrap_or(0)),
                };
                return Err(self.refuse(&weight, expected, format!("shape {shape:?}")).into());
            }
            let (values, bias_values) = (self.file.read(&self.name(&weight)?)?, self.file.read(&self.name(&bias)?)?);
            if bias_values.len() != shape[0] {
                return Err(self.refuse(&bias, format!("{} numbers", shape[0]), bias_values.len()).into());
            }
            layers.push(Linear { weight: values, bias: bias_values });
        }
        let dim = layers[0].weight.len() / layers[0].bias.len();
        let steps: Vec<f32> = (0..TIMESTEPS).map(|t| step_of(&layers, sinusoids(t as f32, dim))).collect();
        match steps.iter().position(|step| !(step.is_normal() && *step > 0.0)) {
            None => Ok(steps),
            Some(t) => {
                let what = "act_func.tdq_module.s_gen";
                Err(self.refuse(what, "positive steps", format!("{} at timestep {t}", steps[t])).into())
            }
        }
    }
}

/// A layer of a generator.
struct Linear {
    /// (outputs, inputs) row-major.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// Cosines, then sines, of a timestep; frequencies and angles in f32, as the project's code works them out.
fn sinusoids(timestep: f32, dim: usize) -> Vec<f64> {
    let half = dim / 2;
    let frequency = |k: usize| {
        let exponent = -LONGEST.ln() * k as f32 / half as f32;
        f64::from(exponent).exp() as f32
    };
    let angles: Vec<f64> = (0..half).map(|k| f64::from(timestep * frequency(k))).collect();
    let mut features: Vec<f64> = angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect();
    features.resize(dim, 0.0);
    features
}

/// What a generator makes of `features`.
fn step_of(layers: &[Linear], features: Vec<f64>) -> f32 {
    let mut values = features;
    for (i, Linear { weight, bias }) in layers.iter().enumerate() {
        let row = |(weights, bias): (&[f32], &f32)| {
            let sum: f64 = weights.iter().zip(&values).map(|(&w, x)| f64::from(w) * x).sum();
            sum + f64::from(*bias)
        };
        let next: Vec<f64> = weight.chunks_exact(values.len()).zip(bias).map(row).collect();
        let last = i + 1 == layers.len();
        values = next.into_iter().map(|v| if last { softplus(v) } else { v.max(0.0) }).collect();
    }
    values[0] as f32
}

/// `ln(1 + e^x)`, without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
