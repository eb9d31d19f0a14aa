//! The kernels' arguments: `kernels/args.cuh` again, field by field. Sizes are asserted on both sides.

use super::weights::{self, DeviceTensor, Run};
use crate::backend::{Call, args};
use crate::codec::Grain;
use crate::codec::layout::{Layout, Tables};
use crate::format::TensorView;
use crate::program::Act;
use std::cell::Cell;
use zerocopy::{FromZeros, Immutable, IntoBytes};

macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident, $bytes:literal { $($(#[$field_doc:meta])* $field:ident: $ty:ty),+ $(,)? })+) => {
        $(
            $(#[$doc])*
            #[allow(missing_docs)] // Fields carry the names and meanings of the kernels' structs.
            #[derive(Clone, Copy, Debug, PartialEq, FromZeros, IntoBytes, Immutable)]
            #[repr(C)]
            pub struct $name { $($(#[$field_doc])* pub $field: $ty),+ }
            const _: () = assert!(size_of::<$name>() == $bytes);
        )+
    };
}
pub(super) use structs;

structs! {
    /// A float matrix; address 0 means none.
    Floats, 32 { at: u64, stride: u64, rows: u32, cols: u32, half: u32, pad: u32 }

    /// Activation codes; offsets count bytes from the first code.
    Codes, 64 {
        at: u64, stride: u64, scale_at: u64, zero_at: u64, sum_at: u64,
        rows: u32, cols: u32, row_bytes: u32, groups: u32, top: u32, pad: u32,
    }

    /// Scales from a table; address 0 means from the data.
    Fixed, 24 { at: u64, stride: u64, rows_per_entry: u32, pad: u32 }

    /// Columns of a per-condition matrix.
    PerSample, 48 { table: Floats, condition: u64, rows_per_sample: u32, pad: u32 }

    /// A weight matrix.
    Weight, 88 {
        plane: [u64; 2], table: u64, scale: u64, offset: u64, tap_sums: u64,
        kind: u32, bits: u32, rows: u32, padded_rows: u32, cols: u32, taps: u32,
        per_row: u32, consecutive: u32, low: u32, high: u32,
    }

    /// Where the inputs of an output row lie.
    Window, 40 {
        taps: u32, channels: u32, height: u32, width: u32, out_height: u32, out_width: u32,
        upsample: u32, stride: u32, before: u32, pad: u32,
    }

    /// What happens to a product.
    Epilogue, 152 {
        bias: u64, residual: Floats, shift: PerSample, gate: PerSample,
        shift_column: u32, gate_column: u32, act: u32, gated: u32,
    }

    /// A product of codes.
    IntegerProductArgs, 384 { calls: u64, x: Codes, weight: Weight, y: Floats, window: Window, epilogue: Epilogue }

    /// A product of floats.
    FloatProductArgs, 352 { calls: u64, x: Floats, weight: Weight, y: Floats, window: Window, epilogue: Epilogue }
}

/// The number of an activation function in `args.cuh`.
pub fn act(act: Act) -> u32 {
    match act {
        Act::None => 0,
        Act::Silu => 1,
        Act::GeluTanh => 2,
        Act::GeluErf => 3,
        Act::QuickGelu => 4,
    }
}

/// What kind of numbers a weight holds, as in `args.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum WeightKind {
    F32,
    F16,
    CodesI8,
    CodesF16,
}

impl WeightKind {
    /// The kind of `tensor`.
    pub fn of(tensor: &TensorView<'_>) -> Self {
        match tensor {
            TensorView::F32(_) => WeightKind::F32,
            TensorView::F16(_) => WeightKind::F16,
            TensorView::Codes(m) if m.layout.int8 => WeightKind::CodesI8,
            TensorView::Codes(_) => WeightKind::CodesF16,
        }
    }
}

/// Where the operands of an op lie on the device. Every address that it gives was asserted to lie in the arena, with all
/// that a kernel reads or writes from there at any call: operands that lie `stride` bytes apart lower the number of calls
/// that the arena is good for, which [`Arena`](super::Arena) asserts before a call begins. Tensors lie in the weights that
/// the arena holds.
///
/// # Panics
/// All methods, if an operand does not lie in the arena or a tensor in its weights: a bug of the caller.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The arena's first byte, and how many there are.
    arena: u64,
    bytes: usize,
    /// The numbers of the current call, two u32.
    pub calls: u64,
    /// The current call, if one has begun.
    call: Option<Call>,
    limit: &'a Cell<Call>,
    weights: &'a [Run],
}

impl<'a> Frame<'a> {
    /// A frame of `bytes` at device address `arena`, all allocated; `calls` is the address of the numbers of the current
    /// `call`. `limit` holds the number of calls, of a window and of a run, that all operands so far have room for.
    pub(super) fn new(
        arena: u64,
        bytes: usize,
        calls: u64,
        call: Option<Call>,
        limit: &'a Cell<Call>,
        weights: &'a [Run],
    ) -> Self {
        Frame { arena, bytes, calls, call, limit, weights }
    }

    /// The address of an operand of `len` bytes: of its entry for call 0, if it has one per call of the tables' window.
    pub fn place(&self, slot: args::Slot, len: usize) -> u64 {
        let calls = self.entries(slot, len, self.call.map(|call| call.row));
        let limit = self.limit.get();
        self.limit.set(Call { row: limit.row.min(calls), ..limit });
        self.arena + slot.at as u64
    }

    /// The same for what has an entry per call of the run.
    pub fn place_of_run(&self, slot: args::Slot, len: usize) -> u64 {
        let calls = self.entries(slot, len, self.call.map(|call| call.step));
        let limit = self.limit.get();
        self.limit.set(Call { step: limit.step.min(calls), ..limit });
        self.arena + slot.at as u64
    }

    /// How many entries of `len` bytes there is room for; the current one, if known, is among them.
    fn entries(&self, slot: args::Slot, len: usize, current: Option<usize>) -> usize {
        let end = slot.at.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.bytes), "{len} bytes at {} of an arena of {}", slot.at, self.bytes);
        let entries = (self.bytes - slot.at - len).checked_div(slot.stride).map_or(usize::MAX, |more| more + 1);
        assert!(current.is_none_or(|call| call < entries), "call {current:?} of {entries} from {} on", slot.at);
        entries
    }

    /// A float matrix.
    pub fn floats(&self, f: &args::Floats) -> Floats {
        Floats {
            at: self.place(f.slot, f.bytes()),
            stride: f.slot.stride as u64,
            rows: f.rows as u32,
            cols: f.cols as u32,
            half: u32::from(f.element == args::Element::F16),
            pad: 0,
        }
    }

    /// A float matrix that may be absent.
    pub fn optional(&self, f: Option<&args::Floats>) -> Floats {
        f.map_or_else(Floats::new_zeroed, |f| self.floats(f))
    }

    /// Activation codes.
    pub fn codes(&self, c: &args::Codes) -> Codes {
        Codes {
            at: self.place(c.slot, c.bytes()),
            stride: c.slot.stride as u64,
            scale_at: c.scale_at() as u64,
            zero_at: c.zero_at() as u64,
            sum_at: c.sum_at() as u64,
            rows: c.rows as u32,
            cols: c.cols as u32,
            row_bytes: c.stride() as u32,
            groups: c.groups as u32,
            top: u32::from(c.top),
            pad: 0,
        }
    }

    /// Scales from a table for a matrix of `rows`, or none.
    pub fn fixed(&self, f: Option<&args::RangeTable>, rows: usize) -> Fixed {
        f.map_or_else(Fixed::new_zeroed, |f| Fixed {
            at: self.place(f.table, rows.div_ceil(f.rows_per_entry) * 8),
            stride: f.table.stride as u64,
            rows_per_entry: f.rows_per_entry as u32,
            pad: 0,
        })
    }

    /// Columns of a per-condition matrix for a result of `rows`, or none; `columns` ends the last of them.
    pub fn per_sample(&self, p: Option<&args::PerSample>, rows: usize, columns: usize) -> PerSample {
        p.map_or_else(PerSample::new_zeroed, |p| {
            assert!(columns <= p.table.cols, "{columns} columns of a table of {}", p.table.cols);
            let most = p.samples * p.rows_per_sample;
            assert!(rows <= most, "{rows} rows of {} samples of {}", p.samples, p.rows_per_sample);
            PerSample {
                table: self.floats(&p.table),
                condition: self.place(p.condition, p.samples * 4),
                rows_per_sample: p.rows_per_sample as u32,
                pad: 0,
            }
        })
    }

    /// The address of a plain tensor of at least `len` elements.
    pub fn elements(&self, tensor: &DeviceTensor<'_>, len: usize) -> u64 {
        let have = match tensor.view {
            TensorView::F32(v) => v.len(),
            TensorView::F16(v) => v.len(),
            TensorView::Codes(_) => 0,
        };
        assert!(len <= have, "{len} elements of a plain tensor that has {have}");
        weights::address(self.weights, &tensor.place())
    }

    /// A weight of `rows` output channels and `cols` inputs, which are all that the tensor has.
    pub fn weight(&self, tensor: &DeviceTensor<'_>, rows: usize, cols: usize) -> Weight {
        let (at, tensor) = (weights::address(self.weights, &tensor.place()), &tensor.view);
        let have = match tensor {
            TensorView::F32(v) => v.len(),
            TensorView::F16(v) => v.len(),
            TensorView::Codes(m) => m.layout.rows * m.layout.cols,
        };
        assert_eq!(have, rows * cols, "elements of a weight of {rows} x {cols}");
        let mut weight = Weight::new_zeroed();
        weight.kind = WeightKind::of(tensor) as u32;
        (weight.rows, weight.padded_rows, weight.cols, weight.taps) = (rows as u32, rows as u32, cols as u32, 1);
        weight.plane[0] = at;
        let TensorView::Codes(matrix) = tensor else { return weight };
        let layout: &Layout = &matrix.layout;
        let blobs = layout.blobs();
        weight.plane = blobs.planes.map(|p| at + p.start as u64);
        weight.table = at + blobs.table.start as u64;
        weight.scale = at + blobs.scale.start as u64;
        weight.offset = at + blobs.offset.start as u64;
        weight.tap_sums = at + blobs.tap_sums.start as u64;
        (weight.bits, weight.taps) = (u32::from(layout.bits.get()), layout.taps as u32);
        (weight.rows, weight.padded_rows) = (layout.rows as u32, layout.padded_rows() as u32);
        weight.per_row = u32::from(layout.grain == Grain::Row);
        if let (Tables::I8(table), Grain::Tensor) = (matrix.tables, layout.grain)
            && table.windows(2).all(|pair| i16::from(pair[1]) == i16::from(pair[0]) + 1)
        {
            let first = u32::from(table[0] as u8) * 0x0101_0101;
            (weight.consecutive, weight.low, weight.high) = (1, first & 0x7f7f_7f7f, first & 0x8080_8080);
        }
        weight
    }
}
