//! The bootstrap (Efron 1979): images drawn again with replacement, in the same way for every file and figure.

use super::{Estimate, quantile};
use rayon::prelude::*;

/// Shares of resampled figures below the two ends of an interval.
const TAILS: [f64; 2] = [0.025, 0.975];

/// A figure, and what it is for each of the resamples.
///
/// Figures of the same images and as many resamples belong together: resample `r` drew the same images for all of them.
/// So the difference of two files is resampled with their images paired.
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrapped {
    /// The figure of the images as they are.
    pub value: f64,
    /// The figure of each resample.
    pub resampled: Vec<f64>,
}

impl Bootstrapped {
    /// The interval between quantiles of the resampled figures.
    pub fn percentile(&self) -> Estimate {
        let [low, high] = self.tails();
        Estimate { value: self.value, low, high }
    }

    /// The interval for a figure that is too large by `bias` here, and in resamples by as much again: their quantiles,
    /// reflected at the value ("basic" interval, Davison and Hinkley 1997, section 5.2), which takes that bias off.
    pub fn basic(&self, bias: f64) -> Estimate {
        let [low, high] = self.tails();
        Estimate { value: self.value - bias, low: 2.0 * self.value - high, high: 2.0 * self.value - low }
    }

    /// The difference from `other`, image by image.
    pub fn minus(&self, other: &Self) -> Self {
        // Two infinities are the same figure.
        let minus = |a: f64, b: f64| if a == b { 0.0 } else { a - b };
        let pairs = self.resampled.iter().zip(&other.resampled);
        Bootstrapped { value: minus(self.value, other.value), resampled: pairs.map(|(&a, &b)| minus(a, b)).collect() }
    }

    fn tails(&self) -> [f64; 2] {
        let mut sorted = self.resampled.clone();
        TAILS.map(|share| quantile(&mut sorted, share))
    }
}

/// The figures of `n` images and of so many `resamples` of them. `statistic` takes the images' numbers.
pub fn bootstrap<const K: usize>(
    n: usize,
    resamples: usize,
    statistic: impl Fn(&[usize]) -> [f64; K] + Sync,
) -> [Bootstrapped; K] {
    let all: Vec<usize> = (0..n).collect();
    let value = statistic(&all);
    let resampled: Vec<[f64; K]> = (0..resamples)
        .into_par_iter()
        .map(|resample| statistic(&(0..n).map(|place| draw(resample, place, n)).collect::<Vec<_>>()))
        .collect();
    std::array::from_fn(|k| Bootstrapped { value: value[k], resampled: resampled.iter().map(|r| r[k]).collect() })
}

/// The image, of `n`, that a resample has in `place`.
pub fn draw(resample: usize, place: usize, n: usize) -> usize {
    let word = scatter(scatter(resample as u64).wrapping_add(place as u64));
    ((u128::from(word) * n as u128) >> 64) as usize
}

/// The output function of splitmix64 (Steele et al. 2014), applied to the state that number `n` leaves.
fn scatter(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
