//! Rounding of activations that stay floats: `kernels/round.cu`.

use super::args::{Fixed, Floats, Frame, structs};
use super::launch::{Kernel, Launch};
use super::quantize::{ROW_THREADS, extents, extents_bytes};
use crate::backend::args;
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// What the codes of rows stand for.
    RoundArgs, 120 {
        calls: u64, x: Floats, y: Floats, fixed: Fixed, extents: u64, extent_blocks: u32, groups: u32, top: f32, pad: u32,
    }
}

/// Whether rows share a range that is not known before.
fn needs_extents(args: &args::RoundArgs) -> bool {
    args.fixed.is_none() && args.groups < args.x.rows
}

/// Bytes of arena: those of extents.
pub fn workspace(args: &args::RoundArgs) -> usize {
    if needs_extents(args) { extents_bytes(&args.x, args.groups) } else { 0 }
}

/// See [`Op::Round`](crate::program::Op::Round). A warp has one row.
pub fn round(frame: &Frame, args: &args::RoundArgs, issue: &mut impl FnMut(Launch<'_>)) {
    assert_eq!((args.x.rows, args.x.cols), (args.y.rows, args.y.cols), "shape of rounded rows");
    let found = needs_extents(args).then(|| extents(frame, &args.x, args.groups, args.workspace, issue));
    let (extents, blocks) = found.unwrap_or((0, 0));
    let grid = [args.x.rows.div_ceil(ROW_THREADS as usize / 32) as u32, 1, 1];
    let args = RoundArgs {
        calls: frame.calls,
        x: frame.floats(&args.x),
        y: frame.floats(&args.y),
        fixed: frame.fixed(args.fixed.as_ref(), args.x.rows),
        extents,
        extent_blocks: blocks as u32,
        groups: args.groups as u32,
        top: f32::from(args.top),
        pad: 0,
    };
    let kernel = Kernel { module: "round", entry: "round_rows" };
    issue(Launch { kernel, grid, block: ROW_THREADS, shared: 0, args: args.as_bytes() });
}
