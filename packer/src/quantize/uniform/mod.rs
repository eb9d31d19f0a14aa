//! Uniform quantization per output channel, by any published [`Rule`] for step and zero point.
//!
//! A rule names ranges; if they are several, the one with the least mean |w - wq|^2.4 is kept, the wider one on a tie.

mod f16_arithmetic;
mod fit;
mod rule;

pub use f16_arithmetic::codes as f16_codes;
pub(super) use fit::fit_weighted;
pub use rule::Rule;

use super::power::{ROUND, pow24};
use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use rayon::prelude::*;

/// Elements between two looks at whether a candidate has already lost.
const BLOCK: usize = 256;
/// Independent partial sums, so that the loop vectorizes.
const LANES: usize = 8;

/// A row's affine map: `w = step * (q - zero)`, q an integer in `bottom..=top`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Affine {
    step: f32,
    zero: f32,
    /// The smallest q that is used, and the largest.
    bottom: f32,
    top: f32,
    /// Whether every |w / step| is small enough for rounding by [`ROUND`].
    small: bool,
}

/// Quantizes (rows, cols) weights, both non-zero. The table is the shared run of integers from `-2^(b-1)`.
pub(super) fn quantize(weights: &[f32], rows: usize, cols: usize, rule: Rule, bits: Bits) -> QuantizedMatrix {
    let half = (bits.levels() / 2) as f32;
    let mut codes = vec![0u8; rows * cols];
    let (mut scale, mut offset) = (vec![0f32; rows], vec![0f32; rows]);
    (codes.par_chunks_mut(cols), weights.par_chunks(cols), &mut scale, &mut offset)
        .into_par_iter()
        .with_min_len((1 << 14) / cols.min(1 << 14))
        .for_each(|(codes, row, scale, offset)| match search(row, rule, bits) {
            Some(map) => {
                match rule {
                    Rule::MseHalf => f16_arithmetic::encode(&map, row, codes),
                    _ => map.encode(row, codes),
                }
                (*scale, *offset) = (map.step, half - map.zero);
            }
            // One value only.
            None => {
                codes.fill(half as u8);
                (*scale, *offset) = constant(row[0]);
            }
        });
    let table = TableValues::I8(integers(bits));
    QuantizedMatrix { bits, rows, cols, codes, table, grain: Grain::Tensor, scale, offset }
}

/// The shared table of uniform levels.
fn integers(bits: Bits) -> Vec<i8> {
    let lowest = -(bits.levels() as i32 / 2);
    (0..bits.levels() as i32).map(|q| (q + lowest) as i8).collect()
}

/// Codes of weights, rows of `cols`, on grids that are given, one step and zero point per row.
pub(super) fn encode(weights: &[f32], cols: usize, bits: Bits, step: &[f32], zero: &[f32]) -> QuantizedMatrix {
    let half = (bits.levels() / 2) as f32;
    let mut codes = vec![0u8; weights.len()];
    (codes.par_chunks_mut(cols), weights.par_chunks(cols), step, zero).into_par_iter().for_each(
        |(codes, row, &step, &zero)| {
            let map = Affine { step, zero, bottom: 0.0, top: (bits.levels() - 1) as f32, small: false };
            map.encode(row, codes);
        },
    );
    let (table, rows) = (TableValues::I8(integers(bits)), step.len());
    let offset = zero.iter().map(|zero| half - zero).collect();
    QuantizedMatrix { bits, rows, cols, codes, table, grain: Grain::Tensor, scale: step.to_vec(), offset }
}

/// Scale and offset over the integers from `-2^(b-1)` that `rule` gives `row`.
pub(super) fn map(row: &[f32], rule: Rule, bits: Bits) -> (f32, f32) {
    match search(row, rule, bits) {
        Some(map) => (map.step, (bits.levels() / 2) as f32 - map.zero),
        None => constant(row[0]),
    }
}

/// Step and zero point, an integer among the codes, of the range `min..=max` stretched to hold 0.
pub(super) fn zero_point((min, max): (f32, f32), bits: Bits) -> (f32, f32) {
    Rule::MinMax.candidate(0, min, max, bits).map_or((1.0, 0.0), |map| (map.step, map.zero))
}

/// Scale and offset of a row that holds nothing but `value`: entry 0, shifted by 1 or -1, times its size is exact, and
/// levels ascend.
fn constant(value: f32) -> (f32, f32) {
    if value == 0.0 { (1.0, 0.0) } else { (value.abs(), value.signum()) }
}

/// What `rule` makes of a row, or `None` if the row holds one value only (the step would be 0).
fn search(row: &[f32], rule: Rule, bits: Bits) -> Option<Affine> {
    let (min, max) = range(row);
    if rule == Rule::MseHalf {
        return f16_arithmetic::search(row, min, max, bits).or_else(|| Affine::over(min, max, 1.0, bits));
    }
    let count = rule.candidates();
    let mut best: Option<(f32, Affine)> = None;
    for i in 0..count {
        let Some(map) = rule.candidate(i, min, max, bits) else { continue };
        if count == 1 {
            return Some(map);
        }
        // The first candidate needs no score to win, so that weights whose loss overflows still get a map.
        let limit = best.map_or(f32::INFINITY, |(score, _)| score);
        match map.loss(row, limit) {
            Some(score) => best = Some((score, map)),
            None if best.is_none() => best = Some((f32::INFINITY, map)),
            None => {}
        }
    }
    best.map(|(_, map)| map)
}

/// Least and greatest element of a non-empty row.
pub(super) fn range(row: &[f32]) -> (f32, f32) {
    // Comparisons rather than `f32::min`: they are one instruction each, and the weights hold no NaN.
    let pick = |(lo, hi): (f32, f32), v: f32| (if v < lo { v } else { lo }, if v > hi { v } else { hi });
    let mut lanes = [(row[0], row[0]); LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = pick(*lane, v);
        }
    }
    let tail = chunks.remainder().iter().fold(lanes[0], |acc, &v| pick(acc, v));
    lanes.iter().fold(tail, |acc, &(lo, hi)| pick(pick(acc, lo), hi))
}

impl Affine {
    /// The map of the range `min..max`, shrunk; `None` if it has no step.
    fn over(min: f32, max: f32, shrink: f32, bits: Bits) -> Option<Affine> {
        let (high, low) = (shrink * max, shrink * min);
        let step = (high - low) / (bits.levels() - 1) as f32;
        Affine::new(step, (-low / step).round_ties_even(), (0.0, (bits.levels() - 1) as f32), (min, max))
    }

    /// The map of this step and zero point, with codes from `bottom` to `top`, for weights in `min..=max`; `None` if there
    /// is no step.
    fn new(step: f32, zero: f32, (bottom, top): (f32, f32), (min, max): (f32, f32)) -> Option<Affine> {
        if !(step > 0.0 && step.is_finite()) {
            return None;
        }
        let small = (max / step).abs().max((min / step).abs()) < 2f32.powi(21) && zero.abs() < 2f32.powi(21);
        Some(Affine { step, zero, bottom, top, small })
    }

    /// The code of `v`, as a number; `SMALL` as the field of that name.
    #[inline(always)]
    fn code<const SMALL: bool>(&self, v: f32) -> f32 {
        let scaled = v / self.step;
        let rounded = if SMALL { (scaled + ROUND) - ROUND } else { scaled.round_ties_even() };
        let q = rounded + self.zero;
        let q = if q < self.bottom { self.bottom } else { q };
        if q > self.top { self.top } else { q }
    }

    /// Mean |w - wq|^2.4 of the row if it is below `limit`.
    fn loss(&self, row: &[f32], limit: f32) -> Option<f32> {
        if self.small { self.loss_as::<true>(row, limit) } else { self.loss_as::<false>(row, limit) }
    }

    fn loss_as<const SMALL: bool>(&self, row: &[f32], limit: f32) -> Option<f32> {
        let term = |v: f32| pow24((v - (self.code::<SMALL>(v) - self.zero) * self.step).abs());
        let mut total = 0f64;
        for block in row.chunks(BLOCK) {
            let mut lanes = [0f32; LANES];
            let mut chunks = block.chunks_exact(LANES);
            for chunk in &mut chunks {
                for (lane, &v) in lanes.iter_mut().zip(chunk) {
                    *lane += term(v);
                }
            }
            total += chunks.remainder().iter().map(|&v| f64::from(term(v))).sum::<f64>();
            total += lanes.iter().map(|&s| f64::from(s)).sum::<f64>();
            // Terms are never negative: a candidate that has reached the limit stays there.
            if (total / row.len() as f64) as f32 >= limit {
                return None;
            }
        }
        let score = (total / row.len() as f64) as f32;
        (score < limit).then_some(score)
    }

    fn encode(&self, row: &[f32], codes: &mut [u8]) {
        for (code, &v) in codes.iter_mut().zip(row) {
            *code = if self.small { self.code::<true>(v) } else { self.code::<false>(v) } as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, operation by operation, without early exits or fast powers.
    fn by_definition(row: &[f32], bits: Bits) -> (f32, f32) {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let min = row.iter().copied().fold(f32::MAX, f32::min);
        let top = bits.levels() as f32 - 1.0;
        let (mut best, mut kept) = (1e10f64, (0.0, 0.0));
        for i in (0..100).step_by(10) {
            let f = (1.0 - 0.01 * f64::from(i)) as f32;
            let (high, low) = (f * max, f * min);
            let step = (high - low) / top;
            let zero = (-low / step).round_ties_even();
            let mut sum = 0f64;
            for &x in row {
                let q = ((x / step).round_ties_even() + zero).clamp(0.0, top);
                sum += f64::from((x - (q - zero) * step).abs()).powf(2.4);
            }
            let score = sum / row.len() as f64;
            if score < best {
                (best, kept) = (score, (step, zero));
            }
        }
        kept
    }

    fn rows(n: usize, cols: usize) -> Vec<Vec<f32>> {
        let mut state = 7u64;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n)
            .map(|r| (0..cols).map(|_| (next() + next() + next() + next()) * 0.05 + (r % 5) as f32 * 0.01).collect())
            .collect()
    }

    #[test]
    fn search_follows_the_definition() {
        let mut picks = 0;
        for row in rows(40, 333) {
            for bits in Bits::ALL {
                let map = search(&row, Rule::Mse, bits).unwrap();
                assert_eq!((map.step, map.zero), by_definition(&row, bits), "{bits} bits");
                let (min, max) = range(&row);
                picks += usize::from(map.step < (max - min) / map.top * 0.95);
            }
        }
        assert!(picks > 20, "the search never left its first candidate");
    }

    #[test]
    fn the_narrowest_range_is_tried() {
        let mut row: Vec<f32> = (0..4000).map(|i| (i % 201) as f32 * 0.001 - 0.1).collect();
        row[17] = 1.0;
        row[18] = -1.0;
        let map = search(&row, Rule::Mse, Bits::ALL[0]).unwrap();
        assert_eq!((map.step, map.zero), by_definition(&row, Bits::ALL[0]));
        assert!((map.step - 0.2 / 3.0).abs() < 1e-6, "{map:?}");
    }

    #[test]
    fn a_zero_point_between_two_integers_goes_to_the_even_one() {
        // 2 bits: the step is 2 and -low / step is 1/2.
        let row = [vec![-1.0f32, 5.0], [0.0, 2.0, 4.0].repeat(40)].concat();
        let map = search(&row, Rule::Mse, Bits::ALL[0]).unwrap();
        assert_eq!((map.step, map.zero), (2.0, 0.0));
    }

    #[test]
    fn rows_far_from_zero_take_the_slow_rounding_and_agree() {
        let row: Vec<f32> = rows(1, 50)[0].iter().map(|v| 5000.0 + v * 0.01).collect();
        for bits in Bits::ALL {
            let map = search(&row, Rule::Mse, bits).unwrap();
            assert!(!map.small);
            assert_eq!((map.step, map.zero), by_definition(&row, bits), "{bits} bits");
        }
    }

    #[test]
    fn a_constant_row_is_exact() {
        for value in [0.0f32, -0.37, 1e-30, 3e38, f32::from_bits(1)] {
            let m = quantize(&[value; 5], 1, 5, Rule::Mse, Bits::ALL[1]);
            for k in 0..5 {
                assert_eq!(m.weight(0, k), value);
            }
        }
    }

    #[test]
    fn weights_near_the_end_of_the_range_still_get_codes() {
        let row = [3e38f32, -3e38, 1e38, 0.0];
        let m = quantize(&row, 1, 4, Rule::Mse, Bits::ALL[5]);
        for (k, &v) in row.iter().enumerate() {
            let got = m.weight(0, k);
            assert!(got.is_finite() && (got - v).abs() < 2.9e38, "{v} became {got}");
        }
    }
}
