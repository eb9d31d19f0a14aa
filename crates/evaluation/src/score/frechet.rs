//! The Fréchet distance of two normal distributions (Dowson and Landau 1982; of features, Heusel et al. 2017).

use super::tensors::Tensors;
use crate::stats::{Bootstrapped, Estimate, bootstrap, symmetric};
use aquatint::{Error, Result};

/// Mean and covariance of true pictures' features, and the root of the covariance.
#[derive(Clone, Debug)]
pub struct Gaussian {
    mean: Vec<f64>,
    trace: f64,
    /// The symmetric root of the covariance, `(d, d)`.
    root: Vec<f64>,
}

/// The distance of the features of so many pictures from those of true ones.
#[derive(Clone, Debug)]
pub struct Spread {
    /// The distance, resampled over pictures.
    pub distance: Bootstrapped,
    /// What it is expected to be with so few pictures, to first order, if there were no distance at all.
    pub bias: f64,
}

impl Gaussian {
    /// Reads `mean` `(d)` and `covariance` `(d, d)` of a safetensors file for `d` features; messages call it `source`.
    ///
    /// # Errors
    /// [`Error::Request`] if they are missing, have other shapes, or make no covariance.
    pub fn new(source: &str, bytes: &[u8], d: usize) -> Result<Self> {
        let tensors = Tensors::new(source, bytes)?;
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
        let mean = wide(tensors.shaped("mean", &[d])?);
        let covariance = wide(tensors.shaped("covariance", &[d, d])?);
        let largest = covariance.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        let uneven = |i: usize, j: usize| (covariance[i * d + j] - covariance[j * d + i]).abs() > 1e-4 * largest;
        if let Some((i, j)) = (0..d).flat_map(|i| (0..i).map(move |j| (i, j))).find(|&(i, j)| uneven(i, j)) {
            return Err(tensors.wrong(
                "covariance",
                "a symmetric matrix",
                format!("other numbers at {i}, {j} and {j}, {i}"),
            ));
        }
        let gaussian = Self::of(mean, &covariance);
        // What rounding to f32 may have left below zero.
        let least = symmetric(covariance, d).values.into_iter().fold(0.0, f64::min);
        if least < -1e-4 * gaussian.trace.abs() {
            return Err(Error::request(format!("{source}: tensor `covariance`"), "no negative eigenvalue", least));
        }
        Ok(gaussian)
    }

    /// The distribution of this mean `(d)` and covariance `(d, d)`.
    pub fn of(mean: Vec<f64>, covariance: &[f64]) -> Self {
        let d = mean.len();
        let eigen = symmetric(covariance.to_vec(), d);
        let mut root = vec![0.0; d * d];
        for (value, vector) in eigen.values.iter().zip(eigen.vectors.chunks_exact(d)) {
            let value = value.max(0.0).sqrt();
            for (row, &v) in root.chunks_exact_mut(d).zip(vector) {
                row.iter_mut().zip(vector).for_each(|(out, &w)| *out += value * v * w);
            }
        }
        Gaussian { mean, trace: (0..d).map(|i| covariance[i * d + i]).sum(), root }
    }

    /// Features.
    fn features(&self) -> usize {
        self.mean.len()
    }

    /// The distance of the distribution with this mean and covariance.
    pub fn distance(&self, mean: &[f64], covariance: &[f64]) -> f64 {
        self.distance_in(&self.root, mean, covariance)
    }

    /// The same, with the root turned to a basis in which the product below is nearly diagonal: less work.
    fn distance_in(&self, root: &[f64], mean: &[f64], covariance: &[f64]) -> f64 {
        let d = self.features();
        // tr (A B)^(1/2) is that of the symmetric root(A) B root(A), in any orthogonal basis.
        let product = sandwich(root, covariance, d);
        let cross: f64 = symmetric(product, d).values.iter().map(|v| v.max(0.0).sqrt()).sum();
        let apart: f64 = mean.iter().zip(&self.mean).map(|(a, b)| (a - b) * (a - b)).sum();
        let trace: f64 = (0..d).map(|i| covariance[i * d + i]).sum();
        apart + trace + self.trace - 2.0 * cross
    }

    /// The distance of pictures with these features `(n, d)`, n at least 2.
    pub fn spread(&self, features: &[f32], resamples: usize) -> Spread {
        let d = self.features();
        let features: Vec<f64> = features.iter().map(|&v| f64::from(v)).collect();
        let n = features.len() / d;
        let all: Vec<usize> = (0..n).collect();
        let (_, covariance) = moments(&features, &all, d);
        let bias = bias(&symmetric(covariance.clone(), d).values, n);
        let basis = symmetric(sandwich(&self.root, &covariance, d), d).vectors;
        let root = multiply(&self.root, &transposed(&basis, d), d);
        let [distance] = bootstrap(n, resamples, |images| {
            let (mean, covariance) = moments(&features, images, d);
            [self.distance_in(&root, &mean, &covariance)]
        });
        Spread { distance, bias }
    }
}

impl Spread {
    /// The distance less its bias.
    pub fn corrected(&self) -> Estimate {
        self.distance.basic(self.bias)
    }

    /// The difference of two corrected distances of the same images.
    pub fn minus(&self, other: &Self) -> Estimate {
        self.distance.minus(&other.distance).basic(self.bias - other.bias)
    }
}

/// The expected distance, to first order in 1/n, of a sample of `n` from the distribution that it is drawn from, whose
/// covariance has the eigenvalues `values`: `tr C / n` from the mean, and from the covariance, whose element `ij` in the
/// basis of eigenvectors varies by `(1 + [i = j]) values_i values_j / n`, half the sum of that over `values_i + values_j`.
pub fn bias(values: &[f64], n: usize) -> f64 {
    let values: Vec<f64> = values.iter().map(|v| v.max(0.0)).collect();
    let trace: f64 = values.iter().sum();
    let mixed = |a: f64, b: f64| if a + b > 0.0 { a * b / (a + b) } else { 0.0 };
    let pairs: f64 = values.iter().flat_map(|&a| values.iter().map(move |&b| mixed(a, b))).sum();
    (trace + (pairs + trace / 2.0) / 2.0) / n as f64
}

/// Mean and covariance (by n - 1) of the rows `images` of `features` `(n, d)`.
fn moments(features: &[f64], images: &[usize], d: usize) -> (Vec<f64>, Vec<f64>) {
    let mut mean = vec![0.0; d];
    for &image in images {
        mean.iter_mut().zip(&features[image * d..]).for_each(|(mean, v)| *mean += v);
    }
    mean.iter_mut().for_each(|mean| *mean /= images.len() as f64);
    let mut covariance = vec![0.0; d * d];
    let mut off = vec![0.0; d];
    for &image in images {
        off.iter_mut().zip(&features[image * d..]).zip(&mean).for_each(|((off, v), mean)| *off = v - mean);
        for (i, &a) in off.iter().enumerate() {
            covariance[i * d..][..=i].iter_mut().zip(&off).for_each(|(sum, b)| *sum += a * b);
        }
    }
    for i in 0..d {
        for j in 0..=i {
            covariance[i * d + j] /= (images.len() - 1) as f64;
            covariance[j * d + i] = covariance[i * d + j];
        }
    }
    (mean, covariance)
}

/// `(d, d)` times `(d, d)`.
fn multiply(a: &[f64], b: &[f64], d: usize) -> Vec<f64> {
    let mut out = vec![0.0; d * d];
    for (row, out) in a.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        for (&x, b) in row.iter().zip(b.chunks_exact(d)) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += x * b);
        }
    }
    out
}

fn transposed(a: &[f64], d: usize) -> Vec<f64> {
    (0..d * d).map(|at| a[at % d * d + at / d]).collect()
}

/// `A' B A`, made symmetric to the last bit.
fn sandwich(a: &[f64], b: &[f64], d: usize) -> Vec<f64> {
    let product = multiply(&transposed(a, d), &multiply(b, a, d), d);
    (0..d * d).map(|at| (product[at] + product[at % d * d + at / d]) / 2.0).collect()
}
