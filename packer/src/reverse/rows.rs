//! Rows of tensors as values: parameters, and learned rows in place of padding.

use super::Tape;
use super::array::{Array, Cotangents};
use aquatint::raw::program::{PadRows, Parameter};

pub(super) fn parameter(op: &Parameter, tape: &Tape) -> Array {
    let tensor = (tape.weights)(op.tensor);
    let mut dims = tensor.dims.clone();
    if op.rows > 0 {
        dims[0] = op.rows as usize;
    }
    let values = tensor.values[..dims.iter().product()].to_vec();
    let dims = if op.flat { vec![1, values.len()] } else { dims };
    Array { dims, values }
}

pub(super) fn parameter_backward(op: &Parameter, tape: &Tape, dy: Array, back: &mut Cotangents) {
    let mut values = dy.values;
    // Nothing reads the rows that were not taken.
    values.resize((tape.weights)(op.tensor).values.len(), 0.0);
    back.add_tensor(op.tensor, values);
}

/// Calls `see` for every token that is padding, with its first value and that of the row that stands in for it.
fn padding(op: &PadRows, tape: &Tape, mut see: impl FnMut(usize, usize)) {
    let (x, lengths) = (tape.value(op.x), tape.value(op.lengths));
    let (tokens, d) = (x.rows() / x.dims[0], x.cols());
    for (sample, &length) in lengths.values.iter().enumerate() {
        for token in length as usize..tokens {
            see((sample * tokens + token) * d, (op.first as usize + token) * d);
        }
    }
}

pub(super) fn pad(op: &PadRows, tape: &Tape) -> Array {
    let mut y = tape.value(op.x).clone();
    let (d, table) = (y.cols(), (tape.weights)(op.table));
    padding(op, tape, |to, from| y.values[to..to + d].copy_from_slice(&table.values[from..from + d]));
    y
}

pub(super) fn pad_backward(op: &PadRows, tape: &Tape, dy: Array, back: &mut Cotangents) {
    let d = dy.cols();
    if back.wants(op.table) {
        let mut sums = vec![0f64; (tape.weights)(op.table).values.len()];
        padding(op, tape, |from, to| {
            sums[to..to + d].iter_mut().zip(&dy.values[from..from + d]).for_each(|(sum, &v)| *sum += f64::from(v));
        });
        back.add_tensor(op.table, sums.into_iter().map(|v| v as f32).collect());
    }
    let mut dx = dy;
    padding(op, tape, |at, _| dx.values[at..at + d].fill(0.0));
    back.add(op.x, dx);
}
