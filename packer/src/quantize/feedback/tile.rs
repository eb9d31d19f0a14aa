//! Tiles: a few rows of a matrix, transposed to (inputs, rows) with the inputs in a block's order, so that rows are lanes.
//!
//! A block's order jumps about in a row. So every row is walked through by itself, while it is in the cache.

use super::levels::TileLevels;
use ndarray::Array2;

/// Rows that are turned at a time: a cache line of f32.
const TURNED: usize = 16;

/// A tile of `rows` rows: `at` gives the value of a row and an input.
pub(super) fn gather<T: Copy + Default>(rows: usize, inputs: &[usize], at: impl Fn(usize, usize) -> T) -> Array2<T> {
    let n = inputs.len();
    let (mut tile, mut turned) = (vec![T::default(); n * rows], vec![T::default(); n * TURNED.min(rows)]);
    for first in (0..rows).step_by(TURNED) {
        let count = TURNED.min(rows - first);
        for (r, row) in turned.chunks_exact_mut(n.max(1)).take(count).enumerate() {
            row.iter_mut().zip(inputs).for_each(|(to, &input)| *to = at(first + r, input));
        }
        for (p, lanes) in tile.chunks_exact_mut(rows).enumerate() {
            lanes[first..first + count].iter_mut().enumerate().for_each(|(r, lane)| *lane = turned[r * n + p]);
        }
    }
    Array2::from_shape_vec((n, rows), tile).expect("as many values as entries")
}

/// Puts a tile of codes back into the rows that it is of, `cols` codes each.
pub(super) fn scatter(codes: &mut [u8], cols: usize, inputs: &[usize], tile: &Array2<u8>) {
    let (rows, tile) = (tile.ncols(), tile.as_slice().expect("made in standard order"));
    for (r, row) in codes.chunks_exact_mut(cols).enumerate() {
        inputs.iter().enumerate().for_each(|(p, &input)| row[input] = tile[p * rows + r]);
    }
}

/// What `value` gives for each row and code of a tile.
pub(super) fn map(codes: &Array2<u8>, value: impl Fn(usize, u8) -> f32) -> Array2<f32> {
    let mut values = Array2::zeros(codes.raw_dim());
    for (mut values, codes) in values.rows_mut().into_iter().zip(codes.rows()) {
        values.iter_mut().zip(codes).enumerate().for_each(|(r, (v, &code))| *v = value(r, code));
    }
    values
}

/// `w - q` of a tile of weights and its codes.
pub(super) fn error(w: &Array2<f32>, codes: &Array2<u8>, levels: &TileLevels) -> Array2<f32> {
    w - map(codes, |r, code| levels.value(r, code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_transposed_in_the_order_of_inputs_and_go_back() {
        for (rows, cols) in [(1, 1), (3, 7), (16, 5), (17, 40), (64, 33)] {
            let inputs: Vec<usize> = (0..cols).map(|j| (j * 3 + 1) % cols).filter(|j| j % 2 == 0).collect();
            let code = |r: usize, j: usize| (r * 31 + j * 7) as u8;
            let tile = gather(rows, &inputs, code);
            assert_eq!(tile.dim(), (inputs.len(), rows));
            let mut back = vec![255u8; rows * cols];
            scatter(&mut back, cols, &inputs, &tile);
            for (r, j) in (0..rows).flat_map(|r| (0..cols).map(move |j| (r, j))) {
                let expected = if inputs.contains(&j) { code(r, j) } else { 255 };
                assert_eq!(back[r * cols + j], expected, "{rows} x {cols}: {r} {j}");
            }
        }
    }
}
