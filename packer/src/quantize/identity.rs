//! 8-bit codes over an integer table: the code is the integer.
//!
//! With as many codes as 8-bit integers a codebook has nothing left to choose, so K-Means at 8 bits with an integer
//! table is the affine map of the range (of a row, or of the tensor) onto -128..127.

use super::{table::constant, uniform::range};
use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use rayon::prelude::*;

/// One range per row.
pub(super) fn rows(weights: &[f32], rows: usize, cols: usize, bits: Bits) -> QuantizedMatrix {
    encode(weights, rows, cols, bits, range)
}

/// One range for the tensor.
pub(super) fn tensor(weights: &[f32], rows: usize, cols: usize, bits: Bits) -> QuantizedMatrix {
    let all = range(weights);
    encode(weights, rows, cols, bits, |_| all)
}

/// Scale and offset of the map of a range onto -128..127, the scale positive; of a single value, entry 0 is that.
pub(super) fn map((min, max): (f32, f32)) -> (f32, f32) {
    match step(min, max) {
        0.0 if min == 0.0 => (1.0, 0.0),
        0.0 => (min.abs(), min.signum()),
        step => (step, offset_of(min, step)),
    }
}

fn step(min: f32, max: f32) -> f32 {
    // f64: the range of two f32 may exceed f32.
    ((f64::from(max) - f64::from(min)) / 255.0) as f32
}

fn offset_of(min: f32, step: f32) -> f32 {
    (f64::from(min) / f64::from(step) + 128.0) as f32
}

fn encode(
    weights: &[f32],
    rows: usize,
    cols: usize,
    bits: Bits,
    range: impl Fn(&[f32]) -> (f32, f32) + Sync,
) -> QuantizedMatrix {
    let mut codes = vec![0u8; rows * cols];
    let (mut scale, mut offset) = (vec![0f32; rows], vec![0f32; rows]);
    (codes.par_chunks_mut(cols), weights.par_chunks(cols), &mut scale, &mut offset).into_par_iter().for_each(
        |(codes, row, scale, offset)| {
            let (min, max) = range(row);
            let step = step(min, max);
            if step == 0.0 {
                // Entry 0 of the table.
                codes.fill(128);
                (*scale, *offset) = constant(min);
                return;
            }
            (*scale, *offset) = (step, offset_of(min, step));
            for (code, &v) in codes.iter_mut().zip(row) {
                let q = (f64::from(v) - f64::from(min)) / f64::from(step);
                *code = q.round_ties_even().clamp(0.0, 255.0) as u8;
            }
        },
    );
    let table = TableValues::I8((-128..=127).collect());
    QuantizedMatrix { bits, rows, cols, codes, table, grain: Grain::Tensor, scale, offset }
}
