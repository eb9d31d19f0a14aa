//! Attention, one sample and head at a time.

use super::Tape;
use super::array::{Array, Cotangents};
use aquatint::raw::program::{Attention, Reach};
use ndarray::{Array2, Axis};
use rayon::prelude::*;

/// Rows of queries and of keys of a sample, and features of a head.
#[derive(Clone, Copy)]
struct Sizes {
    queries: usize,
    keys: usize,
    heads: usize,
    features: usize,
}

impl Sizes {
    fn new(op: &Attention, tape: &Tape) -> Self {
        let (q, k) = (tape.value(op.q), tape.value(op.k));
        assert_eq!(q.dims[0], k.dims[0], "keys and values of each sample");
        let (n, heads) = (q.dims[0], op.heads as usize);
        Sizes { queries: q.rows() / n, keys: k.rows() / n, heads, features: q.cols() / heads }
    }

    fn cols(&self) -> usize {
        self.heads * self.features
    }

    /// The columns of head `h` of the rows of a sample.
    fn head(&self, x: &[f32], h: usize) -> Array2<f32> {
        let rows = x.chunks_exact(self.cols());
        let of_head = rows.flat_map(|row| &row[h * self.features..(h + 1) * self.features]).copied();
        Array2::from_shape_vec((x.len() / self.cols(), self.features), of_head.collect()).expect("rows of a head")
    }

    fn put(&self, to: &mut [f32], h: usize, head: &Array2<f32>) {
        for (row, head) in to.chunks_exact_mut(self.cols()).zip(head.rows()) {
            row[h * self.features..(h + 1) * self.features].iter_mut().zip(head).for_each(|(to, v)| *to = *v);
        }
    }
}

/// `softmax(q k^T scale)` of one head.
fn probabilities(op: &Attention, q: &Array2<f32>, k: &Array2<f32>) -> Array2<f32> {
    let mut p = q.dot(&k.t());
    for (i, mut row) in p.rows_mut().into_iter().enumerate() {
        let seen = if op.attend.causal { i + 1 } else { row.len() };
        let most = row.iter().take(seen).fold(f32::NEG_INFINITY, |most, &v| most.max(v * op.scale));
        let mut sum = 0f32;
        for (j, v) in row.iter_mut().enumerate() {
            *v = if j < seen { (*v * op.scale - most).exp() } else { 0.0 };
            sum += *v;
        }
        row /= sum;
    }
    p
}

/// Whether there is a derivative: not of probabilities on a grid, nor of what adds to scores or hides keys, some
/// of them from some queries.
pub(super) fn has_rule(op: &Attention) -> bool {
    op.softmax.is_none() && op.bias.is_none() && op.lengths.is_none() && op.reach == Reach::Sample
}

pub(super) fn forward(op: &Attention, tape: &Tape) -> Array {
    let (sizes, [q, k, v]) = (Sizes::new(op, tape), [op.q, op.k, op.v].map(|value| tape.value(value)));
    let (of_queries, of_keys) = (sizes.queries * sizes.cols(), sizes.keys * sizes.cols());
    let mut y = Array::zeros(&q.dims);
    y.values.par_chunks_mut(of_queries).enumerate().for_each(|(sample, y)| {
        let q = &q.values[sample * of_queries..][..of_queries];
        let [k, v] = [k, v].map(|x| &x.values[sample * of_keys..][..of_keys]);
        for h in 0..sizes.heads {
            let p = probabilities(op, &sizes.head(q, h), &sizes.head(k, h));
            sizes.put(y, h, &p.dot(&sizes.head(v, h)));
        }
    });
    y
}

/// With probabilities P, `dP = dY V^T` and `dS = P (dP - sum(dP P))` per row.
pub(super) fn backward(op: &Attention, tape: &Tape, dy: Array, back: &mut Cotangents) {
    let (sizes, [q, k, v]) = (Sizes::new(op, tape), [op.q, op.k, op.v].map(|value| tape.value(value)));
    let (of_queries, of_keys) = (sizes.queries * sizes.cols(), sizes.keys * sizes.cols());
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| Array::zeros(&x.dims));
    let parts = (
        dq.values.par_chunks_mut(of_queries),
        dk.values.par_chunks_mut(of_keys),
        dv.values.par_chunks_mut(of_keys),
        dy.values.par_chunks(of_queries),
    );
    parts.into_par_iter().enumerate().for_each(|(sample, (dq, dk, dv, dy))| {
        let q = &q.values[sample * of_queries..][..of_queries];
        let [k, v] = [k, v].map(|x| &x.values[sample * of_keys..][..of_keys]);
        for h in 0..sizes.heads {
            let [q, k, v, dy] = [q, k, v, dy].map(|x| sizes.head(x, h));
            let p = probabilities(op, &q, &k);
            let mut ds = dy.dot(&v.t());
            for (mut ds, p) in ds.axis_iter_mut(Axis(0)).zip(p.axis_iter(Axis(0))) {
                let mean = ds.dot(&p);
                ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - mean) * op.scale);
            }
            sizes.put(dq, h, &ds.dot(&k));
            sizes.put(dk, h, &ds.t().dot(&q));
            sizes.put(dv, h, &p.t().dot(&dy));
        }
    });
    for (value, d) in [(op.q, dq), (op.k, dk), (op.v, dv)] {
        back.add(value, d);
    }
}
