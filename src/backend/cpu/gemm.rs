//! Matrix products of activations by packed weights: the loop nest around the micro-kernels.
//!
//! ```text
//! for each tile of the output (48 channels by some hundred rows), in parallel:
//!     decode the weights of these channels into a panel in private memory      (once per tile)
//!     for each 8 rows: micro-kernel over all inputs; epilogue; store
//! ```
//!
//! Decoding costs 2 to 3 % of the products of 512 rows. Nothing of the weight is ever kept decoded beyond its tile.
//! Cutting the inputs into blocks whose panel fits the first-level cache was tried and lost, for codes and floats
//! alike (bench `linear`, blocks of 288, 576 and 1152 inputs): the panel streams well from the second level, and sums
//! carried from block to block cost more than they save. Asking for the panel's lines ahead of their use changed nothing.
//!
//! A convolution is the same product: row `m` is an output pixel, and its inputs are nine slices of the image, found
//! by [`RowSource`]; nothing is copied. (A few lines above our usual length, to keep both products side by side.)

use super::arena::CodesView;
use super::epilogue::Epilogue;
use super::math::fma;
use super::scratch;
use super::simd::tiles::{MatrixMut, Order, TileMut, for_each_tile};
use super::simd::{GROUP, Isa, MR, NR, Tile, Vectorized, panel_len, vectorized};
use super::sink::Sink;
use crate::backend::args::Input;
use crate::codec::layout::{PackedMatrix, Tables};
use crate::format::TensorView;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::marker::PhantomData;
use std::ops::Range;

/// Most kernel taps.
pub const MAX_TAPS: usize = 9;

/// Finds the slices of activations that make an output row.
pub trait RowSource<T>: Sync {
    /// Slices per row.
    fn taps(&self) -> usize;
    /// Length of each.
    fn len(&self) -> usize;
    /// Finds the windows of rows `first..first + count` (at most `MR`); repeats the last to fill the tile.
    fn fill<'a>(&'a self, first: usize, count: usize, out: &mut Windows<'a, T>);
}

/// What `MR` output rows are made of.
pub struct Windows<'a, T> {
    /// Slice `tap * MR + i` lies under tap `tap` of row `i`.
    pub slices: [&'a [T]; MAX_TAPS * MR],
    /// The taps of each row that are not padding, as bits.
    pub valid: [u32; MR],
    /// The sum of the codes under each row's valid taps; 0 for floats.
    pub sum: [i32; MR],
}

impl<T> Windows<'_, T> {
    fn new() -> Self {
        Windows { slices: [&[]; MAX_TAPS * MR], valid: [0; MR], sum: [0; MR] }
    }
}

/// Rows that lie one after another.
pub struct Matrix<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Elements from row to row.
    pub stride: usize,
    /// Elements of a row that count.
    pub len: usize,
    /// Sum of each row's codes; empty for floats.
    pub sums: &'a [i32],
}

impl<T: Sync> RowSource<T> for Matrix<'_, T> {
    fn taps(&self) -> usize {
        1
    }

    fn len(&self) -> usize {
        self.len
    }

    fn fill<'a>(&'a self, first: usize, count: usize, out: &mut Windows<'a, T>) {
        for i in 0..MR {
            let row = first + i.min(count - 1);
            out.slices[i] = &self.data[row * self.stride..][..self.stride];
            (out.valid[i], out.sum[i]) = (1, self.sums.get(row).copied().unwrap_or(0));
        }
    }
}

/// Most rows of output per tile.
const MOST_ROWS: usize = 1024;
/// Rows of output per tile: enough to pay for decoding a panel, few enough that the activations of a tile stay near,
/// and that there are tiles for all threads. Does not change any result.
fn row_step(m: usize, n: usize, bytes_per_row: usize, near: usize) -> usize {
    let mut step = (near / bytes_per_row.max(1)).clamp(128, MOST_ROWS).min(m.max(1));
    let panels = n.div_ceil(NR);
    while step > 64 && panels * m.div_ceil(step) < 4 * rayon::current_num_threads() {
        step = step.div_ceil(2);
    }
    step.next_multiple_of(MR)
}

/// Bytes of private memory a product needs.
pub fn scratch_bytes(x: &Input, taps: usize) -> usize {
    match x {
        Input::Codes(c) => NR * panel_len(c.cols * taps),
        Input::Floats(f) => (NR * f.cols * taps + GROUP * f.cols * taps) * 4,
    }
}

/// What a panel of 48 channels needs beside its weights.
struct Constants {
    scale: [f32; NR],
    offset: [f32; NR],
}

/// Most different sets of valid taps of a product: an output pixel lies first, last or between along each axis.
const MAX_SETS: usize = 9;

/// Sums of the table entries of a panel's channels, over the taps that are valid. Worked out when a set of taps first
/// turns up: rows at the left and right border come by turns.
struct WeightSums {
    len: usize,
    valid: [u32; MAX_SETS],
    sums: [[f32; NR]; MAX_SETS],
}

impl WeightSums {
    fn new() -> Self {
        WeightSums { len: 0, valid: [0; MAX_SETS], sums: [[0.0; NR]; MAX_SETS] }
    }

    /// The index of the sums for a set of taps; `make` works them out.
    #[inline(always)]
    fn index(&mut self, valid: u32, make: impl FnOnce(&mut [f32; NR])) -> usize {
        if let Some(at) = self.valid[..self.len].iter().position(|&v| v == valid) {
            return at;
        }
        let at = self.len;
        make(&mut self.sums[at]);
        self.valid[at] = valid;
        self.len += 1;
        at
    }
}

/// `out = epilogue(x W^T)` with integer codes on both sides; `out` has as many columns as the weight has rows, or half as
/// many if the epilogue is gated.
///
/// With `x = s (q - z)` and `w = r (c + o)`, the product of a row is
/// `s r (sum q c + o sum q - z (sum c + o K))`, where sums run over valid taps and `K` counts their inputs.
pub fn product_i8<I: Isa, S: Sink>(
    isa: I,
    rows: &impl RowSource<u8>,
    codes: &CodesView<'_>,
    weight: &PackedMatrix<'_>,
    epilogue: &Epilogue<'_>,
    sink: S,
    out: MatrixMut<'_, S::Element>,
) {
    let (n, per_output) = (weight.layout.rows, epilogue.channels());
    let m = out.rows();
    let (taps, len) = (rows.taps(), rows.len());
    let group = GROUP * panel_len(taps * len);
    let padded_rows = weight.layout.padded_rows();
    // The weight may have more taps than the rows: a patch embedding is a linear layer to its input.
    let weight_taps = weight.layout.taps;
    let all_taps = (1u32 << taps) - 1;
    let rows_per_scale = m / codes.scale.len();
    // The windows of neighbours overlap: an image takes a row's inputs once, not once per tap.
    let step = [row_step(m, n, len, 1 << 20), NR / per_output];
    // By rows: activations are larger than packed weights where either leaves the caches (bench `conv`: 3 to 6 % faster).
    for_each_tile(out, step, Order::ByRows, |mut tile| {
        let [n0, cols] = [tile.cols.start, tile.cols.len()].map(|outputs| outputs * per_output);
        let groups = cols.div_ceil(GROUP);
        scratch::with(groups * group, |panel| {
            let panel: &mut [i8] = super::arena::typed_mut(panel);
            for (g, part) in panel.chunks_exact_mut(group).enumerate() {
                isa.decode(weight, n0 / GROUP + g, part);
            }
            let mut c = Constants { scale: [0.0; NR], offset: [0.0; NR] };
            let wide = groups * GROUP;
            c.scale[..wide].copy_from_slice(&weight.scale[n0..n0 + wide]);
            c.offset[..wide].copy_from_slice(&weight.offset[n0..n0 + wide]);
            let largest = u32::from(codes.top) * largest_entry(weight, n0..n0 + wide);
            let mut weight_sums = WeightSums::new();
            let mut windows = Windows::new();
            let mut acc: Tile<i32> = [[0; NR]; MR];
            // The scale of a row is found by counting, not by dividing.
            let mut at = tile.rows.start / rows_per_scale;
            let mut next = (at + 1) * rows_per_scale;
            for m0 in tile.rows.clone().step_by(MR) {
                let count = (tile.rows.end - m0).min(MR);
                rows.fill(m0, count, &mut windows);
                for row in m0..m0 + count {
                    isa.prefetch(tile.row(row));
                    if let Some(residual) = epilogue.residual {
                        isa.prefetch(&residual[epilogue.residual_at(row, n, residual.len()) + n0..][..cols]);
                    }
                }
                isa.tile_i8(&windows.slices[..taps * MR], len.div_ceil(4), panel, groups, largest, &mut acc);
                let mut sets = [0; MR];
                let x: [RowConstants; MR] = std::array::from_fn(|i| {
                    if m0 + i.min(count - 1) == next {
                        at += 1;
                        next += rows_per_scale;
                    }
                    let valid = windows.valid[i];
                    sets[i] = weight_sums.index(valid, |out| {
                        let mut sums = [0i32; NR];
                        for tap in (0..weight_taps).filter(|&t| valid == all_taps || valid >> t & 1 == 1) {
                            let of_tap = &weight.tap_sums[tap * padded_rows + n0..][..wide];
                            // The file's numbers: those of real codes stay far from wrapping, others are nonsense anyway.
                            sums.iter_mut().zip(of_tap).for_each(|(sum, s)| *sum = sum.wrapping_add(*s));
                        }
                        *out = sums.map(|sum| sum as f32);
                    });
                    let inputs = (if valid == all_taps { taps } else { valid.count_ones() as usize } * len) as f32;
                    RowConstants { scale: codes.scale[at], zero: codes.zero[at], sum: windows.sum[i] as f32, inputs }
                });
                let sums: [&[f32; NR]; MR] = std::array::from_fn(|i| &weight_sums.sums[sets[i]]);
                let sums = Sums { acc: &acc, count, c: &c, weight_sums: &sums, x: &x };
                isa.run(Rescale(PhantomData), (sums, epilogue, [m0, n0, n], sink, tile.reborrow()));
            }
        });
    });
}

/// The greatest magnitude in the codebooks of `rows`; 0 if they are floats.
fn largest_entry(weight: &PackedMatrix<'_>, rows: Range<usize>) -> u32 {
    let Tables::I8(tables) = weight.tables else { return 0 };
    let entries = weight.table_start(rows.start)..weight.table_start(rows.end - 1) + weight.layout.bits.levels();
    tables[entries].iter().map(|entry| u32::from(entry.unsigned_abs())).max().unwrap_or(0)
}

/// What a row of activations needs beside its codes.
struct RowConstants {
    scale: f32,
    zero: f32,
    /// Sum of the codes under the window.
    sum: f32,
    /// Number of inputs under the window, padding not counted.
    inputs: f32,
}

/// The product of a row, from its integer sums.
#[inline(always)]
fn rescale<I: Isa>(acc: &[i32; NR], weight_sum: &[f32; NR], x: &RowConstants, c: &Constants) -> [f32; NR] {
    // sum q - z K multiplies o; both factors are exact for integral zero points.
    let shifted = fma::<I>(-x.zero, x.inputs, x.sum);
    let mut v = [0.0; NR];
    for j in 0..NR {
        let product = fma::<I>(-x.zero, weight_sum[j], acc[j] as f32);
        v[j] = x.scale * c.scale[j] * fma::<I>(c.offset[j], shifted, product);
    }
    v
}

/// Integer sums of `count` rows, and what makes them floats.
struct Sums<'a> {
    acc: &'a Tile<i32>,
    count: usize,
    c: &'a Constants,
    weight_sums: &'a [&'a [f32; NR]; MR],
    x: &'a [RowConstants; MR],
}

/// Turns integer sums into floats and finishes them.
struct Rescale<S>(PhantomData<S>);

impl<S: Sink> Vectorized for Rescale<S> {
    type Arguments<'a> = (Sums<'a>, &'a Epilogue<'a>, [usize; 3], S, TileMut<'a, S::Element>);
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>((sums, epilogue, [m0, n0, n], sink, mut tile): Self::Arguments<'_>) {
        let Sums { acc, count, c, weight_sums, x } = sums;
        if epilogue.gated {
            let mut v: Tile<f32> = [[0.0; NR]; MR];
            for i in 0..MR {
                v[i] = rescale::<I>(&acc[i], weight_sums[i], &x[i], c);
            }
            return epilogue.apply_gated::<I, S>([m0, n0], &v, count, sink, &mut tile);
        }
        for i in 0..count {
            let mut v = rescale::<I>(&acc[i], weight_sums[i], &x[i], c);
            epilogue.apply::<I, S>([m0 + i, n0, n], &mut v, sink, tile.row(m0 + i));
        }
    }
}

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
            let (panel, wide) = super::arena::floats_mut(bytes).split_at_mut(groups * group);
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
