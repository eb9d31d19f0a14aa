//! The transformer of CLIP's towers: normalisation before attention and before two linear layers, each added to what it was.

use super::Weights;
use aquatint::Result;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, s};
use serde::Deserialize;

/// What lies between the two linear layers.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Activation {
    /// `x / (1 + exp(-1.702 x))`.
    #[default]
    QuickGelu,
    /// `x (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
}

/// The numbers of a tower.
pub(super) struct Shape {
    pub width: usize,
    pub inner: usize,
    pub layers: usize,
    pub heads: usize,
    pub activation: Activation,
    pub epsilon: f32,
    /// Whether a token sees those before it alone.
    pub causal: bool,
}

/// A tower: its layers.
pub(super) struct Transformer {
    shape: Shape,
    layers: Vec<Block>,
}

struct Block {
    norms: [Norm; 2],
    /// Queries, keys, values, and what becomes of their attention.
    attention: [Linear; 4],
    /// Out to the inner width, and back.
    mlp: [Linear; 2],
}

/// A matrix `(outputs, inputs)`, and what is added to the product with it.
pub(super) struct Linear {
    weights: Array2<f32>,
    bias: Vec<f32>,
}

/// A normalisation of the values of a token.
pub(super) struct Norm {
    gain: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

impl Linear {
    pub fn read(from: &dyn Weights, name: &str, [inputs, outputs]: [usize; 2], biased: bool) -> Result<Self> {
        let weights = from.shaped(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = if biased { from.shaped(&format!("{name}.bias"), &[outputs])? } else { vec![0.0; outputs] };
        Ok(Linear { weights: Array2::from_shape_vec((outputs, inputs), weights).expect("these axes"), bias })
    }

    /// The matrix `weights` `(outputs, inputs)` alone.
    pub fn of(weights: Vec<f32>, outputs: usize) -> Self {
        let inputs = weights.len() / outputs;
        let weights = Array2::from_shape_vec((outputs, inputs), weights).expect("whole rows");
        Linear { weights, bias: vec![0.0; outputs] }
    }

    /// Of tokens `(n, inputs)`, `(n, outputs)`.
    pub fn apply(&self, x: &ArrayView2<'_, f32>) -> Array2<f32> {
        let (n, outputs) = (x.nrows(), self.bias.len());
        let mut out = Array2::from_shape_vec((n, outputs), self.bias.repeat(n)).expect("as many as repeated");
        general_mat_mul(1.0, x, &self.weights.t(), 1.0, &mut out);
        out
    }
}

impl Norm {
    pub fn read(from: &dyn Weights, name: &str, width: usize, epsilon: f32) -> Result<Self> {
        let of = |what: &str| from.shaped(&format!("{name}.{what}"), &[width]);
        Ok(Norm { gain: of("weight")?, bias: of("bias")?, epsilon })
    }

    pub fn apply(&self, x: &Array2<f32>) -> Array2<f32> {
        let mut out = x.clone();
        for mut row in out.rows_mut() {
            let n = row.len() as f64;
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
            let scale = 1.0 / (variance + f64::from(self.epsilon)).sqrt();
            for (v, (gain, bias)) in row.iter_mut().zip(self.gain.iter().zip(&self.bias)) {
                *v = ((f64::from(*v) - mean) * scale) as f32 * gain + bias;
            }
        }
        out
    }
}

impl Transformer {
    /// The layers `PREFIX.encoder.layers.0`.. as transformers names them.
    pub fn read(from: &dyn Weights, prefix: &str, shape: Shape) -> Result<Self> {
        let width = shape.width;
        let layer = |i: usize| {
            let name = |part: &str| format!("{prefix}.encoder.layers.{i}.{part}");
            let norm = |part: &str| Norm::read(from, &name(part), width, shape.epsilon);
            let linear = |part: &str, sides| Linear::read(from, &name(part), sides, true);
            let projection = |part: &str| linear(&format!("self_attn.{part}_proj"), [width, width]);
            Ok(Block {
                norms: [norm("layer_norm1")?, norm("layer_norm2")?],
                attention: [projection("q")?, projection("k")?, projection("v")?, projection("out")?],
                mlp: [linear("mlp.fc1", [width, shape.inner])?, linear("mlp.fc2", [shape.inner, width])?],
            })
        };
        let layers = (0..shape.layers).map(layer).collect::<Result<_>>()?;
        Ok(Transformer { shape, layers })
    }

    /// Of tokens `(n, width)`, what the layers make of them.
    pub fn apply(&self, mut x: Array2<f32>) -> Array2<f32> {
        for Block { norms: [first, second], attention, mlp: [out, back] } in &self.layers {
            x += &self.attend(attention, &first.apply(&x));
            let mut inner = out.apply(&second.apply(&x).view());
            inner.mapv_inplace(|v| self.shape.activation.of(v));
            x += &back.apply(&inner.view());
        }
        x
    }

    fn attend(&self, [queries, keys, values, out]: &[Linear; 4], x: &Array2<f32>) -> Array2<f32> {
        let [q, k, v] = [queries, keys, values].map(|linear| linear.apply(&x.view()));
        let (n, size) = (x.nrows(), self.shape.width / self.shape.heads);
        let scale = (size as f32).sqrt().recip();
        let mut seen = Array2::zeros((n, self.shape.width));
        for head in 0..self.shape.heads {
            let part = s![.., head * size..(head + 1) * size];
            let mut scores = q.slice(part).dot(&k.slice(part).t());
            for (i, mut row) in scores.rows_mut().into_iter().enumerate() {
                let count = if self.shape.causal { i + 1 } else { n };
                let most = row.iter().take(count).fold(f32::NEG_INFINITY, |most, v| most.max(*v));
                row.iter_mut().take(count).for_each(|v| *v = ((*v - most) * scale).exp());
                let sum: f32 = row.iter().take(count).sum();
                row.iter_mut().take(count).for_each(|v| *v /= sum);
                row.iter_mut().skip(count).for_each(|v| *v = 0.0);
            }
            general_mat_mul(1.0, &scores, &v.slice(part), 0.0, &mut seen.slice_mut(part));
        }
        out.apply(&seen.view())
    }
}

impl Activation {
    fn of(self, x: f32) -> f32 {
        match self {
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Activation::Gelu => {
                let x = f64::from(x);
                (x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)) / 2.0) as f32
            }
        }
    }
}

/// The error function: its series of positive terms (Abramowitz and Stegun 7.1.6), and its limit beyond 4, from where it is off by
/// 2e-8.
fn erf(x: f64) -> f64 {
    if x.abs() >= 4.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > f64::EPSILON * sum.abs() {
        odd += 2.0;
        term *= 2.0 * x * x / odd;
        sum += term;
    }
    sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}
