//! `H = L D L^T` by blocks, and products with `L`.
//!
//! The right-looking blocked Cholesky factorisation: all but the diagonal blocks is matrix products. Pieces have fixed
//! sizes, so no sum depends on the number of threads.
//!
//! `H` is factored in f64; the factor is kept, and multiplied with, in f32. What that rounds away is as if entries of `H`
//! were off by 1e-7, and damping is 1e-2.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

/// Columns that are eliminated at a time.
const PANEL: usize = 128;
/// Rows per piece of the products.
const ROWS: usize = 128;

/// `L D L^T` of a positive definite matrix.
#[derive(Debug)]
pub(super) struct Factor {
    /// `L`, (n, n): ones on the diagonal, zeros above it.
    pub(super) lower: Array2<f32>,
    /// The diagonal of `D`.
    pub(super) pivots: Vec<f64>,
}

/// Factors the symmetric matrix whose lower triangle `a` holds; `None` if it is not positive definite.
pub(super) fn factor(mut a: Array2<f64>) -> Option<Factor> {
    let n = a.nrows();
    for start in (0..n).step_by(PANEL) {
        let end = (start + PANEL).min(n);
        let inverse = eliminate(&mut a.slice_mut(s![start..end, start..end]))?;
        // L21 = A21 L11^-T, kept twice: A's own rows are written while all of it is read.
        let mut rows = a.slice_mut(s![end.., start..end]);
        pieces(&mut rows).into_par_iter().for_each(|mut rows| {
            let product = rows.dot(&inverse.t());
            rows.assign(&product);
        });
        let below = rows.to_owned();
        // A22 -= L21 L21^T, every piece up to its own diagonal.
        pieces(&mut a.slice_mut(s![end.., end..])).into_par_iter().enumerate().for_each(|(piece, mut rows)| {
            let first = piece * ROWS;
            let last = first + rows.nrows();
            let (left, right) = (below.slice(s![first..last, ..]), below.slice(s![..last, ..]));
            general_mat_mul(-1.0, &left, &right.t(), 1.0, &mut rows.slice_mut(s![.., ..last]));
        });
    }
    let roots = a.diag().to_vec();
    pieces(&mut a.view_mut()).into_par_iter().enumerate().for_each(|(piece, mut rows)| {
        for (i, mut row) in rows.axis_iter_mut(Axis(0)).enumerate() {
            let i = piece * ROWS + i;
            row.iter_mut().zip(&roots).take(i).for_each(|(v, root)| *v /= root);
            row[i] = 1.0;
            row.slice_mut(s![i + 1..]).fill(0.0);
        }
    });
    Some(Factor { lower: a.mapv(|v| v as f32), pivots: roots.iter().map(|r| r * r).collect() })
}

/// Runs of [`ROWS`] rows.
fn pieces<'a>(rows: &'a mut ArrayViewMut2<'_, f64>) -> Vec<ArrayViewMut2<'a, f64>> {
    rows.axis_chunks_iter_mut(Axis(0), ROWS).collect()
}

/// Makes the lower triangle of a diagonal block its Cholesky factor; returns the factor's inverse, with zeros above its
/// diagonal.
fn eliminate(a: &mut ArrayViewMut2<'_, f64>) -> Option<Array2<f64>> {
    let n = a.nrows();
    for j in 0..n {
        let dot = |a: &ArrayViewMut2<'_, f64>, i: usize| (0..j).map(|k| a[[i, k]] * a[[j, k]]).sum::<f64>();
        let square = a[[j, j]] - dot(a, j);
        if !(square > 0.0 && square.is_finite()) {
            return None;
        }
        let root = square.sqrt();
        a[[j, j]] = root;
        for i in j + 1..n {
            a[[i, j]] = (a[[i, j]] - dot(a, i)) / root;
        }
    }
    let mut inverse = Array2::<f64>::zeros((n, n));
    for j in 0..n {
        inverse[[j, j]] = 1.0 / a[[j, j]];
        for i in j + 1..n {
            let sum: f64 = (j..i).map(|k| a[[i, k]] * inverse[[k, j]]).sum();
            inverse[[i, j]] = -sum / a[[i, i]];
        }
    }
    Some(inverse)
}

impl Factor {
    /// `L^T x` of (n, columns) `x`. With the pivots it is the quadratic form: `x^T H x = sum_p D_p (L^T x)_p^2`.
    pub(super) fn transposed_product(&self, x: ArrayView2<f32>) -> Array2<f32> {
        let n = self.pivots.len();
        let mut product = Array2::zeros(x.raw_dim());
        for start in (0..n).step_by(PANEL) {
            let end = (start + PANEL).min(n);
            let lower = self.lower.slice(s![start.., start..end]);
            let mut rows = product.slice_mut(s![start..end, ..]);
            general_mat_mul(1.0, &lower.t(), &x.slice(s![start.., ..]), 0.0, &mut rows);
        }
        product
    }

    /// `L D u` of (n, columns) `u`: with `u = L^T x` it is `H x`.
    pub(super) fn scaled_product(&self, u: ArrayView2<f32>) -> Array2<f32> {
        let n = self.pivots.len();
        let mut scaled = u.to_owned();
        for (mut row, pivot) in scaled.axis_iter_mut(Axis(0)).zip(&self.pivots) {
            row *= *pivot as f32;
        }
        let mut product = Array2::zeros(u.raw_dim());
        for start in (0..n).step_by(PANEL) {
            let end = (start + PANEL).min(n);
            let lower = self.lower.slice(s![start..end, ..end]);
            let mut rows = product.slice_mut(s![start..end, ..]);
            general_mat_mul(1.0, &lower, &scaled.slice(s![..end, ..]), 0.0, &mut rows);
        }
        product
    }

    /// `H^-1 x` of (n, columns) `x`.
    pub(super) fn solve(&self, mut x: Array2<f32>) -> Array2<f32> {
        let n = self.pivots.len();
        for start in (0..n).step_by(PANEL) {
            let end = (start + PANEL).min(n);
            let (above, mut rest) = x.view_mut().split_at(Axis(0), start);
            let lower = self.lower.slice(s![start..end, ..start]);
            general_mat_mul(-1.0, &lower, &above, 1.0, &mut rest.slice_mut(s![..end - start, ..]));
            for p in start..end {
                let (done, mut after) = rest.view_mut().split_at(Axis(0), p - start);
                let mut row = after.row_mut(0);
                for (done, &share) in done.rows().into_iter().zip(self.lower.slice(s![p, start..p])) {
                    row.scaled_add(-share, &done);
                }
            }
        }
        for (mut row, pivot) in x.axis_iter_mut(Axis(0)).zip(&self.pivots) {
            row /= *pivot as f32;
        }
        for start in (0..n).step_by(PANEL).rev() {
            let end = (start + PANEL).min(n);
            let (mut rest, below) = x.view_mut().split_at(Axis(0), end);
            let lower = self.lower.slice(s![end.., start..end]);
            general_mat_mul(-1.0, &lower.t(), &below, 1.0, &mut rest.slice_mut(s![start.., ..]));
            for p in (start..end).rev() {
                let (mut before, at) = rest.view_mut().split_at(Axis(0), p);
                let at = at.row(0);
                for (mut row, &share) in
                    before.slice_mut(s![start.., ..]).rows_mut().into_iter().zip(self.lower.slice(s![p, start..p]))
                {
                    row.scaled_add(-share, &at);
                }
            }
        }
        x
    }

    /// `sum_p D_p u_p v_p` of every column.
    pub(super) fn scaled_dot(&self, u: &Array2<f32>, v: &Array2<f32>) -> Vec<f64> {
        let mut sums = vec![0f64; u.ncols()];
        for ((u, v), pivot) in u.axis_iter(Axis(0)).zip(v.axis_iter(Axis(0))).zip(&self.pivots) {
            for (sum, (&u, &v)) in sums.iter_mut().zip(u.iter().zip(v)) {
                *sum += pivot * f64::from(u) * f64::from(v);
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Random, correlated, double, single};
    use super::*;

    const EPSILON: f64 = f32::EPSILON as f64;

    #[test]
    fn the_factors_give_the_matrix_back_at_every_size_around_a_panel() {
        for n in [1, 2, 5, 127, 128, 129, 300] {
            let h = correlated(n, 1e4, n as u64);
            let Factor { lower, pivots } = factor(h.clone()).unwrap();
            for i in 0..n {
                assert_eq!(lower[[i, i]], 1.0);
                assert!(lower.row(i).iter().skip(i + 1).all(|&v| v == 0.0));
            }
            let lower = double(&lower);
            let back = lower.dot(&Array2::from_diag(&ndarray::Array1::from(pivots))).dot(&lower.t());
            let largest = h.iter().fold(0f64, |m, v| m.max(v.abs()));
            assert!((&back - &h).iter().all(|d| d.abs() < EPSILON * largest), "{n}");
        }
    }

    #[test]
    fn products_are_those_of_the_matrix() {
        let (n, columns) = (200, 7);
        let h = correlated(n, 1e3, 5);
        let mut random = Random::new(6);
        let x = Array2::from_shape_simple_fn((n, columns), || random.normal());
        let factor = factor(h.clone()).unwrap();
        let (x, hx) = (single(&x), h.dot(&x));
        let u = factor.transposed_product(x.view());
        let size = hx.iter().fold(0f64, |m, v| m.max(v.abs()));
        assert!((double(&factor.scaled_product(u.view())) - &hx).iter().all(|d| d.abs() < 8.0 * EPSILON * size));
        let back = factor.solve(single(&hx));
        assert!((&back - &x).iter().all(|d| d.abs() < 1e-4), "H^-1 H x, of condition 1e3");
        let expected: Vec<f64> = (0..columns).map(|c| x.column(c).mapv(f64::from).dot(&hx.column(c))).collect();
        for (got, expected) in factor.scaled_dot(&u, &u).iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6 * expected, "{got} {expected}");
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_told() {
        let mut h = correlated(150, 10.0, 7);
        h[[140, 140]] = -1.0;
        assert!(factor(h.clone()).is_none());
        h[[140, 140]] = f64::NAN;
        assert!(factor(h).is_none());
        assert!(factor(Array2::zeros((3, 3))).is_none());
    }
}
