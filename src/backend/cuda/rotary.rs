//! Rotary position embedding: `kernels/rotary.cu`.

use super::args::{Floats, Frame, structs};
use super::launch::{Kernel, Launch};
use crate::backend::args;
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// Pairs turned; rows of the table repeat.
    RotaryArgs, 104 { calls: u64, x: Floats, table: Floats, y: Floats }
}

/// Threads per block.
const BLOCK: u32 = 256;

/// See [`Op::Rotary`](crate::program::Op::Rotary).
pub fn rotary(frame: &Frame, args: &args::RotaryArgs, issue: &mut impl FnMut(Launch<'_>)) {
    let kernel = Kernel { module: "rotary", entry: "rotary" };
    let run = if args.y.cols.is_multiple_of(8) { 8 } else { 2 };
    let grid = [(args.y.rows * args.y.cols).div_ceil(BLOCK as usize * run) as u32, 1, 1];
    let (x, table, y) = (frame.floats(&args.x), frame.floats(&args.table), frame.floats(&args.y));
    let args = RotaryArgs { calls: frame.calls, x, table, y };
    issue(Launch { kernel, grid, block: BLOCK, shared: 0, args: args.as_bytes() });
}
