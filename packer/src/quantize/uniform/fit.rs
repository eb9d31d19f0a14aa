//! The uniform grid of least squared error where inputs count differently: what calibrated packing begins with.

use super::{Affine, BLOCK, LANES, constant, range};
use aquatint::raw::codec::Bits;

/// Shrunken ranges that [`fit_weighted`] tries, each a hundredth of the whole range narrower than the one before.
const SHRINKS: u16 = 80;

/// Scale and offset over the integers from `-2^(b-1)` that give `row` the least squared error, each weight's counted
/// `weights` times; the best of 80 shrunken ranges, the wider one on a tie.
pub(in crate::quantize) fn fit_weighted(row: &[f32], weights: &[f32], bits: Bits) -> (f32, f32) {
    let (min, max) = range(row);
    let half = (bits.levels() / 2) as f32;
    let mut best: Option<(f64, Affine)> = None;
    for i in 0..SHRINKS {
        let Some(map) = Affine::over(min, max, (1.0 - 0.01 * f64::from(i)) as f32, bits) else { continue };
        let limit = best.map_or(f64::INFINITY, |(score, _)| score);
        let score = if map.small {
            map.squares::<true>(row, weights, limit)
        } else {
            map.squares::<false>(row, weights, limit)
        };
        match score {
            Some(score) => best = Some((score, map)),
            // The first candidate needs no score to win.
            None if best.is_none() => best = Some((f64::INFINITY, map)),
            None => {}
        }
    }
    match best {
        Some((_, map)) => (map.step, half - map.zero),
        None => constant(row[0]),
    }
}

impl Affine {
    /// The sum of weighted squared errors if it is below `limit`.
    fn squares<const SMALL: bool>(&self, row: &[f32], weights: &[f32], limit: f64) -> Option<f64> {
        let term = |v: f32, weight: f32| {
            let error = v - (self.code::<SMALL>(v) - self.zero) * self.step;
            weight * (error * error)
        };
        let mut total = 0f64;
        for (row, weights) in row.chunks(BLOCK).zip(weights.chunks(BLOCK)) {
            let mut lanes = [0f32; LANES];
            let (mut rows, mut heavy) = (row.chunks_exact(LANES), weights.chunks_exact(LANES));
            for (row, weights) in (&mut rows).zip(&mut heavy) {
                for ((lane, &v), &weight) in lanes.iter_mut().zip(row).zip(weights) {
                    *lane += term(v, weight);
                }
            }
            let tail = rows.remainder().iter().zip(heavy.remainder());
            total += tail.map(|(&v, &weight)| f64::from(term(v, weight))).sum::<f64>();
            total += lanes.iter().map(|&s| f64::from(s)).sum::<f64>();
            if total >= limit {
                return None;
            }
        }
        (total < limit).then_some(total)
    }
}
