//! What is known of true pictures' features.

use super::{Gaussian, KernelReference};
use crate::arrays::Arrays;
use aquatint::{Error, Result};

/// Names that files have for the mean, the covariance, and the features themselves: our own, and those of pytorch-fid and
/// clean-fid.
const MEAN: [&str; 2] = ["mean", "mu"];
const COVARIANCE: [&str; 2] = ["covariance", "sigma"];
const FEATURES: [&str; 1] = ["features"];
/// Share of the largest element by which elements that should be the same may differ, and of the trace by which an eigenvalue
/// may be below zero: what rounding to f32 leaves.
const ROUNDING: f64 = 1e-4;

/// Features of true pictures: how they are spread and, where they are known one by one, the features themselves.
pub struct Reference {
    gaussian: Gaussian,
    kernel: Option<KernelReference>,
    note: Option<String>,
}

impl Reference {
    /// Reads a file of `d` features, .npz or safetensors; messages call it `source`. It holds `features` `(n, d)`, or `mean` or
    /// `mu` `(d)` and `covariance` or `sigma` `(d, d)`.
    ///
    /// # Errors
    /// [`Error::Request`] if these are missing, have other shapes, are not finite, or make no covariance.
    pub fn new(source: &str, bytes: &[u8], d: usize) -> Result<Self> {
        let arrays = Arrays::new(source, bytes)?;
        if let Some(name) = arrays.first(&FEATURES) {
            let array = arrays.get(name)?;
            return match array.dims[..] {
                [n, own] if n > 1 && own == d => Ok(Self::of_features(source, array.values, d)),
                _ => Err(arrays.wrong(name, format!("(n, {d}), n at least 2"), format!("{:?}", array.dims))),
            };
        }
        let find = |names: &[&'static str]| {
            let missing = || Error::request(source, format!("a tensor `{}`", names.join("` or `")), "none");
            arrays.first(names).ok_or_else(missing)
        };
        let (mean, name) = (arrays.shaped(find(&MEAN)?, &[d])?, find(&COVARIANCE)?);
        let covariance = arrays.shaped(name, &[d, d])?;
        let largest = covariance.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        let uneven = |i: usize, j: usize| (covariance[i * d + j] - covariance[j * d + i]).abs() > ROUNDING * largest;
        if let Some((i, j)) = (0..d).flat_map(|i| (0..i).map(move |j| (i, j))).find(|&(i, j)| uneven(i, j)) {
            let got = format!("other numbers at {i}, {j} and {j}, {i}");
            return Err(arrays.wrong(name, "a symmetric matrix", got));
        }
        let gaussian = Gaussian::of(mean, &covariance);
        let below = gaussian.below_zero();
        if below > ROUNDING {
            return Err(arrays.wrong(name, "no negative eigenvalue", format!("one of {below:.1e} of the trace")));
        }
        Ok(Self::of(source, gaussian, None))
    }

    /// The features `(n, d)` of true pictures, n at least 2, which messages call `source`.
    pub fn of_features(source: &str, features: Vec<f64>, d: usize) -> Self {
        let gaussian = Gaussian::of_features(&features, d);
        Self::of(source, gaussian, Some(KernelReference::new(features, d)))
    }

    fn of(source: &str, gaussian: Gaussian, kernel: Option<KernelReference>) -> Self {
        let (rank, d) = (gaussian.rank(), gaussian.features());
        let note = (rank < d).then(|| {
            format!(
                "{source}: the covariance of {d} features is singular, of rank {rank}: of too few pictures; distances from it are not \
                 comparable with others"
            )
        });
        Reference { gaussian, kernel, note }
    }

    /// How the features are spread.
    pub fn gaussian(&self) -> &Gaussian {
        &self.gaussian
    }

    /// The features themselves, where they are known.
    pub fn kernel(&self) -> Option<&KernelReference> {
        self.kernel.as_ref()
    }

    /// What people should know of it.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}
