//! Rotations of runs of channels.
//!
//! Everything is worked out in f64 and rounded once, so a rotation and its inverse return a run of channels within
//! `2^-23` of its Euclidean length, plus what the matrix itself lacks to be orthogonal.

use super::{Misfit, Rotation, step::Parameters};
use rayon::prelude::*;

/// How far from the identity the product of a given matrix and its transpose may be.
const ORTHOGONAL: f64 = 1e-5;

/// An orthogonal matrix `R`, ready to multiply.
pub(super) enum Matrix {
    /// Any matrix, row-major.
    Given(Vec<f64>),
    /// A diagonal of signs times a Hadamard matrix, which a fast transform multiplies with.
    Hadamard(Vec<f64>),
}

impl Matrix {
    /// The matrix that `rotation` names.
    pub(super) fn new(rotation: &Rotation, parameters: Parameters) -> Result<Self, Misfit> {
        match rotation {
            Rotation::Hadamard { size, seed } => match usize::try_from(*size) {
                Ok(n) if n.is_power_of_two() && n <= 1 << 24 => Ok(Matrix::Hadamard(signs(n, *seed))),
                _ => Err(Misfit::new("a size that is a power of two, up to 2^24", size)),
            },
            Rotation::Tensor(name) => {
                let given = parameters(name)?;
                let [n, m] = given.dims[..] else {
                    return Err(Misfit::new("a square matrix", format!("axes {:?}", given.dims)));
                };
                let values: Vec<f64> = given.values.iter().map(|&v| f64::from(v)).collect();
                if n != m || !is_orthogonal(&values, n) {
                    return Err(Misfit::new("an orthogonal matrix", format!("{name} {n} x {m}")));
                }
                Ok(Matrix::Given(values))
            }
        }
    }

    /// Rows and columns.
    pub(super) fn size(&self) -> usize {
        match self {
            Matrix::Given(values) => values.len().isqrt(),
            Matrix::Hadamard(signs) => signs.len(),
        }
    }

    /// Replaces each run of channels `v` by `v R`, or by `v R^T` if `back`. `inner` is the number of elements from one
    /// channel to the next; the length of `values` is a multiple of `size * inner`.
    pub(super) fn apply(&self, values: &mut [f32], inner: usize, back: bool) {
        let n = self.size();
        values.par_chunks_exact_mut(n * inner).for_each_init(
            || (vec![0.0; n], vec![0.0; n]),
            |(run, scratch), block| {
                for column in 0..inner {
                    run.iter_mut().enumerate().for_each(|(i, v)| *v = f64::from(block[i * inner + column]));
                    self.multiply(run, scratch, back);
                    run.iter().enumerate().for_each(|(i, &v)| block[i * inner + column] = v as f32);
                }
            },
        );
    }

    fn multiply(&self, run: &mut [f64], scratch: &mut [f64], back: bool) {
        match self {
            Matrix::Given(matrix) => {
                scratch.fill(0.0);
                for (i, row) in matrix.chunks_exact(run.len()).enumerate() {
                    if back {
                        scratch[i] = row.iter().zip(&*run).map(|(r, v)| r * v).sum();
                    } else {
                        scratch.iter_mut().zip(row).for_each(|(to, r)| *to += run[i] * r);
                    }
                }
                run.copy_from_slice(scratch);
            }
            Matrix::Hadamard(signs) => {
                let sign = |run: &mut [f64]| run.iter_mut().zip(signs).for_each(|(v, s)| *v *= s);
                if !back {
                    return turn(run, signs);
                }
                hadamard(run);
                sign(run);
            }
        }
    }
}

/// Multiplies `run` by a diagonal of `signs`, as many as it has numbers, and the Hadamard matrix over the root of their number.
pub fn turn(run: &mut [f64], signs: &[f64]) {
    run.iter_mut().zip(signs).for_each(|(v, sign)| *v *= sign);
    hadamard(run);
}

/// Multiplies `run` by the Hadamard matrix of its length, a power of two, in Sylvester's order, over the root of its length.
fn hadamard(run: &mut [f64]) {
    let mut half = 1;
    while half < run.len() {
        for pair in run.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            low.iter_mut().zip(high).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        half *= 2;
    }
    let length = (run.len() as f64).sqrt();
    run.iter_mut().for_each(|v| *v /= length);
}

/// `n` signs drawn from `seed`; see [`Rotation::Hadamard`].
pub fn signs(n: usize, seed: u64) -> Vec<f64> {
    let sign = |i: usize| {
        let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (z ^ (z >> 31)) >> 63 == 1 { -1.0 } else { 1.0 }
    };
    (0..n).map(sign).collect()
}

/// Whether the rows of the `n` by `n` matrix are of length 1 and perpendicular to each other.
fn is_orthogonal(matrix: &[f64], n: usize) -> bool {
    let row = |i: usize| &matrix[i * n..(i + 1) * n];
    n > 0
        && (0..n).into_par_iter().all(|i| {
            (i..n).all(|j| {
                let dot: f64 = row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum();
                (dot - f64::from(u8::from(i == j))).abs() <= ORTHOGONAL
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weight::Elements;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1013) as f32 - 506.0) * 0.0173).collect()
    }

    /// The matrix itself, as floats: what it makes of the unit vectors.
    fn dense(matrix: &Matrix) -> Vec<f32> {
        let n = matrix.size();
        let mut rows: Vec<f32> = (0..n * n).map(|i| f32::from(u8::from(i % (n + 1) == 0))).collect();
        matrix.apply(&mut rows, 1, false);
        rows
    }

    #[test]
    fn a_hadamard_matrix_is_the_one_in_the_records_documentation() {
        let (n, seed) = (8, 5);
        let matrix = Matrix::new(&Rotation::Hadamard { size: n, seed }, &|_| unreachable!("no parameters")).unwrap();
        let signs = signs(n as usize, seed);
        for (i, row) in dense(&matrix).chunks_exact(n as usize).enumerate() {
            for (j, &got) in row.iter().enumerate() {
                let h = if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                assert_eq!(got, (signs[i] * h / (n as f64).sqrt()) as f32, "({i}, {j})");
            }
        }
        assert!(signs.contains(&1.0) && signs.contains(&-1.0));
    }

    #[test]
    fn both_kinds_agree_and_come_back() {
        let fast = Matrix::new(&Rotation::Hadamard { size: 16, seed: 1 }, &|_| unreachable!("no parameters")).unwrap();
        let values = dense(&fast);
        let given = Matrix::new(&Rotation::Tensor("r".into()), &|_| {
            Ok(Elements { dims: vec![16, 16], values: values.clone() })
        });
        let given = given.unwrap();
        let source = numbers(16 * 3 * 16);
        for inner in [1, 3] {
            let (mut a, mut b) = (source.clone(), source.clone());
            fast.apply(&mut a, inner, false);
            given.apply(&mut b, inner, false);
            assert_eq!(a, b, "entries of a quarter are exact");
            assert_ne!(a, source);
            fast.apply(&mut a, inner, true);
            let length = source.iter().map(|v| v * v).sum::<f32>().sqrt();
            let bound = length * 2f32.powi(-23);
            assert!(a.iter().zip(&source).all(|(a, b)| (a - b).abs() <= bound));
        }
    }

    #[test]
    fn a_matrix_must_be_orthogonal() {
        let tensor = Rotation::Tensor("r".into());
        for (dims, values) in [
            (vec![2, 2], vec![1.0, 0.0, 0.0, 1.1]),
            (vec![2, 2], vec![0.8, 0.6, 0.8, 0.6]),
            (vec![1, 2], vec![1.0, 0.0]),
            (vec![2], vec![1.0, 0.0]),
        ] {
            let of = |_: &str| Ok(Elements { dims: dims.clone(), values: values.clone() });
            assert!(Matrix::new(&tensor, &of).is_err(), "{dims:?} {values:?}");
        }
        for size in [0, 3, 1 << 30] {
            assert!(Matrix::new(&Rotation::Hadamard { size, seed: 0 }, &|_| unreachable!("no parameters")).is_err());
        }
    }
}
