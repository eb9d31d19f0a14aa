//! Codes under a quadratic objective: error feedback, then coordinate descent.
//!
//! A tile is a few rows of the weight, transposed to (inputs, rows) with the inputs in the block's order, so that rows
//! are lanes. `e = w - q` is the error, and `e H e^T` a row's objective.

use super::factor::Factor;
use super::levels::TileLevels;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, s};

/// Inputs per step; between steps everything is matrix products.
const STEP: usize = 128;

/// What became of a tile.
#[derive(Debug)]
pub(super) struct Rounded {
    /// (inputs, rows).
    pub(super) codes: Array2<u8>,
    /// `L^T e`, (inputs, rows).
    pub(super) innovation: Array2<f64>,
}

/// Rounds input by input from the last to the first, each after the errors so far are made up for as well as it can.
///
/// With `H = L D L^T` the objective is `sum_p D_p (e_p + sum_{i > p} e_i L_ip)^2`, so input p is best rounded to the
/// level nearest to `w_p + sum_{i > p} e_i L_ip`. That is LDLQ (Chee et al., "QuIP", 2023), which they prove to give the
/// codes of GPTQ (Frantar et al., 2023); it needs no inverse.
pub(super) fn feed_back(w: &Array2<f64>, levels: &TileLevels, factor: &Factor) -> Rounded {
    let (n, rows) = w.dim();
    let mut codes = Array2::<u8>::zeros((n, rows));
    let (mut error, mut innovation) = (Array2::<f64>::zeros((n, rows)), Array2::<f64>::zeros((n, rows)));
    let mut below = vec![0f64; rows];
    for start in (0..n).step_by(STEP).rev() {
        let end = (start + STEP).min(n);
        let mut targets = w.slice(s![start..end, ..]).to_owned();
        if end < n {
            let lower = factor.lower.slice(s![end.., start..end]);
            general_mat_mul(1.0, &lower.t(), &error.slice(s![end.., ..]), 1.0, &mut targets);
        }
        for p in (start..end).rev() {
            let (mut before, at) = targets.view_mut().split_at(ndarray::Axis(0), p - start);
            let target = at.row(0);
            let mut codes = codes.row_mut(p);
            let codes = codes.as_slice_mut().expect("rows are contiguous");
            levels.encode(target.as_slice().expect("rows are contiguous"), codes, &mut below);
            let (mut error, mut innovation) = (error.row_mut(p), innovation.row_mut(p));
            for r in 0..rows {
                let level = levels.value(r, codes[r]);
                error[r] = w[[p, r]] - level;
                innovation[r] = target[r] - level;
            }
            for (mut target, &share) in before.rows_mut().into_iter().zip(factor.lower.slice(s![p, start..p])) {
                target.scaled_add(share, &error);
            }
        }
    }
    Rounded { codes, innovation }
}

/// Moves codes one at a time to where the objective is least, all others held, for at most `sweeps` passes or until no
/// code moves; the objective never grows. `cross` adds to the gradient what errors of other blocks make (inputs, rows).
///
/// With `G = e H` the best level of input j is the one nearest to `q_j + G_j / H_jj`.
pub(super) fn descend(
    w: &Array2<f64>,
    rounded: (&mut Array2<u8>, &mut Array2<f64>),
    levels: &TileLevels,
    second: ArrayView2<f64>,
    cross: Option<&Array2<f64>>,
    sweeps: usize,
) {
    let (codes, error) = rounded;
    let (n, rows) = w.dim();
    let (mut target, mut found, mut below) = (vec![0f64; rows], vec![0u8; rows], vec![0f64; rows]);
    for _ in 0..sweeps {
        let mut moved = false;
        for start in (0..n).step_by(STEP).rev() {
            let end = (start + STEP).min(n);
            let mut gradient = match cross {
                Some(cross) => cross.slice(s![start..end, ..]).to_owned(),
                None => Array2::zeros((end - start, rows)),
            };
            general_mat_mul(1.0, &second.slice(s![start..end, ..]), error, 1.0, &mut gradient);
            for j in (start..end).rev() {
                let scale = 1.0 / second[[j, j]];
                for r in 0..rows {
                    target[r] = w[[j, r]] - error[[j, r]] + gradient[[j - start, r]] * scale;
                }
                levels.encode(&target, &mut found, &mut below);
                // `below` now holds by how much each row's error moves.
                let mut any = false;
                for r in 0..rows {
                    below[r] = 0.0;
                    if found[r] != codes[[j, r]] {
                        let (old, new) = (levels.value(r, codes[[j, r]]), levels.value(r, found[r]));
                        if (target[r] - new).abs() < (target[r] - old).abs() {
                            let next = w[[j, r]] - new;
                            below[r] = next - error[[j, r]];
                            (codes[[j, r]], error[[j, r]]) = (found[r], next);
                            any = true;
                        }
                    }
                }
                if any {
                    moved = true;
                    let step = ndarray::ArrayView1::from(&below);
                    for i in start..j {
                        gradient.row_mut(i - start).scaled_add(second[[i, j]], &step);
                    }
                }
            }
        }
        if !moved {
            break;
        }
    }
}
