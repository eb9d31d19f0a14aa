//! Ops that only move data.

use super::arena::Arena;
use super::embed::copy;
use crate::backend::args::{ConcatArgs, PadRowsArgs, PatchArgs, SliceArgs};
use crate::format::TensorView;
use rayon::prelude::*;

/// See [`Op::Patchify`](crate::program::Op::Patchify) and [`Op::Unpatchify`](crate::program::Op::Unpatchify).
///
/// Both walk over runs of `patch * channels` floats, which are contiguous on either side.
pub fn patch(arena: &mut Arena, args: &PatchArgs) {
    let (out, reads) = arena.write_floats(&args.y);
    let x = reads.floats(&args.x);
    let (p, run) = (args.patch, args.patch * args.channels);
    let (down, across) = (args.height / p, args.width / p);
    for sample in 0..args.samples {
        for y in 0..args.height {
            for j in 0..across {
                let pixels = ((sample * args.height + y) * across + j) * run;
                let patches = (((sample * down + y / p) * across + j) * p + y % p) * run;
                let (to, from) = if args.inverse { (pixels, patches) } else { (patches, pixels) };
                out[to..to + run].copy_from_slice(&x[from..from + run]);
            }
        }
    }
}

/// See [`Op::Concat`](crate::program::Op::Concat).
pub fn concat(arena: &mut Arena, args: &ConcatArgs) {
    let (out, reads) = arena.write_floats(&args.y);
    let (a, b) = (reads.floats(&args.a), reads.floats(&args.b));
    let rows = out.par_chunks_exact_mut(args.y.cols).zip(a.par_chunks_exact(args.a.cols));
    rows.with_min_len(64).enumerate().for_each(|(row, (y, a))| {
        y[..a.len()].copy_from_slice(a);
        y[a.len()..].copy_from_slice(&b[row % args.b.rows * args.b.cols..][..args.b.cols]);
    });
}

/// See [`Op::Slice`](crate::program::Op::Slice).
pub fn slice(arena: &mut Arena, args: &SliceArgs) {
    let (out, reads) = arena.write_floats(&args.y);
    let x = reads.floats(&args.x).par_chunks_exact(args.x.cols);
    let (first, count) = (args.first, args.y.cols);
    let rows = out.par_chunks_exact_mut(count).zip(x).with_min_len(64);
    rows.for_each(|(y, x)| y.copy_from_slice(&x[first..first + count]));
}

/// See [`Op::PadRows`](crate::program::Op::PadRows).
pub fn pad_rows(arena: &mut Arena, args: &PadRowsArgs, table: &TensorView) {
    let (out, reads) = arena.write_floats(&args.y);
    let x = reads.floats(&args.x);
    let (cols, run) = (args.y.cols, args.tokens * args.y.cols);
    let lengths: &[u32] = reads.slice(reads.first(args.lengths), args.y.rows / args.tokens);
    for ((y, x), &length) in out.chunks_exact_mut(run).zip(x.chunks_exact(run)).zip(lengths) {
        let kept = args.tokens.min(length as usize);
        let (own, padding) = y.split_at_mut(kept * cols);
        own.copy_from_slice(&x[..own.len()]);
        copy(table, (args.first + kept) * cols, padding);
    }
}
