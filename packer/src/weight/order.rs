//! Steps that only move elements: the order of axes, and the order of rows. Their inverses are exact.

use super::Elements;
use rayon::prelude::*;

/// Axes `(o, i, h, w)` become `(o, h, w, i)`. The caller has checked that there are four.
pub(super) fn to_file_order(from: Elements) -> Elements {
    let [o, i, h, w] = from.dims[..] else { return from };
    Elements { dims: vec![o, h, w, i], values: transpose(from.values, [i, h * w]) }
}

/// The inverse of [`to_file_order`].
pub(super) fn from_file_order(from: Elements) -> Elements {
    let [o, h, w, i] = from.dims[..] else { return from };
    Elements { dims: vec![o, i, h, w], values: transpose(from.values, [h * w, i]) }
}

/// Each run of `rows` by `cols` elements, transposed.
fn transpose(values: Vec<f32>, [rows, cols]: [usize; 2]) -> Vec<f32> {
    if rows <= 1 || cols <= 1 {
        return values;
    }
    let mut out = vec![0.0; values.len()];
    out.par_chunks_exact_mut(rows * cols).zip(values.par_chunks_exact(rows * cols)).for_each(|(to, from)| {
        for (row, line) in from.chunks_exact(cols).enumerate() {
            line.iter().enumerate().for_each(|(col, &v)| to[col * rows + row] = v);
        }
    });
    out
}

/// Two halves of rows become one of each by turns. `row` is the number of elements in a row, the number of rows is even.
pub(super) fn interleave(values: &[f32], row: usize) -> Vec<f32> {
    let (first, second) = values.split_at(values.len() / 2);
    first.chunks_exact(row).zip(second.chunks_exact(row)).flat_map(|(a, b)| a.iter().chain(b)).copied().collect()
}

/// The inverse of [`interleave`].
pub(super) fn take_apart(values: &[f32], row: usize) -> Vec<f32> {
    let half = |skip| values.chunks_exact(row).skip(skip).step_by(2).flatten().copied();
    half(0).chain(half(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_turn_channels_last_and_back() {
        // Values say (o, i, w).
        let values = (0..2).flat_map(|o| (0..3).flat_map(move |i| (0..2).map(move |w| (o * 100 + i * 10 + w) as f32)));
        let source = Elements { dims: vec![2, 3, 1, 2], values: values.collect() };
        let turned = to_file_order(source.clone());
        assert_eq!(turned.dims, [2, 1, 2, 3]);
        assert_eq!(turned.values, [0., 10., 20., 1., 11., 21., 100., 110., 120., 101., 111., 121.]);
        assert_eq!(from_file_order(turned), source);
        let pointwise = Elements { dims: vec![2, 3, 1, 1], values: vec![1., 2., 3., 4., 5., 6.] };
        assert_eq!(to_file_order(pointwise.clone()).dims, [2, 1, 1, 3]);
        assert_eq!(from_file_order(to_file_order(pointwise.clone())), pointwise);
    }

    #[test]
    fn halves_of_rows_go_by_turns_and_back() {
        let source = [[1., 2.], [3., 4.], [5., 6.], [10., 20.], [30., 40.], [50., 60.]].concat();
        let arranged = interleave(&source, 2);
        assert_eq!(arranged, [1., 2., 10., 20., 3., 4., 30., 40., 5., 6., 50., 60.]);
        assert_eq!(take_apart(&arranged, 2), source);
        assert_eq!(interleave(&[1., 2., 3., 10., 20., 30.], 1), [1., 10., 2., 20., 3., 30.]);
    }
}
