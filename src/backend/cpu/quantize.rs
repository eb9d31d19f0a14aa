//! Float activations to integer codes.
//!
//! Asymmetric, as Qua2SeDiMo quantizes online: `delta = (max - min) / (2^b - 1)`, `zero = round(-min / delta)`,
//! `q = clamp(round(x / delta) + zero, 0, 2^b - 1)`, ties to even. In a fixed range the last code may be another one, and
//! zero may lie between codes: what is left of it beside its nearest whole number is added before rounding. A group of equal values has no range; its delta is
//! the value's magnitude (or 1 for 0), which represents it exactly.

use super::arena::{Arena, CodesMut, Reads};
use super::math::{LANES, greater, greatest, least, lesser};
use super::simd::{Isa, vectorized};
use crate::backend::args::{QuantizeArgs, QuantizeTo, RangeTable};
use crate::program::QuantizeGrain;
use rayon::prelude::*;

/// Adding and subtracting this rounds to an integer, ties to even, for magnitudes below 2^22.
pub const ROUND: f32 = 12_582_912.0;

/// How many steps from 0 a value may lie.
const FURTHEST: f32 = 4e6;

/// Scale and zero point of a group of activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Step between codes.
    pub scale: f32,
    /// The code of 0, which may lie outside the codes' range, or between codes.
    pub zero: f32,
}

impl Range {
    /// The range of values from `min` to `max` in codes up to `top`.
    #[inline(always)]
    pub fn dynamic(min: f32, max: f32, top: u8) -> Self {
        let levels = f32::from(top);
        let scale = match (max == min, max == 0.0) {
            (true, true) => 1.0,
            (true, false) => max.abs(),
            // A narrower step is finer than f32 resolves here, and would push the zero point beyond what `encode`
            // rounds exactly.
            _ => ((max - min) / levels).max(max.abs().max(min.abs()) / FURTHEST),
        };
        Range { scale, zero: (-min / scale).round_ties_even() }
    }
}

/// What turns values into codes.
#[derive(Clone, Copy)]
pub struct Steps {
    inverse: f32,
    /// The zero point is `whole + rest`.
    whole: f32,
    rest: f32,
    top: f32,
}

impl Steps {
    /// Codes up to `top` in `range`.
    #[inline(always)]
    pub fn new(range: Range, top: u8) -> Self {
        let whole = range.zero.round_ties_even();
        Steps { inverse: 1.0 / range.scale, whole, rest: range.zero - whole, top: f32::from(top) }
    }

    /// The code of `v`.
    #[inline(always)]
    pub fn code(self, v: f32) -> u8 {
        (self.of(v) + ROUND).to_bits() as u8
    }

    /// The code of `v` as a number. Two roundings, as in the definition: first the value, then the sum, which is exact within
    /// the clamp.
    #[inline(always)]
    fn of(self, v: f32) -> f32 {
        let q = greater(lesser(v * self.inverse, FURTHEST), -FURTHEST) + self.rest + ROUND - ROUND + self.whole;
        greater(lesser(q, self.top), 0.0)
    }
}

vectorized! {
    /// Lowest and highest of `x`, in lanes.
    pub fn Extent<'a, I>(x: &'a [f32]) -> (f32, f32) {
        (least(x), greatest(x))
    }
}

vectorized! {
    /// Quantizes `x` into `codes` up to `top`, whose spare bytes become 0; returns the sum of the codes.
    pub fn Encode<'a, I>(x: &'a [f32], range: Range, top: u8, codes: &'a mut [u8]) -> i32 {
        let steps = Steps::new(range, top);
        let (used, spare) = codes.split_at_mut(x.len());
        let code = |v: f32| steps.code(v);
        let mut sums = [0i32; LANES];
        let mut chunks = used.chunks_exact_mut(LANES);
        for (codes, x) in chunks.by_ref().zip(x.chunks_exact(LANES)) {
            for i in 0..LANES {
                let q = code(x[i]);
                codes[i] = q;
                sums[i] += i32::from(q);
            }
        }
        let rest = x.chunks_exact(LANES).remainder();
        for ((code_at, &v), sum) in chunks.into_remainder().iter_mut().zip(rest).zip(&mut sums) {
            *code_at = code(v);
            *sum += i32::from(*code_at);
        }
        spare.fill(0);
        sums.iter().sum()
    }
}

vectorized! {
    /// The values that the codes of `x` stand for.
    pub fn OnGrid<'a, I>(x: &'a [f32], range: Range, top: u8, y: &'a mut [f32]) {
        let steps = Steps::new(range, top);
        for (y, &x) in y.iter_mut().zip(x) {
            *y = range.scale * (steps.of(x) - range.zero);
        }
    }
}

/// See [`Op::Quantize`](crate::program::Op::Quantize).
pub fn quantize<I: Isa>(isa: I, arena: &mut Arena, args: &QuantizeArgs, factors: Option<&[f32]>) {
    let at = arena.first(args.y.codes.slot);
    let (out, reads) = arena.write(at..at + args.y.codes.bytes());
    let x = reads.floats(&args.x);
    let cols = args.x.cols;
    let ranges = Fixed::new(&reads, args.y.fixed, args.y.codes.rows);
    let out = CodesMut::new(out, &args.y.codes);
    let rows_per_group = args.y.codes.rows / args.y.codes.groups;
    if let Some(factors) = factors {
        // The shape rules let it through with a scale per row only.
        let turned = |row: usize, y: &mut [f32]| isa.turn(&x[row * cols..][..cols], factors, args.block, y);
        return quantize_rows(isa, &args.y, &ranges, out, Made(turned), cols * 4);
    }
    if args.y.grain == QuantizeGrain::Row {
        return quantize_rows(isa, &args.y, &ranges, out, Stored { x, cols }, 0);
    }
    // One scale per sample: the extent of blocks of rows, then of samples, then codes. Minimum and maximum do not
    // depend on the order in which they are taken.
    let sample = rows_per_group * cols;
    for (i, (scale, zero)) in out.scale.iter_mut().zip(out.zero.iter_mut()).enumerate() {
        let range = ranges.get(i * rows_per_group).unwrap_or_else(|| {
            let (low, high) = x[i * sample..][..sample]
                .par_chunks(64 * cols)
                .map(|block| isa.run(Extent, (block,)))
                .reduce(|| (f32::INFINITY, f32::NEG_INFINITY), |a, b| (a.0.min(b.0), a.1.max(b.1)));
            Range::dynamic(low, high, args.y.codes.top)
        });
        (*scale, *zero) = (range.scale, range.zero);
    }
    let (scale, zero, top) = (&*out.scale, &*out.zero, args.y.codes.top);
    let stride = args.y.codes.stride();
    out.codes.par_chunks_mut(64 * stride).zip(out.sum.par_chunks_mut(64)).enumerate().for_each(
        |(block, (codes, sums))| {
            for (i, (codes, sum)) in codes.chunks_exact_mut(stride).zip(sums).enumerate() {
                let row = block * 64 + i;
                let group = row / rows_per_group;
                let range = Range { scale: scale[group], zero: zero[group] };
                *sum = isa.run(Encode, (&x[row * cols..][..cols], range, top, codes));
            }
        },
    );
}

/// Scales taken from a curve instead of the data.
pub struct Fixed<'a> {
    /// Scale and zero point per entry.
    table: Option<(&'a [f32], usize)>,
}

impl<'a> Fixed<'a> {
    /// Resolves the table for `rows` rows, if there is one.
    pub fn new(reads: &Reads<'a>, fixed: Option<RangeTable>, rows: usize) -> Self {
        let table = fixed.map(|f| {
            let entries = rows.div_ceil(f.rows_per_entry);
            (reads.slice(reads.first(f.table), 2 * entries), f.rows_per_entry)
        });
        Fixed { table }
    }

    /// The range of row `row`, if it is fixed.
    #[inline(always)]
    pub fn get(&self, row: usize) -> Option<Range> {
        self.table.map(|(t, rows)| {
            let at = row / rows * 2;
            Range { scale: t[at], zero: t[at + 1] }
        })
    }
}

/// Where the rows come from that are quantized.
pub trait RowValues: Sync {
    /// The values of row `row`, which may be made in `scratch`.
    fn get<'a>(&'a self, row: usize, scratch: &'a mut [f32]) -> &'a [f32];
}

/// Rows that lie in the arena.
struct Stored<'x> {
    x: &'x [f32],
    cols: usize,
}

impl RowValues for Stored<'_> {
    #[inline(always)]
    fn get<'a>(&'a self, row: usize, _: &'a mut [f32]) -> &'a [f32] {
        &self.x[row * self.cols..][..self.cols]
    }
}

/// Rows that a function makes: it writes row `row` over all of the floats that it is given.
pub struct Made<F>(pub F);

impl<F: Fn(usize, &mut [f32]) + Sync> RowValues for Made<F> {
    #[inline(always)]
    fn get<'a>(&'a self, row: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        (self.0)(row, scratch);
        scratch
    }
}

/// Quantizes row by row; `scratch_bytes` is what one of `values` is made in.
pub fn quantize_rows<I: Isa>(
    isa: I,
    to: &QuantizeTo,
    fixed: &Fixed<'_>,
    out: CodesMut<'_>,
    values: impl RowValues,
    scratch_bytes: usize,
) {
    const BLOCK: usize = 16;
    let (stride, top) = (to.codes.stride(), to.codes.top);
    let ranges = out.scale.par_chunks_mut(BLOCK).zip(out.zero.par_chunks_mut(BLOCK));
    let rows = out.codes.par_chunks_mut(BLOCK * stride).zip(out.sum.par_chunks_mut(BLOCK));
    rows.zip(ranges).enumerate().for_each(|(block, ((codes, sums), (scales, zeros)))| {
        super::scratch::with(scratch_bytes, |bytes| {
            let scratch = super::arena::floats_mut(bytes);
            for (i, codes) in codes.chunks_exact_mut(stride).enumerate() {
                let row = block * BLOCK + i;
                let x = values.get(row, scratch);
                let range = fixed.get(row).unwrap_or_else(|| {
                    let (low, high) = isa.run(Extent, (x,));
                    Range::dynamic(low, high, top)
                });
                (scales[i], zeros[i]) = (range.scale, range.zero);
                sums[i] = isa.run(Encode, (x, range, top, codes));
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::scalar::Scalar;

    #[test]
    fn constant_groups_are_exact() {
        for v in [0.0f32, 1.0, -3.5, 1e-20, -7e8, 123.456] {
            let x = [v; 20];
            let (low, high) = Scalar.run(Extent, (&x,));
            let range = Range::dynamic(low, high, 255);
            let mut codes = [9u8; 32];
            let sum = Scalar.run(Encode, (&x, range, 255, &mut codes));
            assert_eq!(range.scale * (f32::from(codes[0]) - range.zero), v);
            assert_eq!(sum, 20 * i32::from(codes[0]));
            assert!(codes[20..].iter().all(|&c| c == 0));
        }
    }

    #[test]
    fn codes_are_within_half_a_step() {
        let mut rng = fastrand::Rng::with_seed(3);
        for bits in [2, 4, 6, 8] {
            for len in [1, 15, 16, 17, 100] {
                let x: Vec<f32> = (0..len).map(|_| rng.f32() * 7.0 - 1.5).collect();
                let (low, high) = Scalar.run(Extent, (&x,));
                assert_eq!(low, x.iter().copied().fold(f32::INFINITY, f32::min));
                assert_eq!(high, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                let top = ((1u16 << bits) - 1) as u8;
                let range = Range::dynamic(low, high, top);
                let mut codes = vec![0; len];
                let sum = Scalar.run(Encode, (&x, range, top, &mut codes));
                let mut on_grid = vec![f32::NAN; len];
                Scalar.run(OnGrid, (&x, range, top, &mut on_grid));
                let stands_for = |q: &u8| range.scale * (f32::from(*q) - range.zero);
                assert!(codes.iter().map(stands_for).eq(on_grid), "what codes stand for");
                assert_eq!(sum, codes.iter().map(|&c| i32::from(c)).sum::<i32>());
                for (&x, &q) in x.iter().zip(&codes) {
                    assert!(u16::from(q) < 1 << bits);
                    let back = range.scale * (f32::from(q) - range.zero);
                    // Half a step, and up to half a step more at the ends, where the zero point's rounding bites.
                    assert!((back - x).abs() <= range.scale * 1.0001, "{x} -> {q} -> {back}");
                }
            }
        }
    }
}
