//! Quantization: `kernels/quantize.cu`, and what all kernels that quantize share.

use super::DeviceTensor;
use super::args::{Codes, Fixed, Floats, Frame, structs};
use super::launch::{Kernel, Launch};
use crate::backend::args;
use crate::program::QuantizeGrain;
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// Where a quantized result goes and what shares a scale.
    QuantizeTo, 104 { to: Codes, fixed: Fixed, extents: u64, extent_blocks: u32, pad: u32 }

    /// Codes of rows.
    QuantizeArgs, 152 { calls: u64, x: Floats, y: QuantizeTo, rows_per_team: u32, pad: u32 }

    /// Codes of rows that go through factors and a rotation before.
    TurnedArgs, 160 { calls: u64, x: Floats, y: QuantizeTo, factors: u64, block: u32, pad: u32 }

    /// Extents of parts of samples.
    ExtentArgs, 56 { calls: u64, x: Floats, extents: u64, samples: u32, blocks: u32 }
}

/// Blocks per sample in a pass that finds extents, at most.
const EXTENT_BLOCKS: usize = 128;

/// Elements that are worth a block of such a pass.
const EXTENT_ELEMENTS: usize = 8192;

/// Longest rows of the variants of `kernels/rows.cuh`; 0 is any length. Up to [`WARP_ROW`] a row has a warp, else a
/// block of four.
pub const ROWS: [usize; 7] = [256, 512, 1280, 2048, 4096, 8192, 0];
const WARP_ROW: usize = 1280;

/// Threads of a block that works on rows.
pub const ROW_THREADS: u32 = 128;

/// Names a module per entry of [`ROWS`].
macro_rules! row_modules {
    ($stem:literal) => {
        [
            concat!($stem, ".r256"),
            concat!($stem, ".r512"),
            concat!($stem, ".r1280"),
            concat!($stem, ".r2048"),
            concat!($stem, ".r4096"),
            concat!($stem, ".r8192"),
            concat!($stem, ".r0"),
        ]
    };
}
pub(super) use row_modules;

const MODULES: [&str; ROWS.len()] = row_modules!("quantize");

/// The variant for rows of `cols`: its index in [`ROWS`], and how many rows a block works on at a time.
pub fn row_variant(cols: usize) -> (usize, usize) {
    let variant = ROWS.iter().position(|&longest| cols <= longest).unwrap_or(ROWS.len() - 1);
    (variant, if cols <= WARP_ROW { 4 } else { 1 })
}

/// Rows for one team after another: where there are many, what they share is worth keeping.
pub fn rows_per_team(rows: usize) -> usize {
    (rows / 4096).clamp(1, 8)
}

/// Resolves where codes go. `extents`: the address of the samples' extents, and how many each has.
pub fn quantize_to(frame: &Frame, to: &args::QuantizeTo, extents: Option<(u64, usize)>) -> QuantizeTo {
    let (at, blocks) = extents.unwrap_or((0, 0));
    QuantizeTo {
        to: frame.codes(&to.codes),
        fixed: frame.fixed(to.fixed.as_ref(), to.codes.rows),
        extents: at,
        extent_blocks: blocks as u32,
        pad: 0,
    }
}

/// Whether a sample's extent is needed before its codes.
pub fn needs_extents(to: &args::QuantizeTo) -> bool {
    to.grain == QuantizeGrain::Sample && to.fixed.is_none()
}

fn extent_blocks(x: &args::Floats, groups: usize) -> usize {
    (x.rows / groups * x.cols).div_ceil(EXTENT_ELEMENTS).clamp(1, EXTENT_BLOCKS)
}

/// Bytes of the extents of `groups` samples of `x`: lowest and highest value of each part of each.
pub fn extents_bytes(x: &args::Floats, groups: usize) -> usize {
    groups * extent_blocks(x, groups) * 8
}

/// Finds the extents of `groups` samples of `x`, at `workspace`; tells where they lie, and how many each has.
pub fn extents(
    frame: &Frame,
    x: &args::Floats,
    groups: usize,
    workspace: args::Slot,
    issue: &mut impl FnMut(Launch<'_>),
) -> (u64, usize) {
    let (blocks, at) = (extent_blocks(x, groups), frame.place(workspace, extents_bytes(x, groups)));
    let args = ExtentArgs {
        calls: frame.calls,
        x: frame.floats(x),
        extents: at,
        samples: groups as u32,
        blocks: blocks as u32,
    };
    let kernel = Kernel { module: MODULES[row_variant(x.cols).0], entry: "sample_extent" };
    issue(Launch { kernel, grid: [(groups * blocks) as u32, 1, 1], block: 256, shared: 0, args: args.as_bytes() });
    (at, blocks)
}

/// Bytes of arena: those of extents.
pub fn quantize_workspace(args: &args::QuantizeArgs) -> usize {
    if needs_extents(&args.y) { extents_bytes(&args.x, args.y.codes.groups) } else { 0 }
}

/// See [`Op::Quantize`](crate::program::Op::Quantize).
pub fn quantize(
    frame: &Frame,
    args: &args::QuantizeArgs,
    factors: Option<&DeviceTensor<'_>>,
    issue: &mut impl FnMut(Launch<'_>),
) {
    let (calls, x) = (frame.calls, frame.floats(&args.x));
    assert_eq!((args.x.rows, args.x.cols), (args.y.codes.rows, args.y.codes.cols), "shape of codes");
    let (variant, teams) = row_variant(args.x.cols);
    let kernel = |entry| Kernel { module: MODULES[variant], entry };
    if let Some(factors) = factors {
        let (y, factors) = (quantize_to(frame, &args.y, None), frame.elements(factors, args.x.cols));
        let grid = [args.x.rows.div_ceil(teams) as u32, 1, 1];
        let args = TurnedArgs { calls, x, y, factors, block: args.block as u32, pad: 0 };
        let kernel = kernel("quantize_turned");
        return issue(Launch { kernel, grid, block: ROW_THREADS, shared: 0, args: args.as_bytes() });
    }
    let samples = args.y.codes.groups;
    let extents = needs_extents(&args.y).then(|| extents(frame, &args.x, samples, args.workspace, issue));
    let y = quantize_to(frame, &args.y, extents);
    let each = if extents.is_some() { rows_per_team(args.x.rows) } else { 1 };
    let grid = [args.x.rows.div_ceil(teams * each) as u32, 1, 1];
    let args = QuantizeArgs { calls, x, y, rows_per_team: each as u32, pad: 0 };
    issue(Launch { kernel: kernel("quantize_rows"), grid, block: ROW_THREADS, shared: 0, args: args.as_bytes() });
}
