//! Arguments of ops after binding: places in the arena and plain numbers.

mod any;
mod ops;

pub use any::OpArgs;
pub use ops::*;

use crate::program::{Act, ConvStride, QuantizeGrain, Resampling};

/// Alignment of everything in the arena, in bytes.
pub const ALIGN: usize = 64;

/// A place in the arena. Values that a table holds once per model call lie `stride` bytes apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// First byte, a multiple of [`ALIGN`].
    pub at: usize,
    /// Bytes from one call's value to the next one's; 0 if all calls share it.
    pub stride: usize,
}

impl Slot {
    /// First byte at call `call` of the table's window.
    pub fn of(&self, call: usize) -> usize {
        self.at + call * self.stride
    }
}

/// How a float is stored in the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Element {
    /// Narrow.
    F16,
    /// Wide.
    #[default]
    F32,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Element::F16 => 2,
            Element::F32 => 4,
        }
    }
}

/// A float matrix, row-major, without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floats {
    /// Where.
    pub slot: Slot,
    /// Product of all axes but the last.
    pub rows: usize,
    /// The last axis.
    pub cols: usize,
    /// f16 only on back ends that ask for it, and only for values of the loop that the packer did not mark as wide.
    pub element: Element,
}

impl Floats {
    /// Bytes in the arena.
    pub fn bytes(&self) -> usize {
        self.rows * self.cols * self.element.bytes()
    }

    /// The same numbers with `parts` rows for each: there are no gaps, so runs of columns are rows of their own.
    pub fn in_parts(self, parts: usize) -> Self {
        Floats { rows: self.rows * parts, cols: self.cols / parts, ..self }
    }

    /// The same numbers with one row for `rows` of them, which become runs of its columns.
    pub fn joined(self, rows: usize) -> Self {
        Floats { rows: self.rows / rows, cols: self.cols * rows, ..self }
    }
}

/// A matrix of activation codes with what is needed to read them: `x = scale * (q - zero)`.
///
/// In the arena: codes, `rows` times `stride` bytes; then f32 scales and zero points, one each per group of
/// `rows / groups` rows; then the i32 sum of each row's codes. Columns beyond `cols` hold code 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// Where.
    pub slot: Slot,
    /// Rows: tokens or pixels.
    pub rows: usize,
    /// Features or channels.
    pub cols: usize,
    /// Number of scales.
    pub groups: usize,
    /// The greatest code.
    pub top: u8,
}

impl Codes {
    /// Bytes from one row of codes to the next.
    pub fn stride(&self) -> usize {
        self.cols.next_multiple_of(16)
    }

    /// Offset of the scales from the first code.
    pub fn scale_at(&self) -> usize {
        (self.rows * self.stride()).next_multiple_of(ALIGN)
    }

    /// Offset of the zero points.
    pub fn zero_at(&self) -> usize {
        self.scale_at() + (self.groups * 4).next_multiple_of(ALIGN)
    }

    /// Offset of the row sums.
    pub fn sum_at(&self) -> usize {
        self.zero_at() + (self.groups * 4).next_multiple_of(ALIGN)
    }

    /// Bytes in the arena.
    pub fn bytes(&self) -> usize {
        self.sum_at() + self.rows * 4
    }
}

/// Activations of a matrix product: float or codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Real numbers.
    Floats(Floats),
    /// Integer codes.
    Codes(Codes),
}

impl Input {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Input::Floats(f) => f.rows,
            Input::Codes(c) => c.rows,
        }
    }

    /// Length of a row.
    pub fn cols(&self) -> usize {
        match self {
            Input::Floats(f) => f.cols,
            Input::Codes(c) => c.cols,
        }
    }

    /// Bytes in the arena.
    pub fn bytes(&self) -> usize {
        match self {
            Input::Floats(f) => f.bytes(),
            Input::Codes(c) => c.bytes(),
        }
    }

    /// Where it lies.
    pub fn slot(&self) -> Slot {
        match self {
            Input::Floats(f) => f.slot,
            Input::Codes(c) => c.slot,
        }
    }
}

/// Columns of a per-condition matrix, looked up per sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerSample {
    /// `(conditions, columns)`.
    pub table: Floats,
    /// The u32 condition of each sample.
    pub condition: Slot,
    /// Samples in the batch.
    pub samples: usize,
    /// Rows of the op's result per sample.
    pub rows_per_sample: usize,
}

/// Fixed scales for a quantization, from a curve over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeTable {
    /// `(calls, 2)`: scale and zero point.
    pub table: Slot,
    /// Rows of the quantized matrix per entry of the table.
    pub rows_per_entry: usize,
}

/// How an op quantizes its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizeTo {
    /// The result.
    pub codes: Codes,
    /// What shares a scale.
    pub grain: QuantizeGrain,
    /// Scales from a curve; otherwise from the data.
    pub fixed: Option<RangeTable>,
}

/// The result of an op that may quantize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Real numbers.
    Floats(Floats),
    /// Codes.
    Codes(QuantizeTo),
}

impl Output {
    /// Where it lies, as what reads it sees it.
    pub fn as_input(&self) -> Input {
        match self {
            Output::Floats(y) => Input::Floats(*y),
            Output::Codes(to) => Input::Codes(to.codes),
        }
    }

    /// Where it lies.
    pub fn slot(&self) -> Slot {
        match self {
            Output::Floats(y) => y.slot,
            Output::Codes(to) => to.codes.slot,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.as_input().rows()
    }

    /// Length of a row.
    pub fn cols(&self) -> usize {
        self.as_input().cols()
    }

    /// Bytes in the arena.
    pub fn bytes(&self) -> usize {
        self.as_input().bytes()
    }

    /// The result of a back end whose products make no codes; see [`MemoryRules::makes_codes`](crate::backend::MemoryRules).
    ///
    /// # Panics
    /// If it is codes.
    pub fn floats(&self) -> Floats {
        match self {
            Output::Floats(y) => *y,
            Output::Codes(_) => panic!("codes are planned of an op that makes none"),
        }
    }
}
