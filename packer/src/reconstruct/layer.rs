//! The layer objective: `tr (W - Q) H (W - Q)^T`, of what is known about a layer's inputs, without any input.

use super::adam::Adam;
use super::block::dense;
use super::{Curve, Training};
use crate::quantize::Moments;
use crate::quantize::adaround::{Rounding, Schedule};
use crate::reverse::product;
use aquatint::raw::codec::QuantizedMatrix;
use ndarray::{Array2, ArrayView2};

/// Inputs per output at most: the moments of so many take 0.3 GB.
pub const MOST_INPUTS: usize = 9216;

/// What one product adds to a layer's output: the whole of it, or that of one half of its inputs.
pub struct Part<'a> {
    /// The weights, a row per output.
    pub weights: &'a [f32],
    /// The levels between which they are rounded; its codes are not looked at.
    pub grid: QuantizedMatrix,
    /// Which of the layer's inputs its columns are multiplied with.
    pub inputs: Vec<usize>,
}

/// Learns the directions of rounding of the weights of `parts`, whose products are added up, for the least mean squared error of the
/// layer's output over inputs of these moments, their mean apart, which the bias takes up: `sum over outputs of
/// E[((w - q) (x - mean))^2]`, what the published loss is in the mean over batches, with the published regularizer. `see`
/// hears of every iteration and may end the work by saying false.
///
/// # Errors
/// What does not fit: moments of other inputs, or of more than [`MOST_INPUTS`].
pub fn train(
    parts: Vec<Part>,
    moments: &Moments,
    training: &Training,
    see: &mut dyn FnMut(f64) -> bool,
) -> Result<Option<(Vec<Rounding>, Curve)>, String> {
    let order: Vec<usize> = parts.iter().flat_map(|part| &part.inputs).copied().collect();
    let inputs = moments.inputs();
    for Part { weights, grid, inputs: own } in &parts {
        if own.len() != grid.cols || weights.len() != grid.rows * grid.cols || own.iter().any(|&i| i >= inputs) {
            return Err(format!("moments of {inputs} inputs for {} weights of {} outputs", weights.len(), grid.rows));
        }
    }
    if order.len() > MOST_INPUTS {
        return Err(format!("{} inputs per output: expected at most {MOST_INPUTS}, or --unit block", order.len()));
    }
    let second = moments.block(&order, &order, true).mapv(|v| v as f32);
    let objective = Objective { second, weights: parts.iter().map(|part| part.weights).collect() };
    let schedule = Schedule { iterations: training.iterations, weight: training.weight };
    let mut roundings: Vec<Rounding> = parts.into_iter().map(|part| Rounding::new(part.weights, part.grid)).collect();
    let hard = |roundings: &[Rounding]| roundings.iter().map(|r| dense(&r.harden())).collect::<Vec<_>>();
    let begin = objective.of(&hard(&roundings)).0;
    let mut adams: Vec<Adam> = roundings.iter().map(|rounding| Adam::new(rounding.len())).collect();
    let mut losses = Vec::with_capacity(training.iterations);
    for count in 1..=training.iterations {
        let soft: Vec<Vec<f32>> = roundings.iter().map(Rounding::soft).collect();
        let (loss, slopes) = objective.of(&soft);
        let regularizer = schedule.exponent(count).map(|exponent| (schedule.weight, exponent));
        for ((rounding, adam), slope) in roundings.iter_mut().zip(&mut adams).zip(slopes) {
            let gradient = rounding.gradient(&slope, regularizer);
            adam.step(&mut rounding.alpha, &gradient, training.rate);
        }
        losses.push(loss);
        if !see(loss) {
            return Ok(None);
        }
    }
    let end = objective.of(&hard(&roundings)).0;
    Ok(Some((roundings, Curve::new(begin, &losses, end))))
}

/// `tr E H E^T`, E being what quantized weights are more than these, part beside part.
struct Objective<'a> {
    second: Array2<f32>,
    weights: Vec<&'a [f32]>,
}

impl Objective<'_> {
    /// Its value, and its derivative with respect to the weights of each part, `2 E H`.
    fn of(&self, quantized: &[Vec<f32>]) -> (f64, Vec<Vec<f32>>) {
        let inputs = self.second.nrows();
        let rows = self.weights.iter().map(|part| part.len()).sum::<usize>() / inputs.max(1);
        let cols: Vec<usize> = self.weights.iter().map(|part| part.len() / rows.max(1)).collect();
        let mut error = vec![0f32; rows * inputs];
        let mut first = 0;
        for ((q, w), &cols) in quantized.iter().zip(&self.weights).zip(&cols) {
            for (row, (q, w)) in q.chunks_exact(cols).zip(w.chunks_exact(cols)).enumerate() {
                let to = &mut error[row * inputs + first..][..cols];
                to.iter_mut().zip(q.iter().zip(w)).for_each(|(to, (q, w))| *to = q - w);
            }
            first += cols;
        }
        let view = ArrayView2::from_shape((rows, inputs), &error).expect("rows of inputs");
        let product = product(view, self.second.view());
        let loss = error.iter().zip(&product).map(|(&e, &p)| f64::from(e) * f64::from(p)).sum();
        let mut first = 0;
        let slopes = cols.iter().map(|&cols| {
            let rows = product.chunks_exact(inputs).flat_map(|row| &row[first..first + cols]);
            let slopes = rows.map(|p| 2.0 * p).collect();
            first += cols;
            slopes
        });
        let slopes = slopes.collect();
        (loss, slopes)
    }
}
