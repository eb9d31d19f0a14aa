//! Matrix products of activations by packed weights: the loop nest around the micro-kernels.
//!
//! ```text
//! for each tile of the output (48 channels by some hundred rows), in parallel:
//!     decode the weights of these channels into a panel in private memory      (once per tile)
//!     for each 8 rows: micro-kernel over all inputs; epilogue; store
//! ```
//!
//! Decoding costs 2 to 3 % of the products of 512 rows. Nothing of the weight is ever kept decoded beyond its tile.
//! Cutting the inputs into blocks whose panel fits the first-level cache was tried and lost, for codes and floats
//! alike (bench `linear`, blocks of 288, 576 and 1152 inputs): the panel streams well from the second level, and sums
//! carried from block to block cost more than they save. Asking for the panel's lines ahead of their use changed nothing.
//!
//! A convolution is the same product: row `m` is an output pixel, and its inputs are nine slices of the image, found
//! by [`RowSource`]; nothing is copied.

mod codes;
mod floats;

pub use codes::{Finish, largest_product, product_i8};
pub use floats::product_f32;

use super::simd::{GROUP, MR, NR, panel_len};
use crate::backend::args::Input;

/// Most kernel taps.
pub const MAX_TAPS: usize = 9;

/// Finds the slices of activations that make an output row.
pub trait RowSource<T>: Sync {
    /// Slices per row.
    fn taps(&self) -> usize;
    /// Length of each.
    fn len(&self) -> usize;
    /// Finds the windows of rows `first..first + count` (at most `MR`); repeats the last to fill the tile.
    fn fill<'a>(&'a self, first: usize, count: usize, out: &mut Windows<'a, T>);
}

/// What `MR` output rows are made of.
pub struct Windows<'a, T> {
    /// Slice `tap * MR + i` lies under tap `tap` of row `i`.
    pub slices: [&'a [T]; MAX_TAPS * MR],
    /// The taps of each row that are not padding, as bits.
    pub valid: [u32; MR],
    /// The sum of the codes under each row's valid taps; 0 for floats.
    pub sum: [i32; MR],
}

impl<T> Windows<'_, T> {
    /// Windows of nothing, to be filled.
    pub fn new() -> Self {
        Windows { slices: [&[]; MAX_TAPS * MR], valid: [0; MR], sum: [0; MR] }
    }
}

/// Rows that lie one after another.
pub struct Matrix<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Elements from row to row.
    pub stride: usize,
    /// Elements of a row that count.
    pub len: usize,
    /// Sum of each row's codes; empty for floats.
    pub sums: &'a [i32],
}

impl<T: Sync> RowSource<T> for Matrix<'_, T> {
    fn taps(&self) -> usize {
        1
    }

    fn len(&self) -> usize {
        self.len
    }

    fn fill<'a>(&'a self, first: usize, count: usize, out: &mut Windows<'a, T>) {
        for i in 0..MR {
            let row = first + i.min(count - 1);
            out.slices[i] = &self.data[row * self.stride..][..self.stride];
            (out.valid[i], out.sum[i]) = (1, self.sums.get(row).copied().unwrap_or(0));
        }
    }
}

/// Most rows of output per tile.
const MOST_ROWS: usize = 1024;
/// Rows of output per tile: enough to pay for decoding a panel, few enough that the activations of a tile stay near,
/// and that there are tiles for all threads. Does not change any result.
pub fn row_step(m: usize, n: usize, bytes_per_row: usize, near: usize) -> usize {
    let mut step = (near / bytes_per_row.max(1)).clamp(128, MOST_ROWS).min(m.max(1));
    let panels = n.div_ceil(NR);
    while step > 64 && panels * m.div_ceil(step) < 4 * rayon::current_num_threads() {
        step = step.div_ceil(2);
    }
    step.next_multiple_of(MR)
}

/// Bytes of private memory a product needs.
pub fn scratch_bytes(x: &Input, taps: usize) -> usize {
    match x {
        Input::Codes(c) => NR * panel_len(c.cols * taps),
        Input::Floats(f) => (NR * f.cols * taps + GROUP * f.cols * taps) * 4,
    }
}
