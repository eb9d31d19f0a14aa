//! Levels that are best for given codes: small least-squares problems.
//!
//! Levels are linear in a few parameters: all levels of a codebook, the slope and intercept of an affine map, or the
//! scale of a fixed table. With the design `A` (inputs, parameters) of a row's codes, the step from the parameters in use
//! is `(A^T H A)^-1 A^T H e`.

use super::factor::Factor;
use super::levels::TileLevels;
use super::rounding::Rounded;
use ndarray::{Array2, ArrayView2};
use std::cmp::Ordering;

/// Inputs whose columns of `H` are summed at a time.
const LANES: usize = 16;
/// Added to the diagonal, relative to its mean: levels without codes stay where they are.
const RIDGE: f64 = 1e-6;

/// Normal equations, summed over blocks of inputs and over rows that share their levels.
#[derive(Clone, Debug)]
pub(super) struct Normal {
    size: usize,
    /// `A^T H A`, (size, size).
    matrix: Vec<f64>,
    /// `A^T H e`.
    gradient: Vec<f64>,
}

impl Normal {
    pub(super) fn new(size: usize) -> Self {
        Normal { size, matrix: vec![0.0; size * size], gradient: vec![0.0; size] }
    }

    pub(super) fn add(&mut self, other: &Normal) {
        self.matrix.iter_mut().zip(&other.matrix).for_each(|(a, b)| *a += b);
        self.gradient.iter_mut().zip(&other.gradient).for_each(|(a, b)| *a += b);
    }

    /// The diagonal of `A^T H A`: what a small shift of each parameter costs.
    pub(super) fn diagonal(&self) -> Vec<f64> {
        (0..self.size).map(|k| self.matrix[k * self.size + k]).collect()
    }

    /// The step of the parameters; `None` if there is nothing to gain, or nothing to solve.
    pub(super) fn solve(&self) -> Option<Vec<f64>> {
        let n = self.size;
        let ridge = RIDGE * self.diagonal().iter().sum::<f64>() / n as f64;
        if !(ridge > 0.0 && ridge.is_finite()) || self.gradient.iter().all(|&g| g == 0.0) {
            return None;
        }
        let mut root = self.matrix.clone();
        for j in 0..n {
            for i in j..n {
                let sum: f64 = (0..j).map(|k| root[i * n + k] * root[j * n + k]).sum();
                let rest = root[i * n + j] - sum + if i == j { ridge } else { 0.0 };
                root[i * n + j] = if i > j { rest / root[j * n + j] } else { rest.sqrt() };
            }
            // Also if it is no number: the root of a negative one.
            if root[j * n + j].partial_cmp(&0.0) != Some(Ordering::Greater) {
                return None;
            }
        }
        let inverse = |mut v: Vec<f64>| {
            for i in 0..n {
                let sum: f64 = (0..i).map(|k| root[i * n + k] * v[k]).sum();
                v[i] = (v[i] - sum) / root[i * n + i];
            }
            for i in (0..n).rev() {
                let sum: f64 = (i + 1..n).map(|k| root[k * n + i] * v[k]).sum();
                v[i] = (v[i] - sum) / root[i * n + i];
            }
            v
        };
        let step = inverse(self.gradient.clone());
        // A second step takes back what the ridge did to levels that have codes.
        let rest = inverse(self.rest(&step));
        let step: Vec<f64> = step.iter().zip(rest).map(|(step, rest)| step + rest).collect();
        step.iter().all(|v| v.is_finite()).then_some(step)
    }

    /// The gradient that a step leaves: `A^T H e - A^T H A step`.
    fn rest(&self, step: &[f64]) -> Vec<f64> {
        let row =
            |k: usize| self.matrix[k * self.size..][..self.size].iter().zip(step).map(|(m, s)| m * s).sum::<f64>();
        (0..self.size).map(|k| self.gradient[k] - row(k)).collect()
    }
}

/// Adds what a tile's rows say about all of their levels to `normals`: one per row, or one for all.
///
/// `A^T H A` sums columns of `H` by code, [`LANES`] of them at a time; of the symmetric `H` the lower triangle is enough.
pub(super) fn gather_levels(
    normals: &mut [Normal],
    rounded: &Rounded,
    levels: &TileLevels,
    factor: &Factor,
    second: ArrayView2<f64>,
) {
    let (n, rows) = rounded.codes.dim();
    let count = levels.count();
    let pull = factor.scaled_product(rounded.innovation.view());
    let codes: Vec<Vec<u8>> = rounded.codes.columns().into_iter().map(|row| row.to_vec()).collect();
    let shared = normals.len() == 1;
    for (r, codes) in codes.iter().enumerate() {
        let gradient = &mut normals[if shared { 0 } else { r }].gradient;
        for (p, &code) in codes.iter().enumerate() {
            gradient[usize::from(code)] += pull[[p, r]];
        }
    }
    let (mut panel, mut sums) = (vec![[0f64; LANES]; n], vec![[0f64; LANES]; count]);
    for first in (0..n).step_by(LANES) {
        let lanes = LANES.min(n - first);
        for (i, row) in panel.iter_mut().enumerate().skip(first) {
            (0..lanes).for_each(|l| row[l] = second[[i, first + l]]);
        }
        for r in 0..rows {
            let normal = &mut normals[if shared { 0 } else { r }];
            let (here, rest) = (first..first + lanes, first + lanes..n);
            for (range, both) in [(here.clone(), false), (rest, true)] {
                sums.fill([0.0; LANES]);
                for (row, &code) in panel[range.clone()].iter().zip(&codes[r][range]) {
                    sums[usize::from(code)].iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
                }
                normal.settle(&sums, &codes[r][here.clone()], both);
            }
        }
    }
}

/// Adds what a tile's rows say about slope and intercept of their maps (or the slope alone, if `normals` have one
/// parameter): a level is slope times entry, plus intercept. `entry` gives the entry of a row's code.
pub(super) fn gather_affine(
    normals: &mut [Normal],
    rounded: &Rounded,
    entry: impl Fn(usize, u8) -> f64,
    factor: &Factor,
) {
    let (n, rows) = rounded.codes.dim();
    let entries = Array2::from_shape_fn((n, rows), |(p, r)| entry(r, rounded.codes[[p, r]]));
    let entries = factor.transposed_product(entries.view());
    let ones = factor.transposed_product(Array2::ones((n, 1)).view());
    let ones = ones.broadcast((n, rows)).expect("one column for all").to_owned();
    let design = [&entries, &ones];
    let shared = normals.len() == 1;
    let size = normals[0].size;
    for i in 0..size {
        for (r, sum) in factor.scaled_dot(design[i], &rounded.innovation).into_iter().enumerate() {
            normals[if shared { 0 } else { r }].gradient[i] += sum;
        }
        for j in 0..size {
            for (r, sum) in factor.scaled_dot(design[i], design[j]).into_iter().enumerate() {
                normals[if shared { 0 } else { r }].matrix[i * size + j] += sum;
            }
        }
    }
}

impl Normal {
    /// Adds sums of columns of `H` by the code of the row, which belong to inputs with these codes; for `both`, also the
    /// sums that mirror them.
    fn settle(&mut self, sums: &[[f64; LANES]], codes: &[u8], both: bool) {
        for (lane, &code) in codes.iter().enumerate() {
            let code = usize::from(code);
            for (k, sum) in sums.iter().enumerate() {
                self.matrix[k * self.size + code] += sum[lane];
                if both {
                    self.matrix[code * self.size + k] += sum[lane];
                }
            }
        }
    }
}
