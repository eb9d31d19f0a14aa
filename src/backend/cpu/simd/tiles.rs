//! Hands out disjoint tiles of a matrix to threads.
#![allow(unsafe_code)]

use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Exclusive access to a rectangle of a row-major float matrix.
pub struct TileMut<'a> {
    first: *mut f32,
    stride: usize,
    /// The tile's rows in the matrix.
    pub rows: Range<usize>,
    /// The tile's columns in the matrix.
    pub cols: Range<usize>,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: a tile is a `&mut [f32]` with gaps: exclusive access to floats, which may move between threads.
unsafe impl Send for TileMut<'_> {}

impl TileMut<'_> {
    /// The same tile for a shorter time, to be given away.
    pub fn reborrow(&mut self) -> TileMut<'_> {
        TileMut { rows: self.rows.clone(), cols: self.cols.clone(), matrix: PhantomData, ..*self }
    }

    /// Row `row` of the matrix within the tile's columns.
    ///
    /// # Panics
    /// If the tile does not contain the row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(self.rows.contains(&row), "row {row} of a tile of rows {:?}", self.rows);
        // SAFETY: `first` points at (rows.start, cols.start) of a live matrix with `stride` columns that contains the
        // tile's rows and columns (`for_each_tile` made it so), and no other tile contains any of them. The borrow of
        // `self` keeps a second slice of this tile from existing.
        unsafe {
            std::slice::from_raw_parts_mut(self.first.add((row - self.rows.start) * self.stride), self.cols.len())
        }
    }
}

struct Base(*mut f32);
// SAFETY: the pointer is only used to make disjoint tiles, which are `Send`.
unsafe impl Sync for Base {}

/// Which tiles follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Those of the same rows.
    ByRows,
    /// Those of the same columns.
    ByColumns,
}

/// Cuts `matrix` (`cols` columns) into tiles of at most `row_step` by `col_step` and calls `f` on each, in parallel;
/// `order` tells what neighbours in time share.
///
/// # Panics
/// If the matrix is not whole rows, or a step is 0.
pub fn for_each_tile(
    matrix: &mut [f32],
    cols: usize,
    [row_step, col_step]: [usize; 2],
    order: Order,
    f: impl Fn(TileMut) + Sync,
) {
    assert!(cols > 0 && row_step > 0 && col_step > 0 && matrix.len().is_multiple_of(cols), "{cols} columns");
    let rows = matrix.len() / cols;
    let (down, across) = (rows.div_ceil(row_step), cols.div_ceil(col_step));
    let base = Base(matrix.as_mut_ptr());
    let base = &base;
    (0..down * across).into_par_iter().with_max_len(1).for_each(|i| {
        let [r, c] = match order {
            Order::ByRows => [i / across, i % across],
            Order::ByColumns => [i % down, i / down],
        };
        let (r, c) = (r * row_step, c * col_step);
        let tile = TileMut {
            // SAFETY: r < rows and c < cols, so the place is inside the matrix.
            first: unsafe { base.0.add(r * cols + c) },
            stride: cols,
            rows: r..(r + row_step).min(rows),
            cols: c..(c + col_step).min(cols),
            matrix: PhantomData,
        };
        f(tile);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_in_exactly_one_tile() {
        for (rows, cols, order) in
            [(1, 1, Order::ByRows), (7, 5, Order::ByColumns), (16, 48, Order::ByRows), (33, 100, Order::ByColumns)]
        {
            let mut matrix = vec![0.0; rows * cols];
            for_each_tile(&mut matrix, cols, [8, 48], order, |mut tile| {
                for r in tile.rows.clone() {
                    let start = tile.cols.start;
                    for (c, x) in tile.row(r).iter_mut().enumerate() {
                        *x += (r * cols + start + c + 1) as f32;
                    }
                }
            });
            assert!(matrix.iter().enumerate().all(|(i, &x)| x == (i + 1) as f32));
        }
    }

    #[test]
    #[should_panic(expected = "row 8 of a tile")]
    fn a_tile_refuses_other_rows() {
        for_each_tile(&mut [0.0; 16], 1, [8, 1], Order::ByRows, |mut tile| {
            let row = tile.rows.end.min(8);
            tile.row(row);
        });
    }
}
