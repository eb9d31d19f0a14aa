//! Sums and products, pointwise functions, and ops that move numbers.

use super::Tape;
use super::act::{activate, chain};
use super::array::{Array, Cotangents};
use super::linear::{add_cyclic, sum_cyclic};
use aquatint::raw::program::{Add, Concat, Multiply, Patchify, Pointwise, Resample, Resampling, Slice};
use std::ops::Range;

pub(super) fn pointwise(op: &Pointwise, tape: &Tape) -> Array {
    let mut y = tape.value(op.x).clone();
    activate(op.act, &mut y.values);
    y.values.iter_mut().for_each(|v| *v = *v * op.mul + op.add);
    y
}

pub(super) fn pointwise_backward(op: &Pointwise, tape: &Tape, dy: Array, back: &mut Cotangents) {
    let mut dx = dy;
    chain(op.act, &tape.value(op.x).values, &mut dx.values);
    dx.values.iter_mut().for_each(|v| *v *= op.mul);
    back.add(op.x, dx);
}

pub(super) fn add(op: &Add, tape: &Tape) -> Array {
    let mut y = tape.value(op.a).clone();
    add_cyclic(&mut y.values, &tape.value(op.b).values);
    y
}

pub(super) fn add_backward(op: &Add, tape: &Tape, dy: Array, back: &mut Cotangents) {
    if back.needs(op.b) {
        back.add(op.b, sum_cyclic(&dy.values, tape.value(op.b)));
    }
    back.add(op.a, dy);
}

pub(super) fn multiply(op: &Multiply, tape: &Tape) -> Array {
    times(tape.value(op.a), tape.value(op.b))
}

pub(super) fn multiply_backward(op: &Multiply, tape: &Tape, dy: Array, back: &mut Cotangents) {
    back.add(op.a, times(&dy, tape.value(op.b)));
    back.add(op.b, times(&dy, tape.value(op.a)));
}

/// The product of two arrays of as many elements, with the axes of the first.
fn times(a: &Array, b: &Array) -> Array {
    Array::new(&a.dims, a.values.iter().zip(&b.values).map(|(a, b)| a * b).collect())
}

/// Values that lie side by side of what is joined or cut: a row or, if that is along the axis of `tokens`, a sample.
fn run(x: &Array, tokens: bool) -> usize {
    if tokens { x.values.len() / x.dims[0] } else { x.cols() }
}

pub(super) fn concat(op: &Concat, tape: &Tape) -> Array {
    let (a, b) = (tape.value(op.a), tape.value(op.b));
    let [of_a, of_b] = [a, b].map(|x| run(x, op.tokens));
    let mut values = Vec::with_capacity(a.values.len() / of_a * (of_a + of_b));
    for (a, b) in a.values.chunks_exact(of_a).zip(b.values.chunks_exact(of_b).cycle()) {
        values.extend_from_slice(a);
        values.extend_from_slice(b);
    }
    let mut dims = a.dims.clone();
    let axis = dims.len() - if op.tokens { 2 } else { 1 };
    dims[axis] = (of_a + of_b) / if op.tokens { a.cols() } else { 1 };
    Array::new(&dims, values)
}

pub(super) fn concat_backward(op: &Concat, tape: &Tape, dy: Array, back: &mut Cotangents) {
    let (a, b) = (tape.value(op.a), tape.value(op.b));
    let (of_a, of_all) = (run(a, op.tokens), run(&dy, op.tokens));
    for (value, like, range) in [(op.a, a, 0..of_a), (op.b, b, of_a..of_all)] {
        let part: Vec<f32> = dy.values.chunks_exact(of_all).flat_map(|both| &both[range.clone()]).copied().collect();
        back.add(value, sum_cyclic(&part, like));
    }
}

/// Where what is cut out lies in each [`run`], and the length of that.
fn cut(op: &Slice, x: &Array) -> (Range<usize>, usize) {
    let unit = if op.tokens { x.cols() } else { 1 };
    let first = op.first as usize * unit;
    (first..first + op.count as usize * unit, run(x, op.tokens))
}

pub(super) fn slice(op: &Slice, tape: &Tape) -> Array {
    let x = tape.value(op.x);
    let (range, len) = cut(op, x);
    let values = x.values.chunks_exact(len).flat_map(|all| &all[range.clone()]).copied().collect();
    let mut dims = x.dims.clone();
    let axis = dims.len() - if op.tokens { 2 } else { 1 };
    dims[axis] = op.count as usize;
    Array::new(&dims, values)
}

pub(super) fn slice_backward(op: &Slice, tape: &Tape, dy: Array, back: &mut Cotangents) {
    let x = tape.value(op.x);
    let (range, len) = cut(op, x);
    let mut dx = Array::zeros(&x.dims);
    for (dx, dy) in dx.values.chunks_exact_mut(len).zip(dy.values.chunks_exact(range.len())) {
        dx[range.clone()].copy_from_slice(dy);
    }
    back.add(op.x, dx);
}

/// `(n, h, w, c) -> (n, h / p, w / p, p * p * c)`; of videos `(n, f, h, w, c)` frames lie below each other.
pub(super) fn patchify(x: &Array, p: usize) -> Array {
    let [n, h, w, c] = match x.dims[..] {
        [n, h, w, c] => [n, h, w, c],
        [n, f, h, w, c] => [n, f * h, w, c],
        _ => panic!("pixels"),
    };
    let mut y = Array::zeros(&[n, h / p, w / p, p * p * c]);
    patches([n, h, w, c], p, |pixel, patch| y.values[patch..patch + c].copy_from_slice(&x.values[pixel..pixel + c]));
    y
}

/// What [`patchify`] gives back.
pub(super) fn patchify_backward(op: &Patchify, tape: &Tape, dy: &Array, back: &mut Cotangents) {
    let dims = tape.value(op.x).dims.clone();
    back.add(op.x, Array { dims, values: unpatchify(dy, op.patch as usize).values });
}

/// The inverse of [`patchify`], but that frames stay below each other.
pub(super) fn unpatchify(y: &Array, p: usize) -> Array {
    let [n, h, w, f] = y.dims[..] else { panic!("patches") };
    let dims = [n, h * p, w * p, f / (p * p)];
    let mut x = Array::zeros(&dims);
    let c = dims[3];
    patches(dims, p, |pixel, patch| x.values[pixel..pixel + c].copy_from_slice(&y.values[patch..patch + c]));
    x
}

/// Calls `see` for every pixel with its first value among pixels and among patches.
fn patches([n, h, w, c]: [usize; 4], p: usize, mut see: impl FnMut(usize, usize)) {
    for i in 0..n * h * w {
        let (sample, y, x) = (i / (h * w), i / w % h, i % w);
        let patch = (sample * (h / p) + y / p) * (w / p) + x / p;
        see(i * c, (patch * p * p + y % p * p + x % p) * c);
    }
}

pub(super) fn resample(op: &Resample, tape: &Tape) -> Array {
    let x = tape.value(op.x);
    let [n, h, w, c] = x.dims[..] else { panic!("pixels") };
    let (dims, weight) = match op.how {
        Resampling::Nearest => ([n, 2 * h, 2 * w, c], 1.0),
        Resampling::Mean => ([n, h / 2, w / 2, c], 0.25),
    };
    let mut y = Array::zeros(&dims);
    pairs([n, h, w, c], op.how, |small, large| {
        let (to, from) = if op.how == Resampling::Nearest { (large, small) } else { (small, large) };
        let values = x.values[from..from + c].iter();
        y.values[to..to + c].iter_mut().zip(values).for_each(|(y, x)| *y += x * weight);
    });
    y
}

pub(super) fn resample_backward(op: &Resample, tape: &Tape, dy: Array, back: &mut Cotangents) {
    let like = tape.value(op.x);
    let [n, h, w, c] = like.dims[..] else { panic!("pixels") };
    let weight = if op.how == Resampling::Nearest { 1.0 } else { 0.25 };
    let mut dx = Array::zeros(&like.dims);
    pairs([n, h, w, c], op.how, |small, large| {
        let (to, from) = if op.how == Resampling::Nearest { (small, large) } else { (large, small) };
        let values = dy.values[from..from + c].iter();
        dx.values[to..to + c].iter_mut().zip(values).for_each(|(dx, dy)| *dx += dy * weight);
    });
    back.add(op.x, dx);
}

/// Calls `see` for every pixel of the larger of the two planes that belongs to one of the smaller, with the first value of
/// both; an input of `[n, h, w, c]` is the smaller one where it is enlarged.
fn pairs([n, h, w, c]: [usize; 4], how: Resampling, mut see: impl FnMut(usize, usize)) {
    let ([height, width], [small_h, small_w]) = match how {
        Resampling::Nearest => ([2 * h, 2 * w], [h, w]),
        Resampling::Mean => ([h, w], [h / 2, w / 2]),
    };
    for i in 0..n * height * width {
        let (sample, y, x) = (i / (height * width), i / width % height, i % width);
        if y / 2 < small_h && x / 2 < small_w {
            see(((sample * small_h + y / 2) * small_w + x / 2) * c, i * c);
        }
    }
}
