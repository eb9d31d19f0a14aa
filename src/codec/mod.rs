//! The one weight codec: **code -> codebook -> scale**.
//!
//! A weight matrix of `rows` output channels by `cols` inputs is stored as `b`-bit codes. A code indexes a small
//! table; the table's entry, shifted and scaled per row, is the weight:
//!
//! ```text
//! w[r][k] = scale[r] * (table[r][code[r][k]] + offset[r])
//! ```
//!
//! Uniform affine quantization (one shared table of consecutive integers), K-Means-C (a table per output channel) and
//! K-Means-A (one table per tensor) are all of this form, so one kernel per bit width serves them all. Tables of
//! layers with int8 activations hold `i8` entries: then `table x scale` *is* the quantized weight, and the integer
//! product of codes is exact. Layers with float activations may hold exact `f16` centroids instead.

mod bits;
pub mod layout;

use crate::program::numbered;
pub use bits::Bits;
use half::f16;

/// A codebook's entries.
#[derive(Clone, Debug, PartialEq)]
pub enum TableValues {
    /// Integer entries: usable by the integer and the float path.
    I8(Vec<i8>),
    /// Exact centroids: float path only.
    F16(Vec<f16>),
}

numbered! {
    "Codebooks of a tensor"
    /// How many codebooks a tensor has.
    pub enum Grain {
        /// One table for the whole tensor.
        Tensor = 0 "tensor",
        /// One table per output channel.
        Row = 1 "row",
    }
}

/// A quantized weight matrix as the packer makes it: one code per byte, nothing packed yet.
///
/// This is the scalar truth of the codec: [`QuantizedMatrix::weight`] is the definition of what a code means, and the
/// packed layout, the SIMD decoders and `unpack` are all tested against it.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedMatrix {
    /// Width of a code.
    pub bits: Bits,
    /// Output channels.
    pub rows: usize,
    /// Inputs per output channel: `taps * input channels`, tap-major (O·H·W·I order).
    pub cols: usize,
    /// `rows * cols` codes, row-major, each below `bits.levels()`.
    pub codes: Vec<u8>,
    /// `bits.levels()` entries per table; one table, or one per row, by `grain`.
    pub table: TableValues,
    /// One table or one per row.
    pub grain: Grain,
    /// `rows` scales.
    pub scale: Vec<f32>,
    /// `rows` real-valued offsets, added to the table's entry before scaling.
    pub offset: Vec<f32>,
}

impl QuantizedMatrix {
    /// The table entry of row `row`, code `code`, as a number.
    pub fn entry(&self, row: usize, code: u8) -> f32 {
        let base = match self.grain {
            Grain::Tensor => 0,
            Grain::Row => row * self.bits.levels(),
        };
        match &self.table {
            TableValues::I8(t) => f32::from(t[base + usize::from(code)]),
            TableValues::F16(t) => t[base + usize::from(code)].to_f32(),
        }
    }

    /// The dequantized weight at (`row`, `col`).
    pub fn weight(&self, row: usize, col: usize) -> f32 {
        self.scale[row] * (self.entry(row, self.codes[row * self.cols + col]) + self.offset[row])
    }
}
