//! What became of a layer's output over a calibration.

use super::block::dense;
use super::layer::MOST_INPUTS;
use crate::quantize::Moments;
use crate::reverse::product;
use aquatint::raw::codec::QuantizedMatrix;
use ndarray::ArrayView2;

/// What part of the power of a layer's output (bias apart) errors make, over inputs of `moments`: of `matrix`, whose bias
/// gains `bias`, and of `nearest`. With error rows e = w - q that is the sum of `e Hc e + (e mu - bias)^2` beside that of
/// `w Hc w + (w mu)^2`. None where moments are of too many inputs to be multiplied with.
pub(super) fn output_errors(
    weights: &[f32],
    (matrix, bias): (&QuantizedMatrix, Option<&[f32]>),
    nearest: &QuantizedMatrix,
    moments: &Moments,
) -> Option<[f64; 2]> {
    let inputs = moments.inputs();
    if inputs > MOST_INPUTS || inputs != matrix.cols {
        return None;
    }
    let all: Vec<usize> = (0..inputs).collect();
    let second = moments.block(&all, &all, true).mapv(|v| v as f32);
    let power = |rows: &[f32], bias: Option<&[f32]>| -> f64 {
        let view = ArrayView2::from_shape((matrix.rows, inputs), rows).expect("rows of inputs");
        let products = product(view, second.view());
        let squares: f64 = rows.iter().zip(&products).map(|(&e, &p)| f64::from(e) * f64::from(p)).sum();
        let means = mean_of(rows, &moments.mean);
        let rest = means.iter().enumerate().map(|(r, m)| (m - bias.map_or(0.0, |bias| f64::from(bias[r]))).powi(2));
        squares.max(0.0) + rest.sum::<f64>()
    };
    let error =
        |matrix: &QuantizedMatrix| -> Vec<f32> { weights.iter().zip(dense(matrix)).map(|(w, q)| w - q).collect() };
    let whole = power(weights, None);
    let relative = |power: f64| if power == 0.0 { 0.0 } else { power / whole };
    Some([relative(power(&error(matrix), bias)), relative(power(&error(nearest), None))])
}

/// What the bias must take up of the mean error: `(W - Q) mu`.
pub(super) fn mean_error(weights: &[f32], matrix: &QuantizedMatrix, moments: &Moments) -> Vec<f32> {
    let error: Vec<f32> = weights.iter().zip(dense(matrix)).map(|(w, q)| w - q).collect();
    mean_of(&error, &moments.mean).into_iter().map(|v| v as f32).collect()
}

fn mean_of(rows: &[f32], mean: &[f64]) -> Vec<f64> {
    rows.chunks_exact(mean.len()).map(|row| row.iter().zip(mean).map(|(&w, m)| f64::from(w) * m).sum()).collect()
}
