//! The sums that a calibration keeps of a layer's input, and how values are added to them.
//!
//! Products are made in f32, of blocks of at most [`BLOCK`] rows of one image, and added in f64, one block after the other,
//! in the order of images, branches and rows. So neither the batch that a network worked on nor the number of threads
//! shows in a sum, and sums over the parts of a set of images add up to those over all but for the rounding of f64.

use super::hash::{Place, Share, keeps};
use super::ranges::Extent;
use super::windows::{KERNEL, TAPS, Windows, displacements};
use crate::quantize::BINS;
use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul, s};
use rayon::prelude::*;

/// Most rows of an f32 product.
pub const BLOCK: usize = 256;
/// Rows of a product's result that one task makes.
const BAND: usize = 64;

/// What the rows of an input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The input's own, of so many values.
    Own(usize),
    /// Windows, each in full.
    Windows(Windows),
    /// Windows, whose moments are kept by displacement.
    Displacements(Windows),
}

impl Rows {
    /// Values of a row, `K`.
    pub fn inputs(&self) -> usize {
        match self {
            Rows::Own(inputs) => *inputs,
            Rows::Windows(windows) | Rows::Displacements(windows) => TAPS * windows.channels,
        }
    }

    /// Channels of the input itself.
    pub fn channels(&self) -> usize {
        match self {
            Rows::Own(inputs) => *inputs,
            Rows::Windows(windows) | Rows::Displacements(windows) => windows.channels,
        }
    }

    /// Numbers of the sum over windows at every pixel.
    pub fn walk_len(&self) -> usize {
        if matches!(self, Rows::Displacements(_)) { self.inputs() } else { 0 }
    }

    /// Numbers of the second moments.
    pub fn second_len(&self) -> usize {
        match self {
            Rows::Own(_) | Rows::Windows(_) => self.inputs() * (self.inputs() + 1) / 2,
            Rows::Displacements(windows) => displacements().count() * windows.channels * windows.channels,
        }
    }
}

/// Sums over the rows of an input.
#[derive(Clone, Debug, PartialEq)]
pub struct Sums {
    /// Weight of the rows.
    pub weight: f64,
    /// Rows, whatever their weight.
    pub rows: f64,
    /// Pixels that kernels moved over, where moments are kept by displacement: what `second` is per.
    pub pixels: f64,
    /// Groups of values with a quantization scale in common.
    pub groups: f64,
    /// Sum over groups of (greatest - least)^2.
    pub squared_ranges: f64,
    /// `sum x`, K values.
    pub sum: Vec<f64>,
    /// Where moments are kept by displacement, `sum x` over windows at every pixel, whatever the stride; else empty.
    pub walk: Vec<f64>,
    /// `sum x x^T`: as [`SecondMoments`](crate::quantize::SecondMoments) has it.
    pub second: Vec<f64>,
    /// `(calls, channels)`: least of each channel at each call.
    pub low: Vec<f32>,
    /// `(calls, channels)`: greatest of each channel at each call.
    pub high: Vec<f32>,
    /// `(calls, BINS)`: histograms of magnitudes.
    pub bins: Vec<u64>,
}

impl Sums {
    /// Sums of nothing.
    pub fn new(rows: &Rows, calls: usize) -> Self {
        let (extremes, low, high) = (calls * rows.channels(), f32::INFINITY, f32::NEG_INFINITY);
        Sums {
            weight: 0.0,
            rows: 0.0,
            pixels: 0.0,
            groups: 0.0,
            squared_ranges: 0.0,
            sum: vec![0.0; rows.inputs()],
            walk: vec![0.0; rows.walk_len()],
            second: vec![0.0; rows.second_len()],
            low: vec![low; extremes],
            high: vec![high; extremes],
            bins: vec![0; calls * BINS],
        }
    }

    /// Bytes that they take in memory and in a file.
    pub fn bytes(rows: &Rows, calls: usize) -> usize {
        8 * (5 + rows.inputs() + rows.walk_len() + rows.second_len() + calls * BINS) + 8 * calls * rows.channels()
    }

    fn add_extent(&mut self, extent: &Extent, call: usize, weight: f32) {
        let weight = f64::from(weight);
        self.groups += weight * extent.groups as f64;
        self.squared_ranges += weight * extent.squared_ranges;
        let of_call = call * extent.low.len();
        self.low[of_call..].iter_mut().zip(&extent.low).for_each(|(low, &v)| *low = low.min(v));
        self.high[of_call..].iter_mut().zip(&extent.high).for_each(|(high, &v)| *high = high.max(v));
        let bins = &mut self.bins[call * BINS..][..BINS];
        bins.iter_mut().zip(extent.bins).for_each(|(bin, n)| *bin += n * weight as u64);
    }
}

/// Values of one sample or condition, rows of channels.
#[derive(Clone, Copy)]
pub struct Slice<'a> {
    /// The values.
    pub values: &'a [f32],
    /// Where they come from.
    pub place: Place,
    /// How often they count, a whole number.
    pub weight: f32,
}

/// Rows that are multiplied at once.
#[derive(Clone, Copy)]
struct Block {
    rows: usize,
    /// How often each counts.
    weight: f64,
}

/// Sums on their way, and the rows that are not yet in them.
pub struct Accumulator {
    /// What rows are.
    rows: Rows,
    /// Which rows are kept.
    share: Share,
    /// What is done.
    pub sums: Sums,
    /// Rows to be added; of [`Rows::Displacements`], padded planes.
    pending: Vec<f32>,
    /// How they are taken together.
    blocks: Vec<Block>,
}

impl Accumulator {
    /// One that goes on from `sums`.
    pub fn new(rows: Rows, share: Share, sums: Sums) -> Self {
        Accumulator { rows, share, sums, pending: Vec::new(), blocks: Vec::new() }
    }

    /// Bytes of rows that wait.
    pub fn pending_bytes(&self) -> usize {
        4 * self.pending.len()
    }

    /// Takes `slices`, the values of call `call` of this input's own count, those of an image one after the other.
    ///
    /// # Errors
    /// The first value that is not finite.
    pub fn push(&mut self, call: usize, slices: &[Slice<'_>]) -> Result<(), f32> {
        let (channels, whole) = (self.rows.channels(), !matches!(self.rows, Rows::Own(_)));
        let extents: Vec<Extent> = slices.par_iter().map(|s| Extent::of(s.values, channels, whole)).collect();
        for (slice, extent) in slices.iter().zip(&extents) {
            match extent.fault {
                Some(fault) => return Err(fault),
                None => self.sums.add_extent(extent, call, slice.weight),
            }
        }
        for slices in slices.chunk_by(|a, b| a.place.image == b.place.image && a.weight == b.weight) {
            let before = self.pending.len();
            slices.iter().for_each(|slice| self.take(slice));
            if matches!(self.rows, Rows::Own(_) | Rows::Windows(_)) {
                let (rows, weight) = ((self.pending.len() - before) / self.rows.inputs(), f64::from(slices[0].weight));
                self.sums.rows += rows as f64;
                self.sums.weight += weight * rows as f64;
                self.blocks.extend((0..rows).step_by(BLOCK).map(|at| Block { rows: BLOCK.min(rows - at), weight }));
            }
        }
        Ok(())
    }

    /// Appends the rows of `slice` that are kept to those that wait.
    fn take(&mut self, slice: &Slice<'_>) {
        let keep = |position: &usize| keeps(self.share, slice.place, *position);
        match &self.rows {
            Rows::Own(inputs) => {
                for position in (0..slice.values.len() / inputs).filter(keep) {
                    self.pending.extend_from_slice(&slice.values[position * inputs..][..*inputs]);
                }
            }
            Rows::Windows(windows) => {
                for index in (0..windows.count()).filter(keep) {
                    windows.append(slice.values, index, &mut self.pending);
                }
            }
            Rows::Displacements(windows) => {
                let [height, width] = windows.walked();
                self.pending.extend(windows.padded(slice.values));
                windows.add_to(slice.values, &mut self.sums.sum);
                windows.add_walk_to(slice.values, &mut self.sums.walk);
                self.sums.weight += windows.count() as f64;
                self.sums.rows += windows.count() as f64;
                self.sums.pixels += (height * width) as f64;
            }
        }
    }

    /// What there is to do with the rows that wait.
    fn work(&mut self) -> Vec<Work<'_>> {
        let inputs = self.rows.inputs();
        match &self.rows {
            _ if self.pending.is_empty() => Vec::new(),
            Rows::Own(_) | Rows::Windows(_) => {
                let rows = ArrayView2::from_shape((self.pending.len() / inputs, inputs), &self.pending);
                let rows = rows.expect("rows are whole");
                let blocks = &self.blocks[..];
                let mut work = vec![Work::Mean { rows, blocks, sum: &mut self.sums.sum }];
                let mut rest = &mut self.sums.second[..];
                for first in (0..inputs).step_by(BAND) {
                    let end = (first + BAND).min(inputs);
                    let band;
                    (band, rest) = rest.split_at_mut(triangle(end) - triangle(first));
                    work.push(Work::Band { rows, blocks, first, end, band });
                }
                work
            }
            Rows::Displacements(windows) => {
                let (channels, pixels) = (windows.channels, windows.walked()[0] * windows.pitch());
                let planes = &self.pending[..];
                let lags = self.sums.second.chunks_exact_mut(channels * channels);
                let mut work = Vec::new();
                for ((dy, dx), lag) in displacements().zip(lags) {
                    let distance = (dy * windows.pitch()).checked_add_signed(dx).expect("it points ahead");
                    for (i, band) in lag.chunks_mut(BAND * channels).enumerate() {
                        work.push(Work::Lag { planes, pixels, channels, distance, first: i * BAND, band });
                    }
                }
                work
            }
        }
    }
}

/// Adds the rows that wait to the sums.
pub fn flush<'a>(accumulators: impl IntoIterator<Item = &'a mut Accumulator>) {
    let mut accumulators: Vec<_> = accumulators.into_iter().collect();
    let work: Vec<Work<'_>> = accumulators.iter_mut().flat_map(|a| a.work()).collect();
    work.into_par_iter().for_each(Work::run);
    for accumulator in accumulators {
        // With their memory: other inputs need it next.
        accumulator.pending = Vec::new();
        accumulator.blocks = Vec::new();
    }
}

/// Numbers of a lower triangle's first `rows` rows.
fn triangle(rows: usize) -> usize {
    rows * (rows + 1) / 2
}

/// A part of the sums, and what is to be added to it: independent of all others.
enum Work<'a> {
    /// `sum x`.
    Mean { rows: ArrayView2<'a, f32>, blocks: &'a [Block], sum: &'a mut [f64] },
    /// Rows `first..end` of the triangle of `sum x x^T`.
    Band { rows: ArrayView2<'a, f32>, blocks: &'a [Block], first: usize, end: usize, band: &'a mut [f64] },
    /// Rows from `first` of `sum_p x[p] x[p + distance]^T` over planes of so many pixels.
    Lag { planes: &'a [f32], pixels: usize, channels: usize, distance: usize, first: usize, band: &'a mut [f64] },
}

impl Work<'_> {
    fn run(self) {
        match self {
            Work::Mean { rows, blocks, sum } => {
                let weights = blocks.iter().flat_map(|block| std::iter::repeat_n(block.weight, block.rows));
                for (row, weight) in rows.outer_iter().zip(weights) {
                    sum.iter_mut().zip(row).for_each(|(sum, &v)| *sum += weight * f64::from(v));
                }
            }
            Work::Band { rows, blocks, first, end, band } => add_band(rows, blocks, first..end, band),
            Work::Lag { planes, pixels, channels, distance, first, band } => {
                for plane in planes.chunks_exact(pixels * channels) {
                    let plane = ArrayView2::from_shape((pixels, channels), plane).expect("a plane of pixels");
                    add_lag(plane, distance, first, band);
                }
            }
        }
    }
}

fn add_band(rows: ArrayView2<'_, f32>, blocks: &[Block], range: std::ops::Range<usize>, band: &mut [f64]) {
    let (height, width) = (range.len(), range.end);
    let mut product = vec![0f32; height * width];
    let mut at = 0;
    for &Block { rows: count, weight } in blocks {
        let block = rows.slice(s![at..at + count, ..width]);
        at += count;
        let left = block.slice(s![.., range.clone()]);
        let mut to = ArrayViewMut2::from_shape((height, width), &mut product).expect("as many values as entries");
        general_mat_mul(1.0, &left.t(), &block, 0.0, &mut to);
        let mut rest = &mut band[..];
        for (row, product) in range.clone().zip(product.chunks_exact(width)) {
            let sums;
            (sums, rest) = rest.split_at_mut(row + 1);
            sums.iter_mut().zip(product).for_each(|(sum, &v)| *sum += weight * f64::from(v));
        }
    }
}

fn add_lag(plane: ArrayView2<'_, f32>, distance: usize, first: usize, band: &mut [f64]) {
    let (pixels, channels) = plane.dim();
    let height = band.len() / channels;
    let mut product = vec![0f32; band.len()];
    let end = pixels.saturating_sub(distance);
    for at in (0..end).step_by(BLOCK) {
        let stop = (at + BLOCK).min(end);
        let left = plane.slice(s![at..stop, first..first + height]);
        let right = plane.slice(s![at + distance..stop + distance, ..]);
        let mut to = ArrayViewMut2::from_shape((height, channels), &mut product).expect("as many values as entries");
        general_mat_mul(1.0, &left.t(), &right, 0.0, &mut to);
        band.iter_mut().zip(&product).for_each(|(sum, &v)| *sum += f64::from(v));
    }
}

/// Height and width of the kernel of `rows`, if it has one.
pub fn kernel(rows: &Rows) -> Option<[usize; 2]> {
    (!matches!(rows, Rows::Own(_))).then_some(KERNEL)
}

#[cfg(test)]
mod tests;
