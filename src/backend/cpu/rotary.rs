//! Rotary position embedding.

use super::arena::Arena;
use super::simd::{Isa, vectorized};
use crate::backend::args::RotaryArgs;
use rayon::prelude::*;

/// See [`Op::Rotary`](crate::program::Op::Rotary).
pub fn rotary<I: Isa>(isa: I, arena: &mut Arena, args: &RotaryArgs) {
    let (out, reads) = arena.write_floats(&args.y);
    let (x, table) = (reads.floats(&args.x), reads.floats(&args.table));
    let (cols, e) = (args.x.cols, args.table.cols);
    let rows = out.par_chunks_exact_mut(cols).zip(x.par_chunks_exact(cols)).with_min_len(16);
    rows.enumerate().for_each(|(row, (y, x))| {
        let table = &table[row % args.table.rows * e..][..e];
        isa.run(TurnRow, (x, table, y));
    });
}

vectorized! {
    /// One row, all of whose heads turn by the angles in `table`: sines and cosines of the first half, then of the second.
    fn TurnRow<'a, I>(x: &'a [f32], table: &'a [f32], y: &'a mut [f32]) {
        let half = table.len() / 2;
        let halves = x.chunks_exact(half).zip(y.chunks_exact_mut(half)).zip(table.chunks_exact(half).cycle());
        for ((x, y), angles) in halves {
            let (sin, cos) = angles.split_at(half / 2);
            for (((x, y), sin), cos) in x.chunks_exact(2).zip(y.chunks_exact_mut(2)).zip(sin).zip(cos) {
                y[0] = x[0] * cos - x[1] * sin;
                y[1] = x[1] * cos + x[0] * sin;
            }
        }
    }
}
