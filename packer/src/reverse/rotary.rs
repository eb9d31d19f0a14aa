//! Rotary position embedding: turns, whose inverse is their transpose.

use super::Tape;
use super::array::{Array, Cotangents};
use aquatint::raw::program::Rotary;

/// Calls `see` for every pair of neighbours among `len` values in rows of `cols`: with the place of its first one, and those of the
/// sine and the cosine that turn it, in a table whose rows repeat.
fn pairs(len: usize, cols: usize, table: &Array, mut see: impl FnMut(usize, [usize; 2])) {
    let (rows, e) = (table.rows(), table.cols());
    for first in (0..len).step_by(2) {
        let (row, feature) = (first / cols % rows, first % cols % e);
        // The half of each axis: its sines, then its cosines.
        let (axis, pair) = (feature / (e / 2), feature % (e / 2) / 2);
        let sin = row * e + axis * (e / 2) + pair;
        see(first, [sin, sin + e / 4]);
    }
}

pub(super) fn forward(op: &Rotary, tape: &Tape) -> Array {
    let (x, table) = (tape.value(op.x), tape.value(op.table));
    let mut y = Array::zeros(&x.dims);
    pairs(x.values.len(), x.cols(), table, |at, [sin, cos]| {
        let ([a, b], [sin, cos]) = ([at, at + 1].map(|i| x.values[i]), [sin, cos].map(|i| table.values[i]));
        (y.values[at], y.values[at + 1]) = (a * cos - b * sin, b * cos + a * sin);
    });
    y
}

pub(super) fn backward(op: &Rotary, tape: &Tape, dy: Array, back: &mut Cotangents) {
    let (x, table) = (tape.value(op.x), tape.value(op.table));
    if back.needs(op.table) {
        // Every head and repetition of a row adds to it.
        let mut sums = vec![0f64; table.values.len()];
        pairs(x.values.len(), x.cols(), table, |at, [sin, cos]| {
            let [a, b, da, db] = [x.values[at], x.values[at + 1], dy.values[at], dy.values[at + 1]].map(f64::from);
            sums[sin] += db * a - da * b;
            sums[cos] += da * a + db * b;
        });
        back.add(op.table, Array::new(&table.dims, sums.into_iter().map(|v| v as f32).collect()));
    }
    let mut dx = Array::zeros(&x.dims);
    pairs(x.values.len(), x.cols(), table, |at, [sin, cos]| {
        let ([a, b], [sin, cos]) = ([at, at + 1].map(|i| dy.values[i]), [sin, cos].map(|i| table.values[i]));
        (dx.values[at], dx.values[at + 1]) = (a * cos + b * sin, b * cos - a * sin);
    });
    back.add(op.x, dx);
}
