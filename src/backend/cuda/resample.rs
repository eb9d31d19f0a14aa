//! More or fewer pixels: `kernels/resample.cu`.

use super::args::{Floats, Frame, structs};
use super::launch::{Kernel, Launch};
use crate::backend::args;
use crate::program::Resampling;
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// More or fewer pixels.
    ResampleArgs, 96 {
        calls: u64, x: Floats, y: Floats, height: u32, width: u32, out_height: u32, out_width: u32, mean: u32, pad: u32,
    }
}

/// Threads per block.
const BLOCK: u32 = 256;

/// See [`Op::Resample`](crate::program::Op::Resample).
pub fn resample(frame: &Frame, args: &args::ResampleArgs, issue: &mut impl FnMut(Launch<'_>)) {
    let kernel = Kernel { module: "resample", entry: "resample" };
    let run = if args.y.cols.is_multiple_of(8) { 8 } else { 1 };
    let grid = [(args.y.rows * args.y.cols).div_ceil(BLOCK as usize * run) as u32, 1, 1];
    let (out_height, out_width) = match args.how {
        Resampling::Nearest => (2 * args.height, 2 * args.width),
        Resampling::Mean => (args.height / 2, args.width / 2),
    };
    let args = ResampleArgs {
        calls: frame.calls,
        x: frame.floats(&args.x),
        y: frame.floats(&args.y),
        height: args.height as u32,
        width: args.width as u32,
        out_height: out_height as u32,
        out_width: out_width as u32,
        mean: u32::from(args.how == Resampling::Mean),
        pad: 0,
    };
    issue(Launch { kernel, grid, block: BLOCK, shared: 0, args: args.as_bytes() });
}
