//! Elementwise ops: `kernels/pointwise.cu`.

use super::args::{Floats, Frame, act, structs};
use super::launch::{Kernel, Launch};
use crate::backend::args;
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// `act(x) * mul + add`.
    PointwiseArgs, 88 { calls: u64, x: Floats, y: Floats, act: u32, mul: f32, add: f32, pad: u32 }

    /// A sum or product; rows of `b` repeat.
    PairArgs, 104 { calls: u64, a: Floats, b: Floats, y: Floats }
}

/// Threads per block, and elements per thread.
const BLOCK: u32 = 256;
const RUN: usize = 8;

/// Blocks for all elements of `y`.
fn grid(y: &args::Floats) -> [u32; 3] {
    [(y.rows * y.cols).div_ceil(BLOCK as usize * RUN) as u32, 1, 1]
}

/// See [`Op::Pointwise`](crate::program::Op::Pointwise).
pub fn pointwise(frame: &Frame, args: &args::PointwiseArgs, issue: &mut impl FnMut(Launch<'_>)) {
    let kernel = Kernel { module: "pointwise", entry: "pointwise" };
    let grid = grid(&args.y);
    let (x, y) = (frame.floats(&args.x), frame.floats(&args.y));
    let args = PointwiseArgs { calls: frame.calls, x, y, act: act(args.act), mul: args.mul, add: args.add, pad: 0 };
    issue(Launch { kernel, grid, block: BLOCK, shared: 0, args: args.as_bytes() });
}

/// See [`Op::Add`](crate::program::Op::Add).
pub fn add(frame: &Frame, args: &args::PairArgs, issue: &mut impl FnMut(Launch<'_>)) {
    pair("add", frame, args, issue);
}

/// See [`Op::Multiply`](crate::program::Op::Multiply).
pub fn multiply(frame: &Frame, args: &args::PairArgs, issue: &mut impl FnMut(Launch<'_>)) {
    pair("multiply", frame, args, issue);
}

fn pair(entry: &'static str, frame: &Frame, args: &args::PairArgs, issue: &mut impl FnMut(Launch<'_>)) {
    let kernel = Kernel { module: "pointwise", entry };
    let grid = grid(&args.y);
    let (a, b, y) = (frame.floats(&args.a), frame.floats(&args.b), frame.floats(&args.y));
    let args = PairArgs { calls: frame.calls, a, b, y };
    issue(Launch { kernel, grid, block: BLOCK, shared: 0, args: args.as_bytes() });
}
