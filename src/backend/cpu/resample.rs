//! More or fewer pixels.

use super::arena::Arena;
use super::simd::{Isa, vectorized};
use crate::backend::args::ResampleArgs;
use crate::program::Resampling;
use rayon::prelude::*;

/// See [`Op::Resample`](crate::program::Op::Resample). A task is a row of pixels of the result.
pub fn resample<I: Isa>(isa: I, arena: &mut Arena, args: &ResampleArgs) {
    let (out, reads) = arena.write_floats(&args.y);
    let (x, c) = (reads.floats(&args.x), args.x.cols);
    let row_of = |sample: usize, row: usize| &x[(sample * args.height + row) * args.width * c..][..args.width * c];
    match args.how {
        Resampling::Nearest => {
            out.par_chunks_exact_mut(2 * args.width * c).enumerate().for_each(|(i, y)| {
                let x = row_of(i / (2 * args.height), i % (2 * args.height) / 2);
                for (y, x) in y.chunks_exact_mut(2 * c).zip(x.chunks_exact(c)) {
                    y[..c].copy_from_slice(x);
                    y[c..].copy_from_slice(x);
                }
            });
        }
        Resampling::Mean => {
            let down = args.height / 2;
            out.par_chunks_exact_mut(args.width / 2 * c).enumerate().for_each(|(i, y)| {
                let (sample, row) = (i / down, i % down * 2);
                isa.run(Means, (row_of(sample, row), row_of(sample, row + 1), c, y));
            });
        }
    }
}

vectorized! {
    /// Means of 2 x 2 pixels of `c` channels, from two rows of them.
    fn Means<'a, I>(above: &'a [f32], below: &'a [f32], c: usize, y: &'a mut [f32]) {
        // An odd last pixel has no place in `y`.
        for ((y, above), below) in y.chunks_exact_mut(c).zip(above.chunks_exact(2 * c)).zip(below.chunks_exact(2 * c)) {
            let ((a, b), (d, e)) = (above.split_at(c), below.split_at(c));
            for ((((y, a), b), d), e) in y.iter_mut().zip(a).zip(b).zip(d).zip(e) {
                *y = ((a + b) + (d + e)) * 0.25;
            }
        }
    }
}
