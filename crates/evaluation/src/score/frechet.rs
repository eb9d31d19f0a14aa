//! The Fréchet distance of two normal distributions (Dowson and Landau 1982; of features, Heusel et al. 2017).
//!
//! `tr (A B)^(1/2)` is the sum of the roots of the eigenvalues of `F B F'`, where `F' F = A`: symmetric, and as small as the
//! rank of `A`. Of rows `X` of features, centred, those of `F X' X F'` are those of `(X F')(X F')'` too: as small as the number of
//! pictures.

use crate::stats::{Estimate, Figure, Jackknifed, bootstrap, eigenvalues, symmetric, times_transposed, transposed};

/// Smaller eigenproblems are solved for each of the bootstrap's resamples; larger ones, which take seconds, for the jackknife.
const SMALL: usize = 256;
/// Share of the largest eigenvalue below which one is rounding.
const ROUNDING: f64 = 1e-13;

/// A normal distribution of `d` features.
#[derive(Clone, Debug)]
pub struct Gaussian {
    mean: Vec<f64>,
    trace: f64,
    /// `F` `(rank, d)`, of which `F' F` is the covariance.
    factor: Vec<f64>,
    /// The least eigenvalue of the covariance.
    least: f64,
}

/// The distance of the features of so many pictures from those of true ones.
#[derive(Clone, Debug)]
pub struct Spread {
    /// The distance, resampled over pictures.
    pub distance: Figure,
    /// What it is expected to be with so few pictures, to first order, if there were no distance at all.
    pub bias: f64,
}

impl Gaussian {
    /// The distribution of this mean `(d)` and covariance `(d, d)`; what is below zero of the covariance is left out.
    ///
    /// # Panics
    /// If the covariance has not `d * d` elements.
    pub fn of(mean: Vec<f64>, covariance: &[f64]) -> Self {
        let d = mean.len();
        let trace = (0..d).map(|i| covariance[i * d + i]).sum();
        let (factor, least) = scaled_vectors(covariance.to_vec(), d);
        Gaussian { mean, trace, factor, least }
    }

    /// The distribution of features `(n, d)`, n at least 2: their mean, and their covariance by n - 1.
    pub fn of_features(features: &[f64], d: usize) -> Self {
        let n = features.len() / d;
        let all: Vec<usize> = (0..n).collect();
        let (mean, mut rows) = centred(features, &all, d);
        rows.iter_mut().for_each(|v| *v /= ((n - 1) as f64).sqrt());
        let columns = transposed(&rows, d);
        if n > d {
            return Self::of(mean, &times_transposed(&columns, &columns, n));
        }
        // With X X' = V' V, V V' diagonal, the rows of V X over their lengths are as many as the rank.
        let (vectors, _) = scaled_vectors(times_transposed(&rows, &rows, d), n);
        let mut factor = times_transposed(&vectors, &columns, n);
        for (row, vector) in factor.chunks_exact_mut(d).zip(vectors.chunks_exact(n)) {
            let length = vector.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.iter_mut().for_each(|v| *v /= length);
        }
        Gaussian { mean, trace: rows.iter().map(|v| v * v).sum(), factor, least: 0.0 }
    }

    /// Features.
    pub fn features(&self) -> usize {
        self.mean.len()
    }

    /// Dimensions that the distribution has any extent in.
    pub fn rank(&self) -> usize {
        self.factor.len() / self.features()
    }

    /// How far the least eigenvalue is below zero, as a share of the trace; no covariance has one there.
    pub fn below_zero(&self) -> f64 {
        if self.trace == 0.0 { -self.least } else { -self.least / self.trace.abs() }
    }

    /// The distance of the distribution with this mean `(d)` and covariance `(d, d)`.
    pub fn distance(&self, mean: &[f64], covariance: &[f64]) -> f64 {
        let d = self.features();
        let product = times_transposed(&times_transposed(&self.factor, covariance, d), &self.factor, d);
        let trace: f64 = (0..d).map(|i| covariance[i * d + i]).sum();
        self.apart(mean) + trace + self.trace - 2.0 * roots(&eigenvalues(product, self.rank()))
    }

    /// Squared distance of the means.
    fn apart(&self, mean: &[f64]) -> f64 {
        mean.iter().zip(&self.mean).map(|(a, b)| (a - b) * (a - b)).sum()
    }

    /// The distance of pictures with these features `(n, d)`, n at least 2: with the bootstrap where the matrices are small,
    /// else with the jackknife.
    pub fn spread(&self, features: &[f64], resamples: usize) -> Spread {
        let d = self.features();
        let n = features.len() / d;
        let all: Vec<usize> = (0..n).collect();
        let (mean, centred) = centred(features, &all, d);
        let bias = bias(&spectrum(&centred, &all, d), n);
        let projected = times_transposed(&centred, &self.factor, d);
        let squares: Vec<f64> = centred.chunks_exact(d).map(|row| row.iter().map(|v| v * v).sum()).collect();
        // Of features less their mean, what is left of the mean and of the trace is small, and subtracts without loss.
        let distance = |images: &[usize]| {
            let count = images.len() as f64;
            let mut moved = mean_of(&centred, images, d);
            let sum: f64 = images.iter().map(|&image| squares[image]).sum();
            let trace = (sum - count * moved.iter().map(|v| v * v).sum::<f64>()) / (count - 1.0);
            moved.iter_mut().zip(&mean).for_each(|(moved, mean)| *moved += mean);
            let cross = if self.rank() == 0 { 0.0 } else { roots(&spectrum(&projected, images, self.rank())) };
            self.apart(&moved) + trace + self.trace - 2.0 * cross
        };
        let distance = if n.min(self.rank()) <= SMALL {
            let [distance] = bootstrap(n, resamples, |images| [distance(images)]);
            distance.into()
        } else {
            let without = |group: std::ops::Range<usize>| {
                distance(&all.iter().copied().filter(|image| !group.contains(image)).collect::<Vec<_>>())
            };
            Jackknifed::new(n, distance(&all), without).into()
        };
        Spread { distance, bias }
    }
}

impl Spread {
    /// The distance less its bias.
    pub fn corrected(&self) -> Estimate {
        self.distance.without(self.bias)
    }

    /// The difference of two corrected distances of the same images.
    pub fn minus(&self, other: &Self) -> Estimate {
        self.distance.minus(&other.distance).without(self.bias - other.bias)
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

/// The eigenvectors of `a` `(n, n)` times the roots of their eigenvalues, without those of none, and the least eigenvalue or 0.
fn scaled_vectors(a: Vec<f64>, n: usize) -> (Vec<f64>, f64) {
    let eigen = symmetric(a, n);
    let [least, largest] = eigen.values.iter().fold([0.0f64; 2], |[least, most], v| [least.min(*v), most.max(*v)]);
    let vectors = eigen.values.iter().zip(eigen.vectors.chunks_exact(n));
    let vectors = vectors.filter(|(value, _)| **value > ROUNDING * largest);
    (vectors.flat_map(|(value, vector)| vector.iter().map(|v| v * value.sqrt())).collect(), least)
}

/// Roots of eigenvalues, added up; rounding may have left some below zero.
fn roots(values: &[f64]) -> f64 {
    values.iter().map(|v| v.max(0.0).sqrt()).sum()
}

/// The mean of the rows `images` of `features` `(n, d)`.
fn mean_of(features: &[f64], images: &[usize], d: usize) -> Vec<f64> {
    let mut mean = vec![0.0; d];
    for &image in images {
        mean.iter_mut().zip(&features[image * d..]).for_each(|(mean, v)| *mean += v);
    }
    mean.iter_mut().for_each(|mean| *mean /= images.len() as f64);
    mean
}

/// The mean of the rows `images` of `features` `(n, d)`, and these rows less that.
fn centred(features: &[f64], images: &[usize], d: usize) -> (Vec<f64>, Vec<f64>) {
    let mean = mean_of(features, images, d);
    let row = |&image: &usize| features[image * d..][..d].iter().zip(&mean).map(|(v, mean)| v - mean);
    let rows = images.iter().flat_map(row).collect();
    (mean, rows)
}

/// The eigenvalues, but for some zeros, of the covariance of the rows `images` of `features` `(n, d)`.
fn spectrum(features: &[f64], images: &[usize], d: usize) -> Vec<f64> {
    let n = images.len();
    let (_, rows) = centred(features, images, d);
    let mut values = if n < d {
        eigenvalues(times_transposed(&rows, &rows, d), n)
    } else {
        let columns = transposed(&rows, d);
        eigenvalues(times_transposed(&columns, &columns, n), d)
    };
    values.iter_mut().for_each(|v| *v /= (n - 1) as f64);
    values
}
