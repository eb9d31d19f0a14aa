//! The kernel distance (Binkowski et al. 2018): squared maximum mean discrepancy of features with the kernel
//! `k(x, y) = (x y / d + 1)^3`, without bias. Expected to be 0 for samples of one distribution, so it may be below.

use crate::stats::{GROUPS, Jackknifed, Shuffle, group, times_transposed};
use rayon::prelude::*;

/// Subsets that torch-fidelity draws, pictures in each, and its seed.
pub const SUBSETS: usize = 100;
/// Pictures in a subset.
pub const SUBSET: usize = 1000;
/// Seed of the draws.
const SEED: u32 = 2020;
/// Rows of the kernel's matrix that are made at a time.
const ROWS: usize = 64;

/// True pictures' features `(m, d)`, and what their pairs sum up to.
pub struct KernelReference {
    features: Vec<f64>,
    d: usize,
    /// Of all pairs of different pictures.
    pairs: f64,
}

impl KernelReference {
    /// The reference of these `features` `(m, d)`, m at least 2. Works for `m^2 d` products.
    pub fn new(features: Vec<f64>, d: usize) -> Self {
        let pairs = sums(&features, &features, d, true).as_flattened().iter().sum();
        KernelReference { features, d, pairs }
    }

    /// Pictures.
    pub fn count(&self) -> usize {
        self.features.len() / self.d
    }

    /// The distance of all pictures with features `(n, d)`, n at least [`FEWEST`](crate::stats::FEWEST), with the jackknife over them; the reference's pictures
    /// are taken as they are.
    pub fn distance(&self, features: &[f64]) -> Jackknifed {
        let n = features.len() / self.d;
        let (own, mixed) = (sums(features, features, self.d, true), sums(features, &self.features, self.d, false));
        let of = |n: usize, own: f64, mixed: f64| {
            let (m, n) = (self.count() as f64, n as f64);
            own / (n * (n - 1.0)) + self.pairs / (m * (m - 1.0)) - 2.0 * mixed / (m * n)
        };
        let row = |of: &[[f64; GROUPS]; GROUPS], g: usize| of[g].iter().sum::<f64>();
        let (all_own, all_mixed) = (own.as_flattened().iter().sum::<f64>(), mixed.as_flattened().iter().sum::<f64>());
        let value = of(n, all_own, all_mixed);
        let without = std::array::from_fn(|g| {
            // Pairs with a picture of the group, of which those within it are in its row and in its column.
            let own_left = all_own - 2.0 * row(&own, g) + own[g][g];
            of(n - group(g, n).len(), own_left, all_mixed - row(&mixed, g))
        });
        Jackknifed { value, without }
    }

    /// Mean and deviation over `subsets` draws of `size` pictures each, drawn and worked out as torch-fidelity does; none if
    /// there are too few pictures.
    pub fn subsets(&self, features: &[f64], subsets: usize, size: usize) -> Option<[f64; 2]> {
        let (d, n) = (self.d, features.len() / self.d);
        if n.min(self.count()) < size || size < 2 {
            return None;
        }
        let mut shuffle = Shuffle::new(SEED);
        let mut draw = |from: &[f64]| -> Vec<f64> {
            let order = shuffle.permutation(from.len() / d);
            order[..size].iter().flat_map(|&image| &from[image * d..][..d]).copied().collect()
        };
        let values: Vec<f64> = (0..subsets)
            .map(|_| {
                let (x, y) = (draw(features), draw(&self.features));
                let sum = |a: &[f64], b: &[f64], apart| sums(a, b, d, apart).as_flattened().iter().sum::<f64>();
                let (m, mixed) = (size as f64, sum(&x, &y, false));
                (sum(&x, &x, true) + sum(&y, &y, true)) / (m * (m - 1.0)) - 2.0 * mixed / (m * m)
            })
            .collect();
        let mean = values.iter().sum::<f64>() / subsets as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / subsets as f64;
        Some([mean, variance.sqrt()])
    }
}

/// The kernel summed over pairs of a row of `a` `(n, d)` and one of `b` `(m, d)`, by the groups of both; `apart` leaves out
/// pairs of the same number.
fn sums(a: &[f64], b: &[f64], d: usize, apart: bool) -> [[f64; GROUPS]; GROUPS] {
    let (n, m) = (a.len() / d, b.len() / d);
    let panel = |(panel, rows): (usize, &[f64])| -> Vec<[f64; GROUPS]> {
        let products = times_transposed(rows, b, d);
        let row = |(i, products): (usize, &[f64])| {
            let same = apart.then_some(panel * ROWS + i);
            std::array::from_fn(|g| {
                let pairs = group(g, m).filter(|&j| Some(j) != same);
                pairs.map(|j| (products[j] / d as f64 + 1.0).powi(3)).sum()
            })
        };
        products.chunks_exact(m).enumerate().map(row).collect()
    };
    let rows: Vec<Vec<[f64; GROUPS]>> = a.par_chunks(ROWS * d).enumerate().map(panel).collect();
    let rows: Vec<[f64; GROUPS]> = rows.into_iter().flatten().collect();
    std::array::from_fn(|g| std::array::from_fn(|h| rows[group(g, n)].iter().map(|row| row[h]).sum()))
}
