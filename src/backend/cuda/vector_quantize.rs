//! Vector quantization: `kernels/vector_quantize.cu`.

use super::DeviceTensor;
use super::args::{Floats, Frame, structs};
use super::launch::{Kernel, Launch};
use crate::backend::args;
use crate::format::TensorView;
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// Nearest rows of a table.
    VectorQuantizeArgs, 88 { calls: u64, x: Floats, y: Floats, table: u64, table_rows: u32, pad: u32 }
}

/// Threads per block; a warp has one row.
const BLOCK: u32 = 128;

/// See [`Op::VectorQuantize`](crate::program::Op::VectorQuantize).
pub fn vector_quantize(
    frame: &Frame,
    args: &args::VectorQuantizeArgs,
    table: &DeviceTensor<'_>,
    issue: &mut impl FnMut(Launch<'_>),
) {
    let TensorView::F32(elements) = table.view else { unreachable!("the shape rules let only f32 tables through") };
    let kernel = Kernel { module: "vector_quantize", entry: "vector_quantize" };
    let grid = [args.x.rows.div_ceil(BLOCK as usize / 32) as u32, 1, 1];
    let args = VectorQuantizeArgs {
        calls: frame.calls,
        x: frame.floats(&args.x),
        y: frame.floats(&args.y),
        table: frame.elements(table, args.x.cols),
        table_rows: (elements.len() / args.x.cols) as u32,
        pad: 0,
    };
    issue(Launch { kernel, grid, block: BLOCK, shared: 0, args: args.as_bytes() });
}
