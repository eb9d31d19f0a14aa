//! Scores of eight queries against a block of keys as codes of weights.

use super::super::math::{LANES, exp, fma, greater};
use super::super::simd::{Isa, MR, NR, Tile, vectorized};
use super::KEYS;
use super::codes::ROUND;

/// What is kept of eight queries from block to block: the factor of their scores, the highest score times it, and the
/// sum of weights relative to that.
pub struct Weighing<'a> {
    pub slopes: &'a [f32; MR],
    pub highest: &'a mut [f32; MR],
    pub totals: &'a mut [f32; MR],
}

/// Thresholds of rounding by key: the sixteenths, in an order that spreads any few neighbours evenly.
const THRESHOLDS: [f32; LANES] = {
    let mut all = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        all[i] = ((i * 11 % LANES) as f32 + 0.5) / LANES as f32;
        i += 1;
    }
    all
};

vectorized! {
    /// Turns the scores of eight queries, whose highest are in `lanes`, against the first `seen` keys of a block into
    /// codes of weights, 0 for the others; returns the factors of what was summed up before and of what this block adds.
    pub fn Weigh<'a, I>(
        scores: &'a mut [Tile<f32>], lanes: &'a [[f32; LANES]; MR], seen: &'a [usize; MR], rows: Weighing<'a>, weights: &'a mut [u8],
    ) -> [[f32; MR]; 2] {
        let Weighing { slopes, highest, totals } = rows;
        let mut most = [0.0; MR];
        for i in 0..MR {
            most[i] = if seen[i].is_multiple_of(NR) { join_lanes(lanes[i]) } else { hide(scores, i, seen[i]) };
        }
        let mut counts = [0.0; MR];
        for (i, weights) in weights.chunks_exact_mut(KEYS).enumerate() {
            let (codes, rest) = weights.split_at_mut(seen[i].next_multiple_of(NR));
            counts[i] = encode_weights::<I>(scores, i, most[i], slopes[i], codes) as f32;
            rest.fill(0);
        }
        let (mut shrink, mut grow) = ([0.0; MR], [0.0; MR]);
        for i in 0..MR {
            let here = most[i] * slopes[i];
            let new = greater(here, highest[i]);
            shrink[i] = exp::<I>((highest[i] - new) * std::f32::consts::LN_2);
            grow[i] = exp::<I>((here - new) * std::f32::consts::LN_2);
            highest[i] = new;
            totals[i] = fma::<I>(totals[i], shrink[i], counts[i] * grow[i]);
        }
        [shrink, grow]
    }
}

/// The highest of all lanes.
#[inline(always)]
fn join_lanes(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = greater(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

/// Makes the scores of query `i` from key `seen` on the lowest there are, up to the end of its tile; returns the highest
/// of the others.
#[inline(always)]
fn hide(tiles: &mut [Tile<f32>], i: usize, seen: usize) -> f32 {
    tiles[seen / NR][i][seen % NR..].fill(f32::NEG_INFINITY);
    let mut most = [f32::NEG_INFINITY; LANES];
    for tile in &tiles[..=seen / NR] {
        for scores in tile[i].as_chunks::<LANES>().0 {
            for j in 0..LANES {
                most[j] = greater(most[j], scores[j]);
            }
        }
    }
    join_lanes(most)
}

/// `255 * 2^(slope * (score - most))` as codes, for whole tiles of keys; returns their sum.
///
/// `2^x = 2^n 2^f` with `f` in -1/2 to 1/2 and `2^f` by a minimax polynomial of our own, 7.5e-5 off: a fiftieth of a code.
/// Adding 1.5 * 2^23 + 127 rounds to `n` and leaves the exponent of `2^n` in the low bits. The same is done with the code:
/// adding 2^15 leaves its integer part in the bits above the lowest eight.
#[inline(always)]
fn encode_weights<I: Isa>(tiles: &[Tile<f32>], i: usize, most: f32, slope: f32, codes: &mut [u8]) -> u32 {
    const EXPONENT: f32 = ROUND + 127.0;
    const WHOLE: f32 = 32_768.0;
    const POLYNOMIAL: [f32; 4] = [255.0 * 0.055_171_67, 255.0 * 0.242_611_12, 255.0 * 0.693_260_99, 255.0 * 0.999_928];
    // Below 2^-9 of a code nothing is left; the exponent stays normal.
    let lowest = -17.0 / slope;
    let mut sums = [0u32; LANES];
    for (codes, tile) in codes.as_chunks_mut::<NR>().0.iter_mut().zip(tiles) {
        let (codes, scores) = (codes.as_chunks_mut::<LANES>().0, tile[i].as_chunks::<LANES>().0);
        for g in 0..NR / LANES {
            let mut bits = [0; LANES];
            for j in 0..LANES {
                let distance = greater(scores[g][j] - most, lowest);
                let shifted = fma::<I>(distance, slope, EXPONENT);
                let f = fma::<I>(distance, slope, EXPONENT - shifted);
                let [c3, c2, c1, c0] = POLYNOMIAL;
                let p = fma::<I>(fma::<I>(fma::<I>(c3, f, c2), f, c1), f, c0);
                let power = f32::from_bits(shifted.to_bits() << 23);
                bits[j] = fma::<I>(p, power, WHOLE + THRESHOLDS[j]).to_bits() >> 8;
            }
            for j in 0..LANES {
                sums[j] = sums[j].wrapping_add(bits[j]);
            }
            codes[g] = bits.map(|b| b as u8);
        }
    }
    // Every term is the code plus the bits of `WHOLE`.
    let excess = (WHOLE.to_bits() >> 8).wrapping_mul(codes.len() as u32);
    sums.iter().fold(0u32, |sum, s| sum.wrapping_add(*s)).wrapping_sub(excess)
}
