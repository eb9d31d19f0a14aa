//! What a row goes through before it becomes codes: factors, and the Hadamard transform of runs of channels.
//!
//! Sums and differences are taken in one order on every back end and tier, so equal rows give equal codes.

use super::math::LANES;
use super::simd::vectorized;

vectorized! {
    /// Multiplies each channel by its factor, and runs of `block` channels, if it is not 0, by the Hadamard matrix in
    /// Sylvester's order. `block` is a power of two, at least 8, and the row has whole ones.
    pub fn TurnRow<'a, I>(x: &'a [f32], factors: &'a [f32], block: usize, y: &'a mut [f32]) {
        for ((y, x), f) in y.iter_mut().zip(x).zip(factors) {
            *y = x * f;
        }
        if block == 0 {
            return;
        }
        // A step of 8 channels has a loop of its own, as rows may be no multiple of LANES.
        let (eights, _) = y.as_chunks_mut::<8>();
        for v in eights {
            butterfly::<8, 1>(v);
            butterfly::<8, 2>(v);
            butterfly::<8, 4>(v);
        }
        if block >= LANES {
            let (chunks, _) = y.as_chunks_mut::<LANES>();
            for v in chunks {
                butterfly::<LANES, 8>(v);
            }
        }
        let mut half = LANES;
        while half < block {
            for pair in y.chunks_exact_mut(2 * half) {
                let (low, high) = pair.split_at_mut(half);
                let (low, _) = low.as_chunks_mut::<LANES>();
                let (high, _) = high.as_chunks_mut::<LANES>();
                for (a, b) in low.iter_mut().zip(high) {
                    for j in 0..LANES {
                        (a[j], b[j]) = (a[j] + b[j], a[j] - b[j]);
                    }
                }
            }
            half *= 2;
        }
    }
}

/// Sums and differences of numbers that lie `HALF` apart.
#[inline(always)]
fn butterfly<const N: usize, const HALF: usize>(v: &mut [f32; N]) {
    let mut out = [0.0; N];
    for i in 0..N {
        out[i] = if i & HALF == 0 { v[i] + v[i ^ HALF] } else { v[i ^ HALF] - v[i] };
    }
    *v = out;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::{Isa, scalar::Scalar};

    #[test]
    fn blocks_are_multiplied_by_the_matrix() {
        let mut rng = fastrand::Rng::with_seed(5);
        for (block, cols) in [(0, 5), (8, 8), (8, 24), (16, 48), (32, 32), (64, 192), (256, 512)] {
            // Small integers, so that sums are exact in any order.
            let whole = |rng: &mut fastrand::Rng| f32::from(rng.i8(-9..9));
            let (x, f): (Vec<f32>, Vec<f32>) = (0..cols).map(|_| (whole(&mut rng), whole(&mut rng))).unzip();
            let mut y = vec![f32::NAN; cols];
            Scalar.run(TurnRow, (&x, &f, block, &mut y));
            for (i, &y) in y.iter().enumerate() {
                let run = i.checked_div(block).map_or(i..i + 1, |run| run * block..(run + 1) * block);
                let sign = |j: usize| if (j & (i - run.start)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let expected: f32 = run.clone().enumerate().map(|(j, at)| sign(j) * x[at] * f[at]).sum();
                assert_eq!(y, expected, "{block} {cols} {i}");
            }
        }
    }
}
