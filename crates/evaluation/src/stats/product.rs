//! Products of matrices in f64, by panels that threads share; what comes out does not depend on how many there are.

use ndarray::ArrayView2;
use rayon::prelude::*;

/// Sums that [`dot`] keeps side by side.
const LANES: usize = 8;
/// Rows of a product that a thread makes at a time.
const ROWS: usize = 64;

/// The sum of products.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_words, a_rest) = a.as_chunks::<LANES>();
    let (b_words, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a_words.iter().zip(b_words) {
        (0..LANES).for_each(|i| sums[i] += a[i] * b[i]);
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

/// `a` `(m, k)` times the transpose of `b` `(n, k)`: `(m, n)`.
///
/// # Panics
/// If `a` and `b` are not of whole rows of `k > 0`.
pub fn times_transposed(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let n = b.len() / k;
    let right = ArrayView2::from_shape((n, k), b).expect("whole rows");
    let panel = |rows: &[f64]| {
        let left = ArrayView2::from_shape((rows.len() / k, k), rows).expect("whole rows");
        left.dot(&right.t()).into_raw_vec_and_offset().0
    };
    a.par_chunks(ROWS * k).flat_map_iter(panel).collect()
}

/// The transpose of `a` `(m, n)`: `(n, m)`.
pub fn transposed(a: &[f64], n: usize) -> Vec<f64> {
    let m = a.len() / n;
    (0..n).flat_map(|column| (0..m).map(move |row| a[row * n + column])).collect()
}
