//! The sums that a calibration keeps of a layer's input, and how values are added to them.
//!
//! Products are made in f32, of blocks of at most [`BLOCK`] rows of one image, and added in f64, one block after the other,
//! in the order of images, branches and rows. So neither the batch that a network worked on nor the number of threads
//! shows in a sum, and sums over the parts of a set of images add up to those over all but for the rounding of f64.

use super::hash::{Place, Share, keeps};
use super::ranges::{BINS, Extent, greatest, least};
use super::windows::{KERNEL, TAPS, Windows, displacements};
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
    /// `sum x x^T`: as [`SecondMoments`](crate::quantize::SecondMoments) has it.
    pub second: Vec<f64>,
    /// Least of each channel.
    pub low: Vec<f32>,
    /// Greatest of each channel.
    pub high: Vec<f32>,
    /// Least of each call.
    pub call_low: Vec<f32>,
    /// Greatest of each call.
    pub call_high: Vec<f32>,
    /// `(calls, BINS)`: histograms of magnitudes.
    pub bins: Vec<u64>,
}

impl Sums {
    /// Sums of nothing.
    pub fn new(rows: &Rows, calls: usize) -> Self {
        let (channels, low, high) = (rows.channels(), f32::INFINITY, f32::NEG_INFINITY);
        Sums {
            weight: 0.0,
            rows: 0.0,
            pixels: 0.0,
            groups: 0.0,
            squared_ranges: 0.0,
            sum: vec![0.0; rows.inputs()],
            second: vec![0.0; rows.second_len()],
            low: vec![low; channels],
            high: vec![high; channels],
            call_low: vec![low; calls],
            call_high: vec![high; calls],
            bins: vec![0; calls * BINS],
        }
    }

    /// Bytes that they take in memory and in a file.
    pub fn bytes(rows: &Rows, calls: usize) -> usize {
        8 * (5 + rows.inputs() + rows.second_len() + calls * BINS) + 8 * (rows.channels() + calls)
    }

    fn add_extent(&mut self, extent: &Extent, call: usize, weight: f32) {
        let weight = f64::from(weight);
        self.groups += weight * extent.groups as f64;
        self.squared_ranges += weight * extent.squared_ranges;
        self.low.iter_mut().zip(&extent.low).for_each(|(low, &v)| *low = low.min(v));
        self.high.iter_mut().zip(&extent.high).for_each(|(high, &v)| *high = high.max(v));
        self.call_low[call] = self.call_low[call].min(least(&extent.low));
        self.call_high[call] = self.call_high[call].max(greatest(&extent.high));
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
mod tests {
    use super::*;
    use aquatint::raw::program::ConvStride;

    /// Small integers, so that sums are exact and their order does not show.
    fn values(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 13) as f32 - 5.0).collect()
    }

    fn place(image: usize, branch: usize) -> Place {
        Place { image, call: 0, branch }
    }

    fn sums(rows: Rows, share: Share, slices: &[Slice<'_>]) -> Sums {
        let mut accumulator = Accumulator::new(rows, share, Sums::new(&rows, 1));
        accumulator.push(0, slices).expect("finite");
        flush([&mut accumulator]);
        flush([&mut accumulator]);
        accumulator.sums
    }

    /// The rows of windows of a plane, by the definition.
    fn rows_of(windows: &Windows, sample: &[f32]) -> Vec<Vec<f32>> {
        let Windows { channels, plane, out, sampling } = *windows;
        let walked = windows.walked();
        let at = |y: isize, x: isize, c: usize| {
            let inside = y >= 0 && x >= 0 && (y as usize) < walked[0] && (x as usize) < walked[1];
            let up = sampling.upsample() as isize;
            if inside { sample[((y / up) as usize * plane[1] + (x / up) as usize) * channels + c] } else { 0.0 }
        };
        let (stride, before) = (sampling.stride() as isize, sampling.before() as isize);
        let pixels = (0..out[0] as isize).flat_map(|y| (0..out[1] as isize).map(move |x| (y, x)));
        let row = |(y, x): (isize, isize)| {
            let taps = (0..3).flat_map(|dy| (0..3).map(move |dx| (dy, dx)));
            let tap = |(dy, dx)| (0..channels).map(move |c| (y * stride + dy - before, x * stride + dx - before, c));
            taps.flat_map(tap).map(|(y, x, c)| at(y, x, c)).collect()
        };
        pixels.map(row).collect()
    }

    fn all_windows() -> Vec<Windows> {
        let new = |channels, plane, out, sampling| Windows { channels, plane, out, sampling };
        vec![
            new(2, [4, 5], [4, 5], ConvStride::Same),
            new(70, [3, 2], [3, 2], ConvStride::Same),
            new(3, [5, 4], [3, 2], ConvStride::Down),
            new(3, [5, 4], [2, 2], ConvStride::DownPadEnd),
            new(2, [2, 3], [4, 6], ConvStride::Up),
            new(2, [2, 3], [3, 5], ConvStride::Up),
            new(1, [1, 1], [1, 1], ConvStride::Same),
        ]
    }

    #[test]
    fn sums_are_those_of_all_rows() {
        let own = |inputs: usize, rows: usize, seed| values(inputs * rows, seed);
        for (inputs, count) in [(1, 3), (5, 300), (130, 20), (64, 257)] {
            let (a, b) = (own(inputs, count, 1), own(inputs, count, 2));
            let slice = |values, image, weight| Slice { values, place: place(image, 0), weight };
            let got = sums(Rows::Own(inputs), None, &[slice(&a[..], 0, 1.0), slice(&b[..], 1, 3.0)]);
            let rows: Vec<(&[f32], f64)> =
                a.chunks(inputs).map(|r| (r, 1.0)).chain(b.chunks(inputs).map(|r| (r, 3.0))).collect();
            assert_eq!(
                (got.rows, got.weight, got.groups),
                (2.0 * count as f64, 4.0 * count as f64, 4.0 * count as f64)
            );
            let sum = |f: &dyn Fn(&[f32]) -> f64| rows.iter().map(|(r, w)| w * f(r)).sum::<f64>();
            for i in 0..inputs {
                assert_eq!(got.sum[i], sum(&|r| f64::from(r[i])));
                for j in 0..=i {
                    assert_eq!(got.second[triangle(i) + j], sum(&|r| f64::from(r[i]) * f64::from(r[j])), "{i} {j}");
                }
            }
            assert_eq!(got.bins.iter().sum::<u64>(), 4 * (inputs * count) as u64);
        }
    }

    #[test]
    fn windows_are_unfolded_and_padded() {
        for windows in all_windows() {
            let planes = [1, 2].map(|seed| values(windows.plane[0] * windows.plane[1] * windows.channels, seed));
            let slices = [0, 1].map(|i| Slice { values: &planes[i], place: place(i, 0), weight: 1.0 });
            let got = sums(Rows::Windows(windows), None, &slices);
            let rows: Vec<Vec<f32>> = planes.iter().flat_map(|plane| rows_of(&windows, plane)).collect();
            assert_eq!((got.rows, got.groups), (rows.len() as f64, 2.0), "{windows:?}");
            for i in 0..9 * windows.channels {
                for j in 0..=i {
                    let expected: f64 = rows.iter().map(|r| f64::from(r[i]) * f64::from(r[j])).sum();
                    assert_eq!(got.second[triangle(i) + j], expected, "{windows:?} {i} {j}");
                }
            }
            let by_displacement = sums(Rows::Displacements(windows), None, &slices);
            assert_eq!((by_displacement.rows, &by_displacement.sum), (got.rows, &got.sum), "{windows:?}");
            assert_eq!((by_displacement.low, by_displacement.bins), (got.low, got.bins));
        }
    }

    #[test]
    fn displacements_are_correlations_over_the_padded_plane() {
        for windows in all_windows() {
            let ([height, width], channels) = (windows.walked(), windows.channels);
            let sample = values(windows.plane[0] * windows.plane[1] * channels, 3);
            let slice = Slice { values: &sample, place: place(0, 0), weight: 1.0 };
            let got = sums(Rows::Displacements(windows), None, &[slice]);
            assert_eq!(got.pixels, (height * width) as f64);
            // The middle taps of the windows of a convolution of stride 1 over the plane are the plane itself.
            let walk = Windows { plane: windows.plane, out: [height, width], ..windows };
            let same = if walk.sampling == ConvStride::Up { walk.sampling } else { ConvStride::Same };
            let rows = rows_of(&Windows { sampling: same, ..walk }, &sample);
            let at = |y: isize, x: isize, c: usize| {
                let inside = y >= 0 && x >= 0 && (y as usize) < height && (x as usize) < width;
                if inside { f64::from(rows[y as usize * width + x as usize][4 * channels + c]) } else { 0.0 }
            };
            for ((dy, dx), lag) in displacements().zip(got.second.chunks(channels * channels)) {
                for (a, b) in (0..channels).flat_map(|a| (0..channels).map(move |b| (a, b))) {
                    let pixels = (0..height as isize).flat_map(|y| (0..width as isize).map(move |x| (y, x)));
                    let expected: f64 = pixels.map(|(y, x)| at(y, x, a) * at(y + dy as isize, x + dx, b)).sum();
                    assert_eq!(lag[a * channels + b], expected, "{windows:?} {dy} {dx} {a} {b}");
                }
            }
        }
    }

    #[test]
    fn a_share_of_rows_is_that_of_their_places_and_ranges_are_of_all() {
        let x = values(4 * 1000, 1);
        let slices: Vec<Slice<'_>> =
            (0..20).map(|i| Slice { values: &x[200 * i..][..200], place: place(i / 2, i % 2), weight: 1.0 }).collect();
        let share = super::super::hash::share(1000, 300);
        let got = sums(Rows::Own(4), share, &slices);
        let all = sums(Rows::Own(4), None, &slices);
        assert!((230.0..370.0).contains(&got.rows), "{}", got.rows);
        assert_eq!((&got.low, &got.bins, got.groups), (&all.low, &all.bins, all.groups));
        let kept =
            slices.iter().flat_map(|s| (0..50).filter(|&p| keeps(share, s.place, p)).map(|p| &s.values[4 * p..][..4]));
        assert_eq!(got.sum[2], kept.map(|row| f64::from(row[2])).sum::<f64>());
    }

    #[test]
    fn numbers_that_are_none_are_told() {
        let rows = Rows::Own(2);
        for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let x = [1.0, 2.0, fault, 3.0];
            let slice = Slice { values: &x, place: place(0, 0), weight: 1.0 };
            let got = Accumulator::new(rows, None, Sums::new(&rows, 1)).push(0, &[slice]).unwrap_err();
            assert_eq!(got.to_bits(), fault.to_bits());
        }
    }
}
