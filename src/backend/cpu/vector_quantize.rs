//! Vector quantization: the nearest row of a table.

use super::arena::{Arena, floats_mut};
use super::math::{fma, least};
use super::scratch;
use super::simd::{Isa, vectorized};
use crate::backend::args::VectorQuantizeArgs;
use rayon::prelude::*;

/// Vectors per task; they share each tile of the table.
const VECTORS: usize = 64;

/// Rows of the table per tile.
const ROWS: usize = 128;

/// Bytes of private memory: one tile of the table, column after column.
pub fn scratch_bytes(args: &VectorQuantizeArgs) -> usize {
    args.x.cols * ROWS * 4
}

/// See [`Op::VectorQuantize`](crate::program::Op::VectorQuantize); `table` holds rows as long as those of `x`.
pub fn vector_quantize<I: Isa>(isa: I, arena: &mut Arena, args: &VectorQuantizeArgs, table: &[f32]) {
    let (out, reads) = arena.write_floats(&args.y);
    let (x, d) = (reads.floats(&args.x), args.x.cols);
    out.par_chunks_mut(VECTORS * d).zip(x.par_chunks(VECTORS * d)).for_each(|(y, x)| {
        scratch::with(scratch_bytes(args), |tile| isa.run(Nearest, (x, table, d, floats_mut(tile), y)));
    });
}

vectorized! {
    /// The row of `table` nearest to each of up to `VECTORS` rows of `x`, all of length `d`. Tiles and rows are seen in
    /// order, so the first among equals stays; without a distance below infinity, row 0 does.
    fn Nearest<'a, I>(x: &'a [f32], table: &'a [f32], d: usize, tile: &'a mut [f32], y: &'a mut [f32]) {
        let mut best = [(f32::INFINITY, 0u32); VECTORS];
        let mut distances = [0.0; ROWS];
        for (first, rows) in (0u32..).step_by(ROWS).zip(table.chunks(ROWS * d)) {
            for (k, column) in tile.chunks_exact_mut(ROWS).enumerate() {
                column.iter_mut().zip(rows[k..].iter().step_by(d)).for_each(|(to, from)| *to = *from);
            }
            let distances = &mut distances[..rows.len() / d];
            for (x, best) in x.chunks_exact(d).zip(&mut best) {
                distances.fill(0.0);
                for (x, column) in x.iter().zip(tile.chunks_exact(ROWS)) {
                    for (sum, t) in distances.iter_mut().zip(column) {
                        let apart = *x - *t;
                        *sum = fma::<I>(apart, apart, *sum);
                    }
                }
                let nearest = least(distances);
                if nearest < best.0 {
                    // Seldom: in a table in no particular order, tile n is nearest so far once in n times.
                    let row = distances.iter().position(|&distance| distance == nearest).unwrap_or(0);
                    *best = (nearest, first + row as u32);
                }
            }
        }
        for (y, (_, row)) in y.chunks_exact_mut(d).zip(best) {
            y.copy_from_slice(&table[row as usize * d..][..d]);
        }
    }
}
