//! Codes of fixed ranges, and their floats again: `scale * (clamp(round(x / scale) + zero, 0, top) - zero)`.
//!
//! On the way back, rounding is taken for the identity (the straight-through estimator), as Q-Diffusion's quantizers have it.
//! A value within the codes then passes its derivative on, and one that was cut off does not; with u = x / scale, the
//! derivative with respect to the scale is `round(u) - u` within, and what the code is from the zero point where it was cut off
//! (Esser et al. 2020, LSQ, section 2.1). Zero points have none.

use super::Tape;
use super::array::{Array, Cotangents};
use aquatint::raw::program::{Quantize, QuantizeRange, Tensor};
use rayon::prelude::*;

/// The curve of `op`, if it has a rule: its range is fixed, and nothing is done to what becomes codes.
pub(super) fn curve(op: &Quantize) -> Option<Tensor> {
    match (op.spec.range, op.turn) {
        (QuantizeRange::Curve(curve), None) => Some(curve.points),
        _ => None,
    }
}

/// What becomes of numbers in steps of `scale`, with zero at code `zero`.
fn coded(x: f32, [scale, zero]: [f32; 2], top: f32) -> f32 {
    let whole = zero.round_ties_even();
    scale * (((x / scale + (zero - whole)).round_ties_even() + whole).clamp(0.0, top) - zero)
}

/// The scale and zero point of every sample, and the greatest code.
fn ranges<'a>(op: &Quantize, tensor: Tensor, tape: &Tape<'a>) -> (&'a Array, f32) {
    let ranges = (tape.weights)(tensor);
    assert_eq!(ranges.dims, [tape.value(op.x).dims[0], 2], "scale and zero point of every sample");
    (ranges, f32::from(op.spec.top()))
}

pub(super) fn forward(op: &Quantize, tensor: Tensor, tape: &Tape) -> Array {
    let (ranges, top) = ranges(op, tensor, tape);
    let mut y = tape.value(op.x).clone();
    let len = y.values.len() / y.dims[0];
    y.values.par_chunks_mut(len).zip(ranges.values.par_chunks(2)).for_each(|(y, range)| {
        y.iter_mut().for_each(|v| *v = coded(*v, [range[0], range[1]], top));
    });
    y
}

pub(super) fn backward(op: &Quantize, tensor: Tensor, tape: &Tape, dy: Array, back: &mut Cotangents) {
    let (ranges, top) = ranges(op, tensor, tape);
    let x = tape.value(op.x);
    let len = x.values.len() / x.dims[0];
    let mut dx = dy;
    let samples = dx.values.par_chunks_mut(len).zip(x.values.par_chunks(len)).zip(ranges.values.par_chunks(2));
    let slopes: Vec<f64> = samples
        .map(|((dx, x), range)| {
            let (scale, zero) = (range[0], range[1]);
            let mut slope = 0f64;
            for (dx, &x) in dx.iter_mut().zip(x) {
                let (u, whole) = (x / scale, zero.round_ties_even());
                let code = (u + (zero - whole)).round_ties_even() + whole;
                let inside = (0.0..=top).contains(&code);
                let by_scale = code.clamp(0.0, top) - zero - if inside { u } else { 0.0 };
                slope += f64::from(*dx) * f64::from(by_scale);
                if !inside {
                    *dx = 0.0;
                }
            }
            slope
        })
        .collect();
    if back.wants(tensor) {
        back.add_tensor(tensor, slopes.into_iter().flat_map(|slope| [slope as f32, 0.0]).collect());
    }
    back.add(op.x, dx);
}
