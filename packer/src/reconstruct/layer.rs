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

/// Learns the directions of rounding of `weights` on the levels of `grid` for the least mean squared error of the layer's
/// output over inputs of these moments, their mean apart, which the bias takes up: `sum over outputs of
/// E[((w - q) (x - mean))^2]`, what the published loss is in the mean over batches, with the published regularizer. `see`
/// hears of every iteration and may end the work by saying false.
///
/// # Errors
/// What does not fit: moments of other inputs, or of more than [`MOST_INPUTS`].
pub fn train(
    weights: &[f32],
    grid: QuantizedMatrix,
    moments: &Moments,
    training: &Training,
    see: &mut dyn FnMut(f64) -> bool,
) -> Result<Option<(Rounding, Curve)>, String> {
    let (rows, inputs) = (grid.rows, moments.inputs());
    if inputs != grid.cols || weights.len() != rows * inputs {
        return Err(format!("moments of {inputs} inputs for {} weights of {rows} outputs", weights.len()));
    }
    if inputs > MOST_INPUTS {
        return Err(format!("{inputs} inputs per output: expected at most {MOST_INPUTS}, or --unit block"));
    }
    let all: Vec<usize> = (0..inputs).collect();
    let second = moments.block(&all, &all, true).mapv(|v| v as f32);
    let schedule = Schedule { iterations: training.iterations, weight: training.weight };
    let mut rounding = Rounding::new(weights, grid);
    let begin = objective(&second, weights, &dense(&rounding.harden()), rows).0;
    let mut adam = Adam::new(rounding.len());
    let mut losses = Vec::with_capacity(training.iterations);
    for count in 1..=training.iterations {
        let (loss, mut slope) = objective(&second, weights, &rounding.soft(), rows);
        slope.iter_mut().for_each(|slope| *slope *= 2.0);
        let regularizer = schedule.exponent(count).map(|exponent| (schedule.weight, exponent));
        let gradient = rounding.gradient(&slope, regularizer);
        adam.step(&mut rounding.alpha, &gradient, training.rate);
        losses.push(loss);
        if !see(loss) {
            return Ok(None);
        }
    }
    let end = objective(&second, weights, &dense(&rounding.harden()), rows).0;
    Ok(Some((rounding, Curve::new(begin, &losses, end))))
}

/// `tr E H E^T` and `E H`, E being what `quantized` is more than `weights`.
fn objective(second: &Array2<f32>, weights: &[f32], quantized: &[f32], rows: usize) -> (f64, Vec<f32>) {
    let error: Vec<f32> = quantized.iter().zip(weights).map(|(q, w)| q - w).collect();
    let view = ArrayView2::from_shape((rows, second.nrows()), &error).expect("rows of inputs");
    let product = product(view, second.view());
    let loss = error.iter().zip(&product).map(|(&e, &p)| f64::from(e) * f64::from(p)).sum();
    (loss, product)
}
