//! What the tests of the search have in common: inputs, weights, and errors by their definition.

mod inputs;
mod search;
mod speed;

use super::*;
use crate::quantize::moments::SecondMoments;
use ndarray::Array2;

/// A small generator of numbers.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Close to normal: a sum of twelve.
    pub(super) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    pub(super) fn weights(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.normal() * 0.05) as f32).collect()
    }
}

/// A random positive definite (n, n) matrix of this condition: directions mixed, their powers in equal ratios.
pub(super) fn correlated(n: usize, condition: f64, seed: u64) -> Array2<f64> {
    let mut random = Random::new(seed);
    // Normal directions, made orthonormal (twice, against rounding).
    let mut basis: Vec<Vec<f64>> = Vec::new();
    while basis.len() < n {
        let mut v: Vec<f64> = (0..n).map(|_| random.normal()).collect();
        for b in basis.iter().chain(&basis) {
            let along: f64 = v.iter().zip(b).map(|(v, b)| v * b).sum();
            v.iter_mut().zip(b).for_each(|(v, b)| *v -= along * b);
        }
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        basis.push(v.into_iter().map(|v| v / norm).collect());
    }
    let power = |d: usize| condition.powf(-(d as f64) / (n.max(2) - 1) as f64);
    let half = Array2::from_shape_fn((n, n), |(i, d)| basis[d][i] * power(d).sqrt());
    let h = half.dot(&half.t());
    Array2::from_shape_fn((n, n), |(i, j)| 0.5 * (h[[i, j]] + h[[j, i]]))
}

/// What the search computes with.
pub(super) fn single(x: &Array2<f64>) -> Array2<f32> {
    x.mapv(|v| v as f32)
}

pub(super) fn double(x: &Array2<f32>) -> Array2<f64> {
    x.mapv(f64::from)
}

/// Moments of inputs with this covariance and mean.
fn moments(covariance: &Array2<f64>, mean: &[f64]) -> Moments {
    let triangle = (0..mean.len()).flat_map(|i| (0..=i).map(move |j| (i, j)));
    let second = triangle.map(|(i, j)| covariance[[i, j]] + mean[i] * mean[j]).collect();
    Moments { rows: 1e6, mean: mean.to_vec(), second: SecondMoments::Dense(second) }
}

fn centred(covariance: &Array2<f64>) -> Moments {
    moments(covariance, &vec![0.0; covariance.nrows()])
}

/// Moments of these inputs, (rows, inputs).
fn observed(x: &Array2<f64>) -> Moments {
    let n = x.nrows() as f64;
    let mean = x.sum_axis(ndarray::Axis(0)) / n;
    let second = x.t().dot(x) / n;
    let mut moments = moments(&second, &vec![0.0; x.ncols()]);
    (moments.rows, moments.mean) = (n, mean.to_vec());
    moments
}

/// Damping by its definition.
fn damped(h: &Array2<f64>, damping: f64) -> Array2<f64> {
    let ridge = damping * h.diag().sum() / h.nrows() as f64;
    Array2::from_shape_fn(h.raw_dim(), |(i, j)| h[[i, j]] + if i == j { ridge } else { 0.0 })
}

/// `W - Q`, (rows, cols).
fn error_of(w: &[f32], m: &QuantizedMatrix) -> Array2<f64> {
    Array2::from_shape_fn((m.rows, m.cols), |(r, c)| f64::from(w[r * m.cols + c]) - f64::from(m.weight(r, c)))
}

/// `e H e^T` of every row.
fn objectives(e: &Array2<f64>, h: &Array2<f64>) -> Vec<f64> {
    (e.dot(h) * e).rows().into_iter().map(|row| row.sum()).collect()
}

const TABLES: [CodebookType; 2] = [CodebookType::Int8, CodebookType::F16];

fn run(w: &[f32], shape: (usize, usize), method: Method, bits: Bits, moments: &Moments) -> Calibrated {
    with(w, shape, method, bits, moments, &FeedbackOptions::default())
}

fn with(
    w: &[f32],
    (rows, cols): (usize, usize),
    method: Method,
    bits: Bits,
    moments: &Moments,
    options: &FeedbackOptions,
) -> Calibrated {
    quantize_calibrated(w, rows, cols, method, bits, CodebookType::Int8, moments, options).unwrap()
}

/// Inputs (rows, cols) with correlations and a mean of ten standard deviations.
fn shifted_inputs(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
    let mut random = Random::new(seed);
    let mix = Array2::from_shape_simple_fn((cols, cols), || random.normal() / (cols as f64).sqrt());
    let x = Array2::from_shape_simple_fn((rows, cols), || random.normal()).dot(&mix);
    x + Array2::from_shape_fn((rows, cols), |(_, j)| if j % 3 == 0 { 10.0 } else { -10.0 })
}
