//! Moments of inputs after a rotation of runs of channels.

use super::moments::{Moments, SecondMoments};
use rayon::prelude::*;

impl Moments {
    /// The moments of `x R`: `turn` multiplies a run of `block` inputs of a linear layer by R, and R is the same for each run.
    /// The mean is multiplied by R, and second moments on both sides.
    ///
    /// # Panics
    /// If inputs are no whole number of runs, or the layer is a convolution.
    #[must_use]
    pub fn rotated(&self, block: usize, turn: &(dyn Fn(&mut [f64]) + Sync)) -> Moments {
        let n = self.inputs();
        assert!(n.is_multiple_of(block), "runs of {block} of {n} inputs");
        let rotate = |values: &mut [f64]| values.chunks_exact_mut(block).for_each(turn);
        let SecondMoments::Dense(triangle) = &self.second else { unreachable!("linear layers are rotated") };
        let mut mean = self.mean.clone();
        rotate(&mut mean);
        let mut square = vec![0.0; n * n];
        for (i, row) in (0..n).map(|i| (i, &triangle[i * (i + 1) / 2..][..=i])) {
            for (j, &v) in row.iter().enumerate() {
                (square[i * n + j], square[j * n + i]) = (v, v);
            }
        }
        // Rows by R, then, as the matrix is symmetric, the rows of the transpose.
        square.par_chunks_exact_mut(n).for_each(rotate);
        transpose(&mut square, n);
        square.par_chunks_exact_mut(n).for_each(rotate);
        let second = SecondMoments::Dense((0..n).flat_map(|i| square[i * n..][..=i].to_vec()).collect());
        Moments { rows: self.rows, mean, second }
    }
}

/// Turns an `n` by `n` matrix over.
fn transpose(square: &mut [f64], n: usize) {
    for i in 0..n {
        for j in 0..i {
            square.swap(i * n + j, j * n + i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_rotated_samples() {
        let (n, signs) = (16, [1.0, -1.0, -1.0, 1.0, 1.0, 1.0, -1.0, 1.0]);
        let value = |k: usize, i: usize| ((k * 37 + i * 101 + k * i * 7) % 29) as f64 * 0.1 * (1 + i) as f64 - 2.0;
        let samples: Vec<Vec<f64>> = (0..40).map(|k| (0..n).map(|i| value(k, i)).collect()).collect();
        let moments = |samples: &[Vec<f64>]| {
            let count = samples.len() as f64;
            let of = |f: &dyn Fn(&[f64]) -> f64| samples.iter().map(|x| f(x)).sum::<f64>() / count;
            let mean = (0..n).map(|i| of(&|x| x[i])).collect();
            let pairs = (0..n).flat_map(|i| (0..=i).map(move |j| (i, j)));
            Moments {
                rows: count,
                mean,
                second: SecondMoments::Dense(pairs.map(|(i, j)| of(&|x| x[i] * x[j])).collect()),
            }
        };
        // By the matrix itself.
        let turned: Vec<Vec<f64>> = samples
            .iter()
            .map(|x| {
                let entry = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let column = |c: usize| {
                    let first = c / 8 * 8;
                    (0..8).map(|i| x[first + i] * signs[i] * entry(i, c - first)).sum::<f64>() / 8f64.sqrt()
                };
                (0..n).map(column).collect()
            })
            .collect();
        let (got, expected) = (moments(&samples).rotated(8, &|run| crate::weight::turn(run, &signs)), moments(&turned));
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-10 * (1.0 + b.abs()));
        let (SecondMoments::Dense(a), SecondMoments::Dense(b)) = (&got.second, &expected.second) else {
            unreachable!()
        };
        assert!(close(&got.mean, &expected.mean) && close(a, b));
    }
}
