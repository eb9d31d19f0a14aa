//! The jackknife over groups (Shao and Tu 1995, section 2.3): a figure again without each tenth of the images, for figures that
//! are too slow to work out for hundreds of resamples.

use super::Estimate;
use std::ops::Range;

/// Groups of images.
pub const GROUPS: usize = 10;
/// Fewest images that are resampled so: two in each group.
pub const FEWEST: usize = 2 * GROUPS;
/// The 97.5 % quantile of Student's distribution of 9 degrees of freedom, one less than groups.
const T975: f64 = 2.262_157_162_798_205;

/// A figure, and what it is without each of the groups; the images of group `g` are those of [`group`].
#[derive(Clone, Debug, PartialEq)]
pub struct Jackknifed {
    /// The figure of all images.
    pub value: f64,
    /// The figure without each group.
    pub without: [f64; GROUPS],
}

/// The images, of `n`, that group `g` has: a tenth of them, one after the other.
pub fn group(g: usize, n: usize) -> Range<usize> {
    g * n / GROUPS..(g + 1) * n / GROUPS
}

impl Jackknifed {
    /// The figure of `n` images, `statistic` of which is the figure without some of them.
    pub fn new(n: usize, value: f64, statistic: impl Fn(Range<usize>) -> f64) -> Self {
        Jackknifed { value, without: std::array::from_fn(|g| statistic(group(g, n))) }
    }

    /// The difference from `other`, of the same images.
    pub fn minus(&self, other: &Self) -> Self {
        let without = std::array::from_fn(|g| self.without[g] - other.without[g]);
        Jackknifed { value: self.value - other.value, without }
    }

    /// The standard error.
    pub fn error(&self) -> f64 {
        let mean = self.without.iter().sum::<f64>() / GROUPS as f64;
        let squares: f64 = self.without.iter().map(|v| (v - mean).powi(2)).sum();
        (squares * (GROUPS - 1) as f64 / GROUPS as f64).sqrt()
    }

    /// The figure less `bias`, with Student's interval.
    pub fn interval(&self, bias: f64) -> Estimate {
        let (value, reach) = (self.value - bias, T975 * self.error());
        Estimate { value, low: value - reach, high: value + reach }
    }
}
