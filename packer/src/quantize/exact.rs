//! Quantized weights as numbers, before levels are rounded to what a file holds: what Qua2SeDiMo's code multiplies with.

use super::kmeans::{self, Scratch};
use super::levels::Levels;
use super::power::pow24;
use super::{CodebookType, Method, quantize};
use aquatint::raw::codec::Bits;
use rayon::prelude::*;

/// A quantized matrix as numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Exact {
    /// (rows, cols), row-major.
    pub values: Vec<f32>,
    /// Of uniform levels the step and the zero point of every row: a level is `step * (q - zero)`.
    pub grid: Option<(Vec<f32>, Vec<f32>)>,
}

/// Quantizes `weights`, (rows, cols) row-major: uniform levels as [`quantize`] has them, free levels as the exact means of
/// their clusters, in f32.
///
/// # Panics
/// If `weights.len() != rows * cols`, or for a method with a fixed table.
pub fn exact(weights: &[f32], rows: usize, cols: usize, method: Method, bits: Bits) -> Exact {
    assert_eq!(weights.len(), rows * cols, "a {rows} x {cols} matrix of {} weights", weights.len());
    let run = match method {
        _ if weights.is_empty() => return Exact { values: Vec::new(), grid: None },
        Method::Uniform(_) => {
            let matrix = quantize(weights, rows, cols, method, bits, CodebookType::F16);
            let half = (bits.levels() / 2) as f32;
            let zero = matrix.offset.iter().map(|offset| half - offset).collect();
            let values = (0..weights.len()).map(|i| matrix.weight(i / cols, i % cols)).collect();
            return Exact { values, grid: Some((matrix.scale, zero)) };
        }
        Method::KMeansRow => cols,
        Method::KMeansTensor => weights.len(),
        Method::Lloyd => panic!("{method} has a table for all weights"),
    };
    let mut values = vec![0f32; weights.len()];
    values.par_chunks_mut(run).zip(weights.par_chunks(run)).for_each_init(Scratch::default, |scratch, (to, from)| {
        let clusters = kmeans::cluster(from, bits.levels(), scratch);
        let means: Vec<f32> = clusters.centroids.iter().map(|&c| c as f32).collect();
        let mut codes = vec![0u8; from.len()];
        Levels::new(means.clone()).encode(from, &mut codes);
        to.iter_mut().zip(codes).for_each(|(to, code)| *to = means[usize::from(code)]);
    });
    Exact { values, grid: None }
}

/// The sum of |w - q|^2.4: errors as Qua2SeDiMo and Q-Diffusion weigh them.
pub fn power_loss(weights: &[f32], quantized: &[f32]) -> f64 {
    // Pieces of a fixed size: the sum does not depend on the number of threads.
    let piece = |(w, q): (&[f32], &[f32])| w.iter().zip(q).map(|(w, q)| f64::from(pow24((w - q).abs()))).sum::<f64>();
    let sums: Vec<f64> = weights.par_chunks(1 << 14).zip(quantized.par_chunks(1 << 14)).map(piece).collect();
    sums.iter().sum()
}
