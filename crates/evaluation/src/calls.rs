//! The error of single calls of the network, all at states of the reference's own run.

use crate::stats::{Bootstrapped, bootstrap};
use aquatint::Request;
use aquatint::pipeline::Predicted;
use rayon::prelude::*;

/// Parts of what a guided network predicts, and their combination as guidance takes it; without guidance there is only
/// the first.
pub(crate) const BRANCHES: [&str; 3] = ["conditional", "unconditional", "guided"];

/// Sums of squares of one image in one call, per branch.
#[derive(Clone, Copy, Debug, Default)]
struct Squares {
    error: [f64; 3],
    reference: [f64; 3],
}

/// Errors of a file's calls: of each image at each of the chosen calls.
#[derive(Clone, Debug)]
pub(crate) struct CallErrors {
    /// Per call, in the order of images.
    calls: Vec<Vec<Squares>>,
    guided: bool,
}

impl CallErrors {
    /// Errors at so many calls, of no image yet.
    pub fn new(calls: usize, guided: bool) -> Self {
        CallErrors { calls: vec![Vec::new(); calls], guided }
    }

    /// Adds what the reference and the file predicted at the chosen call `call` for the next images. Of each pixel the
    /// first `channels` channels count, the latents'.
    pub fn add(&mut self, call: usize, request: &Request, channels: usize, reference: &Predicted, other: &Predicted) {
        let samples = [reference, other].map(|p| p.values.chunks_exact(p.values.len() / p.samples).collect::<Vec<_>>());
        let images = if self.guided { reference.samples / 2 } else { reference.samples };
        let scale = f64::from(request.guidance_scale);
        let squares = (0..images).into_par_iter().map(|image| {
            let mut squares = Squares::default();
            let branch = |file: usize, branch: usize| {
                let values = samples[file][image + branch * images].chunks_exact(reference.channels);
                values.flat_map(|pixel| &pixel[..channels]).map(|&v| f64::from(v))
            };
            let mut take = |branch: usize, reference: f64, other: f64| {
                squares.reference[branch] += reference * reference;
                squares.error[branch] += (other - reference).powi(2);
            };
            if self.guided {
                let (from, away) = (branch(0, 0).zip(branch(1, 0)), branch(0, 1).zip(branch(1, 1)));
                for ((c, other_c), (u, other_u)) in from.zip(away) {
                    take(0, c, other_c);
                    take(1, u, other_u);
                    take(2, u + scale * (c - u), other_u + scale * (other_c - other_u));
                }
            } else {
                branch(0, 0).zip(branch(1, 0)).for_each(|(c, other)| take(0, c, other));
            }
            squares
        });
        self.calls[call].par_extend(squares);
    }

    /// The relative error at each call, of all images together: both branches, and each of [`BRANCHES`].
    pub fn curve(&self) -> Vec<[f64; 4]> {
        let images: Vec<usize> = (0..self.images()).collect();
        self.calls.iter().map(|call| squared(call, &images).map(f64::sqrt)).collect()
    }

    /// The root of the mean over calls of the squared relative error, resampled over images, as [`curve`](Self::curve)
    /// has its four.
    pub fn root_mean_square(&self, resamples: usize) -> [Bootstrapped; 4] {
        bootstrap(self.images(), resamples, |images| {
            let mut mean = [0.0; 4];
            for call in &self.calls {
                squared(call, images).iter().zip(&mut mean).for_each(|(e, mean)| *mean += e / self.calls.len() as f64);
            }
            mean.map(f64::sqrt)
        })
    }

    /// The squared relative error of what a sampler reads of each image, by call: with guidance of its combination.
    pub fn of_images(&self) -> Vec<Vec<f64>> {
        let branch = 1 + if self.guided { BRANCHES.len() - 1 } else { 0 };
        let of_call = |call: &Vec<Squares>| (0..call.len()).map(|image| squared(call, &[image])[branch]).collect();
        self.calls.iter().map(of_call).collect()
    }

    /// Whether there are the branches of guidance.
    pub fn guided(&self) -> bool {
        self.guided
    }

    fn images(&self) -> usize {
        self.calls.first().map_or(0, Vec::len)
    }
}

/// Squared relative errors of `images` in a call.
fn squared(call: &[Squares], images: &[usize]) -> [f64; 4] {
    let (mut error, mut reference) = ([0.0; 3], [0.0; 3]);
    for &image in images {
        for branch in 0..BRANCHES.len() {
            error[branch] += call[image].error[branch];
            reference[branch] += call[image].reference[branch];
        }
    }
    // Nothing predicted and nothing missed is no error.
    let quotient = |error: f64, reference: f64| if error == 0.0 { 0.0 } else { error / reference };
    let [c, u, g] = [0, 1, 2].map(|branch| quotient(error[branch], reference[branch]));
    [quotient(error[0] + error[1], reference[0] + reference[1]), c, u, g]
}
