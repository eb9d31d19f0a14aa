//! Codes under a quadratic objective: error feedback, then coordinate descent.
//!
//! A tile is a few rows of the weight, transposed to (inputs, rows) with the inputs in the block's order, so that rows
//! are lanes. `e = w - q` is the error, and `e H e^T` a row's objective.

use super::factor::Factor;
use super::levels::TileLevels;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, s};

/// Inputs per step; between steps everything is matrix products.
const STEP: usize = 64;

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
        // What each input of this step should be, given all errors behind it.
        let mut targets = w.slice(s![start..end, ..]).to_owned();
        if end < n {
            let lower = factor.lower.slice(s![end.., start..end]);
            general_mat_mul(1.0, &lower.t(), &error.slice(s![end.., ..]), 1.0, &mut targets);
        }
        let targets = slice_mut(&mut targets);
        for p in (start..end).rev() {
            let (before, target) = targets.split_at_mut((p - start) * rows);
            let target = &target[..rows];
            let here = p * rows..(p + 1) * rows;
            let (w, codes) = (&slice(w)[here.clone()], &mut slice_mut(&mut codes)[here.clone()]);
            let error = &mut slice_mut(&mut error)[here.clone()];
            let innovation = &mut slice_mut(&mut innovation)[here];
            levels.encode(target, codes, &mut below);
            for r in 0..rows {
                let level = levels.value(r, codes[r]);
                error[r] = w[r] - level;
                innovation[r] = target[r] - level;
            }
            let shares = factor.lower.row(p);
            for (target, &share) in before.chunks_exact_mut(rows).zip(shares.slice(s![start..p])) {
                target.iter_mut().zip(error.iter()).for_each(|(target, e)| *target += share * e);
            }
        }
    }
    Rounded { codes, innovation }
}

/// The elements of an array in standard order.
fn slice<T>(array: &Array2<T>) -> &[T] {
    array.as_slice().expect("arrays are made in standard order")
}

fn slice_mut<T>(array: &mut Array2<T>) -> &mut [T] {
    array.as_slice_mut().expect("arrays are made in standard order")
}

/// Moves codes one at a time to where the objective is least, all others held, for at most `sweeps` passes or until no
/// code moves; the objective never grows. `gradient` is `H e` of what is given, (inputs, rows), with what errors of other
/// blocks add.
///
/// With `G = e H` the best level of input j is the one nearest to `q_j + G_j / H_jj`. Few codes move, so each takes its
/// row of `H` along by itself.
pub(super) fn descend(
    w: &Array2<f64>,
    rounded: (&mut Array2<u8>, &mut Array2<f64>),
    levels: &TileLevels,
    second: ArrayView2<f64>,
    gradient: Array2<f64>,
    sweeps: usize,
) {
    let (codes, error) = rounded;
    let (n, rows) = w.dim();
    // Rows as rows, each contiguous.
    let mut gradient = gradient.t().as_standard_layout().into_owned();
    let (mut target, mut found, mut scratch) = (vec![0f64; rows], vec![0u8; rows], vec![0f64; rows]);
    for _ in 0..sweeps {
        let mut moved = false;
        for j in (0..n).rev() {
            let at = j * rows..(j + 1) * rows;
            let (w, codes) = (&slice(w)[at.clone()], &mut slice_mut(codes)[at.clone()]);
            let error = &mut slice_mut(error)[at];
            let scale = 1.0 / second[[j, j]];
            for r in 0..rows {
                target[r] = w[r] - error[r] + gradient[[r, j]] * scale;
            }
            levels.encode(&target, &mut found, &mut scratch);
            for r in 0..rows {
                let [old, new] = [codes[r], found[r]].map(|code| levels.value(r, code));
                if found[r] != codes[r] && (target[r] - new).abs() < (target[r] - old).abs() {
                    gradient.row_mut(r).scaled_add(w[r] - new - error[r], &second.row(j));
                    (codes[r], error[r]) = (found[r], w[r] - new);
                    moved = true;
                }
            }
        }
        if !moved {
            break;
        }
    }
}
