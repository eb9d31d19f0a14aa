//! Codes under a quadratic objective: error feedback, then coordinate descent.
//!
//! Of a [tile](super::tile) of the weight `e = w - q` is the error, and `e H e^T` a row's objective.

use super::factor::Factor;
use super::levels::TileLevels;
use aquatint::raw::backend::cpu::Tier;
use aquatint::raw::backend::cpu::simd::{Isa, Vectorized};
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
    pub(super) innovation: Array2<f32>,
}

/// Weights of a tile whose codes are settled: those that are 0 and stay so.
#[derive(Debug)]
pub(super) struct Pins {
    /// (inputs, rows).
    at: Array2<bool>,
    /// The code of 0 in every row.
    codes: Vec<u8>,
}

impl Pins {
    /// Pins `at`, (inputs, rows), at the code that these levels have for 0.
    pub(super) fn new(at: Array2<bool>, levels: &TileLevels) -> Self {
        let rows = at.ncols();
        let mut codes = vec![0; rows];
        levels.encode(&vec![0.0; rows], &mut codes, &mut vec![0.0; rows]);
        Pins { at, codes }
    }

    /// Gives pinned weights of a tile their codes.
    pub(super) fn settle(&self, codes: &mut Array2<u8>) {
        for (mut codes, at) in codes.rows_mut().into_iter().zip(self.at.rows()) {
            for (r, code) in codes.iter_mut().enumerate().filter(|(r, _)| at[*r]) {
                *code = self.codes[r];
            }
        }
    }
}

/// Rounds input by input from the last to the first, each after the errors so far are made up for as well as it can.
///
/// With `H = L D L^T` the objective is `sum_p D_p (e_p + sum_{i > p} e_i L_ip)^2`, so input p is best rounded to the
/// level nearest to `w_p + sum_{i > p} e_i L_ip`. That is LDLQ (Chee et al., "QuIP", 2023), which they prove to give the
/// codes of GPTQ (Frantar et al., 2023); it needs no inverse. Weights with `pins` keep their codes.
pub(super) fn feed_back(w: &Array2<f32>, levels: &TileLevels, factor: &Factor, pins: Option<&Pins>) -> Rounded {
    let (n, rows) = w.dim();
    let mut codes = Array2::<u8>::zeros((n, rows));
    let (mut error, mut innovation) = (Array2::<f32>::zeros((n, rows)), Array2::<f32>::zeros((n, rows)));
    let (tier, mut below) = (Tier::best(), vec![0f32; rows]);
    for start in (0..n).step_by(STEP).rev() {
        let end = (start + STEP).min(n);
        // What each input of this step should be, given all errors behind it.
        let mut targets = w.slice(s![start..end, ..]).to_owned();
        if end < n {
            let lower = factor.lower.slice(s![end.., start..end]);
            general_mat_mul(1.0, &lower.t(), &error.slice(s![end.., ..]), 1.0, &mut targets);
        }
        let here = start * rows..end * rows;
        let step = Step {
            w: &slice(w)[here.clone()],
            targets: slice_mut(&mut targets),
            codes: &mut slice_mut(&mut codes)[here.clone()],
            error: &mut slice_mut(&mut error)[here.clone()],
            innovation: &mut slice_mut(&mut innovation)[here],
            lower: factor.lower.slice(s![start..end, start..end]),
            pins: pins.map(|pins| (&slice(&pins.at)[start * rows..end * rows], &pins.codes[..])),
        };
        tier.run(RoundStep, (step, levels, &mut below));
    }
    Rounded { codes, innovation }
}

/// The inputs of a step: (inputs, rows) each.
struct Step<'a> {
    w: &'a [f32],
    /// What they should be, given all errors behind the step.
    targets: &'a mut [f32],
    codes: &'a mut [u8],
    error: &'a mut [f32],
    innovation: &'a mut [f32],
    /// (inputs, inputs).
    lower: ArrayView2<'a, f32>,
    /// Which weights have settled codes, and every row's.
    pins: Option<(&'a [bool], &'a [u8])>,
}

/// Rounds the inputs of a step, the last first; each takes its error along to those before it.
struct RoundStep;

impl Vectorized for RoundStep {
    type Arguments<'a> = (Step<'a>, &'a TileLevels, &'a mut [f32]);
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>((step, levels, below): Self::Arguments<'_>) {
        let rows = below.len();
        for p in (0..step.lower.nrows()).rev() {
            let here = p * rows..(p + 1) * rows;
            let (before, target) = step.targets.split_at_mut(here.start);
            let (target, w, codes) = (&target[..rows], &step.w[here.clone()], &mut step.codes[here.clone()]);
            let (error, innovation) = (&mut step.error[here.clone()], &mut step.innovation[here]);
            levels.encode(target, codes, below);
            if let Some((at, settled)) = step.pins {
                let at = &at[p * rows..(p + 1) * rows];
                codes.iter_mut().zip(settled).zip(at).filter(|(_, at)| **at).for_each(|((to, code), _)| *to = *code);
            }
            for r in 0..rows {
                let level = levels.value(r, codes[r]);
                error[r] = w[r] - level;
                innovation[r] = target[r] - level;
            }
            for (i, target) in before.chunks_exact_mut(rows).enumerate() {
                let share = step.lower[[p, i]];
                for r in 0..rows {
                    target[r] += share * error[r];
                }
            }
        }
    }
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
/// blocks add. Weights with `pins` keep their codes.
///
/// With `G = e H` the best level of input j is the one nearest to `q_j + G_j / H_jj`. Few codes move, so each takes its
/// row of `H` along by itself.
pub(super) fn descend(
    w: &Array2<f32>,
    rounded: (&mut Array2<u8>, &mut Array2<f32>),
    levels: &TileLevels,
    second: ArrayView2<f32>,
    gradient: Array2<f32>,
    (sweeps, pins): (usize, Option<&Pins>),
) {
    let (codes, error) = rounded;
    let (n, rows) = w.dim();
    // Rows as rows, each contiguous.
    let mut gradient = gradient.t().as_standard_layout().into_owned();
    let second = second.as_standard_layout();
    let second = second.as_slice().expect("made in standard order");
    let tile = Tile {
        w: slice(w),
        codes: slice_mut(codes),
        error: slice_mut(error),
        gradient: slice_mut(&mut gradient),
        second,
        size: [n, rows],
        pins: pins.map(|pins| slice(&pins.at)),
    };
    Tier::best().run(Descend, (tile, levels, sweeps));
}

/// What descent works on.
struct Tile<'a> {
    /// (inputs, rows), as are codes and errors.
    w: &'a [f32],
    codes: &'a mut [u8],
    error: &'a mut [f32],
    /// (rows, inputs).
    gradient: &'a mut [f32],
    /// (inputs, inputs).
    second: &'a [f32],
    /// Inputs and rows.
    size: [usize; 2],
    /// (inputs, rows): which codes are settled.
    pins: Option<&'a [bool]>,
}

/// Passes over all inputs, this many at most.
struct Descend;

impl Vectorized for Descend {
    type Arguments<'a> = (Tile<'a>, &'a TileLevels, usize);
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>((tile, levels, sweeps): Self::Arguments<'_>) {
        let [n, rows] = tile.size;
        let (mut target, mut found, mut scratch) = (vec![0f32; rows], vec![0u8; rows], vec![0f32; rows]);
        for _ in 0..sweeps {
            let mut moved = false;
            for j in (0..n).rev() {
                let at = j * rows..(j + 1) * rows;
                let pinned = tile.pins.map(|pins| &pins[at.clone()]);
                let (w, codes, error) = (&tile.w[at.clone()], &mut tile.codes[at.clone()], &mut tile.error[at]);
                let row = &tile.second[j * n..][..n];
                let scale = 1.0 / row[j];
                for r in 0..rows {
                    target[r] = w[r] - error[r] + tile.gradient[r * n + j] * scale;
                }
                levels.encode(&target, &mut found, &mut scratch);
                if let Some(pinned) = pinned {
                    let settled = found.iter_mut().zip(codes.iter()).zip(pinned).filter(|(_, pinned)| **pinned);
                    settled.for_each(|((found, code), _)| *found = *code);
                }
                for r in 0..rows {
                    let [old, new] = [codes[r], found[r]].map(|code| levels.value(r, code));
                    if found[r] != codes[r] && (target[r] - new).abs() < (target[r] - old).abs() {
                        let step = w[r] - new - error[r];
                        let gradient = &mut tile.gradient[r * n..][..n];
                        for i in 0..n {
                            gradient[i] += step * row[i];
                        }
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
}
