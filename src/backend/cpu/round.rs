//! Float activations to the nearest of a grid, in the arithmetic that makes codes: what codes of equal rows stand for.

use super::arena::Arena;
use super::quantize::{Extent, Fixed, OnGrid, Range};
use super::simd::Isa;
use crate::backend::args::RoundArgs;
use rayon::prelude::*;

/// Floats of a piece of work.
const BLOCK: usize = 16 << 10;

/// See [`Op::Round`](crate::program::Op::Round).
pub fn round<I: Isa>(isa: I, arena: &mut Arena, args: &RoundArgs) {
    let (out, reads) = arena.write_floats(&args.y);
    let x = reads.floats(&args.x);
    let (cols, top, rows) = (args.x.cols, args.top, args.x.rows / args.groups);
    let fixed = Fixed::new(&reads, args.fixed, args.x.rows);
    let per_block = (BLOCK / cols).max(1);
    if rows == 1 {
        let blocks = out.par_chunks_mut(per_block * cols).zip(x.par_chunks(per_block * cols));
        blocks.enumerate().for_each(|(block, (y, x))| {
            for (i, (y, x)) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).enumerate() {
                let range = fixed.get(block * per_block + i).unwrap_or_else(|| {
                    let (low, high) = isa.run(Extent, (x,));
                    Range::dynamic(low, high, top)
                });
                isa.run(OnGrid, (x, range, top, y));
            }
        });
        return;
    }
    for (group, (y, x)) in out.chunks_exact_mut(rows * cols).zip(x.chunks_exact(rows * cols)).enumerate() {
        let range = fixed.get(group * rows).unwrap_or_else(|| {
            let extents = x.par_chunks(per_block * cols).map(|block| isa.run(Extent, (block,)));
            let whole = || (f32::INFINITY, f32::NEG_INFINITY);
            let (low, high) = extents.reduce(whole, |a, b| (a.0.min(b.0), a.1.max(b.1)));
            Range::dynamic(low, high, top)
        });
        let blocks = y.par_chunks_mut(per_block * cols).zip(x.par_chunks(per_block * cols));
        blocks.for_each(|(y, x)| isa.run(OnGrid, (x, range, top, y)));
    }
}
