//! Levels that are best for given codes: small least-squares problems.
//!
//! Levels are linear in a few parameters: all levels of a codebook, the slope and intercept of an affine map, or the
//! scale of a fixed table. With the design `A` (inputs, parameters) of a row's codes, the step from the parameters in use
//! is `(A^T H A)^-1 A^T H e`.

use super::factor::Factor;
use super::rounding::Rounded;
use super::tile;
use aquatint::raw::backend::cpu::Tier;
use aquatint::raw::backend::cpu::simd::{Isa, Vectorized};
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

    /// The same with parameter `held` where it is.
    pub(super) fn holding(&self, held: usize) -> Normal {
        let mut rest = self.clone();
        rest.gradient[held] = 0.0;
        for k in (0..self.size).filter(|&k| k != held) {
            (rest.matrix[k * self.size + held], rest.matrix[held * self.size + k]) = (0.0, 0.0);
        }
        rest
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
pub(super) fn gather_levels(normals: &mut [Normal], rounded: &Rounded, factor: &Factor, second: ArrayView2<f32>) {
    let pull = factor.scaled_product(rounded.innovation.view());
    add_pull(normals, &rounded.codes, &pull);
    let codes = by_row(&rounded.codes);
    sum_by_code(normals, &codes, &codes, second, true);
}

/// Adds what two blocks of inputs say about all levels of a tile's rows beyond what each says for itself.
pub(super) fn gather_levels_of_pair(normals: &mut [Normal], pair: &Pair, second: ArrayView2<f32>) {
    let [one, other] = pair.codes;
    add_pull(normals, one, &pair.pull);
    add_pull(normals, other, &second.t().dot(pair.errors[0]));
    sum_by_code(normals, &by_row(one), &by_row(other), second, false);
}

/// Codes and errors of a tile's rows in two blocks, (inputs of the block, rows).
#[derive(Debug)]
pub(super) struct Pair<'a> {
    pub(super) codes: [&'a Array2<u8>; 2],
    pub(super) errors: [&'a Array2<f32>; 2],
    /// What the second block's errors pull at the first's inputs: moments of the pair times the errors.
    pub(super) pull: Array2<f32>,
}

/// The normal equations of row `r`, where one for all are the first.
fn of_row(normals: &mut [Normal], r: usize) -> &mut Normal {
    let at = if normals.len() == 1 { 0 } else { r };
    &mut normals[at]
}

fn by_row(codes: &Array2<u8>) -> Vec<Vec<u8>> {
    codes.columns().into_iter().map(|row| row.to_vec()).collect()
}

/// Adds `H e` of every input to the gradient of its level.
fn add_pull(normals: &mut [Normal], codes: &Array2<u8>, pull: &Array2<f32>) {
    for (codes, pull) in codes.rows().into_iter().zip(pull.rows()) {
        for (r, (&code, &pull)) in codes.iter().zip(pull).enumerate() {
            of_row(normals, r).gradient[usize::from(code)] += f64::from(pull);
        }
    }
}

/// Adds `A^T H A`: columns of `H` are summed by the codes of its rows, [`LANES`] of them at a time, then by their own.
/// Of a `symmetric` `H`, rows and columns being the same inputs, the lower triangle is enough.
fn sum_by_code(
    normals: &mut [Normal],
    of_rows: &[Vec<u8>],
    of_columns: &[Vec<u8>],
    second: ArrayView2<f32>,
    symmetric: bool,
) {
    let (height, width) = second.dim();
    let levels = normals[0].size;
    let (mut panel, mut sums) = (vec![[0f32; LANES]; height], vec![[0f32; LANES]; levels]);
    let tier = Tier::best();
    for first in (0..width).step_by(LANES) {
        let columns = first..(first + LANES).min(width);
        // The block on the diagonal holds both of its triangles; below it is what is mirrored above.
        let parts = match symmetric {
            true => [(columns.clone(), false), (columns.end..height, true)],
            false => [(0..0, false), (0..height, true)],
        };
        for (i, row) in panel.iter_mut().enumerate().skip(if symmetric { first } else { 0 }) {
            row.iter_mut().zip(columns.clone()).for_each(|(lane, j)| *lane = second[[i, j]]);
        }
        for (r, (of_rows, of_columns)) in of_rows.iter().zip(of_columns).enumerate() {
            for (range, both) in parts.clone().into_iter().filter(|(range, _)| !range.is_empty()) {
                sums.fill([0.0; LANES]);
                tier.run(SumLanes, (&mut sums, &panel[range.clone()], &of_rows[range]));
                of_row(normals, r).settle(&sums, &of_columns[columns.clone()], both);
            }
        }
    }
}

/// Adds every row of a panel to the sums of its code.
struct SumLanes;

impl Vectorized for SumLanes {
    type Arguments<'a> = (&'a mut [[f32; LANES]], &'a [[f32; LANES]], &'a [u8]);
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>((sums, panel, codes): Self::Arguments<'_>) {
        for (row, &code) in panel.iter().zip(codes) {
            // Through values: of places that might overlap no vectors are made.
            let (mut sum, row) = (sums[usize::from(code)], *row);
            for lane in 0..LANES {
                sum[lane] += row[lane];
            }
            sums[usize::from(code)] = sum;
        }
    }
}

/// `sum_p u_p v_p` of every column.
pub(super) fn dot(u: &Array2<f32>, v: &Array2<f32>) -> Vec<f64> {
    let mut sums = vec![0f64; u.ncols()];
    for (u, v) in u.rows().into_iter().zip(v.rows()) {
        for (sum, (&u, &v)) in sums.iter_mut().zip(u.iter().zip(v)) {
            *sum += f64::from(u) * f64::from(v);
        }
    }
    sums
}

/// Adds what a tile's rows say about slope and intercept of their maps (or the slope alone, if `normals` have one
/// parameter): a level is slope times entry, plus intercept. `entry` gives the entry of a row's code.
pub(super) fn gather_affine(
    normals: &mut [Normal],
    rounded: &Rounded,
    entry: impl Fn(usize, u8) -> f32,
    factor: &Factor,
) {
    let dim = rounded.codes.raw_dim();
    let entries = tile::map(&rounded.codes, &entry);
    let ones = factor.transposed_product(Array2::ones((dim[0], 1)).view());
    let design =
        [factor.transposed_product(entries.view()), ones.broadcast(dim).expect("one column for all").to_owned()];
    let size = normals[0].size;
    for i in 0..size {
        add_rows(normals, factor.scaled_dot(&design[i], &rounded.innovation), |normal| &mut normal.gradient[i]);
        for j in 0..size {
            add_rows(normals, factor.scaled_dot(&design[i], &design[j]), |normal| &mut normal.matrix[i * size + j]);
        }
    }
}

/// Adds what two blocks of inputs say about slope and intercept beyond what each says for itself.
pub(super) fn gather_affine_of_pair(
    normals: &mut [Normal],
    pair: &Pair,
    entry: impl Fn(usize, u8) -> f32,
    second: ArrayView2<f32>,
) {
    let ones = [0, 1].map(|block| Array2::ones(pair.codes[block].raw_dim()));
    let entries = pair.codes.map(|codes| tile::map(codes, &entry));
    let pull = second.t().dot(pair.errors[0]);
    let [one, other] = [[&entries[0], &ones[0]], [&entries[1], &ones[1]]];
    let size = normals[0].size;
    for i in 0..size {
        add_rows(normals, dot(one[i], &pair.pull), |normal| &mut normal.gradient[i]);
        add_rows(normals, dot(other[i], &pull), |normal| &mut normal.gradient[i]);
        let product = second.dot(other[i]);
        for (j, one) in one.iter().take(size).enumerate() {
            add_rows(normals, dot(one, &product), |normal| &mut normal.matrix[i * size + j]);
            add_rows(normals, dot(one, &product), |normal| &mut normal.matrix[j * size + i]);
        }
    }
}

/// Adds one value per row.
fn add_rows(normals: &mut [Normal], values: Vec<f64>, place: impl Fn(&mut Normal) -> &mut f64) {
    for (r, value) in values.into_iter().enumerate() {
        *place(of_row(normals, r)) += value;
    }
}

impl Normal {
    /// Adds sums of columns of `H` by the code of the row, which belong to inputs with these codes; for `both`, also the
    /// sums that mirror them.
    fn settle(&mut self, sums: &[[f32; LANES]], codes: &[u8], both: bool) {
        for (lane, &code) in codes.iter().enumerate() {
            let code = usize::from(code);
            for (k, sum) in sums.iter().enumerate() {
                self.matrix[k * self.size + code] += f64::from(sum[lane]);
                if both {
                    self.matrix[code * self.size + k] += f64::from(sum[lane]);
                }
            }
        }
    }
}
