//! Factors per channel that inputs of layers are divided by, and columns of weights multiplied with.
//!
//! `x W^T = (x / s) (s W)^T`. With factors that are large where inputs are, codes of activations become finer and those of
//! weights coarser. Published [rules](SmoothRule) take them from the greatest magnitudes of both; [`search`] tries what such
//! rules give and judges each by the error of the layers' output.

mod range;

use super::{CodebookType, Method, Moments, quantize};
use aquatint::raw::codec::Bits;
use ndarray::Array2;
use range::expected_range;
use rayon::prelude::*;

/// The least of an input's greatest magnitude that ViDiT-Q's rule counts with.
const VIDITQ_FLOOR: f32 = 1e-3;
/// Rows of a weight that are judged at most, spread evenly: an error is a mean over rows.
const JUDGED_ROWS: usize = 256;
/// Steps of exponents that are tried.
const STEPS: i32 = 20;

/// How factors follow from the greatest magnitudes of a channel of inputs, `a`, and of a column of weights, `w`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SmoothRule {
    /// `s = a^alpha / w^(1 - alpha)`: SmoothQuant (Eq. 4), and the first code of ViDiT-Q.
    SmoothQuant(f64),
    /// `s = a^(1 - alpha) / w^alpha`, a at least 0.001: the later code of ViDiT-Q, which has the reciprocals of factors.
    ViditQ(f64),
    /// The best of [`candidates`] by [`output_error`].
    Search,
}

/// What inputs of layers are like.
#[derive(Clone, Debug)]
pub struct SmoothInput {
    /// First and second moments.
    pub moments: Moments,
    /// Least of each channel.
    pub low: Vec<f32>,
    /// Greatest of each channel.
    pub high: Vec<f32>,
    /// Mean of `(greatest - least)^2` over what has a quantization scale of its own: rows, or samples.
    pub squared_range: f64,
}

/// A layer that reads them.
#[derive(Clone, Debug)]
pub struct SmoothLayer {
    /// (rows, inputs) row-major; inputs are taps of channels.
    pub weights: Vec<f32>,
    /// Output channels.
    pub rows: usize,
    /// How its weights become codes; absent for floats.
    pub codes: Option<(Method, Bits, CodebookType)>,
    /// Bits of its activations; absent for floats.
    pub activation_bits: Option<u8>,
}

impl SmoothLayer {
    /// The rows that are judged.
    fn judged(&self) -> SmoothLayer {
        let inputs = self.weights.len() / self.rows.max(1);
        let count = self.rows.min(JUDGED_ROWS);
        let picked = (0..count).map(|i| i * self.rows / count);
        let weights = picked.flat_map(|row| &self.weights[row * inputs..(row + 1) * inputs]).copied().collect();
        SmoothLayer { weights, rows: count, ..*self }
    }
}

impl SmoothRule {
    /// The factors of inputs that `layers` read: one per channel.
    pub fn factors(self, layers: &[SmoothLayer], input: &SmoothInput) -> Vec<f32> {
        let (inputs, weights) = (input_maxima(input), weight_maxima(layers, input.low.len()));
        match self {
            SmoothRule::SmoothQuant(alpha) => smooth_factors(&inputs, &weights, alpha, 1.0 - alpha),
            SmoothRule::ViditQ(alpha) => {
                let inputs: Vec<f32> = inputs.iter().map(|&a| a.max(VIDITQ_FLOOR)).collect();
                smooth_factors(&inputs, &weights, 1.0 - alpha, alpha)
            }
            SmoothRule::Search => search(layers, input).factors,
        }
    }
}

/// The greatest magnitude of each channel of inputs.
pub fn input_maxima(input: &SmoothInput) -> Vec<f32> {
    input.low.iter().zip(&input.high).map(|(low, high)| low.abs().max(high.abs())).collect()
}

/// The greatest magnitude of each channel's columns in all `layers`.
pub fn weight_maxima(layers: &[SmoothLayer], channels: usize) -> Vec<f32> {
    let mut maxima = vec![0f32; channels];
    for taps in layers.iter().flat_map(|layer| layer.weights.chunks_exact(channels)) {
        maxima.iter_mut().zip(taps).for_each(|(most, w)| *most = most.max(w.abs()));
    }
    maxima
}

/// `a^alpha / w^beta` of each channel; 1 where inputs or weights are all zero, since there is nothing to balance.
pub fn smooth_factors(inputs: &[f32], weights: &[f32], alpha: f64, beta: f64) -> Vec<f32> {
    let one = |(&a, &w): (&f32, &f32)| {
        if a == 0.0 || w == 0.0 { 1.0 } else { (f64::from(a).powf(alpha) / f64::from(w).powf(beta)) as f32 }
    };
    inputs.iter().zip(weights).map(one).collect()
}

/// The exponents of `a` and `w` that are tried: none; of a alone; and of both, which add up to 1 (AWQ §3.2, SVDQuant's code).
pub fn candidates() -> impl Iterator<Item = (f64, f64)> {
    let share = |i: i32| f64::from(i) / f64::from(STEPS);
    let alone = (1..STEPS).map(move |i| (share(i), 0.0));
    let both = (1..STEPS).map(move |i| (share(i), share(STEPS - i)));
    std::iter::once((0.0, 0.0)).chain(alone).chain(both)
}

/// What a search came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Searched {
    /// The exponents, as [`candidates`] has them.
    pub exponents: (f64, f64),
    /// The factors.
    pub factors: Vec<f32>,
    /// Their [`output_error`].
    pub error: f64,
    /// That of no factors.
    pub plain_error: f64,
}

/// The candidate with the least [`output_error`], the first of equals.
pub fn search(layers: &[SmoothLayer], input: &SmoothInput) -> Searched {
    let channels = input.low.len();
    let (inputs, weights) = (input_maxima(input), weight_maxima(layers, channels));
    let judge = Judge::new(layers, input);
    let tried: Vec<_> = candidates().collect();
    let judged: Vec<(Vec<f32>, f64)> = tried
        .par_iter()
        .map(|&(alpha, beta)| {
            let factors = smooth_factors(&inputs, &weights, alpha, beta);
            let error = judge.error(&factors);
            (factors, error)
        })
        .collect();
    let plain_error = judged[0].1;
    let best = (0..judged.len()).min_by(|&a, &b| judged[a].1.total_cmp(&judged[b].1)).unwrap_or(0);
    let (factors, error) = judged[best].clone();
    Searched { exponents: tried[best], factors, error, plain_error }
}

/// What part of the power of the output of `layers` errors make if inputs are divided by `factors`, added up over layers:
/// that of weights rounded to the nearest of their levels, `tr E H E^T` with H the covariance of the divided inputs (mean errors
/// go into biases), and that of dynamic codes of inputs, `step^2 / 12` per value.
///
/// How the range of a row changes is not known; it is taken to change as that of independent normal channels does.
///
/// # Panics
/// If sizes do not fit.
pub fn output_error(layers: &[SmoothLayer], input: &SmoothInput, factors: &[f32]) -> f64 {
    Judge::new(layers, input).error(factors)
}

/// Layers, some of their rows, and what their inputs are like.
struct Judge<'a> {
    input: &'a SmoothInput,
    layers: Vec<SmoothLayer>,
    /// Power of the output of each.
    powers: Vec<f64>,
    covariance: Array2<f64>,
    /// Mean and deviation of each channel.
    channels: Vec<(f64, f64)>,
}

impl<'a> Judge<'a> {
    fn new(layers: &[SmoothLayer], input: &'a SmoothInput) -> Self {
        let layers: Vec<SmoothLayer> = layers.iter().map(SmoothLayer::judged).collect();
        let all: Vec<usize> = (0..input.moments.inputs()).collect();
        let covariance = input.moments.block(&all, &all, true);
        let centre = input.moments.centre();
        let power = |layer: &SmoothLayer| {
            let weights = matrix(layer, |at| f64::from(layer.weights[at]));
            let mean: f64 = weights.dot(&ndarray::aview1(centre)).iter().map(|m| m * m).sum();
            quadratic(&weights, &covariance) + mean
        };
        let powers = layers.iter().map(power).collect();
        Judge { input, layers, powers, covariance, channels: channels(input) }
    }

    fn error(&self, factors: &[f32]) -> f64 {
        let of = |(layer, &power): (&SmoothLayer, &f64)| {
            let error = self.layer_error(layer, factors);
            if error == 0.0 { 0.0 } else { error / power }
        };
        self.layers.iter().zip(&self.powers).map(of).sum()
    }

    fn layer_error(&self, layer: &SmoothLayer, factors: &[f32]) -> f64 {
        let n = factors.len();
        let scaled: Vec<f32> = layer.weights.iter().enumerate().map(|(at, &w)| scaled(w, factors[at % n])).collect();
        let inputs = scaled.len() / layer.rows.max(1);
        let (mut weights_error, mut square) = (0.0, 0.0);
        match layer.codes {
            None => square = scaled.iter().map(|&w| f64::from(w).powi(2)).sum(),
            Some((method, bits, codebook)) => {
                let codes = quantize(&scaled, layer.rows, inputs, method, bits, codebook);
                let value = |at: usize| codes.weight(at / inputs, at % inputs);
                // The error of inputs that are not divided, times the factors, is that of divided ones.
                let error =
                    matrix(layer, |at| (f64::from(scaled[at]) - f64::from(value(at))) / f64::from(factors[at % n]));
                weights_error = quadratic(&error, &self.covariance);
                square += (0..scaled.len()).map(|at| f64::from(value(at)).powi(2)).sum::<f64>();
            }
        }
        let squared_step = |bits: u8| self.squared_range(factors) / f64::from((1u32 << bits) - 1).powi(2);
        weights_error + layer.activation_bits.map_or(0.0, |bits| squared_step(bits) / 12.0 * square)
    }

    /// The mean of squared ranges of inputs divided by `factors`.
    fn squared_range(&self, factors: &[f32]) -> f64 {
        let divide = |(&(mean, sd), &factor): (&(f64, f64), &f32)| (mean / f64::from(factor), sd / f64::from(factor));
        let divided: Vec<_> = self.channels.iter().zip(factors).map(divide).collect();
        let before = expected_range(&self.channels);
        if before > 0.0 { self.input.squared_range * (expected_range(&divided) / before).powi(2) } else { 0.0 }
    }
}

/// Mean and deviation of each channel, over all taps that look at it.
fn channels(input: &SmoothInput) -> Vec<(f64, f64)> {
    let (moments, n) = (&input.moments, input.low.len());
    let taps = moments.inputs() / n.max(1);
    let mean = |of: &dyn Fn(usize) -> f64, channel: usize| {
        (0..taps).map(|tap| of(tap * n + channel)).sum::<f64>() / taps as f64
    };
    let one = |channel| {
        let (first, second) = (mean(&|i| moments.centre()[i], channel), mean(&|i| moments.at(i, i), channel));
        (first, (second - first * first).max(0.0).sqrt())
    };
    (0..n).map(one).collect()
}

/// A weight times its factor, as the file has it.
fn scaled(weight: f32, factor: f32) -> f32 {
    (f64::from(weight) * f64::from(factor)) as f32
}

fn matrix(layer: &SmoothLayer, value: impl Fn(usize) -> f64) -> Array2<f64> {
    let count = layer.weights.len();
    let values = (0..count).map(value).collect();
    Array2::from_shape_vec((layer.rows, count / layer.rows.max(1)), values).expect("as many values as entries")
}

/// `tr x m x^T`.
fn quadratic(x: &Array2<f64>, m: &Array2<f64>) -> f64 {
    x.dot(m).iter().zip(x).map(|(a, b)| a * b).sum()
}
