//! What the layer's output loses, row by row.

use super::refit::dot;
use super::solve::{Cache, Problem, TILE};
use super::tile;
use aquatint::raw::codec::QuantizedMatrix;
use rayon::prelude::*;

/// The forms that are measured: the weight, the error of rounding to the nearest, the error of the result.
const FORMS: usize = 3;

/// Quadratic forms `x H x^T` and means `x mu` of a row's weight and errors.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    /// In the covariance.
    centred: [f64; FORMS],
    /// In the damped covariance.
    damped: [f64; FORMS],
    /// With the mean.
    mean: [f64; FORMS],
}

/// What the output loses by two quantizations of one weight.
#[derive(Debug)]
pub(super) struct Measure {
    rows: Vec<Row>,
}

/// Measures `nearest` and `result` against the weight.
///
/// # Errors
/// If a block's moments cannot be factored.
pub(super) fn measure(
    problem: &Problem,
    cache: &Cache,
    mean: &[f64],
    nearest: &QuantizedMatrix,
    result: &QuantizedMatrix,
) -> Result<Measure, String> {
    let error = |matrix: &QuantizedMatrix, at: usize| {
        f64::from(problem.weights[at]) - f64::from(matrix.weight(at / problem.cols, at % problem.cols))
    };
    let value = |form: usize, at: usize| match form {
        0 => f64::from(problem.weights[at]),
        1 => error(nearest, at),
        _ => error(result, at),
    };
    let (mut rows, unit) = (vec![Row::default(); problem.rows], problem.blocks.unit);
    for b in 0..problem.blocks.len() {
        cache.with(b, |block| {
            rows.par_chunks_mut(TILE).enumerate().for_each(|(number, rows)| {
                for form in 0..FORMS {
                    let first = number * TILE;
                    let at = |r: usize, input: usize| (first + r) * problem.cols + input;
                    let x = tile::gather(rows.len(), &block.inputs, |r, input| value(form, at(r, input)) as f32);
                    let u = block.factor.transposed_product(x.view());
                    let damped = block.factor.scaled_dot(&u, &u);
                    for (r, (row, damped)) in rows.iter_mut().zip(damped).enumerate() {
                        let mut square = 0.0;
                        for (&x, &input) in x.column(r).iter().zip(&block.inputs) {
                            square += f64::from(x).powi(2);
                            // Not of f32: means may be large beside what varies.
                            row.mean[form] += value(form, at(r, input)) * mean[input];
                        }
                        row.damped[form] += unit * damped;
                        row.centred[form] += unit * (damped - block.ridge * square).max(0.0);
                    }
                }
            });
        })?;
        for other in 0..b {
            let (inputs, others) = (problem.blocks.inputs(b), problem.blocks.inputs(other));
            let second = problem.blocks.second(&inputs, &others);
            rows.par_chunks_mut(TILE).enumerate().for_each(|(number, rows)| {
                for form in 0..FORMS {
                    let [x, y] = [&inputs, &others].map(|inputs| {
                        tile::gather(rows.len(), inputs, |r, input| {
                            value(form, (number * TILE + r) * problem.cols + input) as f32
                        })
                    });
                    for (row, product) in rows.iter_mut().zip(dot(&x, &second.dot(&y))) {
                        let both = 2.0 * unit * product;
                        row.centred[form] += both;
                        row.damped[form] += both;
                    }
                }
            });
        }
    }
    Ok(Measure { rows })
}

impl Measure {
    /// The power of the output, bias apart.
    fn power(&self) -> f64 {
        self.rows.iter().map(|row| row.centred[0].max(0.0) + row.mean[0].powi(2)).sum()
    }

    fn relative(&self, error: impl Fn(&Row) -> f64) -> f64 {
        let error: f64 = self.rows.iter().map(error).sum();
        if error <= 0.0 { 0.0 } else { error / self.power() }
    }

    /// The part of the power that the result's error makes, its mean apart.
    pub(super) fn output_error(&self) -> f64 {
        self.relative(|row| row.centred[2])
    }

    /// The part of the power that the error of rounding to the nearest makes, with its mean.
    pub(super) fn nearest_output_error(&self) -> f64 {
        self.relative(|row| row.centred[1] + row.mean[1].powi(2))
    }

    /// The mean error of every row's output.
    pub(super) fn bias(&self) -> Vec<f64> {
        self.rows.iter().map(|row| row.mean[2]).collect()
    }

    /// Whether rounding row `r` to the nearest is better, in the objective of the search, or the search went out of range.
    pub(super) fn nearest_is_better(&self, r: usize) -> bool {
        let [_, nearest, result] = self.rows[r].damped;
        nearest < result || !result.is_finite()
    }

    /// The same of all rows together.
    pub(super) fn nearest_is_better_in_all(&self) -> bool {
        let [nearest, result] = [1, 2].map(|form: usize| self.rows.iter().map(|row| row.damped[form]).sum::<f64>());
        nearest < result || !result.is_finite()
    }

    /// Row `r` is now as rounding to the nearest has it.
    pub(super) fn take_nearest(&mut self, r: usize) {
        let row = &mut self.rows[r];
        for form in [&mut row.centred, &mut row.damped, &mut row.mean] {
            form[2] = form[1];
        }
    }
}
