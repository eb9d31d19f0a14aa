//! The classifier of small pictures: 3x3 convolutions of stride 2, then two linear layers, ReLU between.
//!
//! Products are summed from the first input on, for all outputs side by side: quick without another order of any sum.

use crate::arrays::Arrays;
use aquatint::{Error, Result};

/// Rows and columns of a convolution's kernel.
const KERNEL: usize = 3;

/// A classifier.
pub struct Classifier {
    source: String,
    convolutions: Vec<Layer>,
    hidden: Layer,
    output: Layer,
}

/// A matrix and what is added to the product with it.
struct Layer {
    /// `(inputs, outputs)`; of a convolution the inputs are `(row, column, channel)` of the kernel.
    weights: Vec<f32>,
    /// `(outputs)`.
    bias: Vec<f32>,
}

impl Layer {
    fn outputs(&self) -> usize {
        self.bias.len()
    }

    fn inputs(&self) -> usize {
        self.weights.len() / self.outputs()
    }

    /// The weights of `(outputs, inputs)`, input `i` of which is input `place(i)` here.
    fn new(weights: &[f32], bias: Vec<f32>, place: impl Fn(usize) -> usize) -> Self {
        let (outputs, inputs) = (bias.len(), weights.len() / bias.len());
        let mut turned = vec![0.0; weights.len()];
        for (o, row) in weights.chunks_exact(inputs).enumerate() {
            row.iter().enumerate().for_each(|(i, &w)| turned[place(i) * outputs + o] = w);
        }
        Layer { weights: turned, bias }
    }

    /// Adds to `out` what the inputs from number `first` on contribute.
    fn add(&self, out: &mut [f32], first: usize, inputs: &[f32]) {
        let rows = self.weights[first * self.outputs()..].chunks_exact(self.outputs());
        // After a ReLU many inputs are zero.
        for (&x, row) in inputs.iter().zip(rows).filter(|(x, _)| **x != 0.0) {
            out.iter_mut().zip(row).for_each(|(out, w)| *out += x * w);
        }
    }

    /// The product with `x`.
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = self.bias.clone();
        self.add(&mut out, 0, x);
        out
    }

    /// The convolution of `x` `(height, width, channels)`, with zeros around it; each side is halved, rounded up.
    fn convolve(&self, x: &[f32], [height, width]: [usize; 2]) -> Vec<f32> {
        let channels = self.inputs() / (KERNEL * KERNEL);
        let [rows, columns] = halved([height, width]);
        let mut out = Vec::with_capacity(rows * columns * self.outputs());
        for place in 0..rows * columns {
            let (row, column) = (place / columns, place % columns);
            let mut sum = self.bias.clone();
            for tap in 0..KERNEL * KERNEL {
                // One less than twice, since the kernel's middle is over the even pixels.
                let (y, x_at) = (2 * row + tap / KERNEL, 2 * column + tap % KERNEL);
                if (1..=height).contains(&y) && (1..=width).contains(&x_at) {
                    let pixel = (y - 1) * width + x_at - 1;
                    self.add(&mut sum, tap * channels, &x[pixel * channels..][..channels]);
                }
            }
            out.extend_from_slice(&sum);
        }
        out
    }
}

/// What a convolution leaves of the sides.
fn halved(size: [usize; 2]) -> [usize; 2] {
    size.map(|n| n.div_ceil(2))
}

fn relu(mut x: Vec<f32>) -> Vec<f32> {
    x.iter_mut().for_each(|v| *v = v.max(0.0));
    x
}

impl Classifier {
    /// Reads the tensors `conv1.weight` `(o, i, 3, 3)`, `conv1.bias` `(o)`, `conv2`.. `fc1.weight` `(features, i)`,
    /// `fc1.bias`, `fc2.weight` `(outputs, features)`, `fc2.bias` of a safetensors or .npz file; messages call it `source`.
    ///
    /// # Errors
    /// [`Error::Request`] that names the first tensor that is missing or does not fit the one before.
    pub fn new(source: &str, bytes: &[u8]) -> Result<Self> {
        let tensors = Arrays::new(source, bytes)?;
        let singles = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect::<Vec<f32>>();
        let mut convolutions = Vec::new();
        let mut channels = None;
        for number in 1.. {
            let name = format!("conv{number}.weight");
            if number > 1 && !tensors.has(&name) {
                break;
            }
            let weight = tensors.get(&name)?;
            let inputs = channels.or(weight.dims.get(1).copied()).unwrap_or(0);
            let outputs = weight.dims.first().copied().unwrap_or(0);
            if weight.dims != [outputs, inputs, KERNEL, KERNEL] || weight.values.is_empty() {
                let expected = format!("(outputs, {}, 3, 3)", channels.map_or("inputs".into(), |c| c.to_string()));
                return Err(tensors.wrong(&name, expected, format!("{:?}", weight.dims)));
            }
            let bias = singles(tensors.shaped(&format!("conv{number}.bias"), &[outputs])?);
            let taps = KERNEL * KERNEL;
            convolutions.push(Layer::new(&singles(weight.values), bias, |i| i % taps * inputs + i / taps));
            channels = Some(outputs);
        }
        let channels = channels.unwrap_or(1);
        let linear = |name: &str, inputs: Option<usize>| -> Result<(Vec<f32>, Vec<f32>)> {
            let weight_name = format!("{name}.weight");
            let weight = tensors.get(&weight_name)?;
            let sound = matches!(weight.dims[..], [o, i] if o > 0 && i > 0 && inputs.is_none_or(|n| n == i));
            let outputs = weight.dims.first().copied().unwrap_or(0);
            if !sound {
                let expected = format!("(outputs, {})", inputs.map_or("inputs".into(), |n| n.to_string()));
                return Err(tensors.wrong(&weight_name, expected, format!("{:?}", weight.dims)));
            }
            Ok((singles(weight.values), singles(tensors.shaped(&format!("{name}.bias"), &[outputs])?)))
        };
        let (weights, bias) = linear("fc1", None)?;
        let inputs = weights.len() / bias.len();
        if !inputs.is_multiple_of(channels) {
            return Err(tensors.wrong("fc1.weight", format!("(outputs, a multiple of {channels})"), inputs));
        }
        let pixels = inputs / channels;
        let hidden = Layer::new(&weights, bias, |i| i % pixels * channels + i / pixels);
        let (weights, bias) = linear("fc2", Some(hidden.outputs()))?;
        let output = Layer::new(&weights, bias, |i| i);
        Ok(Classifier { source: source.to_owned(), convolutions, hidden, output })
    }

    /// Numbers of the layer before the last.
    pub fn features(&self) -> usize {
        self.hidden.outputs()
    }

    /// Numbers of the last layer.
    pub fn outputs(&self) -> usize {
        self.output.outputs()
    }

    /// Refuses pictures of a size or number of channels that it does not read.
    pub(crate) fn check(&self, size: [usize; 2], channels: usize) -> Result<()> {
        let own = self.convolutions[0].inputs() / (KERNEL * KERNEL);
        if own != channels {
            let expected = format!("pictures of {own} channels");
            return Err(Error::request(self.source.as_str(), expected, format!("{channels}, those of this model")));
        }
        let end = self.convolutions.iter().fold(size, |size, _| halved(size));
        let last = self.convolutions.last().expect("there is one").outputs();
        let (got, expected) = (end[0] * end[1] * last, self.hidden.inputs());
        if got != expected {
            let expected = format!("pictures that become {expected} numbers before fc1");
            let got = format!("{got} of pictures of {} x {} pixels", size[1], size[0]);
            return Err(Error::request(self.source.as_str(), expected, got));
        }
        Ok(())
    }

    /// Features and outputs of a picture `(height, width, channels)` in 0..1, of a size that [`Scorer`](super::Scorer)
    /// checks.
    pub fn read(&self, picture: &[f32], mut size: [usize; 2]) -> (Vec<f32>, Vec<f32>) {
        let mut x: Vec<f32> = picture.iter().map(|v| v * 2.0 - 1.0).collect();
        for layer in &self.convolutions {
            x = relu(layer.convolve(&x, size));
            size = halved(size);
        }
        let features = relu(self.hidden.apply(&x));
        let outputs = self.output.apply(&features);
        (features, outputs)
    }
}
