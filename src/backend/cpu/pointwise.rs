//! Elementwise ops.

use super::arena::Arena;
use super::math::activate;
use super::simd::{Isa, vectorized};
use crate::backend::args::{PairArgs, PointwiseArgs};
use rayon::prelude::*;

/// Elements per task: large enough to hide the cost of a task, small enough to stay in the first-level cache.
const CHUNK: usize = 1 << 13;

/// See [`Op::Pointwise`](crate::program::Op::Pointwise).
pub fn pointwise<I: Isa>(isa: I, arena: &mut Arena, args: &PointwiseArgs) {
    let (out, reads) = arena.write_floats(&args.y);
    let x = reads.floats(&args.x);
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        isa.run(Apply, (args, x, y));
    });
}

vectorized! {
    fn Apply<'a, I>(args: &'a PointwiseArgs, x: &'a [f32], y: &'a mut [f32]) {
        y.copy_from_slice(x);
        activate::<I>(args.act, y);
        y.iter_mut().for_each(|v| *v = *v * args.mul + args.add);
    }
}

/// See [`Op::Add`](crate::program::Op::Add).
pub fn add<I: Isa>(isa: I, arena: &mut Arena, args: &PairArgs) {
    by_row(arena, args, |a, b, y| isa.run(Sum, (a, b, y)));
}

/// See [`Op::Multiply`](crate::program::Op::Multiply).
pub fn multiply<I: Isa>(isa: I, arena: &mut Arena, args: &PairArgs) {
    by_row(arena, args, |a, b, y| isa.run(Product, (a, b, y)));
}

/// Makes every row of the result of rows of both operands, which may be followed by others.
fn by_row(arena: &mut Arena, args: &PairArgs, make: impl Fn(&[f32], &[f32], &mut [f32]) + Sync) {
    let (out, reads) = arena.write_floats(&args.y);
    let (a, b) = (reads.floats(&args.a), reads.floats(&args.b));
    let cols = args.y.cols;
    out.par_chunks_mut(cols).with_min_len(CHUNK.div_ceil(cols)).enumerate().for_each(|(row, y)| {
        make(&a[row * cols..], &b[row % args.b.rows * cols..], y);
    });
}

vectorized! {
    fn Sum<'a, I>(a: &'a [f32], b: &'a [f32], y: &'a mut [f32]) {
        y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = a + b);
    }
}

vectorized! {
    fn Product<'a, I>(a: &'a [f32], b: &'a [f32], y: &'a mut [f32]) {
        y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = a * b);
    }
}
