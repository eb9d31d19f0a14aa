//! Eigenvalues and eigenvectors of symmetric matrices: Householder's reduction to three diagonals, then the implicit QL
//! algorithm (Golub and Van Loan, "Matrix Computations", section 8.3).
//!
//! Work is shared between threads row by row; what a row becomes does not depend on how.

use super::product::dot;
use rayon::prelude::*;

/// QL steps after which an eigenvalue is taken as it is; usually there are one or two.
const MOST_STEPS: usize = 60;
/// Rows that a thread takes at least: small matrices are not worth sharing.
const ROWS: usize = 128;
/// Columns of eigenvectors that are turned together, so that all rows of them stay in the cache.
const PANEL: usize = 32;
/// Eigenvectors that are reflected together, for the same reason.
const BLOCK: usize = 16;

/// Eigenvalues and eigenvectors.
#[derive(Clone, Debug)]
pub struct Eigen {
    /// The eigenvalues, in no order.
    pub values: Vec<f64>,
    /// `(n, n)`: row `i` is the eigenvector of value `i`, of length 1.
    pub vectors: Vec<f64>,
}

/// Eigenvalues and eigenvectors of the symmetric matrix `a` `(n, n)`.
///
/// # Panics
/// If `a` has not `n * n` elements.
pub fn symmetric(a: Vec<f64>, n: usize) -> Eigen {
    let reduced = Reduced::new(a, n);
    let mut turns = Vec::new();
    let values = reduced.values(|turn| turns.push(turn));
    let mut vectors = turned(&turns, n);
    vectors.par_chunks_mut(BLOCK * n.max(1)).for_each(|block| reduced.reflect(block));
    Eigen { values, vectors }
}

/// The eigenvalues alone, in no order: a third of the work.
///
/// # Panics
/// As [`symmetric`].
pub fn eigenvalues(a: Vec<f64>, n: usize) -> Vec<f64> {
    Reduced::new(a, n).values(|_| ())
}

/// A rotation of rows `row` and `row + 1`.
struct Turn {
    row: usize,
    cosine: f64,
    sine: f64,
}

/// A matrix `T` of three diagonals, and the reflections that lead to it from `A`: `A = H(n-1) .. H(1) T H(1) .. H(n-1)`.
struct Reduced {
    n: usize,
    diagonal: Vec<f64>,
    /// Element `i` stands left of element `i` of the diagonal; the first is 0.
    beside: Vec<f64>,
    /// Row `i` holds, before its diagonal, the vector `v` of `H(i) = 1 - factor v v'`.
    vectors: Vec<f64>,
    factors: Vec<f64>,
    /// What everything but `vectors` and `factors` was divided by.
    scale: f64,
}

impl Reduced {
    fn new(mut a: Vec<f64>, n: usize) -> Self {
        assert_eq!(a.len(), n * n, "elements of a matrix of {n} rows");
        // Squares of what is left neither overflow nor, where they count, vanish.
        let scale = a.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        let scale = if scale > 0.0 { scale } else { 1.0 };
        a.iter_mut().for_each(|v| *v /= scale);
        let [mut diagonal, mut beside, mut factors] = [(); 3].map(|()| vec![0.0; n]);
        for i in (0..n).rev() {
            let (above, rest) = a.split_at_mut(i * n);
            diagonal[i] = rest[i];
            let v = &mut rest[..i];
            (beside[i], factors[i]) = reflection(v);
            if factors[i] == 0.0 {
                continue;
            }
            let (v, factor) = (&*v, factors[i]);
            let product: Vec<f64> =
                above.par_chunks(n).with_min_len(ROWS).map(|row| factor * dot(&row[..i], v)).collect();
            let along = factor / 2.0 * dot(&product, v);
            let w: Vec<f64> = product.iter().zip(v).map(|(p, v)| p - along * v).collect();
            above.par_chunks_mut(n).with_min_len(ROWS).zip(v).zip(&w).for_each(|((row, &vj), &wj)| {
                row[..i].iter_mut().zip(v).zip(&w).for_each(|((a, v), w)| *a -= vj * w + wj * v);
            });
        }
        Reduced { n, diagonal, beside, vectors: a, factors, scale }
    }

    /// The eigenvalues; `see` is told of each rotation that leads there.
    fn values(&self, mut see: impl FnMut(Turn)) -> Vec<f64> {
        let (n, mut d) = (self.n, self.diagonal.clone());
        // Element i stands right of element i of the diagonal.
        let mut e: Vec<f64> = self.beside.iter().skip(1).copied().chain([0.0]).collect();
        for first in 0..n {
            for _ in 0..MOST_STEPS {
                let small = |i: &usize| e[*i].abs() <= f64::EPSILON * (d[*i].abs() + d[i + 1].abs());
                let last = (first..n - 1).find(small).unwrap_or(n - 1);
                if last == first {
                    break;
                }
                step(&mut d[first..=last], &mut e[first..=last], first, &mut see);
            }
        }
        d.iter().map(|v| v * self.scale).collect()
    }

    /// Takes rows that are eigenvectors of `T` to those of `A`.
    fn reflect(&self, rows: &mut [f64]) {
        for i in 1..self.n {
            let v = &self.vectors[i * self.n..][..i];
            for row in rows.chunks_exact_mut(self.n) {
                let along = self.factors[i] * dot(&row[..i], v);
                row.iter_mut().zip(v).for_each(|(x, v)| *x -= along * v);
            }
        }
    }
}

/// Turns `x` into the vector `v` of a reflection `1 - factor v v'` that takes it to its last axis; the length there, and the
/// factor, which is 0 where nothing is to be done.
fn reflection(x: &mut [f64]) -> (f64, f64) {
    let Some((last, others)) = x.split_last_mut() else { return (0.0, 0.0) };
    let squares = dot(others, others);
    if squares == 0.0 {
        return (*last, 0.0);
    }
    // Away from the last element's sign: nothing cancels.
    let length = -(squares + *last * *last).sqrt().copysign(*last);
    let factor = (length - *last) / length;
    let scale = 1.0 / (*last - length);
    others.iter_mut().for_each(|v| *v *= scale);
    *last = 1.0;
    (length, factor)
}

/// A QL step with Wilkinson's shift on the block `d` of the diagonal, of at least two elements, and what stands right of them
/// `e`; the block begins in row `row`.
fn step(d: &mut [f64], e: &mut [f64], row: usize, see: &mut impl FnMut(Turn)) {
    let last = d.len() - 1;
    let half = (d[1] - d[0]) / (2.0 * e[0]);
    let mut g = d[last] - d[0] + e[0] / (half + half.hypot(1.0).copysign(half));
    let (mut sine, mut cosine, mut p) = (1.0, 1.0, 0.0);
    for i in (0..last).rev() {
        let (f, b) = (sine * e[i], cosine * e[i]);
        let r = f.hypot(g);
        e[i + 1] = r;
        if r == 0.0 {
            // The block falls apart here.
            d[i + 1] -= p;
            e[last] = 0.0;
            return;
        }
        (sine, cosine) = (f / r, g / r);
        g = d[i + 1] - p;
        let r = (d[i] - g) * sine + 2.0 * cosine * b;
        p = sine * r;
        d[i + 1] = g + p;
        g = cosine * r - b;
        see(Turn { row: row + i, cosine, sine });
    }
    d[0] -= p;
    e[0] = g;
    e[last] = 0.0;
}

/// The identity `(n, n)` with `turns` applied to its rows in order.
fn turned(turns: &[Turn], n: usize) -> Vec<f64> {
    let columns: Vec<usize> = (0..n).step_by(PANEL).collect();
    let panel = |&first: &usize| {
        let width = PANEL.min(n - first);
        let mut panel = vec![0.0; n * width];
        (0..width).for_each(|i| panel[(first + i) * width + i] = 1.0);
        for &Turn { row, cosine, sine } in turns {
            let (x, y) = panel[row * width..][..2 * width].split_at_mut(width);
            for (x, y) in x.iter_mut().zip(y) {
                (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
            }
        }
        panel
    };
    let panels: Vec<Vec<f64>> = columns.par_iter().map(panel).collect();
    (0..n).flat_map(|row| panels.iter().flat_map(move |p| &p[row * (p.len() / n)..][..p.len() / n])).copied().collect()
}
