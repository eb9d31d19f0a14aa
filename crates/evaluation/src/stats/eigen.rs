//! Eigenvalues and eigenvectors of symmetric matrices.

/// Sweeps after which Jacobi's method ends in any case; matrices of this program take fewer than ten.
const MOST_SWEEPS: usize = 50;
/// Share of the squared Frobenius norm that may stay off the diagonal; an eigenvalue is off by the square of its root.
const REST: f64 = 1e-26;

/// Eigenvalues and eigenvectors.
#[derive(Clone, Debug)]
pub struct Eigen {
    /// The eigenvalues, in no order.
    pub values: Vec<f64>,
    /// `(n, n)`: row `i` is the eigenvector of value `i`, of length 1.
    pub vectors: Vec<f64>,
}

/// Eigenvalues and eigenvectors of the symmetric matrix `a` `(n, n)`, by Jacobi's cyclic method (Golub and Van Loan,
/// "Matrix Computations", section 8.5): slower than others, but short, and as precise as the matrix.
///
/// # Panics
/// If `a` has not `n * n` elements.
pub fn symmetric(mut a: Vec<f64>, n: usize) -> Eigen {
    assert_eq!(a.len(), n * n, "elements of a matrix of {n} rows");
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    let whole: f64 = a.iter().map(|v| v * v).sum();
    for _ in 0..MOST_SWEEPS {
        let off: f64 = (0..n).map(|p| a[p * n + p + 1..(p + 1) * n].iter().map(|v| v * v).sum::<f64>()).sum();
        if 2.0 * off <= REST * whole {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut vectors, n, p, q);
            }
        }
    }
    Eigen { values: (0..n).map(|i| a[i * n + i]).collect(), vectors }
}

/// Turns rows and columns `p < q` so that the element in which they meet becomes zero.
fn rotate(a: &mut [f64], vectors: &mut [f64], n: usize, p: usize, q: usize) {
    let (meet, gap) = (a[p * n + q], a[q * n + q] - a[p * n + p]);
    if meet == 0.0 {
        return;
    }
    let tau = gap / (2.0 * meet);
    let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
    let c = 1.0 / (1.0 + t * t).sqrt();
    let s = t * c;
    let (app, aqq) = (a[p * n + p], a[q * n + q]);
    turn(a, n, p, q, c, s);
    // Rows are turned; columns are the same numbers, but for where the four meet.
    for k in 0..n {
        a[k * n + p] = a[p * n + k];
        a[k * n + q] = a[q * n + k];
    }
    (a[p * n + p], a[q * n + q]) = (app - t * meet, aqq + t * meet);
    (a[p * n + q], a[q * n + p]) = (0.0, 0.0);
    turn(vectors, n, p, q, c, s);
}

/// Rows `p` and `q` become `c p - s q` and `s p + c q`.
fn turn(a: &mut [f64], n: usize, p: usize, q: usize, c: f64, s: f64) {
    let (above, below) = a.split_at_mut(q * n);
    for (x, y) in above[p * n..][..n].iter_mut().zip(&mut below[..n]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}
