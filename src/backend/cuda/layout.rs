//! Ops that only move data: `kernels/layout.cu`.

use super::DeviceTensor;
use super::args::{Floats, Frame, structs};
use super::launch::{Kernel, Launch};
use crate::backend::args;
use crate::format::TensorView;
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// Patchify, or back.
    PatchArgs, 96 {
        calls: u64, x: Floats, y: Floats, height: u32, width: u32, channels: u32, patch: u32, inverse: u32, pad: u32,
    }

    /// Two matrices side by side.
    ConcatArgs, 104 { calls: u64, a: Floats, b: Floats, y: Floats }

    /// Some columns of a matrix.
    SliceArgs, 80 { calls: u64, x: Floats, y: Floats, first: u32, pad: u32 }

    /// Rows of a table in place of some of a matrix.
    PadRowsArgs, 104 {
        calls: u64, x: Floats, y: Floats, table: u64, lengths: u64, table_half: u32, tokens: u32, first: u32, pad: u32,
    }
}

/// Threads per block.
const BLOCK: u32 = 256;

/// See [`Op::Patchify`](crate::program::Op::Patchify) and [`Op::Unpatchify`](crate::program::Op::Unpatchify).
pub fn patch(frame: &Frame, args: &args::PatchArgs, issue: &mut impl FnMut(Launch<'_>)) {
    let kernel = Kernel { module: "layout", entry: "patch" };
    let run = if (args.patch * args.channels).is_multiple_of(8) { 8 } else { 1 };
    let grid = [(args.y.rows * args.y.cols).div_ceil(BLOCK as usize * run) as u32, 1, 1];
    let args = PatchArgs {
        calls: frame.calls,
        x: frame.floats(&args.x),
        y: frame.floats(&args.y),
        height: args.height as u32,
        width: args.width as u32,
        channels: args.channels as u32,
        patch: args.patch as u32,
        inverse: u32::from(args.inverse),
        pad: 0,
    };
    issue(Launch { kernel, grid, block: BLOCK, shared: 0, args: args.as_bytes() });
}

/// See [`Op::Concat`](crate::program::Op::Concat).
pub fn concat(frame: &Frame, args: &args::ConcatArgs, issue: &mut impl FnMut(Launch<'_>)) {
    let kernel = Kernel { module: "layout", entry: "concat" };
    let run = if (args.a.cols | args.b.cols).is_multiple_of(8) { 8 } else { 1 };
    let grid = [(args.y.rows * args.y.cols).div_ceil(BLOCK as usize * run) as u32, 1, 1];
    let (a, b, y) = (frame.floats(&args.a), frame.floats(&args.b), frame.floats(&args.y));
    let args = ConcatArgs { calls: frame.calls, a, b, y };
    issue(Launch { kernel, grid, block: BLOCK, shared: 0, args: args.as_bytes() });
}

/// See [`Op::Slice`](crate::program::Op::Slice).
pub fn slice(frame: &Frame, args: &args::SliceArgs, issue: &mut impl FnMut(Launch<'_>)) {
    let kernel = Kernel { module: "layout", entry: "slice" };
    let run = if (args.x.cols | args.y.cols | args.first).is_multiple_of(8) { 8 } else { 1 };
    let grid = [(args.y.rows * args.y.cols).div_ceil(BLOCK as usize * run) as u32, 1, 1];
    let (x, y) = (frame.floats(&args.x), frame.floats(&args.y));
    let args = SliceArgs { calls: frame.calls, x, y, first: args.first as u32, pad: 0 };
    issue(Launch { kernel, grid, block: BLOCK, shared: 0, args: args.as_bytes() });
}

/// See [`Op::PadRows`](crate::program::Op::PadRows).
pub fn pad_rows(frame: &Frame, args: &args::PadRowsArgs, table: &DeviceTensor<'_>, issue: &mut impl FnMut(Launch<'_>)) {
    let kernel = Kernel { module: "layout", entry: "pad_rows" };
    let grid = [(args.y.rows * args.y.cols).div_ceil(BLOCK as usize) as u32, 1, 1];
    let args = PadRowsArgs {
        calls: frame.calls,
        x: frame.floats(&args.x),
        y: frame.floats(&args.y),
        table: frame.elements(table, (args.first + args.tokens) * args.y.cols),
        lengths: frame.place(args.lengths, args.y.rows / args.tokens * 4),
        table_half: u32::from(matches!(table.view(), TensorView::F16(_))),
        tokens: args.tokens as u32,
        first: args.first as u32,
        pad: 0,
    };
    issue(Launch { kernel, grid, block: BLOCK, shared: 0, args: args.as_bytes() });
}
