//! Products of codes by codes: exact sums in integers, made floats when they are done.

use super::super::arena::{CodesView, typed_mut};
use super::super::epilogue::Epilogue;
use super::super::math::fma;
use super::super::scratch;
use super::super::simd::tiles::{MatrixMut, Order, TileMut, for_each_tile};
use super::super::simd::{GROUP, Isa, MR, NR, Tile, Vectorized, panel_len};
use super::super::sink::Sink;
use super::{RowSource, Windows, row_step};
use crate::codec::layout::{PackedMatrix, Tables};
use std::marker::PhantomData;
use std::ops::Range;

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
pub fn product_i8<I: Isa, S: Sink>(
    isa: I,
    rows: &impl RowSource<u8>,
    codes: &CodesView<'_>,
    weight: &PackedMatrix<'_>,
    epilogue: &Epilogue<'_>,
    sink: S,
    out: MatrixMut<'_, S::Element>,
) {
    let per_output = epilogue.channels();
    let (m, n) = (out.rows(), weight.layout.rows);
    let (taps, len) = (rows.taps(), rows.len());
    let group = GROUP * panel_len(taps * len);
    // The windows of neighbours overlap: an image takes a row's inputs once, not once per tap.
    let step = [row_step(m, n, len, 1 << 20), NR / per_output];
    // By rows: activations are larger than packed weights where either leaves the caches (bench `conv`: 3 to 6 % faster).
    for_each_tile(out, step, Order::ByRows, |mut tile| {
        let mut finish = Finish::new(codes, weight, epilogue, sink, [taps, len], m, tile.cols.clone());
        let (n0, groups) = (finish.channels.start, finish.channels.len().div_ceil(GROUP));
        scratch::with(groups * group, |panel| {
            let panel: &mut [i8] = typed_mut(panel);
            for (g, part) in panel.chunks_exact_mut(group).enumerate() {
                isa.decode(weight, n0 / GROUP + g, part);
            }
            let mut windows = Windows::new();
            let mut acc: Tile<i32> = [[0; NR]; MR];
            for m0 in tile.rows.clone().step_by(MR) {
                let count = (tile.rows.end - m0).min(MR);
                rows.fill(m0, count, &mut windows);
                finish.prefetch(isa, m0..m0 + count, &mut tile);
                let largest = finish.largest;
                isa.tile_i8(&windows.slices[..taps * MR], len.div_ceil(4), panel, groups, largest, &mut acc);
                finish.run(isa, [m0, count], &windows, &acc, &mut tile);
            }
        });
    });
}

/// Makes results of integer sums, for the channels of a tile.
///
/// With `x = s (q - z)` and `w = r (c + o)`, the product of a row is
/// `s r (sum q c + o sum q - z (sum c + o K))`, where sums run over valid taps and `K` counts their inputs.
pub struct Finish<'a, S> {
    codes: &'a CodesView<'a>,
    weight: &'a PackedMatrix<'a>,
    epilogue: &'a Epilogue<'a>,
    sink: S,
    /// The tile's channels of the product.
    pub channels: Range<usize>,
    /// The greatest magnitude of a code times a table entry of these channels.
    pub largest: u32,
    constants: Constants,
    weight_sums: WeightSums,
    taps: usize,
    len: usize,
    rows_per_scale: usize,
}

impl<'a, S: Sink> Finish<'a, S> {
    /// For the channels behind `outputs`, columns of a result of `m` rows, each the product of `taps` slices of `len` codes.
    pub fn new(
        codes: &'a CodesView<'a>,
        weight: &'a PackedMatrix<'a>,
        epilogue: &'a Epilogue<'a>,
        sink: S,
        [taps, len]: [usize; 2],
        m: usize,
        outputs: Range<usize>,
    ) -> Self {
        let per_output = epilogue.channels();
        let channels = outputs.start * per_output..outputs.end * per_output;
        let n0 = channels.start;
        let wide = channels.len().next_multiple_of(GROUP);
        let mut constants = Constants { scale: [0.0; NR], offset: [0.0; NR] };
        constants.scale[..wide].copy_from_slice(&weight.scale[n0..n0 + wide]);
        constants.offset[..wide].copy_from_slice(&weight.offset[n0..n0 + wide]);
        Finish {
            codes,
            weight,
            epilogue,
            sink,
            channels,
            largest: largest_product(codes, weight, n0..n0 + wide),
            constants,
            weight_sums: WeightSums::new(),
            taps,
            len,
            rows_per_scale: m / codes.scale.len(),
        }
    }

    /// Asks for the memory that rows will be stored to and are added to.
    #[inline(always)]
    pub fn prefetch<I: Isa>(&self, isa: I, rows: Range<usize>, tile: &mut TileMut<'_, S::Element>) {
        let n = self.weight.layout.rows;
        for row in rows {
            isa.prefetch(tile.row(row));
            if let Some(residual) = self.epilogue.residual {
                let at = self.epilogue.residual_at(row, n, residual.len());
                isa.prefetch(&residual[at + self.channels.start..][..self.channels.len()]);
            }
        }
    }

    /// Finishes and stores `count` rows from `m0` on, at most `MR`, whose windows and integer sums are given.
    #[inline(always)]
    pub fn run<I: Isa>(
        &mut self,
        isa: I,
        [m0, count]: [usize; 2],
        windows: &Windows<'_, u8>,
        acc: &Tile<i32>,
        tile: &mut TileMut<'_, S::Element>,
    ) {
        let (weight, codes, n0) = (self.weight, self.codes, self.channels.start);
        let padded_rows = weight.layout.padded_rows();
        let all_taps = (1u32 << self.taps) - 1;
        // One division for all of them; from there the scale of a row is found by counting.
        let mut at = m0 / self.rows_per_scale;
        let mut next = (at + 1) * self.rows_per_scale;
        let mut sets = [0; MR];
        let x: [RowConstants; MR] = std::array::from_fn(|i| {
            if m0 + i.min(count - 1) == next {
                at += 1;
                next += self.rows_per_scale;
            }
            let valid = windows.valid[i];
            sets[i] = self.weight_sums.index(valid, |out| {
                let mut sums = [0i32; NR];
                // The weight may have more taps than the rows: a patch embedding is a linear layer to its input.
                for tap in (0..weight.layout.taps).filter(|&t| valid == all_taps || valid >> t & 1 == 1) {
                    let of_tap = &weight.tap_sums[tap * padded_rows + n0..];
                    // The file's numbers: those of real codes stay far from wrapping, others are nonsense anyway.
                    sums.iter_mut().zip(of_tap).for_each(|(sum, s)| *sum = sum.wrapping_add(*s));
                }
                *out = sums.map(|sum| sum as f32);
            });
            let inputs = (if valid == all_taps { self.taps } else { valid.count_ones() as usize } * self.len) as f32;
            RowConstants { scale: codes.scale[at], zero: codes.zero[at], sum: windows.sum[i] as f32, inputs }
        });
        let weight_sums: [&[f32; NR]; MR] = std::array::from_fn(|i| &self.weight_sums.sums[sets[i]]);
        let sums = Sums { acc, count, c: &self.constants, weight_sums: &weight_sums, x: &x };
        isa.run(Rescale(PhantomData), (sums, self.epilogue, [m0, n0, weight.layout.rows], self.sink, tile.reborrow()));
    }
}

/// The greatest magnitude of a code times an entry of the codebooks of `rows`; 0 if these are floats.
pub fn largest_product(codes: &CodesView<'_>, weight: &PackedMatrix<'_>, rows: Range<usize>) -> u32 {
    let Tables::I8(tables) = weight.tables else { return 0 };
    let entries = weight.table_start(rows.start)..weight.table_start(rows.end - 1) + weight.layout.bits.levels();
    let largest = tables[entries].iter().map(|entry| u32::from(entry.unsigned_abs())).max();
    u32::from(codes.top) * largest.unwrap_or(0)
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
