//! Hands out disjoint tiles of a matrix to threads.
#![allow(unsafe_code)]

use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// A row-major matrix to write.
pub struct MatrixMut<'a, T> {
    /// Whole rows.
    pub data: &'a mut [T],
    /// Elements of a row.
    pub cols: usize,
    /// Elements from row to row; those beyond `cols` belong to nobody.
    pub stride: usize,
}

impl<T> MatrixMut<'_, T> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.stride
    }
}

/// Exclusive access to a rectangle of a row-major matrix.
pub struct TileMut<'a, T> {
    first: *mut T,
    stride: usize,
    /// The tile's rows in the matrix.
    pub rows: Range<usize>,
    /// The tile's columns in the matrix.
    pub cols: Range<usize>,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: a tile is a `&mut [T]` with gaps: exclusive access to elements, which may move between threads.
unsafe impl<T: Send> Send for TileMut<'_, T> {}

impl<T> TileMut<'_, T> {
    /// The same tile for a shorter time, to be given away.
    pub fn reborrow(&mut self) -> TileMut<'_, T> {
        TileMut { rows: self.rows.clone(), cols: self.cols.clone(), matrix: PhantomData, ..*self }
    }

    /// Those columns of the tile, for a shorter time.
    ///
    /// # Panics
    /// If the tile does not contain them.
    pub fn part(&mut self, cols: Range<usize>) -> TileMut<'_, T> {
        let Range { start, end } = self.cols;
        assert!(start <= cols.start && cols.start <= cols.end && cols.end <= end, "columns {cols:?} of {start}..{end}");
        // SAFETY: the place is within the first row of this tile, or at its end.
        let first = unsafe { self.first.add(cols.start - start) };
        TileMut { first, cols, ..self.reborrow() }
    }

    /// Row `row` of the matrix within the tile's columns.
    ///
    /// # Panics
    /// If the tile does not contain the row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row), "row {row} of a tile of rows {:?}", self.rows);
        // SAFETY: `first` points at (rows.start, cols.start) of a live matrix with `stride` elements a row that contains the
        // tile's rows and columns (`for_each_tile` made it so), and no other tile contains any of them. The borrow of
        // `self` keeps a second slice of this tile from existing.
        unsafe {
            std::slice::from_raw_parts_mut(self.first.add((row - self.rows.start) * self.stride), self.cols.len())
        }
    }
}

struct Base<T>(*mut T);
// SAFETY: the pointer is only used to make disjoint tiles, which are `Send`.
unsafe impl<T: Send> Sync for Base<T> {}

/// Which tiles follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Those of the same rows.
    ByRows,
    /// Those of the same columns.
    ByColumns,
}

/// Cuts `matrix` into tiles of at most `row_step` by `col_step` and calls `f` on each, in parallel; `order` tells what
/// neighbours in time share.
///
/// # Panics
/// If the matrix is not whole rows, or a step is 0.
pub fn for_each_tile<T: Send>(
    matrix: MatrixMut<'_, T>,
    [row_step, col_step]: [usize; 2],
    order: Order,
    f: impl Fn(TileMut<'_, T>) + Sync,
) {
    let MatrixMut { data, cols, stride } = matrix;
    assert!(
        (1..=stride).contains(&cols) && data.len().is_multiple_of(stride),
        "{cols} columns, {stride} from row to row"
    );
    assert!(row_step > 0 && col_step > 0, "tiles of {row_step} by {col_step}");
    let rows = data.len() / stride;
    let (down, across) = (rows.div_ceil(row_step), cols.div_ceil(col_step));
    let base = Base(data.as_mut_ptr());
    let base = &base;
    (0..down * across).into_par_iter().with_max_len(1).for_each(|i| {
        let [r, c] = match order {
            Order::ByRows => [i / across, i % across],
            Order::ByColumns => [i % down, i / down],
        };
        let (r, c) = (r * row_step, c * col_step);
        let tile = TileMut {
            // SAFETY: r < rows and c < cols <= stride, so the place is inside the matrix.
            first: unsafe { base.0.add(r * stride + c) },
            stride,
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
        for (rows, cols, stride, order) in [
            (1, 1, 1, Order::ByRows),
            (7, 5, 8, Order::ByColumns),
            (16, 48, 48, Order::ByRows),
            (33, 100, 104, Order::ByColumns),
        ] {
            let mut data = vec![0.0; rows * stride];
            for_each_tile(MatrixMut { data: &mut data, cols, stride }, [8, 48], order, |mut tile| {
                let (start, end) = (tile.cols.start, tile.cols.end);
                let middle = start + (end - start) / 3;
                for r in tile.rows.clone() {
                    for cols in [start..middle, middle..end] {
                        for (c, x) in cols.clone().zip(tile.part(cols).row(r)) {
                            *x += (r * stride + c + 1) as f32;
                        }
                    }
                }
            });
            let expected = |i: usize| if i % stride < cols { (i + 1) as f32 } else { 0.0 };
            assert!(data.iter().enumerate().all(|(i, &x)| x == expected(i)));
        }
    }

    #[test]
    #[should_panic(expected = "columns 1..3 of 0..2")]
    fn a_tile_refuses_other_columns() {
        let matrix = MatrixMut { data: &mut [0.0; 16], cols: 4, stride: 4 };
        for_each_tile(matrix, [4, 2], Order::ByRows, |mut tile| {
            tile.part(tile.cols.start + 1..tile.cols.end + 1);
        });
    }

    #[test]
    #[should_panic(expected = "row 8 of a tile")]
    fn a_tile_refuses_other_rows() {
        let matrix = MatrixMut { data: &mut [0.0; 16], cols: 1, stride: 1 };
        for_each_tile(matrix, [8, 1], Order::ByRows, |mut tile| {
            let row = tile.rows.end.min(8);
            tile.row(row);
        });
    }
}
