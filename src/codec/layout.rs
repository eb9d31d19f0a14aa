//! Where the codes of a quantized matrix lie in the file, so that both back ends read them in place.
//!
//! A `b`-bit code is cut into bit planes of 1, 2, 4 or 8 bits ([`Bits::planes`], low bits first). A plane of `p` bits
//! is made of 16-byte **units**; a unit holds `128 / p` consecutive codes of one row: code `k` of the unit sits in
//! byte `k % 16` at bit `(k / 16) * p`. The units of sixteen rows are adjacent (row-block, then unit index, then row
//! in block), so a 128-bit SIMD lane is one row and a byte shuffle has one table per row. Rows are padded to a
//! multiple of 16 and columns to whole units, once, at the end; padding codes are zero and are never used.
//!
//! The tensor's bytes are five blobs, each starting on a 64-byte boundary: planes (one after another), codebooks,
//! row scales, row offsets, and tap sums. `tap_sums[t][r]` is the sum over input channels of the *integer table
//! entries* of row `r` at kernel tap `t`; it lets a padded convolution with a real zero point stay exact.

use super::{Bits, Grain, QuantizedMatrix, TableValues};
use half::f16;
use zerocopy::{FromBytes, IntoBytes};

/// Rows whose units are adjacent in a plane.
pub const ROW_BLOCK: usize = 16;
/// Bytes of one unit.
pub const UNIT_BYTES: usize = 16;
/// Alignment of every blob.
pub const BLOB_ALIGN: usize = 64;

/// Everything that fixes the size and place of a quantized tensor's blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Width of a code.
    pub bits: Bits,
    /// Output channels.
    pub rows: usize,
    /// Inputs per output channel, all taps together.
    pub cols: usize,
    /// Kernel taps: 1 for a linear layer, 9 for a 3x3 convolution.
    pub taps: usize,
    /// One codebook or one per row.
    pub grain: Grain,
    /// Whether the codebooks hold `i8` (else `f16`).
    pub int8: bool,
}

/// Byte ranges of the five blobs, relative to the tensor's first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blobs {
    /// Each plane's range; the second is empty when the width has a single plane.
    pub planes: [std::ops::Range<usize>; 2],
    /// Codebooks.
    pub table: std::ops::Range<usize>,
    /// `rows` (padded) f32 scales.
    pub scale: std::ops::Range<usize>,
    /// `rows` (padded) f32 offsets.
    pub offset: std::ops::Range<usize>,
    /// `taps * rows` (padded) i32 sums; empty for `f16` codebooks.
    pub tap_sums: std::ops::Range<usize>,
    /// Bytes of the whole tensor, a multiple of [`BLOB_ALIGN`].
    pub total: usize,
}

/// Units per row of a plane of `plane_bits`.
pub const fn units(cols: usize, plane_bits: u8) -> usize {
    cols.div_ceil(128 / plane_bits as usize)
}

impl Layout {
    /// Rows padded to whole row blocks.
    pub fn padded_rows(&self) -> usize {
        self.rows.next_multiple_of(ROW_BLOCK)
    }

    /// Number of codebooks.
    pub fn tables(&self) -> usize {
        match self.grain {
            Grain::Tensor => 1,
            Grain::Row => self.padded_rows(),
        }
    }

    /// The blobs' places. Sizes are bounded by the caller: `rows * cols` must not exceed 2^40.
    pub fn blobs(&self) -> Blobs {
        let mut end = 0;
        let mut blob = |bytes: usize| {
            let start = end;
            end = (start + bytes).next_multiple_of(BLOB_ALIGN);
            start..start + bytes
        };
        let rows = self.padded_rows();
        let planes = self.bits.planes();
        let plane = |i: usize| planes.get(i).map_or(0, |&p| rows * units(self.cols, p) * UNIT_BYTES);
        let planes = [blob(plane(0)), blob(plane(1))];
        let entry_bytes = if self.int8 { 1 } else { 2 };
        let table = blob(self.tables() * self.bits.levels() * entry_bytes);
        let scale = blob(rows * 4);
        let offset = blob(rows * 4);
        let tap_sums = blob(if self.int8 { self.taps * rows * 4 } else { 0 });
        Blobs { planes, table, scale, offset, tap_sums, total: end }
    }
}

/// Codebooks as they lie in the file.
#[derive(Clone, Copy, Debug)]
pub enum Tables<'a> {
    /// Integer entries.
    I8(&'a [i8]),
    /// Exact centroids.
    F16(&'a [f16]),
}

/// A quantized matrix as it lies in the file: borrowed, checked for length, otherwise untouched.
#[derive(Clone, Copy, Debug)]
pub struct PackedMatrix<'a> {
    /// Shape and codec.
    pub layout: Layout,
    /// Bit planes, low bits first; the second may be empty.
    pub planes: [&'a [u8]; 2],
    /// Codebooks.
    pub tables: Tables<'a>,
    /// One scale per padded row.
    pub scale: &'a [f32],
    /// One offset per padded row.
    pub offset: &'a [f32],
    /// `taps * padded rows` sums of table entries; empty for `f16` codebooks.
    pub tap_sums: &'a [i32],
}

impl<'a> PackedMatrix<'a> {
    /// Views `bytes` under `layout`. `None` if the length is not the layout's, or the base is not aligned for f32.
    pub fn new(layout: Layout, bytes: &'a [u8]) -> Option<Self> {
        let blobs = layout.blobs();
        if bytes.len() != blobs.total {
            return None;
        }
        let table = &bytes[blobs.table];
        Some(PackedMatrix {
            layout,
            planes: blobs.planes.map(|range| &bytes[range]),
            tables: if layout.int8 {
                Tables::I8(<[i8]>::ref_from_bytes(table).ok()?)
            } else {
                Tables::F16(<[f16]>::ref_from_bytes(table).ok()?)
            },
            scale: <[f32]>::ref_from_bytes(&bytes[blobs.scale]).ok()?,
            offset: <[f32]>::ref_from_bytes(&bytes[blobs.offset]).ok()?,
            tap_sums: <[i32]>::ref_from_bytes(&bytes[blobs.tap_sums]).ok()?,
        })
    }

    /// The code at (`row`, `col`): the scalar truth of the layout.
    pub fn code(&self, row: usize, col: usize) -> u8 {
        let mut code = 0;
        let mut low = 0;
        for (&plane_bits, plane) in self.layout.bits.planes().iter().zip(self.planes) {
            let per_unit = 128 / usize::from(plane_bits);
            let (unit, k) = (col / per_unit, col % per_unit);
            let units = units(self.layout.cols, plane_bits);
            let at = ((row / ROW_BLOCK * units + unit) * ROW_BLOCK + row % ROW_BLOCK) * UNIT_BYTES + k % 16;
            let shift = (k / 16) * usize::from(plane_bits);
            let mask = ((1u16 << plane_bits) - 1) as u8;
            code |= (plane[at] >> shift & mask) << low;
            low += plane_bits;
        }
        code
    }

    /// The codes at columns `16 * chunk..16 * chunk + 16` of `row`; columns beyond the matrix give 0.
    ///
    /// A chunk of sixteen codes is sixteen bytes of one unit in each plane, shifted alike.
    #[inline(always)]
    pub fn codes16(&self, row: usize, chunk: usize) -> [u8; 16] {
        let mut codes = [0; 16];
        let mut low = 0;
        for (&plane_bits, plane) in self.layout.bits.planes().iter().zip(self.planes) {
            let per_unit = 8 / usize::from(plane_bits);
            let units = units(self.layout.cols, plane_bits);
            let at = ((row / ROW_BLOCK * units + chunk / per_unit) * ROW_BLOCK + row % ROW_BLOCK) * UNIT_BYTES;
            let shift = chunk % per_unit * usize::from(plane_bits);
            let mask = ((1u16 << plane_bits) - 1) as u8;
            for (code, &byte) in codes.iter_mut().zip(&plane[at..at + UNIT_BYTES]) {
                *code |= (byte >> shift & mask) << low;
            }
            low += plane_bits;
        }
        codes
    }

    /// The codebook of `row` as the index of its first entry.
    pub fn table_start(&self, row: usize) -> usize {
        match self.layout.grain {
            Grain::Tensor => 0,
            Grain::Row => row * self.layout.bits.levels(),
        }
    }

    /// The dequantized weight at (`row`, `col`).
    pub fn weight(&self, row: usize, col: usize) -> f32 {
        let at = self.table_start(row) + usize::from(self.code(row, col));
        let entry = match self.tables {
            Tables::I8(t) => f32::from(t[at]),
            Tables::F16(t) => t[at].to_f32(),
        };
        self.scale[row] * (entry + self.offset[row])
    }
}

/// What is wrong with `bytes` that no length or hash tells: `None` if they are what [`pack`] makes of some matrix of
/// finite numbers, else what they should have had. Reads every code once.
pub fn fault(layout: Layout, bytes: &[u8]) -> Option<&'static str> {
    let Some(matrix) = PackedMatrix::new(layout, bytes) else { return Some("the bytes of its layout") };
    let Layout { bits, rows, cols, taps, .. } = layout;
    let (padded, levels, blobs) = (layout.padded_rows(), bits.levels(), layout.blobs());

    let ends = [&blobs.planes[0], &blobs.planes[1], &blobs.table, &blobs.scale, &blobs.offset, &blobs.tap_sums];
    let starts = ends[1..].iter().map(|blob| blob.start).chain([blobs.total]);
    let used = levels * if layout.grain == Grain::Row { rows } else { 1 };
    let unused_entries = match matrix.tables {
        Tables::I8(t) => t[used..].as_bytes(),
        Tables::F16(t) => t[used..].as_bytes(),
    };
    let unused = [unused_entries, matrix.scale[rows..].as_bytes(), matrix.offset[rows..].as_bytes()];
    let mut padding = ends.iter().zip(starts).map(|(blob, next)| &bytes[blob.end..next]).chain(unused);
    let mut planes = bits.planes().iter().zip(matrix.planes);
    let clean = padding.all(|bytes| bytes.iter().all(|&b| b == 0))
        && planes.all(|(&plane_bits, plane)| unused_codes_are_zero(plane, plane_bits, rows, cols));
    if !clean {
        return Some("zeros as padding");
    }

    let centroids_are_finite = match matrix.tables {
        Tables::I8(_) => true,
        Tables::F16(t) => t.iter().all(|v| v.is_finite()),
    };
    if !centroids_are_finite || !matrix.scale.iter().chain(matrix.offset).all(|v| v.is_finite()) {
        return Some("finite numbers");
    }

    let Tables::I8(table) = matrix.tables else { return None };
    let mut sums = vec![0i64; taps];
    for row in 0..padded {
        sums.fill(0);
        if row < rows {
            let table = &table[matrix.table_start(row)..][..levels];
            let (per_tap, mut tap, mut left) = (cols / taps, 0, cols / taps);
            for chunk in 0..cols.div_ceil(16) {
                for &code in &matrix.codes16(row, chunk)[..(cols - 16 * chunk).min(16)] {
                    if left == 0 {
                        (tap, left) = (tap + 1, per_tap);
                    }
                    sums[tap] += i64::from(table[usize::from(code)]);
                    left -= 1;
                }
            }
        }
        if sums.iter().enumerate().any(|(tap, &sum)| i64::from(matrix.tap_sums[tap * padded + row]) != sum) {
            return Some("the tap sums of its codes");
        }
    }
    None
}

/// Whether a plane of `rows` by `cols` codes has zeros beyond its last column and row.
fn unused_codes_are_zero(plane: &[u8], plane_bits: u8, rows: usize, cols: usize) -> bool {
    let (per_unit, units) = (128 / usize::from(plane_bits), units(cols, plane_bits));
    let mask = ((1u16 << plane_bits) - 1) as u8;
    (0..rows.next_multiple_of(ROW_BLOCK)).all(|row| {
        let first = if row < rows { cols } else { 0 };
        (first..units * per_unit).all(|col| {
            let (unit, k) = (col / per_unit, col % per_unit);
            let at = ((row / ROW_BLOCK * units + unit) * ROW_BLOCK + row % ROW_BLOCK) * UNIT_BYTES + k % 16;
            plane[at] >> ((k / 16) * usize::from(plane_bits)) & mask == 0
        })
    })
}

/// Packs `matrix` for a kernel of `taps` taps; returns the layout and the tensor's bytes.
///
/// # Panics
/// If `matrix` breaks its own invariants (lengths, codes below `levels`, `taps` dividing `cols`): a bug of the
/// quantizer, not of its input.
pub fn pack(matrix: &QuantizedMatrix, taps: usize) -> (Layout, Vec<u8>) {
    let QuantizedMatrix { bits, rows, cols, ref codes, ref table, grain, ref scale, ref offset } = *matrix;
    assert_eq!(codes.len(), rows * cols, "one code per weight");
    assert_eq!(cols % taps, 0, "{cols} columns in {taps} taps");
    assert!(scale.len() == rows && offset.len() == rows, "one scale and offset per row");
    assert!(codes.iter().all(|&c| usize::from(c) < bits.levels()), "a code does not fit {bits} bits");
    let layout = Layout { bits, rows, cols, taps, grain, int8: matches!(table, TableValues::I8(_)) };
    let blobs = layout.blobs();
    let mut bytes = vec![0; blobs.total];

    let mut low = 0;
    for (&plane_bits, range) in bits.planes().iter().zip(&blobs.planes) {
        let plane = &mut bytes[range.clone()];
        let per_unit = 128 / usize::from(plane_bits);
        let units = units(cols, plane_bits);
        let mask = ((1u16 << plane_bits) - 1) as u8;
        for (row, codes) in codes.chunks_exact(cols.max(1)).enumerate() {
            for (col, &code) in codes.iter().enumerate() {
                let (unit, k) = (col / per_unit, col % per_unit);
                let at = ((row / ROW_BLOCK * units + unit) * ROW_BLOCK + row % ROW_BLOCK) * UNIT_BYTES + k % 16;
                plane[at] |= (code >> low & mask) << ((k / 16) * usize::from(plane_bits));
            }
        }
        low += plane_bits;
    }

    let levels = bits.levels();
    let used = match grain {
        Grain::Tensor => levels,
        Grain::Row => levels * rows,
    };
    let at = blobs.table.start;
    match table {
        TableValues::I8(t) => bytes[at..at + used].copy_from_slice(t[..used].as_bytes()),
        TableValues::F16(t) => bytes[at..at + 2 * used].copy_from_slice(t[..used].as_bytes()),
    }
    bytes[blobs.scale.start..blobs.scale.start + 4 * rows].copy_from_slice(scale.as_bytes());
    bytes[blobs.offset.start..blobs.offset.start + 4 * rows].copy_from_slice(offset.as_bytes());
    if let TableValues::I8(t) = table {
        let padded = layout.padded_rows();
        let per_tap = cols / taps;
        for row in 0..rows {
            let table = match grain {
                Grain::Tensor => &t[..levels],
                Grain::Row => &t[row * levels..][..levels],
            };
            for tap in 0..taps {
                let codes = &codes[row * cols + tap * per_tap..][..per_tap];
                let sum: i32 = codes.iter().map(|&c| i32::from(table[usize::from(c)])).sum();
                let at = blobs.tap_sums.start + 4 * (tap * padded + row);
                bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
            }
        }
    }
    (layout, bytes)
}
