//! Error feedback into codebooks: codes and levels for the least error of a layer's output.
//!
//! For a weight `W` (rows, inputs), a quantized `Q` and inputs x with mean `mu` and covariance `H`, the layer's output is
//! off by `(W - Q) x`, in the mean over inputs by `(W - Q) mu` — which goes into the bias, exactly and at no cost — and
//! beyond that by `tr (W - Q) H (W - Q)^T`. This module makes the latter small, in whatever levels the method has:
//!
//! 1. levels for rounding to the nearest, every input counted by its variance;
//! 2. codes by error feedback over those levels *as they are stored* (LDLQ, which equals GPTQ);
//! 3. levels by least squares for those codes, rounded to what is stored, and codes again, a few times; of
//!    all rounds the best is kept, per row where rows have levels of their own;
//! 4. coordinate descent over the codes; then levels and descent once more, again kept where better.
//!
//! `H` is damped: `delta mean(diag H)` on its diagonal makes up for few rows. A row that rounding to the nearest without
//! any moments gets better still (it happens where there is nothing to gain) is left as that has it.
//!
//! Layers of more than [`FeedbackOptions::max_block`] inputs are cut into blocks of channels. The first codes and levels
//! know only blocks. Before either descent every block is rounded again, knowing the errors of all others; the last refit,
//! and what is reported, is of the whole layer.

mod block;
mod factor;
mod grid;
mod levels;
mod measure;
mod refit;
mod rounding;
mod solve;
#[cfg(test)]
mod tests;
mod tile;

use super::moments::Moments;
use super::{CodebookType, Measured, Method, quantize_measured, quantize_sparse, sparse, table};
use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use block::Blocks;
use grid::{Form, Freedom, Grid};
use measure::{Measure, measure};
use solve::{Cache, Problem, Solution};

/// How error feedback is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedbackOptions {
    /// What is added to the diagonal of the second moments, relative to its mean.
    pub damping: f64,
    /// How often levels are refit to their codes; the last time after descent.
    pub refits: usize,
    /// Passes of coordinate descent at most.
    pub sweeps: usize,
    /// Inputs per output that are treated jointly at most. Memory grows with its square: 20 bytes while a block is factored,
    /// 8 after.
    pub max_block: usize,
    /// Whether weights that are 0 stay exactly 0, as pruned ones must: errors are made up for by the others alone, and refits
    /// leave a level at 0.
    pub keep_zeros: bool,
}

impl Default for FeedbackOptions {
    fn default() -> Self {
        FeedbackOptions { damping: 0.01, refits: 3, sweeps: 4, max_block: 4608, keep_zeros: false }
    }
}

/// A matrix quantized for its inputs, and what that did.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibrated {
    /// What the runtime will use.
    pub matrix: QuantizedMatrix,
    /// `||W - Q|| / ||W||`. It is larger than without calibration: the error lies where inputs are small.
    pub error: f64,
    /// The same for the levels before they were rounded to table entries, with the same codes; where levels are not
    /// rounded it equals `error`.
    pub exact_error: f64,
    /// What part of the power of the layer's output (bias apart) the error makes once the mean error is in the bias:
    /// `tr (W - Q) Hc (W - Q)^T / tr W H W^T`, H the second moments and Hc the covariance of the inputs, neither of
    /// them damped. It is of squares: its root is the relative error.
    pub output_error: f64,
    /// The same of [`quantize`](super::quantize) with the same method, whose mean error stays:
    /// `tr (W - N) H (W - N)^T / tr W H W^T`.
    pub nearest_output_error: f64,
    /// `(W - Q) mu`, one value per row: to be added to the layer's bias.
    pub bias: Vec<f64>,
    /// What was out of the ordinary about the moments, in a sentence.
    pub note: Option<String>,
}

/// Quantizes `weights`, (rows, cols) row-major, for inputs of these moments: as [`quantize`](super::quantize) does, but for
/// the least error of the layer's output instead of the weights' (see the module for how).
///
/// The result is the same on any number of threads.
///
/// # Errors
/// Numbers of weights, moments or options that do not fit or are not finite; moments that no inputs have; zeros to be kept by
/// a method that has no level at 0.
#[allow(clippy::too_many_arguments)]
pub fn quantize_calibrated(
    weights: &[f32],
    rows: usize,
    cols: usize,
    method: Method,
    bits: Bits,
    codebook: CodebookType,
    moments: &Moments,
    options: &FeedbackOptions,
) -> Result<Calibrated, String> {
    check(weights, rows, cols, moments, options)?;
    let plain = match options.keep_zeros {
        true => quantize_sparse(weights, rows, cols, method, bits, codebook)?,
        false => quantize_measured(weights, rows, cols, method, bits, codebook),
    };
    if weights.is_empty() {
        let bias = vec![0.0; rows];
        let Measured { matrix, error, exact_error } = plain;
        return Ok(Calibrated {
            matrix,
            error,
            exact_error,
            output_error: 0.0,
            nearest_output_error: 0.0,
            bias,
            note: None,
        });
    }
    let blocks = Blocks::new(moments, options.damping, options.max_block);
    let form = Form::new(method, bits, codebook, options.keep_zeros);
    let problem = Problem { weights, rows, cols, form, blocks: &blocks };
    let cache = Cache::new(&blocks)?;
    let mut notes = notes(moments, &blocks);
    let (mut matrix, mut exact) = (plain.matrix.clone(), plain.exact_error);
    if blocks.constants() < cols {
        let Solution { grids, codes, raised } = problem.solve(&cache, options)?;
        if raised > 0 {
            notes.push(format!("damping had to be raised {raised} times"));
        }
        exact = problem.exact_error(&grids, &codes);
        matrix = assemble(form, rows, cols, grids, codes);
    }
    let mut measured = measure(&problem, &cache, &moments.mean, &plain.matrix, &matrix)?;
    let kept = keep_nearest(&mut matrix, &plain.matrix, &mut measured, form.shared);
    if kept == rows {
        exact = plain.exact_error;
    }
    if options.keep_zeros {
        sparse::check(weights, &matrix, method)?;
    }
    let (sse, energy) = table::error_and_energy(weights, &matrix);
    let relative = |sse: f64| if sse == 0.0 { 0.0 } else { (sse / energy).sqrt() };
    let error = relative(sse);
    Ok(Calibrated {
        error,
        exact_error: if exact.is_nan() { error } else { exact },
        output_error: measured.output_error(),
        nearest_output_error: measured.nearest_output_error(),
        bias: measured.bias(),
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        matrix,
    })
}

fn check(
    weights: &[f32],
    rows: usize,
    cols: usize,
    moments: &Moments,
    options: &FeedbackOptions,
) -> Result<(), String> {
    if rows.checked_mul(cols) != Some(weights.len()) {
        return Err(format!("a {rows} x {cols} matrix: expected as many weights, got {}", weights.len()));
    }
    if moments.inputs() != cols {
        return Err(format!("moments of {} inputs for a weight of {cols} per output", moments.inputs()));
    }
    if let Some(at) = weights.iter().position(|v| !v.is_finite()) {
        return Err(format!("weight {at} is {}: expected a finite number", weights[at]));
    }
    if !(options.damping.is_finite() && options.damping >= 0.0) {
        return Err(format!("a damping of {}: expected 0 or more", options.damping));
    }
    if options.max_block == 0 {
        return Err("blocks of 0 inputs: expected at least 1".into());
    }
    if cols == 0 { Ok(()) } else { moments.check() }
}

fn notes(moments: &Moments, blocks: &Blocks) -> Vec<String> {
    let mut notes = Vec::new();
    let (inputs, constants) = (moments.inputs(), blocks.constants());
    if moments.rows < inputs as f64 {
        notes.push(format!("{} rows for {inputs} inputs: damping stands in for the rest", moments.rows));
    }
    if constants > 0 {
        notes.push(format!("{constants} of {inputs} inputs never varied"));
    }
    if blocks.len() > 1 {
        notes.push(format!("{inputs} inputs in {} blocks", blocks.len()));
    }
    notes
}

/// The codec's matrix of these grids and codes.
fn assemble(form: Form, rows: usize, cols: usize, grids: Vec<Grid>, codes: Vec<u8>) -> QuantizedMatrix {
    let grid = |row: usize| &grids[if form.shared { 0 } else { row }];
    let (tables, grain) = match form.freedom {
        Freedom::Levels if !form.shared => (rows, Grain::Row),
        _ => (1, Grain::Tensor),
    };
    let integers = matches!(form.freedom, Freedom::Affine | Freedom::Slope | Freedom::None(_));
    let codebook = if integers { CodebookType::Int8 } else { form.codebook };
    QuantizedMatrix {
        bits: form.bits,
        rows,
        cols,
        table: table::tables((0..tables).map(|r| &grid(r).entries[..]), form.bits.levels(), codebook),
        grain,
        scale: (0..rows).map(|r| grid(r).scale).collect(),
        offset: (0..rows).map(|r| grid(r).offset).collect(),
        codes,
    }
}

/// Puts back rows of `nearest` that are better (or all of it, if rows share their levels); returns how many.
fn keep_nearest(
    matrix: &mut QuantizedMatrix,
    nearest: &QuantizedMatrix,
    measured: &mut Measure,
    shared: bool,
) -> usize {
    let better: Vec<usize> = match shared {
        true if measured.nearest_is_better_in_all() => (0..matrix.rows).collect(),
        true => Vec::new(),
        false => (0..matrix.rows).filter(|&r| measured.nearest_is_better(r)).collect(),
    };
    if better.len() == matrix.rows {
        *matrix = nearest.clone();
    }
    let (cols, levels) = (matrix.cols, matrix.bits.levels());
    for &r in &better {
        let codes = r * cols..(r + 1) * cols;
        matrix.codes[codes.clone()].copy_from_slice(&nearest.codes[codes]);
        (matrix.scale[r], matrix.offset[r]) = (nearest.scale[r], nearest.offset[r]);
        if matrix.grain == Grain::Row {
            let table = r * levels..(r + 1) * levels;
            match (&mut matrix.table, &nearest.table) {
                (TableValues::I8(to), TableValues::I8(from)) => to[table.clone()].copy_from_slice(&from[table]),
                (TableValues::F16(to), TableValues::F16(from)) => to[table.clone()].copy_from_slice(&from[table]),
                _ => unreachable!("one method makes one type of table"),
            }
        }
        measured.take_nearest(r);
    }
    better.len()
}
