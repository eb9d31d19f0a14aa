//! Linear layers.

use super::Tape;
use super::act::{activate, chain};
use super::array::{Array, Cotangents};
use super::product::{product, row_sum};
use aquatint::raw::program::{Act, Columns, GatedLinear, Linear, Tensor, Value};
use rayon::prelude::*;

/// The result, and what it was before its activation if that or a gate needs it on the way back.
pub(super) fn forward(op: &Linear, tape: &Tape) -> (Array, Option<Array>) {
    let z = affine(tape, op.x, op.weight, op.bias);
    let before = (op.act != Act::None || op.gate.is_some()).then(|| z.clone());
    let mut y = z;
    activate(op.act, &mut y.values);
    if let Some(gate) = op.gate {
        let (columns, rows) = (PerSample::new(tape, gate, y.dims[0]), y.rows() / y.dims[0]);
        let cols = y.cols();
        for (r, row) in y.values.chunks_exact_mut(cols).enumerate() {
            row.iter_mut().zip(columns.of(r / rows, cols)).for_each(|(y, gate)| *y *= gate);
        }
    }
    if let Some(residual) = op.residual {
        add_cyclic(&mut y.values, &tape.value(residual).values);
    }
    (y, before)
}

pub(super) fn backward(op: &Linear, tape: &Tape, before: Option<&Array>, dy: Array, back: &mut Cotangents) {
    let mut dz = dy;
    if let Some(residual) = op.residual.filter(|&value| back.needs(value)) {
        back.add(residual, sum_cyclic(&dz.values, tape.value(residual)));
    }
    if let (Some(gate), Some(z)) = (op.gate, before) {
        let (cols, rows) = (dz.cols(), dz.rows() / dz.dims[0]);
        let columns = PerSample::new(tape, gate, dz.dims[0]);
        if back.needs(gate.value) {
            let mut a = z.values.clone();
            activate(op.act, &mut a);
            a.iter_mut().zip(&dz.values).for_each(|(a, dy)| *a *= dy);
            back.add(gate.value, columns.gradient(&a, rows, cols));
        }
        for (r, row) in dz.values.chunks_exact_mut(cols).enumerate() {
            row.iter_mut().zip(columns.of(r / rows, cols)).for_each(|(dz, gate)| *dz *= gate);
        }
    }
    if let Some(z) = before {
        chain(op.act, &z.values, &mut dz.values);
    }
    affine_backward(tape, (op.x, op.weight, op.bias), &dz, back);
}

pub(super) fn forward_gated(op: &GatedLinear, tape: &Tape) -> (Array, Option<Array>) {
    let z = affine(tape, op.x, op.weight, op.bias);
    let mut y = Array::zeros(&z.dims_with(z.cols() / 2));
    let mut gates: Vec<f32> = z.values.iter().skip(1).step_by(2).copied().collect();
    activate(op.act, &mut gates);
    let values = z.values.iter().step_by(2);
    y.values.iter_mut().zip(values.zip(&gates)).for_each(|(y, (value, gate))| *y = value * gate);
    (y, Some(z))
}

pub(super) fn backward_gated(op: &GatedLinear, tape: &Tape, before: Option<&Array>, dy: Array, back: &mut Cotangents) {
    let z = before.expect("kept on the way forward");
    let mut gates: Vec<f32> = z.values.iter().skip(1).step_by(2).copied().collect();
    let mut slopes: Vec<f32> = dy.values.iter().zip(z.values.iter().step_by(2)).map(|(dy, value)| dy * value).collect();
    chain(op.act, &gates, &mut slopes);
    activate(op.act, &mut gates);
    let mut dz = Array::zeros(&z.dims);
    for (i, pair) in dz.values.chunks_exact_mut(2).enumerate() {
        pair.copy_from_slice(&[dy.values[i] * gates[i], slopes[i]]);
    }
    affine_backward(tape, (op.x, op.weight, op.bias), &dz, back);
}

/// `x W^T + bias`.
fn affine(tape: &Tape, x: Value, weight: Tensor, bias: Option<Tensor>) -> Array {
    let (x, w) = (tape.value(x), (tape.weights)(weight));
    let y = product(x.view(), w.weight().t());
    let mut y = Array::new(&x.dims_with(w.dims[0]), y);
    if let Some(bias) = bias {
        add_cyclic(&mut y.values, &(tape.weights)(bias).values);
    }
    y
}

fn affine_backward(tape: &Tape, (x, weight, bias): (Value, Tensor, Option<Tensor>), dz: &Array, back: &mut Cotangents) {
    if let Some(bias) = bias.filter(|&bias| back.wants(bias)) {
        back.add_tensor(bias, row_sum(&dz.values, dz.cols()));
    }
    let input = tape.value(x);
    if back.wants(weight) {
        back.add_tensor(weight, product(dz.view().t(), input.view()));
    }
    if back.needs(x) {
        back.add(x, Array::new(&input.dims, product(dz.view(), (tape.weights)(weight).weight())));
    }
}

/// Adds `by` to `y`, again and again from its beginning.
pub(super) fn add_cyclic(y: &mut [f32], by: &[f32]) {
    y.par_chunks_mut(by.len().max(1)).for_each(|y| y.iter_mut().zip(by).for_each(|(y, by)| *y += by));
}

/// What [`add_cyclic`] gives back: the sum of all that was added to.
pub(super) fn sum_cyclic(dy: &[f32], like: &Array) -> Array {
    Array::new(&like.dims, row_sum(dy, like.values.len()))
}

/// Columns of a value with a row per sample.
pub(super) struct PerSample<'a> {
    table: &'a Array,
    offset: usize,
}

impl<'a> PerSample<'a> {
    /// Those that an op reads for `samples` samples.
    pub(super) fn new(tape: &'a Tape, columns: Columns, samples: usize) -> Self {
        let table = tape.value(columns.value);
        assert_eq!(table.rows(), samples, "a row per sample");
        PerSample { table, offset: columns.offset as usize }
    }

    /// `cols` of them of a sample.
    pub(super) fn of(&self, sample: usize, cols: usize) -> &[f32] {
        &self.table.values[sample * self.table.cols() + self.offset..][..cols]
    }

    /// The derivative of the whole value, where that of what each row of (rows per sample) reads is `d`, (rows, cols).
    pub(super) fn gradient(&self, d: &[f32], rows: usize, cols: usize) -> Array {
        let mut sum = Array::zeros(&self.table.dims);
        for (sample, d) in d.chunks_exact(rows * cols).enumerate() {
            let at = sample * self.table.cols() + self.offset;
            sum.values[at..at + cols].copy_from_slice(&row_sum(d, cols));
        }
        sum
    }
}
