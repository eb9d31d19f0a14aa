//! Layer norm and group norm, with modulation, activation and quantization fused.

use super::arena::{Arena, CodesMut, floats_mut, typed_mut};
use super::math::{LANES, activate, fma, greater, greatest, least, lesser, silu, sum};
use super::quantize::{Encode, Extent, Fixed, Made, Range, quantize_rows};
use super::scratch;
use super::simd::{Isa, vectorized};
use crate::backend::args::{GroupNormArgs, LayerNormArgs, Output, QuantizeTo};
use crate::program::Act;
use rayon::prelude::*;

/// See [`Op::LayerNorm`](crate::program::Op::LayerNorm).
pub fn layer_norm<I: Isa>(
    isa: I,
    arena: &mut Arena,
    args: &LayerNormArgs,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
) {
    let (at, bytes) = (arena.first(args.y.slot()), args.y.bytes());
    let (out, reads) = arena.write(at..at + bytes);
    let x = reads.floats(&args.x);
    let cols = args.x.cols;
    let scale_and_shift = args.modulation.map(|(m, scale, shift)| (m, Some(scale), shift));
    let modulation = scale_and_shift.or(args.shift.map(|(m, shift)| (m, None, shift))).map(|(m, scale, shift)| {
        let condition: &[u32] = reads.slice(m.condition.at, m.samples);
        (reads.floats(&m.table), m.table.cols, condition, m.rows_per_sample, scale, shift)
    });
    let normalize = |row: usize, y: &mut [f32]| {
        let modulation = modulation.map(|(table, table_cols, condition, rows_per_sample, scale, shift)| {
            let table = &table[condition[row / rows_per_sample] as usize * table_cols..][..table_cols];
            (scale.map(|scale| &table[scale..][..cols]), &table[shift..][..cols])
        });
        isa.run(NormalizeRow, (&x[row * cols..][..cols], args.eps, args.rms, [weight, bias], modulation, y));
    };
    match &args.y {
        Output::Floats(_) => {
            floats_mut(out)
                .par_chunks_exact_mut(cols)
                .with_min_len(16)
                .enumerate()
                .for_each(|(row, y)| normalize(row, y));
        }
        Output::Codes(to) => {
            let fixed = Fixed::new(&reads, to.fixed, to.codes.rows);
            quantize_rows(isa, to, &fixed, CodesMut::new(out, &to.codes), Made(normalize), cols * 4);
        }
    }
}

vectorized! {
    /// Layer norm of one row, without means if `rms`; `affine` is (weight, bias), `modulation` (scale, shift),
    /// the scale perhaps 0.
    fn NormalizeRow<'a, I>(
        x: &'a [f32],
        eps: f32,
        rms: bool,
        affine: [Option<&'a [f32]>; 2],
        modulation: Option<(Option<&'a [f32]>, &'a [f32])>,
        y: &'a mut [f32],
    ) {
        let [weight, bias] = affine;
        let mean = if rms { 0.0 } else { sum(x, |v| v) / x.len() as f32 };
        let variance = sum(x, |v| (v - mean) * (v - mean)) / x.len() as f32;
        let inverse = 1.0 / (variance + eps).sqrt();
        for (y, x) in y.iter_mut().zip(x) {
            *y = (x - mean) * inverse;
        }
        if let Some(w) = weight {
            y.iter_mut().zip(w).for_each(|(y, w)| *y *= w);
        }
        if let Some(b) = bias {
            y.iter_mut().zip(b).for_each(|(y, b)| *y += b);
        }
        match modulation {
            Some((Some(scale), shift)) => {
                for ((y, scale), shift) in y.iter_mut().zip(scale).zip(shift) {
                    *y = fma::<I>(*y, 1.0 + scale, *shift);
                }
            }
            Some((None, shift)) => y.iter_mut().zip(shift).for_each(|(y, shift)| *y += shift),
            None => {}
        }
    }
}

/// Rows per partial sum; fixed, so that sums do not depend on threads.
const BLOCK: usize = 64;

fn blocks(args: &GroupNormArgs) -> usize {
    (args.x.rows / args.samples).div_ceil(BLOCK)
}

/// Bytes of arena for partial sums: (sample, block, group, sum and sum of squares), then (sample, channel, mean, factor
/// and summand), then (sample, block, minimum and maximum).
pub fn group_norm_workspace(args: &GroupNormArgs) -> usize {
    let partial = args.samples * blocks(args) * args.groups * 16;
    let affine = args.samples * args.x.cols * 12;
    let extents = args.samples * blocks(args) * 8;
    partial + affine + extents
}

/// Bytes of private memory: sums per channel in f64, or one row of floats.
pub fn group_norm_scratch(args: &GroupNormArgs) -> usize {
    args.x.cols * 16
}

/// See [`Op::GroupNorm`](crate::program::Op::GroupNorm).
///
/// Statistics are summed in f64, by blocks of 64 pixels. With them the norm is `(x - mean) * factor + summand` per sample
/// and channel, which a second pass applies; a modulation changes factors and summands only. Folding the mean into the
/// summand would cancel badly where the mean is large. When the result is quantized, that pass runs twice, first for the
/// extent, which takes no activations: computing again is cheaper than storing floats.
///
/// Inputs of 16 bits would take little off: of the three passes over 512 x 512 x 128 numbers (two cores of Zen 3, in a loop of
/// its own) the sums fell from 10 to 5 ms, the extent from 16 to 15 and the codes from 16.5 to 15: the last two compute.
pub fn group_norm<I: Isa>(isa: I, arena: &mut Arena, args: &GroupNormArgs, weight: &[f32], bias: &[f32]) {
    let (at, bytes) = (arena.first(args.y.slot()), args.y.bytes());
    let work_at = args.workspace.at;
    let (out, work, reads) = arena.split(at..at + bytes, work_at..work_at + group_norm_workspace(args));
    let (cols, pixels) = (args.x.cols, args.x.rows / args.samples);
    let group = Group { isa, x: reads.floats(&args.x), cols, pixels, n_blocks: blocks(args), args };
    let (partial, rest) = work.split_at_mut(args.samples * group.n_blocks * args.groups * 16);
    let (affine, extents) = rest.split_at_mut(args.samples * cols * 12);
    let partial: &mut [f64] = typed_mut(partial);
    let (affine, extents) = (floats_mut(affine), floats_mut(extents));

    group.sum(partial);
    group.affine(partial, weight, bias, affine);
    if let Some((m, scale, shift)) = &args.modulation {
        let (table, condition): (_, &[u32]) = (reads.floats(&m.table), reads.slice(m.condition.at, m.samples));
        for (affine, &condition) in affine.chunks_exact_mut(cols * 3).zip(condition) {
            let row = &table[condition as usize * m.table.cols..][..m.table.cols];
            let (factors, summands) = affine[cols..].split_at_mut(cols);
            for c in 0..cols {
                let scale = 1.0 + row[scale + c];
                factors[c] *= scale;
                summands[c] = summands[c] * scale + row[shift + c];
            }
        }
    }
    match &args.y {
        Output::Floats(_) => {
            floats_mut(out).par_chunks_mut(BLOCK * cols).enumerate().for_each(|(b, y)| {
                y.chunks_exact_mut(cols).enumerate().for_each(|(i, y)| group.apply(affine, b * BLOCK + i, y));
            });
        }
        Output::Codes(to) => {
            let fixed = Fixed::new(&reads, to.fixed, to.codes.rows);
            let codes = CodesMut::new(out, &to.codes);
            if to.codes.groups == to.codes.rows {
                let apply = |row: usize, y: &mut [f32]| group.apply(affine, row, y);
                return quantize_rows(isa, to, &fixed, codes, Made(apply), cols * 4);
            }
            if to.fixed.is_none() {
                group.extents(affine, extents);
            }
            group.encode(affine, extents, to, &fixed, codes);
        }
    }
}

/// A group norm at work.
struct Group<'a, I> {
    isa: I,
    /// `(samples, pixels, cols)`.
    x: &'a [f32],
    cols: usize,
    pixels: usize,
    /// Blocks of pixels per sample.
    n_blocks: usize,
    args: &'a GroupNormArgs,
}

impl<I: Isa> Group<'_, I> {
    /// Rows of block `b`, counted over all samples: blocks do not straddle samples.
    fn rows_of(&self, b: usize) -> std::ops::Range<usize> {
        let (sample, block) = (b / self.n_blocks, b % self.n_blocks);
        let first = block * BLOCK;
        sample * self.pixels + first..sample * self.pixels + (first + BLOCK).min(self.pixels)
    }

    /// Sums and sums of squares, `(samples, blocks, groups, 2)`.
    fn sum(&self, partial: &mut [f64]) {
        let (cols, per_group) = (self.cols, self.cols / self.args.groups);
        partial.par_chunks_exact_mut(self.args.groups * 2).enumerate().for_each(|(b, partial)| {
            scratch::with(cols * 16, |bytes| {
                let sums: &mut [f64] = typed_mut(bytes);
                sums.fill(0.0);
                let (s1, s2) = sums.split_at_mut(cols);
                let rows = self.rows_of(b);
                self.isa.run(Accumulate, (&self.x[rows.start * cols..rows.end * cols], &mut *s1, &mut *s2));
                for (g, out) in partial.chunks_exact_mut(2).enumerate() {
                    let channels = g * per_group..(g + 1) * per_group;
                    out[0] = s1[channels.clone()].iter().sum();
                    out[1] = s2[channels].iter().sum();
                }
            });
        });
    }

    /// Mean, factor and summand of each sample and channel, `(samples, 3, cols)`.
    fn affine(&self, partial: &[f64], weight: &[f32], bias: &[f32], affine: &mut [f32]) {
        let (cols, groups, n_blocks) = (self.cols, self.args.groups, self.n_blocks);
        let per_group = cols / groups;
        for (sample, affine) in affine.chunks_exact_mut(cols * 3).enumerate() {
            let (means, affine) = affine.split_at_mut(cols);
            let (factors, summands) = affine.split_at_mut(cols);
            for g in 0..groups {
                let of = |i: usize| {
                    (0..n_blocks).map(|b| partial[((sample * n_blocks + b) * groups + g) * 2 + i]).sum::<f64>()
                };
                let count = (self.pixels * per_group) as f64;
                let mean = of(0) / count;
                let variance = (of(1) / count - mean * mean).max(0.0);
                let inverse = 1.0 / (variance + f64::from(self.args.eps)).sqrt();
                for c in g * per_group..(g + 1) * per_group {
                    let factor = inverse * f64::from(weight[c]);
                    means[c] = mean as f32;
                    factors[c] = factor as f32;
                    // The summand makes up for the rounding of the mean.
                    summands[c] = (f64::from(bias[c]) - (mean - f64::from(means[c])) * factor) as f32;
                }
            }
        }
    }

    /// One row of the result.
    fn apply(&self, affine: &[f32], row: usize, y: &mut [f32]) {
        let affine = &affine[row / self.pixels * self.cols * 3..][..self.cols * 3];
        self.isa.run(ApplyRow, (&self.x[row * self.cols..][..self.cols], affine, self.args.act, y));
    }

    /// Lowest and highest of the result in each block, `(samples, blocks, 2)`.
    fn extents(&self, affine: &[f32], extents: &mut [f32]) {
        let cols = self.cols;
        extents.par_chunks_exact_mut(2).enumerate().for_each(|(b, out)| {
            let rows = self.rows_of(b);
            if matches!(self.args.act, Act::None | Act::Silu) {
                let affine = &affine[b / self.n_blocks * cols * 3..][..cols * 3];
                let rows = &self.x[rows.start * cols..rows.end * cols];
                (out[0], out[1]) = self.isa.run(ExtentOfRows, (rows, affine, self.args.act == Act::Silu));
                return;
            }
            scratch::with(cols * 4, |bytes| {
                let y = floats_mut(bytes);
                let mut seen = (f32::INFINITY, f32::NEG_INFINITY);
                for row in rows {
                    self.apply(affine, row, y);
                    let (low, high) = self.isa.run(Extent, (&*y,));
                    seen = (seen.0.min(low), seen.1.max(high));
                }
                (out[0], out[1]) = seen;
            });
        });
    }

    /// The result as codes with one scale per sample, from `extents` unless it is fixed.
    fn encode(&self, affine: &[f32], extents: &[f32], to: &QuantizeTo, fixed: &Fixed<'_>, codes: CodesMut<'_>) {
        let (cols, pixels) = (self.cols, self.pixels);
        for (sample, e) in extents.chunks_exact(self.n_blocks * 2).enumerate() {
            let range = fixed.get(sample * pixels).unwrap_or_else(|| {
                let low = e.iter().step_by(2).copied().fold(f32::INFINITY, f32::min);
                let high = e.iter().skip(1).step_by(2).copied().fold(f32::NEG_INFINITY, f32::max);
                Range::dynamic(low, high, to.codes.top)
            });
            (codes.scale[sample], codes.zero[sample]) = (range.scale, range.zero);
        }
        let (scale, zero) = (&*codes.scale, &*codes.zero);
        let stride = to.codes.stride();
        codes.codes.par_chunks_mut(BLOCK * stride).zip(codes.sum.par_chunks_mut(BLOCK)).enumerate().for_each(
            |(block, (codes, sums))| {
                scratch::with(cols * 4, |bytes| {
                    let y = floats_mut(bytes);
                    for (i, (codes, sum)) in codes.chunks_exact_mut(stride).zip(sums.iter_mut()).enumerate() {
                        let row = block * BLOCK + i;
                        self.apply(affine, row, y);
                        let range = Range { scale: scale[row / pixels], zero: zero[row / pixels] };
                        *sum = self.isa.run(Encode, (&*y, range, to.codes.top, codes));
                    }
                });
            },
        );
    }
}

vectorized! {
    /// Adds rows and their squares to sums per channel, in the order of rows. Four rows at a time, because the sums are
    /// twice as wide as what is added to them: a row at a time moves more of them than of the rows.
    fn Accumulate<'a, I>(rows: &'a [f32], s1: &'a mut [f64], s2: &'a mut [f64]) {
        let cols = s1.len();
        let mut fours = rows.chunks_exact(4 * cols);
        for four in fours.by_ref() {
            let (a, b) = four.split_at(2 * cols);
            let ((a, b), (c, d)) = (a.split_at(cols), b.split_at(cols));
            for (((((s1, s2), &a), &b), &c), &d) in s1.iter_mut().zip(s2.iter_mut()).zip(a).zip(b).zip(c).zip(d) {
                let (a, b, c, d) = (f64::from(a), f64::from(b), f64::from(c), f64::from(d));
                *s1 = *s1 + a + b + c + d;
                *s2 = *s2 + a * a + b * b + c * c + d * d;
            }
        }
        for row in fours.remainder().chunks_exact(cols) {
            for ((s1, s2), &v) in s1.iter_mut().zip(s2.iter_mut()).zip(row) {
                let v = f64::from(v);
                *s1 += v;
                *s2 += v * v;
            }
        }
    }
}

/// Where `x sigmoid(x)` is least; it falls before and rises after.
const SILU_TURNS: f32 = -1.278_464_5;

vectorized! {
    /// The lowest and the highest that [`ApplyRow`] makes of rows, without activation or with SiLU. Of SiLU only the
    /// values at the ends and next to its turning point can be either, so none but theirs is worked out; beyond the
    /// rounding of its own value, the result is that of looking at all.
    fn ExtentOfRows<'a, I>(rows: &'a [f32], affine: &'a [f32], activated: bool) -> (f32, f32) {
        let cols = affine.len() / 3;
        let (means, affine) = affine.split_at(cols);
        let (factors, summands) = affine.split_at(cols);
        let (inf, none) = (f32::INFINITY, f32::NEG_INFINITY);
        let mut lanes = Extremes { least: [inf; LANES], greatest: [none; LANES], below: [none; LANES], above: [inf; LANES] };
        for row in rows.chunks_exact(cols) {
            let columns = means.chunks(LANES).zip(factors.chunks(LANES)).zip(summands.chunks(LANES));
            for (x, ((m, a), b)) in row.chunks(LANES).zip(columns) {
                if let (Some(x), Some(m), Some(a), Some(b)) = (x.first_chunk(), m.first_chunk(), a.first_chunk(), b.first_chunk()) {
                    lanes.see::<I>(x, m, a, b);
                } else {
                    // Repeating an element changes no extreme.
                    let fill = |part: &[f32]| {
                        let mut whole = [part[0]; LANES];
                        whole[..part.len()].copy_from_slice(part);
                        whole
                    };
                    lanes.see::<I>(&fill(x), &fill(m), &fill(a), &fill(b));
                }
            }
        }
        let (low, high) = (least(&lanes.least), greatest(&lanes.greatest));
        if !activated {
            return (low, high);
        }
        let turning = [greatest(&lanes.below), least(&lanes.above)].map(|v| if v.is_finite() { silu::<I>(v) } else { inf });
        (lesser(turning[0], turning[1]), greater(silu::<I>(low), silu::<I>(high)))
    }
}

/// Extremes of normalized values, lane by lane, and those next to SiLU's turning point.
struct Extremes {
    least: [f32; LANES],
    greatest: [f32; LANES],
    below: [f32; LANES],
    above: [f32; LANES],
}

impl Extremes {
    #[inline(always)]
    fn see<I: Isa>(&mut self, x: &[f32; LANES], m: &[f32; LANES], a: &[f32; LANES], b: &[f32; LANES]) {
        for j in 0..LANES {
            let v = fma::<I>(x[j] - m[j], a[j], b[j]);
            self.least[j] = lesser(v, self.least[j]);
            self.greatest[j] = greater(v, self.greatest[j]);
            self.below[j] = greater(if v < SILU_TURNS { v } else { f32::NEG_INFINITY }, self.below[j]);
            self.above[j] = lesser(if v < SILU_TURNS { f32::INFINITY } else { v }, self.above[j]);
        }
    }
}

vectorized! {
    /// Normalizes one row with a mean, a factor and a summand per channel, then activates it.
    fn ApplyRow<'a, I>(x: &'a [f32], affine: &'a [f32], act: Act, y: &'a mut [f32]) {
        let (means, affine) = affine.split_at(x.len());
        let (factors, summands) = affine.split_at(x.len());
        for ((((y, x), m), a), b) in y.iter_mut().zip(x).zip(means).zip(factors).zip(summands) {
            *y = fma::<I>(*x - *m, *a, *b);
        }
        activate::<I>(act, y);
    }
}
