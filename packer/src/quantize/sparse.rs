//! Quantizing a pruned weight: what is 0 stays exactly 0, in whatever levels the method has.
//!
//! Uniform levels of a range that holds 0 have an integer zero point, and so a level at 0. Free levels are those of the
//! weights that are left, one fewer, with 0 beside them. The fixed table of `lloyd` has no 0 below 8 bits.

use super::kmeans::{self, Clusters, Scratch};
use super::levels::Levels;
use super::uniform::{range, zero_point};
use super::{CodebookType, Measured, Method, Rule, encode, measured, quantize, table};
use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix};
use rayon::prelude::*;

/// As [`quantize_measured`](super::quantize_measured), but weights that are 0 stay exactly 0. `exact_error` equals `error`.
///
/// # Errors
/// If the method has no level at 0.
///
/// # Panics
/// If `weights.len() != rows * cols`.
pub fn quantize_sparse(
    weights: &[f32],
    rows: usize,
    cols: usize,
    method: Method,
    bits: Bits,
    codebook: CodebookType,
) -> Result<Measured, String> {
    assert_eq!(weights.len(), rows * cols, "a {rows} x {cols} matrix of {} weights", weights.len());
    let integers = codebook.is_integer() && bits.levels() == 256;
    let matrix = match method {
        _ if weights.is_empty() => table::empty(rows, cols, bits),
        Method::KMeansRow if integers => quantize(weights, rows, cols, Method::Uniform(Rule::MinMax), bits, codebook),
        Method::KMeansTensor if integers => {
            let (step, zero) = zero_point(range(weights), bits);
            encode(weights, rows, cols, bits, &vec![step; rows], &vec![zero; rows])
        }
        Method::KMeansRow => free_levels(weights, rows, cols, bits, codebook, Grain::Row),
        Method::KMeansTensor => free_levels(weights, rows, cols, bits, codebook, Grain::Tensor),
        Method::Uniform(_) | Method::Lloyd => quantize(weights, rows, cols, method, bits, codebook),
    };
    check(weights, &matrix, method)?;
    Ok(measured(weights, matrix, f64::NAN))
}

/// Refuses a matrix in which a weight that is 0 is not.
///
/// # Errors
/// With the remedy.
pub(super) fn check(weights: &[f32], matrix: &QuantizedMatrix, method: Method) -> Result<(), String> {
    let moved = |i: usize| weights[i] == 0.0 && matrix.weight(i / matrix.cols, i % matrix.cols) != 0.0;
    if !(0..weights.len()).into_par_iter().any(moved) {
        return Ok(());
    }
    Err(format!("{method}-{} has no level at 0, which pruned weights need; take kmeans or min_max", matrix.bits))
}

/// Levels of clusters of the weights that are not 0, and 0.
fn free_levels(
    weights: &[f32],
    rows: usize,
    cols: usize,
    bits: Bits,
    codebook: CodebookType,
    grain: Grain,
) -> QuantizedMatrix {
    let run = if grain == Grain::Row { cols } else { weights.len() };
    let fitted: Vec<table::StoredLevels> = weights
        .par_chunks(run)
        .map_init(Scratch::default, |scratch, values| {
            table::fit_with_zero(&cluster(values, None, bits, scratch), codebook)
        })
        .collect();
    let of_row = |r: usize| &fitted[if grain == Grain::Row { r } else { 0 }];
    let mut codes = vec![0u8; weights.len()];
    codes.par_chunks_mut(cols).zip(weights.par_chunks(cols)).enumerate().for_each(|(r, (codes, row))| {
        let table::StoredLevels { entries, scale, offset } = of_row(r);
        Levels::new(entries.iter().map(|e| scale * (e + offset)).collect()).encode(row, codes);
    });
    let table = table::tables(fitted.iter().map(|levels| &levels.entries[..]), bits.levels(), codebook);
    let (scale, offset) = (0..rows).map(|r| (of_row(r).scale, of_row(r).offset)).unzip();
    QuantizedMatrix { bits, rows, cols, codes, table, grain, scale, offset }
}

/// Clusters of the values that are not 0, and one of the zeros, if there are any. Value i counts
/// `inputs[i % inputs.len()]` times.
pub(super) fn cluster(values: &[f32], inputs: Option<&[f64]>, bits: Bits, scratch: &mut Scratch) -> Clusters {
    let kept: Vec<f32> = values.iter().copied().filter(|v| *v != 0.0).collect();
    let count = |i: usize| inputs.map_or(1.0, |inputs| inputs[i % inputs.len()]);
    let counts: Vec<f64> = match inputs {
        None => Vec::new(),
        Some(_) => (0..values.len()).filter(|&i| values[i] != 0.0).map(count).collect(),
    };
    let levels = bits.levels() - usize::from(kept.len() < values.len());
    let mut clusters = match kept.is_empty() {
        true => Clusters { centroids: Vec::new(), counts: Vec::new() },
        false if counts.iter().any(|&n| n > 0.0) => kmeans::cluster_weighted(&kept, &counts, levels, scratch),
        false => kmeans::cluster(&kept, levels, scratch),
    };
    if kept.len() < values.len() {
        let zeros = (0..values.len()).filter(|&i| values[i] == 0.0).map(count).sum();
        let at = clusters.centroids.partition_point(|&c| c < 0.0);
        // A cluster of both signs may lie at 0 by itself.
        if clusters.centroids.get(at) == Some(&0.0) {
            clusters.counts[at] += zeros;
        } else {
            clusters.centroids.insert(at, 0.0);
            clusters.counts.insert(at, zeros);
        }
    }
    clusters
}
