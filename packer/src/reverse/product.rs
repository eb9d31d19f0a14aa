//! Products of matrices, and sums of their rows, on all threads.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;

/// Rows of a result that are worked out together.
const TILE: usize = 64;

/// `a b`, (m, k) and (k, n) to (m, n) row-major.
pub(crate) fn product(a: ArrayView2<f32>, b: ArrayView2<f32>) -> Vec<f32> {
    let (rows, cols) = (a.nrows(), b.ncols());
    let mut c = vec![0f32; rows * cols];
    if c.is_empty() {
        return c;
    }
    c.par_chunks_mut(TILE * cols).enumerate().for_each(|(tile, c)| {
        let rows = c.len() / cols;
        let mut c = ArrayViewMut2::from_shape((rows, cols), c).expect("whole rows");
        general_mat_mul(1.0, &a.slice(s![tile * TILE..tile * TILE + rows, ..]), &b, 0.0, &mut c);
    });
    c
}

/// The sum of the rows of `y`.
pub(super) fn row_sum(y: &[f32], cols: usize) -> Vec<f32> {
    let mut sum = vec![0f64; cols];
    for row in y.chunks_exact(cols) {
        sum.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
    }
    sum.into_iter().map(|v| v as f32).collect()
}
