//! Where finished numbers of a product go: as they are, or as the codes of a range that is known beforehand.

use super::arena::{CodesMut, floats_mut};
use super::quantize::{Fixed, Steps};
use super::simd::tiles::MatrixMut;
use super::simd::{GROUP, Isa, vectorized};
use crate::backend::args::{Codes, Floats};
use rayon::prelude::*;

/// Stores numbers into a row of the result.
pub trait Sink: Copy + Send + Sync {
    /// What the result is made of.
    type Element: Send + 'static;

    /// Stores numbers of row `row`: as many as `out` takes.
    fn store(self, row: usize, v: &[f32], out: &mut [Self::Element]);
}

/// The numbers themselves.
#[derive(Clone, Copy)]
pub struct Plain;

impl Sink for Plain {
    type Element = f32;

    #[inline(always)]
    fn store(self, _: usize, v: &[f32], out: &mut [f32]) {
        each_group(v, out, |v, out| *out = v);
    }
}

/// Codes in ranges that are known.
#[derive(Clone, Copy)]
pub struct Coded<'a> {
    ranges: &'a Fixed<'a>,
    top: u8,
}

impl<'a> Coded<'a> {
    /// Codes up to `top` in `ranges`, of which there is one for every row.
    pub fn new(ranges: &'a Fixed<'a>, top: u8) -> Self {
        Coded { ranges, top }
    }
}

impl Sink for Coded<'_> {
    type Element = u8;

    #[inline(always)]
    fn store(self, row: usize, v: &[f32], out: &mut [u8]) {
        let range = self.ranges.get(row).expect("products make codes of known ranges only");
        let steps = Steps::new(range, self.top);
        each_group(v, out, |v, out| *out = steps.code(v));
    }
}

/// Calls `put` on numbers and places, in whole groups as far as they go: loops of known length become vectors.
#[inline(always)]
fn each_group<T>(v: &[f32], out: &mut [T], put: impl Fn(f32, &mut T)) {
    let (groups, rest) = out.as_chunks_mut::<GROUP>();
    let (values, tail) = v.split_at(groups.len() * GROUP);
    for (out, v) in groups.iter_mut().zip(values.as_chunks::<GROUP>().0) {
        for i in 0..GROUP {
            put(v[i], &mut out[i]);
        }
    }
    rest.iter_mut().zip(tail).for_each(|(out, &v)| put(v, out));
}

/// The floats of a result.
pub fn floats<'a>(bytes: &'a mut [u8], y: &Floats) -> MatrixMut<'a, f32> {
    MatrixMut { data: floats_mut(bytes), cols: y.cols, stride: y.cols }
}

/// The codes of a result; [`complete`] does the rest.
pub fn codes<'a>(bytes: &'a mut [u8], y: &Codes) -> MatrixMut<'a, u8> {
    MatrixMut { data: CodesMut::new(bytes, y).codes, cols: y.cols, stride: y.stride() }
}

/// Writes what belongs to codes that are there: scales and zero points, the sum of each row, and zeros behind it.
pub fn complete<I: Isa>(isa: I, bytes: &mut [u8], y: &Codes, ranges: &Fixed<'_>) {
    const ROWS: usize = 64;
    let CodesMut { codes, scale, zero, sum } = CodesMut::new(bytes, y);
    let rows_per_group = y.rows / y.groups;
    for (i, (scale, zero)) in scale.iter_mut().zip(zero).enumerate() {
        let range = ranges.get(i * rows_per_group).expect("products make codes of known ranges only");
        (*scale, *zero) = (range.scale, range.zero);
    }
    let rows = codes.par_chunks_mut(ROWS * y.stride()).zip(sum.par_chunks_mut(ROWS));
    rows.for_each(|(codes, sums)| isa.run(Total, (codes, [y.cols, y.stride()], sums)));
}

vectorized! {
    /// The sums of rows of codes, whose spare bytes become 0.
    fn Total<'a, I>(codes: &'a mut [u8], sizes: [usize; 2], sums: &'a mut [i32]) {
        let [cols, stride] = sizes;
        for (row, sum) in codes.chunks_exact_mut(stride).zip(sums) {
            let (used, spare) = row.split_at_mut(cols);
            *sum = used.iter().map(|&q| i32::from(q)).sum();
            spare.fill(0);
        }
    }
}
