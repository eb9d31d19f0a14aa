//! What is kept of the images of a file: sums, features and marks.

use crate::calls::CallErrors;
use crate::network::Lpips;
use crate::pictures::{mean_square, ssim};
use crate::score::Mark;
use crate::stats::{Bootstrapped, bootstrap, quantile};

/// What is kept of a file's images.
#[derive(Default)]
pub(crate) struct Measured {
    /// Errors of calls; none of the reference.
    pub calls: Option<CallErrors>,
    /// Errors of latents; none of the reference's.
    pub latents: Vec<LatentError>,
    /// Errors of pictures; none of the reference's, and of folders whose pictures are not pairs.
    pub pictures: Vec<PictureError>,
    /// What was read in the pictures that are scored.
    pub marks: Vec<Mark>,
}

/// How an image's final latents differ from the reference's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LatentError {
    /// `|z_q - z_f| / |z_f|`.
    pub relative: f64,
    /// Mean of the squared differences.
    pub mean_square: f64,
}

/// How an image differs from the reference's, both decoded by the reference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PictureError {
    /// Mean of the squared differences.
    pub mean_square: f64,
    /// Structural similarity; none for pictures smaller than its window.
    pub ssim: Option<f64>,
    /// Perceptual distance, where there is a network for it.
    pub lpips: Option<f64>,
}

impl LatentError {
    /// The error of an image's latents.
    pub fn new(reference: &[f32], other: &[f32]) -> Self {
        let mean_square = mean_square(reference, other);
        let norm = reference.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / reference.len() as f64;
        let relative = if mean_square == 0.0 { 0.0 } else { (mean_square / norm).sqrt() };
        LatentError { relative, mean_square }
    }
}

impl PictureError {
    /// The error of a picture.
    pub fn new(reference: &[f32], other: &[f32], size: [usize; 2], channels: usize, lpips: Option<&Lpips>) -> Self {
        PictureError {
            mean_square: mean_square(reference, other),
            ssim: ssim(reference, other, size, channels),
            lpips: lpips.map(|lpips| lpips.distance(&lpips.see(reference, size), &lpips.see(other, size))),
        }
    }
}

/// Median, mean and the given tail quantile of `values`, resampled over images.
pub(crate) fn summary(values: &[f64], tail: f64, resamples: usize) -> [Bootstrapped; 3] {
    bootstrap(values.len(), resamples, |images| {
        let mut drawn: Vec<f64> = images.iter().map(|&image| values[image]).collect();
        let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
        [quantile(&mut drawn, 0.5), mean, quantile(&mut drawn, tail)]
    })
}
