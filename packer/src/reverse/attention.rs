//! Attention, one sample, set of tokens and head at a time.

use super::Tape;
use super::array::{Array, Cotangents, matrix};
use aquatint::raw::program::{Attention, Reach, Value};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of queries and of keys of a sample, and features of a head.
#[derive(Clone, Copy)]
struct Sizes {
    queries: usize,
    keys: usize,
    heads: usize,
    features: usize,
    frames: usize,
}

impl Sizes {
    fn new(op: &Attention, tape: &Tape) -> Self {
        let (q, k) = (tape.value(op.q), tape.value(op.k));
        assert_eq!(q.dims[0], k.dims[0], "keys and values of each sample");
        let (n, heads) = (q.dims[0], op.heads as usize);
        Sizes { queries: q.rows() / n, keys: k.rows() / n, heads, features: q.cols() / heads, frames: tape.frames }
    }

    fn cols(&self) -> usize {
        self.heads * self.features
    }

    /// The columns of head `h` of `rows` of a sample.
    fn head(&self, x: &[f32], rows: &[usize], h: usize) -> Array2<f32> {
        let of_head = rows.iter().flat_map(|row| &x[self.place(*row, h)]).copied();
        Array2::from_shape_vec((rows.len(), self.features), of_head.collect()).expect("rows of a head")
    }

    fn put(&self, to: &mut [f32], rows: &[usize], h: usize, head: &Array2<f32>) {
        for (&row, head) in rows.iter().zip(head.rows()) {
            to[self.place(row, h)].iter_mut().zip(head).for_each(|(to, v)| *to = *v);
        }
    }

    fn place(&self, row: usize, h: usize) -> Range<usize> {
        let first = row * self.cols() + h * self.features;
        first..first + self.features
    }

    /// The rows of `tokens` of a sample that attend to each other, set by set: tokens lie frame by frame.
    fn sets(&self, reach: Reach, tokens: usize) -> Vec<Vec<usize>> {
        let (frames, places) = (self.frames, tokens / self.frames);
        match reach {
            Reach::Sample => vec![(0..tokens).collect()],
            Reach::Frame => (0..frames).map(|frame| (frame * places..(frame + 1) * places).collect()).collect(),
            Reach::Place => (0..places).map(|place| (place..tokens).step_by(places).collect()).collect(),
        }
    }
}

/// `softmax(q k^T scale + bias)` of one head, of whose keys the first `length` are seen; zeros where none is.
fn probabilities(
    op: &Attention,
    (q, k): (&Array2<f32>, &Array2<f32>),
    bias: Option<ArrayView2<f32>>,
    length: usize,
) -> Array2<f32> {
    let mut p = q.dot(&k.t()) * op.scale;
    if let Some(bias) = bias {
        p += &bias;
    }
    for (i, mut row) in p.rows_mut().into_iter().enumerate() {
        let seen = if op.attend.causal { length.min(i + 1) } else { length };
        let most = row.iter().take(seen).fold(f32::NEG_INFINITY, |most, &v| most.max(v));
        let mut sum = 0f32;
        for (j, v) in row.iter_mut().enumerate() {
            *v = if j < seen { (*v - most).exp() } else { 0.0 };
            sum += *v;
        }
        if seen > 0 {
            row /= sum;
        }
    }
    p
}

/// Whether there is a derivative: not of probabilities on a grid.
pub(super) fn has_rule(op: &Attention) -> bool {
    op.softmax.is_none()
}

/// What is added to scores, and how many keys are seen.
struct Masks<'a> {
    bias: Option<&'a Array>,
    lengths: Option<&'a Array>,
}

impl<'a> Masks<'a> {
    fn new(op: &Attention, tape: &'a Tape) -> Self {
        let find = |value: Option<Value>| value.map(|value| tape.value(value));
        Masks { bias: find(op.bias), lengths: find(op.lengths) }
    }

    /// What is added to the scores of head `h`.
    fn bias(&self, sizes: &Sizes, h: usize) -> Option<ArrayView2<'a, f32>> {
        let len = sizes.queries * sizes.keys;
        self.bias.map(|bias| matrix(&bias.values[h * len..][..len], sizes.queries, sizes.keys))
    }

    /// The keys that the queries of sample `sample` see, of `keys`.
    fn length(&self, sample: usize, keys: usize) -> usize {
        self.lengths.map_or(keys, |lengths| keys.min(lengths.values[sample] as usize))
    }
}

pub(super) fn forward(op: &Attention, tape: &Tape) -> Array {
    let (sizes, [q, k, v]) = (Sizes::new(op, tape), [op.q, op.k, op.v].map(|value| tape.value(value)));
    let (of_queries, of_keys) = (sizes.queries * sizes.cols(), sizes.keys * sizes.cols());
    let (mut y, masks) = (Array::zeros(&q.dims), Masks::new(op, tape));
    y.values.par_chunks_mut(of_queries).enumerate().for_each(|(sample, y)| {
        let q = &q.values[sample * of_queries..][..of_queries];
        let [k, v] = [k, v].map(|x| &x.values[sample * of_keys..][..of_keys]);
        let sets = sizes.sets(op.reach, sizes.queries).into_iter().zip(sizes.sets(op.reach, sizes.keys));
        for ((queries, keys), h) in sets.flat_map(|sets| (0..sizes.heads).map(move |h| (sets.clone(), h))) {
            let (q, k) = (sizes.head(q, &queries, h), sizes.head(k, &keys, h));
            let p = probabilities(op, (&q, &k), masks.bias(&sizes, h), masks.length(sample, keys.len()));
            sizes.put(y, &queries, h, &p.dot(&sizes.head(v, &keys, h)));
        }
    });
    y
}

/// With probabilities P, `dP = dY V^T` and `dS = P (dP - sum(dP P))` per row; dS is the derivative of the bias, too.
pub(super) fn backward(op: &Attention, tape: &Tape, dy: Array, back: &mut Cotangents) {
    let (sizes, [q, k, v]) = (Sizes::new(op, tape), [op.q, op.k, op.v].map(|value| tape.value(value)));
    let (of_queries, of_keys) = (sizes.queries * sizes.cols(), sizes.keys * sizes.cols());
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| Array::zeros(&x.dims));
    let (masks, biased) = (Masks::new(op, tape), op.bias.filter(|&bias| back.needs(bias)));
    let parts = (
        dq.values.par_chunks_mut(of_queries),
        dk.values.par_chunks_mut(of_keys),
        dv.values.par_chunks_mut(of_keys),
        dy.values.par_chunks(of_queries),
    );
    let of_bias = parts.into_par_iter().enumerate().map(|(sample, (dq, dk, dv, dy))| {
        let q = &q.values[sample * of_queries..][..of_queries];
        let [k, v] = [k, v].map(|x| &x.values[sample * of_keys..][..of_keys]);
        let mut dbias = Vec::new();
        let sets = sizes.sets(op.reach, sizes.queries).into_iter().zip(sizes.sets(op.reach, sizes.keys));
        for ((queries, keys), h) in sets.flat_map(|sets| (0..sizes.heads).map(move |h| (sets.clone(), h))) {
            let [q, dy] = [q, dy].map(|x| sizes.head(x, &queries, h));
            let [k, v] = [k, v].map(|x| sizes.head(x, &keys, h));
            let p = probabilities(op, (&q, &k), masks.bias(&sizes, h), masks.length(sample, keys.len()));
            let mut ds = dy.dot(&v.t());
            for (mut ds, p) in ds.axis_iter_mut(Axis(0)).zip(p.axis_iter(Axis(0))) {
                let mean = ds.dot(&p);
                ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - mean));
            }
            if biased.is_some() {
                dbias.extend(ds.iter().copied());
            }
            ds *= op.scale;
            sizes.put(dq, &queries, h, &ds.dot(&k));
            sizes.put(dk, &keys, h, &ds.t().dot(&q));
            sizes.put(dv, &keys, h, &p.t().dot(&dy));
        }
        dbias
    });
    let of_bias: Vec<Vec<f32>> = of_bias.collect();
    if let Some(bias) = biased {
        let mut sum = Array::zeros(&tape.value(bias).dims);
        for of_sample in &of_bias {
            sum.values.iter_mut().zip(of_sample).for_each(|(sum, v)| *sum += v);
        }
        back.add(bias, sum);
    }
    for (value, d) in [(op.q, dq), (op.k, dk), (op.v, dv)] {
        back.add(value, d);
    }
}
