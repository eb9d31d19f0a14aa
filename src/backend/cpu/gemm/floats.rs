//! Products in floats, of any kind of weight.

use super::super::arena::floats_mut;
use super::super::epilogue::Epilogue;
use super::super::scratch;
use super::super::simd::tiles::{MatrixMut, Order, TileMut, for_each_tile};
use super::super::simd::{GROUP, Isa, MR, NR, Tile, Vectorized, vectorized};
use super::super::sink::Sink;
use super::{RowSource, Windows, row_step};
use crate::codec::layout::{PackedMatrix, Tables};
use crate::format::TensorView;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::marker::PhantomData;

/// `out = epilogue(x W^T)` in floats, for any kind of weight, which has as many rows as `out` has columns, or twice as many if
/// the epilogue is gated.
pub fn product_f32<I: Isa, S: Sink>(
    isa: I,
    rows: &impl RowSource<f32>,
    weight: &TensorView<'_>,
    epilogue: &Epilogue<'_>,
    sink: S,
    out: MatrixMut<'_, S::Element>,
) {
    let per_output = epilogue.channels();
    let (m, n) = (out.rows(), out.cols * per_output);
    let (taps, len) = (rows.taps(), rows.len());
    let k = taps * len;
    let group = GROUP * k;
    let step = [row_step(m, n, 4 * k, 4 << 20), NR / per_output];
    for_each_tile(out, step, Order::ByColumns, |mut tile| {
        let [n0, cols] = [tile.cols.start, tile.cols.len()].map(|outputs| outputs * per_output);
        let groups = cols.div_ceil(GROUP);
        scratch::with((groups * group + group) * 4, |bytes| {
            let (panel, wide) = floats_mut(bytes).split_at_mut(groups * group);
            for (g, part) in panel.chunks_exact_mut(group).enumerate() {
                fill_panel(isa, weight, n0 + g * GROUP, n, k, wide, part);
            }
            let mut windows = Windows::new();
            let mut acc: Tile<f32> = [[0.0; NR]; MR];
            for m0 in tile.rows.clone().step_by(MR) {
                let count = (tile.rows.end - m0).min(MR);
                rows.fill(m0, count, &mut windows);
                isa.tile_f32(&windows.slices[..taps * MR], len, panel, groups, &mut acc);
                isa.run(Finish(PhantomData), (&mut acc, count, epilogue, [m0, n0, n], sink, tile.reborrow()));
            }
        });
    });
}

/// Finishes rows of a tile.
struct Finish<S>(PhantomData<S>);

impl<S: Sink> Vectorized for Finish<S> {
    type Arguments<'a> = (&'a mut Tile<f32>, usize, &'a Epilogue<'a>, [usize; 3], S, TileMut<'a, S::Element>);
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>((acc, count, epilogue, [m0, n0, n], sink, mut tile): Self::Arguments<'_>) {
        if epilogue.gated {
            return epilogue.apply_gated::<I, S>([m0, n0], acc, count, sink, &mut tile);
        }
        for (i, v) in acc.iter_mut().enumerate().take(count) {
            epilogue.apply::<I, S>([m0 + i, n0, n], v, sink, tile.row(m0 + i));
        }
    }
}

/// Writes sixteen channels from `first` as floats into `panel`, in the order (input, channel). `wide` holds the
/// channels row by row on the way.
fn fill_panel<I: Isa>(
    isa: I,
    weight: &TensorView<'_>,
    first: usize,
    n: usize,
    k: usize,
    wide: &mut [f32],
    panel: &mut [f32],
) {
    let rows = GROUP.min(n - first);
    let source: &[f32] = match weight {
        TensorView::F32(w) => &w[first * k..][..rows * k],
        TensorView::F16(w) => {
            // `half` chooses its own conversion instructions at run time.
            w[first * k..][..rows * k].convert_to_f32_slice(&mut wide[..rows * k]);
            wide
        }
        TensorView::Codes(matrix) => {
            isa.run(Dequantize, (matrix, first, &mut wide[..rows * k]));
            wide
        }
    };
    isa.run(Transpose, (&source[..rows * k], rows, k, panel));
}

vectorized! {
    /// `panel[j][r] = source[r][j]`, rows beyond `rows` 0. In blocks, so that both sides stay in the nearest cache.
    fn Transpose<'a, I>(source: &'a [f32], rows: usize, k: usize, panel: &'a mut [f32]) {
        if rows < GROUP {
            panel.fill(0.0);
        }
        for (block, out) in panel.chunks_mut(16 * GROUP).enumerate() {
            let width = out.len() / GROUP;
            for r in 0..rows {
                let row = &source[r * k + block * 16..][..width];
                for (j, &x) in row.iter().enumerate() {
                    out[j * GROUP + r] = x;
                }
            }
        }
    }
}

vectorized! {
    /// Dequantizes the rows of `matrix` from `first` into `out`.
    fn Dequantize<'a, I>(matrix: &'a PackedMatrix<'a>, first: usize, out: &'a mut [f32]) {
        let cols = matrix.layout.cols;
        let levels = matrix.layout.bits.levels();
        for (r, out) in out.chunks_exact_mut(cols).enumerate() {
            let row = first + r;
            let start = matrix.table_start(row);
            let (scale, offset) = (matrix.scale[row], matrix.offset[row]);
            let mut table = [0.0f32; 256];
            match matrix.tables {
                Tables::I8(t) => {
                    for (to, &c) in table.iter_mut().zip(&t[start..start + levels]) {
                        *to = scale * (f32::from(c) + offset);
                    }
                }
                Tables::F16(t) => {
                    for (to, &c) in table.iter_mut().zip(&t[start..start + levels]) {
                        *to = scale * (f16::to_f32(c) + offset);
                    }
                }
            }
            for (chunk, out) in out.chunks_mut(16).enumerate() {
                let codes = matrix.codes16(row, chunk);
                for (x, code) in out.iter_mut().zip(codes) {
                    *x = table[usize::from(code)];
                }
            }
        }
    }
}
