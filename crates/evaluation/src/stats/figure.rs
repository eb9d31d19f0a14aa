//! A figure with what tells how far off it may be.

use super::{Bootstrapped, Estimate, Jackknifed};

/// A figure, and what it is for other draws of its images.
#[derive(Clone, Debug, PartialEq)]
pub enum Figure {
    /// For images drawn again with replacement.
    Bootstrap(Bootstrapped),
    /// Without groups of its images.
    Jackknife(Jackknifed),
}

impl Figure {
    /// The figure of the images as they are.
    pub fn value(&self) -> f64 {
        match self {
            Figure::Bootstrap(figure) => figure.value,
            Figure::Jackknife(figure) => figure.value,
        }
    }

    /// The figure and its interval.
    pub fn estimate(&self) -> Estimate {
        match self {
            Figure::Bootstrap(figure) => figure.percentile(),
            Figure::Jackknife(figure) => figure.interval(0.0),
        }
    }

    /// The figure less `bias`, with its interval; of the bootstrap one that takes the bias off twice where it was added twice.
    pub fn without(&self, bias: f64) -> Estimate {
        match self {
            Figure::Bootstrap(figure) => figure.basic(bias),
            Figure::Jackknife(figure) => figure.interval(bias),
        }
    }

    /// The difference from `other`, image by image.
    ///
    /// # Panics
    /// If the two were not resampled in the same way.
    pub fn minus(&self, other: &Self) -> Self {
        match (self, other) {
            (Figure::Bootstrap(ours), Figure::Bootstrap(theirs)) => Figure::Bootstrap(ours.minus(theirs)),
            (Figure::Jackknife(ours), Figure::Jackknife(theirs)) => Figure::Jackknife(ours.minus(theirs)),
            _ => panic!("a figure is resampled in one way"),
        }
    }
}

impl From<Bootstrapped> for Figure {
    fn from(figure: Bootstrapped) -> Self {
        Figure::Bootstrap(figure)
    }
}

impl From<Jackknifed> for Figure {
    fn from(figure: Jackknifed) -> Self {
        Figure::Jackknife(figure)
    }
}
