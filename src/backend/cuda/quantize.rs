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

fn extent_blocks(args: &args::QuantizeArgs) -> usize {
    let elements = args.x.rows / args.y.codes.groups * args.x.cols;
    elements.div_ceil(EXTENT_ELEMENTS).clamp(1, EXTENT_BLOCKS)
}

/// Bytes of arena: lowest and highest value of each part of each sample.
pub fn quantize_workspace(args: &args::QuantizeArgs) -> usize {
    if needs_extents(&args.y) { args.y.codes.groups * extent_blocks(args) * 8 } else { 0 }
}

/// See [`Op::Quantize`](crate::program::Op::Quantize).
pub fn quantize(
    frame: &Frame,
    args: &args::QuantizeArgs,
    factors: Option<&DeviceTensor<'_>>,
    issue: &mut impl FnMut(Launch<'_>),
) {
    const MODULES: [&str; ROWS.len()] = row_modules!("quantize");
    let (calls, x, samples) = (frame.calls, frame.floats(&args.x), args.y.codes.groups);
    assert_eq!((args.x.rows, args.x.cols), (args.y.codes.rows, args.y.codes.cols), "shape of codes");
    let (variant, teams) = row_variant(args.x.cols);
    let kernel = |entry| Kernel { module: MODULES[variant], entry };
    if let Some(factors) = factors {
        let (y, factors) = (quantize_to(frame, &args.y, None), factors.elements(args.x.cols));
        let grid = [args.x.rows.div_ceil(teams) as u32, 1, 1];
        let args = TurnedArgs { calls, x, y, factors, block: args.block as u32, pad: 0 };
        let kernel = kernel("quantize_turned");
        return issue(Launch { kernel, grid, block: ROW_THREADS, shared: 0, args: args.as_bytes() });
    }
    let extents =
        needs_extents(&args.y).then(|| (frame.place(args.workspace, quantize_workspace(args)), extent_blocks(args)));
    let y = quantize_to(frame, &args.y, extents);
    if let Some((extents, blocks)) = extents {
        let args = ExtentArgs { calls, x, extents, samples: samples as u32, blocks: blocks as u32 };
        let grid = [(samples * blocks) as u32, 1, 1];
        issue(Launch { kernel: kernel("sample_extent"), grid, block: 256, shared: 0, args: args.as_bytes() });
    }
    let each = if extents.is_some() { rows_per_team(args.x.rows) } else { 1 };
    let grid = [args.x.rows.div_ceil(teams * each) as u32, 1, 1];
    let args = QuantizeArgs { calls, x, y, rows_per_team: each as u32, pad: 0 };
    issue(Launch { kernel: kernel("quantize_rows"), grid, block: ROW_THREADS, shared: 0, args: args.as_bytes() });
}
